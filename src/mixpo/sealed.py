"""JSON records and Parquet shards with a checksum, so that a flipped bit on the disk is never read as other values.

The checksum of a JSON record covers the values, not their formatting: a file that another tool reformatted is still intact. That of a shard
covers every byte and the name of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKSUM = "checksum"
"""The key added to every JSON record; its last one."""
SEAL, UNSEALED = b"mixpo-sha256", b"0" * 64
"""Key of the digest in a shard's metadata, and its value while the digest is computed."""


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


def complete_lines(text: str) -> list[str]:
    """The lines of a file that is appended to. A last line without its end is still being written, unless only that end is damaged."""
    *lines, last = text.split("\n")
    try:
        loads(last[:-1])
    except ValueError:
        return lines
    return [*lines, last]


def load(path: Path) -> dict[str, Any]:
    """The record in a file. Raises OSError where the file cannot be read, ValueError as `loads`."""
    return loads(path.read_text(encoding="utf-8"))


def _sum(plain: Mapping[str, Any]) -> str:
    return checksum(json.dumps(plain, sort_keys=True, separators=(",", ":")))


# --- shards ------------------------------------------------------------------------------------------------------------


def seal(path: Path, content: bytes) -> bytes:
    """The content of a shard with its digest; it holds UNSEALED under SEAL in its metadata. path: where it will be."""
    before, after = _around_seal(content)
    return before + _digest(path, before, after) + after


def verified(path: Path) -> bytes:
    """The content of a shard. Raises ValueError where it fails its checksum, and OSError."""
    whole = path.read_bytes()
    if whole != seal(path, whole):
        raise ValueError("it fails its checksum")
    return whole


def damage(path: Path) -> str:
    """What is wrong with the file of a shard, or ""; its rows are not decoded."""
    try:
        verified(path)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _around_seal(content: bytes) -> tuple[bytes, bytes]:
    """A shard without its digest. Raises ValueError where it has none."""
    # The metadata of the file follows all values; key and digest are each preceded by their type and length.
    place = content.rfind(SEAL) + len(SEAL) + 2
    if place < len(SEAL) + 2:
        raise ValueError("it has no checksum")
    return content[:place], content[place + len(UNSEALED) :]


def _digest(path: Path, before: bytes, after: bytes) -> bytes:
    # With the name, so that one shard cannot pass as another.
    digest = hashlib.sha256(path.stem.encode() + b"\0")
    digest.update(before)
    digest.update(after)
    return digest.hexdigest().encode()
