"""Finds the images of rows. Paths stay below one root folder; images without a file of their own are kept by content.

Knows nothing about questions. Whatever cannot be used raises SourceError or ImageError with the reason.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from PIL import Image

from mixpo.errors import SourceError
from mixpo.images import reference, save_bytes, save_content
from mixpo.sources.build import described
from mixpo.types import ImageRef

ENCODED = re.compile(r"data:image/[\w.+-]+;base64,|(?=iVBORw0KGgo|/9j/|R0lGOD|UklGR)")
"""How base64 of an image begins: as a data URI, or with the first bytes of PNG, JPEG, GIF or WebP."""
SHORTEST = 80
"""Characters of base64 that no image fits into; shorter texts are paths."""
COPY = re.compile(r"images/([0-9a-f]{2})/(\1[0-9a-f]{62})\.\w+$")
"""The end of the path of an image in an export: such a copy is named by its content."""

REMEMBERED = 65_536
"""Images whose digest is remembered: several questions about one image read it once, and memory stays bounded."""


class Pictures:
    """The images of one source.

    root: folder below which every path lies; also symbolic links that lead out of it are refused.
    store: folder for images that come as bytes or pixels. also: further folders that absolute paths may lie in.
    key: the root's key in the recipe, for messages.
    """

    def __init__(self, root: Path, store: Path, also: tuple[Path, ...] = (), key: str = "source.root") -> None:
        self.root = root
        self.store = store
        self.key = key
        self._allowed = tuple(folder.resolve() for folder in (root, *also))
        self._remembered = lru_cache(maxsize=REMEMBERED)(self._find)

    def all(self, value: object) -> tuple[ImageRef, ...]:
        """The images of a row's image field: one image or a list of them; None, "" and [] are none."""
        if value is None or value == "" or value == []:
            return ()
        items = value if isinstance(value, (list, tuple)) else (value,)
        return tuple(self.one(item) for item in items)

    def one(self, value: object) -> ImageRef:
        """One image: a path, encoded bytes, base64, a Pillow image, or {"bytes": .., "path": ..} as data sets store it."""
        if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and (content := decoded(value)) is not None:
            value = content
        if isinstance(value, (str, Path)) and str(value):
            return self.find(str(value))
        if isinstance(value, bytes):
            return save_bytes(value, self.store)
        if isinstance(value, Image.Image):
            return save_content(value, self.store)
        raise SourceError(
            f"image must be a path or a list of paths, not {'an empty path' if isinstance(value, str) else described(value)}",
            code="image-path-type",
            key="image",
        )

    def find(self, name: str) -> ImageRef:
        """The image at a path relative to the root."""
        return self._remembered(name)

    def _find(self, name: str) -> ImageRef:
        if name.split(":", 1)[0].casefold() in ("http", "https", "data", "s3", "gs", "file"):
            raise SourceError(f"image {name[:60]!r} is a URL; download it and give its path", code="image-is-url", path=name)
        try:
            path = self.root / name
            resolved = path.resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise _invalid(name, error) from None
        if not any(resolved.is_relative_to(folder) for folder in self._allowed):
            if (moved := self._moved(path)) is not None:
                return moved
            raise SourceError(
                f"image {name!r} lies outside the root {self.root}; set {self.key} to a folder that holds all images",
                code="image-outside-root",
                path=name,
            )
        try:
            there = resolved.exists()
        except (OSError, ValueError) as error:
            raise _invalid(name, error) from None
        if not there:
            hint = "write its path with /, not \\" if "\\" in name else f"check {self.key}"
            raise SourceError(f"image {name!r} not found under {self.root}; {hint}", code="image-missing", path=name)
        return reference(path)

    def _moved(self, path: Path) -> ImageRef | None:
        """The copy below the root of an image of an export that lay elsewhere when it was written; None where it is not there."""
        copy = COPY.search(path.as_posix())
        if copy is None or not (self.root / copy[0]).is_file():
            return None
        image = self.find(copy[0])
        return image if image.digest == copy[2] else None


def decoded(text: str) -> bytes | None:
    """The bytes of an image that is written as base64; None for a path. Raises SourceError where it is broken."""
    begin = ENCODED.match(text) if len(text) >= SHORTEST else None
    if begin is None:
        return None
    try:
        return base64.b64decode(text[begin.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise SourceError(f"image {text[:40]!r}..: is broken base64 ({error})", code="image-base64", key="image") from None


def _invalid(name: str, error: Exception) -> SourceError:
    reason = getattr(error, "strerror", None) or error
    return SourceError(f"image {name[:60]!r} is not a usable path ({reason})", code="image-path-invalid", path=name)
