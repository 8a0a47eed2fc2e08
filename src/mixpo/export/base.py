"""What the export formats share: pairs with their rendered prompts, and the images they refer to."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from mixpo.errors import ImageError, RunError, SourceError
from mixpo.images import save_bytes
from mixpo.plural import amount
from mixpo.records import atomic
from mixpo.types import IMAGE_TOKEN, ImageRef, Pair, Question

Render = Callable[[Question, Pair], str]
"""From a pair and its question to the user message its responses were sampled under, `<image>` tokens included."""

REMEMBERED = 4096
"""Image locations kept in memory; the pairs of one question come together, so few are enough."""


class ExportCount(NamedTuple):
    """skipped: pairs that the other tool would take for something else: with its placeholders in a text, or with turns it cannot hold."""

    pairs: int
    skipped: int = 0


class ExportRows:
    """Pairs to export with their prompts, counted while they are read. Raises RunError at the end if there were none.

    render: without it the prompt is the bare question. placeholders: texts that no pair may contain, other than the `<image>` tokens of the
    prompt; pairs with one are skipped. single: skip pairs with earlier turns or a system message.
    """

    def __init__(
        self,
        rows: Iterable[tuple[Question, Pair]],
        render: Render | None = None,
        placeholders: tuple[str, ...] = (),
        *,
        single: bool = False,
    ) -> None:
        self._rows, self._render, self._placeholders, self._single = rows, render, placeholders, single
        self._pairs = self._skipped = 0

    def __iter__(self) -> Iterator[tuple[Question, Pair, str]]:
        for question, pair in self._rows:
            prompt = self._prompt(question, pair)
            earlier = (m.text.replace(IMAGE_TOKEN, "") if m.role == "user" else m.text for m in question.history)
            texts = (prompt.replace(IMAGE_TOKEN, ""), pair.chosen, pair.rejected, *earlier)
            if any(placeholder in text for text in texts for placeholder in self._placeholders) or (self._single and question.history):
                self._skipped += 1
                continue
            self._pairs += 1
            yield question, pair, prompt
        if not self._pairs:
            skipped = f" ({amount(self._skipped, 'pair')} cannot be written in this format)" if self._skipped else ""
            raise RunError(f"there are no pairs to export{skipped}; `mixpo status` shows how many each stage produced", code="no-pairs")

    @property
    def count(self) -> ExportCount:
        """What was read so far."""
        return ExportCount(self._pairs, self._skipped)

    def _prompt(self, question: Question, pair: Pair) -> str:
        prompt = self._render(question, pair) if self._render is not None else question.text
        texts = [prompt, *(message.text for message in question.history if message.role == "user")]
        if (tokens := sum(text.count(IMAGE_TOKEN) for text in texts)) != len(question.images):
            raise SourceError(
                f"question {question.id}: {amount(tokens, f'{IMAGE_TOKEN} token')} for {amount(len(question.images), 'image')}; "
                "remove the tokens from the prompt template",
                code="image-token-count",
                key=question.id,
            )
        return prompt


class ImageCopies:
    """Copies images into `folder`, each once, named by content (`ab/abcd...ef.png`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[ImageRef, str] = {}

    def copy(self, image: ImageRef) -> str:
        """Path of the copy relative to `folder`. Raises ImageError when the file is missing or has changed."""
        if image not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[image] = self._copy(image)
        return self._known[image]

    def absolute(self, image: ImageRef) -> str:
        """Absolute path of the copy, for loaders that take relative ones from the working directory. Raises ImageError as `copy`."""
        return str((self.folder / self.copy(image)).resolve())

    def _copy(self, image: ImageRef) -> str:
        try:
            content = image_path(image).read_bytes()
        except OSError as error:
            raise ImageError(
                f"{image.path}: cannot be read ({error.strerror or error})", code="image-unreadable", path=image.path
            ) from None
        if hashlib.sha256(content).hexdigest() != image.digest:
            raise ImageError(
                f"{image.path}: the image has changed since its question was read; run the pipeline again before exporting",
                code="image-changed",
                path=image.path,
            )
        copy = Path(save_bytes(content, self.folder, image.path).path)
        return copy.relative_to(self.folder.absolute()).as_posix()


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines atomically and in constant memory. Rows without images come last: `datasets` infers column types from the first."""
    with atomic(path) as temporary, TemporaryFile(dir=path.parent) as text_only, temporary.open("wb") as main:
        for row in rows:
            (main if row["images"] else text_only).write(json.dumps(row).encode() + b"\n")
        text_only.seek(0)
        shutil.copyfileobj(text_only, main)


def image_path(image: ImageRef) -> Path:
    """Where an image lies, links resolved. Raises ImageError when it is missing."""
    path = Path(image.path).resolve()
    if not path.is_file():
        raise ImageError(
            f"{image.path}: the image is missing; put it back or run the pipeline again", code="image-missing", path=image.path
        )
    return path
