"""Preference optimization: groups of responses in, a better model out. `loop.train` is the story; importing this imports no torch."""
