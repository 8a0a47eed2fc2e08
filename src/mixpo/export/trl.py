"""What every export needs (rendering, locating and copying images), and the export to the conversational preference format of TRL.

The TRL file is JSONL that `datasets.load_dataset("json", data_files=...)` reads in one call.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from mixpo.errors import ImageError, RunError, SourceError
from mixpo.images import save_bytes
from mixpo.plural import amount
from mixpo.records import atomic
from mixpo.types import IMAGE_TOKEN, ImageRef, Pair, Question


class Written(NamedTuple):
    """left_out: pairs whose text holds a placeholder of the other tool, which would take it for a picture that is not there."""

    pairs: int
    left_out: int = 0


Render = Callable[[Question], str]
"""From a question to the user's message under which its answers were written, `<image>` marks included."""

REMEMBERED = 4096
"""Image locations kept in memory; the pairs of one question come together, so few are enough."""


class ImagePlaces:
    """Where the images of an export lie: below `root` they stay where they are, all others are copied to `folder`.

    Copies are named by their content (`ab/abcd...ef.png`), so an image used a thousand times is stored once.
    """

    def __init__(self, folder: Path, root: Path | None) -> None:
        self.folder = folder
        self.root = root.resolve() if root is not None else None
        self.copied = 0
        self._known: dict[ImageRef, str] = {}

    def under_root(self, images: tuple[ImageRef, ...]) -> tuple[str, ...] | None:
        """Paths relative to `root`, or None when there is no root or an image lies elsewhere (links are followed)."""
        if self.root is None:
            return None
        found = []
        for image in images:
            path = existing(image)
            if not path.is_relative_to(self.root):
                return None
            found.append(path.relative_to(self.root).as_posix())
        return tuple(found)

    def copy(self, image: ImageRef) -> str:
        """Path of the copy relative to `folder`. Raises ImageError when the file is missing or has changed."""
        if image not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[image] = self._copy(image)
        return self._known[image]

    def _copy(self, image: ImageRef) -> str:
        try:
            content = existing(image).read_bytes()
        except OSError as error:
            raise ImageError(f"{image.path}: cannot be read ({error.strerror or error})") from None
        if hashlib.sha256(content).hexdigest() != image.digest:
            raise ImageError(f"{image.path}: the image has changed since its question was read; run the pipeline again before exporting")
        before = sum(1 for _ in self.folder.glob(f"{image.digest[:2]}/{image.digest}.*"))
        copy = Path(save_bytes(content, self.folder, image.path).path)
        self.copied += not before
        return copy.relative_to(self.folder.absolute()).as_posix()


def rendered(question: Question, render: Render | None) -> str:
    """The user's message, checked: as many `<image>` marks as images."""
    text = render(question) if render is not None else question.text
    if text.count(IMAGE_TOKEN) != len(question.images):
        raise SourceError(
            f"question {question.id}: {amount(text.count(IMAGE_TOKEN), f'{IMAGE_TOKEN} mark')} "
            f"for {amount(len(question.images), 'image')}; remove the marks from the prompt's template"
        )
    return text


def export_trl(rows: Iterable[tuple[Question, Pair]], path: Path, render: Render | None = None) -> Written:
    """Write pairs as TRL's conversational preference format, atomically and in constant memory; returns how many.

    Each line: {"images": [absolute paths], "prompt": [user message], "chosen": [assistant message], "rejected": [assistant message],
    "id", "question_id", "origin"}, where a message's content is a list of parts {"type": "image" | "text", "text"}, images standing
    where the question has its marks.
    To train, cast the images: `data.cast_column("images", [datasets.Image()])`. Questions without images come last, because
    `datasets` infers the columns' types from the first rows.
    render: gives the message under which the answers were sampled; without it the bare question is written.
    Pairs with `<image>` in an answer are left out: processors of many models put a picture there. Raises RunError without any pair.
    """
    count = left_out = 0
    with atomic(path) as temporary, TemporaryFile(dir=path.parent) as text_only:
        with temporary.open("wb") as main:
            for question, pair in rows:
                if IMAGE_TOKEN in pair.chosen or IMAGE_TOKEN in pair.rejected:
                    left_out += 1
                    continue
                line = json.dumps(_trl_row(question, pair, render)) + "\n"
                (main if question.images else text_only).write(line.encode())
                count += 1
            text_only.seek(0)
            shutil.copyfileobj(text_only, main)
        if not count:
            raise RunError("there are no pairs to export; `mixpo status` says how many each stage made")
    return Written(count, left_out)


def _trl_row(question: Question, pair: Pair, render: Render | None) -> dict[str, Any]:
    return {
        "images": [str(existing(image)) for image in question.images],
        "prompt": [{"role": "user", "content": _parts(rendered(question, render))}],
        "chosen": [{"role": "assistant", "content": [_text(pair.chosen)]}],
        "rejected": [{"role": "assistant", "content": [_text(pair.rejected)]}],
        "id": pair.id,
        "question_id": question.id,
        "origin": pair.origin,
    }


def _parts(text: str) -> list[dict[str, str | None]]:
    """The message as parts, in order. A line break right after a mark is left out: chat templates set their own."""
    pieces = text.split(IMAGE_TOKEN)
    parts: list[dict[str, str | None]] = []
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image", "text": None})
            piece = piece.removeprefix("\n")
        if piece:
            parts.append(_text(piece))
    return parts


def _text(text: str) -> dict[str, str | None]:
    return {"type": "text", "text": text}


def existing(image: ImageRef) -> Path:
    """Where an image lies, links followed. Raises ImageError when it is gone."""
    path = Path(image.path).resolve()
    if not path.is_file():
        raise ImageError(f"{image.path}: the image is missing; put it back or run the pipeline again")
    return path
