"""Ready-made preference pairs, whatever format they come in. `read` turns [[preferences]] tables into questions and pairs.

Each format is a small function in `formats.py` that gives the same value, a PreferenceRow; `build.py` checks it, once for all formats.
"""

from mixpo.preferences.read import DUPLICATE, Imported, read

__all__ = ["DUPLICATE", "Imported", "read"]
