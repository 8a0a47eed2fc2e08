"""Perceptual fingerprints of images (80 bytes), which find re-encoded and resized copies. Knows nothing about questions.

Two images are similar when few bits of their perceptual hashes differ (pHash of 16 x 16, by imagehash) and their colours are close: the
hash depends on brightness alone, so simple drawings in other colours would count as copies. Cropped, mirrored, rotated and grayscale
copies are not detected. benchmarks/similar.py measures the error rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from mixpo.cache import Cache
from mixpo.errors import ImageError, MissingExtra
from mixpo.images import open_image
from mixpo.recipe import ImageTable
from mixpo.types import ImageRef, content_id

VERSION = 1
"""Of a fingerprint; cached ones of another version are recomputed."""
HASH_SIDE = 16
"""Side of the perceptual hash: 256 bits. With the usual 64 bits a quarter of the easy-VQA images would match another one."""
COLOUR_SIDE, COLOUR_LIMIT = 4, 4.0
"""Colours are means over a grid of 4 x 4; between copies they differ by less than this on average (of 255)."""
FLAT = 4.0
"""An image whose brightness varies less (standard deviation, of 255) is nearly uniform: its hash is noise, so it has no fingerprint."""
MAX_PIXELS = 512 * 512
"""Larger images are scaled down first."""

HASH_BYTES = HASH_SIDE * HASH_SIDE // 8
Fingerprint = bytes
"""The bits of the hash, then the colours."""


def fingerprint_of(image: Image.Image) -> Fingerprint | None:
    """The fingerprint of an RGB image; None for a nearly uniform one."""
    import imagehash

    gray = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BILINEAR), dtype=np.float32)
    if gray.std() < FLAT:
        return None
    bits = np.packbits(imagehash.phash(image, hash_size=HASH_SIDE).hash)
    colours = np.asarray(image.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BILINEAR), dtype=np.uint8)
    return bits.tobytes() + colours.tobytes()


class FingerprintCache:
    """Fingerprints of image files, cached by digest in a SQLite file if one is given."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises MissingExtra without imagehash."""
        try:
            self._version = metadata.version("imagehash")
        except metadata.PackageNotFoundError:
            raise MissingExtra('evaluate.decontaminate = "similar"', "similar") from None
        self._cache = Cache(path) if path is not None else Cache()

    def of(self, ref: ImageRef) -> Fingerprint | None:
        """The fingerprint of a file; None if it has none or cannot be read (the stage that needs the image reports that)."""
        key = content_id("fingerprint", ref.digest, VERSION, self._version)
        if (kept := self._cache.get(key)) is not None:
            return bytes.fromhex(kept) or None
        try:
            fingerprint = fingerprint_of(open_image(ref, ImageTable(max_pixels=MAX_PIXELS, max_side=100_000, min_side=1)))
        except ImageError:
            return None
        self._cache.put(key, (fingerprint or b"").hex())
        return fingerprint


class Gallery:
    """Named fingerprints with nearest-neighbour search. Exhaustive: 100,000 take 2 ms."""

    def __init__(self, max_bits: int) -> None:
        """max_bits: Hamming distance up to which two hashes match."""
        self.max_bits = max_bits
        self._names: dict[Fingerprint, str] = {}
        self._hashes: np.ndarray | None = None
        self._colours: np.ndarray | None = None

    def add(self, fingerprint: Fingerprint, name: str) -> None:
        """Add a fingerprint; of equal ones the first name stays."""
        self._names.setdefault(fingerprint, name)
        self._hashes = None

    def find(self, fingerprint: Fingerprint) -> str | None:
        """The name of the nearest fingerprint within `max_bits`, or None."""
        if not self._names:
            return None
        if self._hashes is None or self._colours is None:
            self._hashes, self._colours = _arrays(list(self._names))
        hashes, colours = _arrays([fingerprint])
        bits = np.bitwise_count(self._hashes ^ hashes).sum(axis=1)
        near = np.flatnonzero(bits <= self.max_bits)
        near = near[np.abs(self._colours[near] - colours).mean(axis=1) <= COLOUR_LIMIT]
        return list(self._names.values())[near[bits[near].argmin()]] if near.size else None

    def fingerprints(self) -> list[str]:
        """All fingerprints in order, for a digest of the whole."""
        return sorted(fingerprint.hex() for fingerprint in self._names)


def _arrays(fingerprints: Sequence[Fingerprint]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes as (N, 4) words of 64 bits, colours as (N, 48) numbers."""
    rows = np.frombuffer(b"".join(fingerprints), dtype=np.uint8).reshape(len(fingerprints), -1)
    return np.ascontiguousarray(rows[:, :HASH_BYTES]).view(np.uint64), rows[:, HASH_BYTES:].astype(np.int16)
