"""Images for the pages, found by question and number, never by a path from outside, and only below the run's declared roots.

Every image is decoded and encoded again: nothing of a file but its picture reaches the browser. Its bytes must still be those
that the question was made from.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from zlib import crc32

from PIL import Image

from mixpo.errors import ImageError
from mixpo.evaluate.benchmarks.files import root_of
from mixpo.images import open_image, place
from mixpo.recipe import ImageTable, MixtureSource
from mixpo.stages.job import Context
from mixpo.types import ImageRef, Question

SIZES = {"small": 96 * 96, "page": 900 * 900, "full": 16_000_000}
"""Pixels that an image is scaled down to, by the name of the size."""
AT_ONCE = 3
"""Images that are decoded together; each may take some gigabytes."""
CRISP_SIDE = 320
"""Up to this side a picture is kept without loss."""


class Images:
    """The images that a run may show."""

    def __init__(self, context: Context) -> None:
        self._own = context.run.images
        self.roots = tuple(dict.fromkeys(folder.resolve() for folder in _roots(context)))
        self._encoded = lru_cache(maxsize=64)(self._encode)
        self._turns = [Lock() for _ in range(AT_ONCE)]

    def encoded(self, ref: ImageRef, size: str) -> tuple[bytes, str]:
        """(bytes, media type). Raises ImageError when it lies outside the roots, is missing, broken or changed."""
        # A list asks for all its pictures at the same time. Those of one image wait for each other, and then find it done.
        with self._turns[crc32(ref.digest.encode()) % AT_ONCE]:
            return self._encoded(ref, size)

    def _encode(self, ref: ImageRef, size: str) -> tuple[bytes, str]:
        ref = self._here(ref)
        if not self.allowed(Path(ref.path)):
            raise ImageError(
                f"{ref.path}: outside the folders that the recipe of this run names, so it is not shown",
                code="image-outside-roots",
                path=ref.path,
            )
        picture = open_image(ref, ImageTable(max_pixels=SIZES[size], max_side=100_000, min_side=1))
        kind = "png" if max(picture.size) <= CRISP_SIDE else "jpeg"
        buffer = io.BytesIO()
        picture.save(buffer, format=kind, quality=88)  # PNG knows no quality and ignores it
        return buffer.getvalue(), f"image/{kind}"

    def _here(self, ref: ImageRef) -> ImageRef:
        """The image where it lies now: those that a run keeps itself went with it when it was moved or copied."""
        path = Path(ref.path)
        own = place(self._own, ref.digest, path.suffix)
        return replace(ref, path=str(own)) if path.stem == ref.digest and own.is_file() else ref

    def sizes(self, question: Question) -> list[tuple[int, int] | str]:
        """Width and height of each image on a page, so that nothing moves when it comes; of one that cannot be shown, why."""
        return [self._size(ref) for ref in question.images]

    def _size(self, ref: ImageRef) -> tuple[int, int] | str:
        try:
            return Image.open(io.BytesIO(self.encoded(ref, "page")[0])).size
        except ImageError as error:
            return str(error)

    def allowed(self, path: Path) -> bool:
        """Whether a path, with all links followed, lies below one of the roots."""
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError, ValueError):
            return False
        return any(resolved.is_relative_to(root) for root in self.roots)


def _roots(context: Context) -> Iterator[Path]:
    """Folders that the sources of the recipe may take images from, and the run's own."""
    yield context.run.images
    for pairs in context.recipe.preferences:
        path = context.recipe_folder / (pairs.root or pairs.path)
        # Files of a collection may lie next to its folder, as in the released MMPR.
        yield path if pairs.root or path.is_dir() else path.parent if path.is_file() else context.recipe_folder
        yield from _cache_of_datasets() if not path.exists() else ()
    source = context.recipe.source
    own = [part.source for part in source.parts] if isinstance(source, MixtureSource) else [source] if source is not None else []
    for table in (*own, *(item.source for item in context.recipe.evaluate.sets)):
        if table.kind in ("jsonl", "mmpr", "python"):
            yield context.recipe_folder / str(getattr(table, "root", "."))
        elif table.kind == "hub":
            folder = context.recipe_folder / str(getattr(table, "path", "."))
            yield folder if folder.is_dir() else context.recipe_folder
            yield from _cache_of_datasets()
        elif table.kind == "benchmark":
            yield root_of(table, context.recipe_folder)
        elif table.kind == "easy_vqa":
            yield from _folder_of("easy_vqa")


def _cache_of_datasets() -> Iterator[Path]:
    """Where `datasets` keeps what it has loaded."""
    from huggingface_hub.constants import HF_HOME

    yield Path(HF_HOME)


def _folder_of(package: str) -> Iterator[Path]:
    """The folder of an installed package, which is not imported."""
    spec = find_spec(package)
    if spec is not None and spec.origin:
        yield Path(spec.origin).parent
