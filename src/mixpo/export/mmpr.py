"""Export to MMPR, the format of the released preference data: meta.json and one JSONL for each kind of pair. Does not read it.

    FOLDER/meta.json                          {name: {root, annotation, data_augment, max_dynamic_patch, repeat_time, length}}
    FOLDER/annotations/<name>.jsonl           image, question, chosen, rejected, answer_gt, ...
    FOLDER/images/ab/abcd...ef.png            copies of images, named by content

Paths in meta.json are relative to FOLDER (training code that opens them as they are is started there).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from mixpo.export.base import ExportCount, ExportRows, ImageCopies, Render
from mixpo.records import atomic, write_text
from mixpo.types import Pair, Question

MAX_DYNAMIC_PATCH = 6
"""Tiles of one image in the paper's training."""

MAX_NAME = 100
"""Characters of a source's name that go into file names."""

MAX_SOURCES = 64
"""Sources that get data sets of their own, and so open files; the pairs of further ones go to "other_..."."""


def export_mmpr(rows: Iterable[tuple[Question, Pair]], folder: Path, render: Render | None = None) -> ExportCount:
    """Write pairs as an MMPR collection in one pass with constant memory; meta.json comes last, so a torn export has none.

    A data set is named <source>_<origin>, with `_multi` for several images and `_text` for none: so every file has one type of `image`
    (path, list, absent).
    render: gives the message under which the answers were sampled, as the released data holds it; without it the bare question.
    Raises RunError when there are no pairs or something cannot be written, ImageError for a missing or changed image.
    """
    copies = ImageCopies(folder / "images")
    files: dict[str, TextIO] = {}
    counts: Counter[str] = Counter()
    sources: dict[str, str] = {}
    # MMPR has one question a row: a pair with earlier turns or a system message would be trained on without them.
    exported = ExportRows(rows, render, single=True)
    with ExitStack() as stack:
        for question, pair, prompt in exported:
            name = _name(sources, question, pair)
            if name not in files:
                temporary = stack.enter_context(atomic(folder / _annotation(name)))
                files[name] = stack.enter_context(temporary.open("w", encoding="utf-8"))
            # ASCII, as in the released files: readers open them with the encoding of their locale.
            files[name].write(json.dumps(_row(question, pair, [copies.copy(image) for image in question.images], prompt)) + "\n")
            counts[name] += 1
        (folder / "meta.json").unlink(missing_ok=True)
    write_text(folder / "meta.json", json.dumps({name: _entry(name, counts[name]) for name in sorted(counts)}, indent=2) + "\n")
    return exported.count


def _name(sources: dict[str, str], question: Question, pair: Pair) -> str:
    """The data set of a pair; `sources` remembers the names given so far."""
    if question.source not in sources and len(sources) < MAX_SOURCES:
        sources[question.source] = re.sub(r"[^A-Za-z0-9-]+", "_", question.source).strip("_")[-MAX_NAME:] or "pairs"
    shape = "_text" if not question.images else "_multi" if len(question.images) > 1 else ""
    return f"{sources.get(question.source, 'other')}_{pair.origin}{shape}"


def _annotation(name: str) -> str:
    return f"annotations/{name}.jsonl"


def _entry(name: str, length: int) -> dict[str, Any]:
    """One entry of meta.json."""
    return {
        "root": "." if name.endswith("_text") else "images",
        "annotation": _annotation(name),
        "data_augment": False,
        "max_dynamic_patch": MAX_DYNAMIC_PATCH,
        "repeat_time": 1,
        "length": length,
    }


def _row(question: Question, pair: Pair, images: list[str], text: str) -> dict[str, Any]:
    """One line. `image` and `answer_gt` are absent, not null, where there is none: readers test for the key."""
    image: dict[str, Any] = {"image": images[0] if len(images) == 1 else images} if images else {}
    answer = {"answer_gt": question.answer} if question.answer is not None else {}
    # What the text alone would not give back; InternVL's code reads none of it.
    more = {"answer": list(question.answers), "choices": list(question.choices), "rationale": question.rationale}
    return {
        "id": pair.id,
        **image,
        "question": text,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        **answer,
        **{name: value for name, value in more.items() if value},
        "chosen_meta": {"index": pair.chosen_index, "answer": pair.chosen_answer, "token_ids": list(pair.chosen_ids)},
        "rejected_meta": {
            "index": pair.rejected_index,
            "answer": pair.rejected_answer,
            "token_ids": list(pair.rejected_ids),
            "cut": pair.cut,
        },
        "origin": pair.origin,
        "domain": question.domain,
        "question_id": question.id,
    }
