"""JSON records with a checksum of their content, so that a flipped bit on the disk is never read as other values.

The checksum covers the values, not their formatting: a file that another tool reformatted is still intact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKSUM = "checksum"
"""The key added to every record; its last one."""


def checksum(*parts: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of some texts."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def dumps(record: Mapping[str, Any], indent: int | None = None) -> str:
    """A record as JSON text, on one line without `indent`."""
    # Through JSON and back: what is summed must be what a reader gets, with strings as keys and lists for tuples.
    plain = json.loads(json.dumps({key: value for key, value in record.items() if key != CHECKSUM}))
    return json.dumps({**plain, CHECKSUM: _sum(plain)}, indent=indent, ensure_ascii=False) + "\n"


def loads(text: str) -> dict[str, Any]:
    """The record without its checksum. Raises ValueError where the text is no JSON object or fails its checksum."""
    try:
        record = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    expected = record.pop(CHECKSUM, None)
    if expected is None:
        raise ValueError("it has no checksum")
    if expected != _sum(record):
        raise ValueError("it fails its checksum")
    return record


def load(path: Path) -> dict[str, Any]:
    """The record in a file. Raises OSError where the file cannot be read, ValueError as `loads`."""
    return loads(path.read_text(encoding="utf-8"))


def _sum(plain: Mapping[str, Any]) -> str:
    return checksum(json.dumps(plain, sort_keys=True, separators=(",", ":")))
