"""Export to the JSONL files of ms-swift and LLaMA-Factory: a message with `<image>` where each image stands, and two answers.

    FOLDER/pairs.jsonl            one pair a line
    FOLDER/images/ab/ab..ef.png   copies of images, named by content
    FOLDER/dataset_info.json      LLaMA-Factory only: what the columns mean

Both read image paths as they are or below a folder that is set; absolute paths work in either. Both look for their placeholders in answers
too, LLaMA-Factory to stop at the first and ms-swift to put something there, so pairs whose answers (or questions) hold one are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mixpo.errors import RunError
from mixpo.export.trl import ImagePlaces, Render, Written, rendered
from mixpo.records import atomic, write_text
from mixpo.types import IMAGE_TOKEN, Pair, Question

PAIRS = "pairs.jsonl"

MEDIA = ("<image>", "<video>", "<audio>")
"""Placeholders of both tools."""
SWIFT = (*MEDIA, "<bbox>", "<ref-object>", "<cot-process>", "<start-image>")
"""Those of ms-swift."""

Row = Callable[[str, Pair], dict[str, Any]]
"""From the rendered message and the pair to the fields of one line, images excepted."""


def export_swift(rows: Iterable[tuple[Question, Pair]], folder: Path, render: Render | None = None) -> Written:
    """Write pairs for `swift rlhf --dataset FOLDER/pairs.jsonl`; returns how many. Raises RunError when there are none."""
    return _write(rows, folder, render, _swift, SWIFT)


def export_llama_factory(rows: Iterable[tuple[Question, Pair]], folder: Path, render: Render | None = None) -> Written:
    """Write pairs for LLaMA-Factory (`dataset_dir: FOLDER`, `dataset: mixpo`); returns how many. Raises RunError without any."""
    count = _write(rows, folder, render, _llama_factory, MEDIA)
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    entry = {"file_name": PAIRS, "formatting": "sharegpt", "ranking": True, "columns": columns}
    write_text(folder / "dataset_info.json", json.dumps({"mixpo": entry}, indent=2) + "\n")
    return count


def _swift(message: str, pair: Pair) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": message}, {"role": "assistant", "content": pair.chosen}],
        "rejected_response": pair.rejected,
    }


def _llama_factory(message: str, pair: Pair) -> dict[str, Any]:
    return {
        "conversations": [{"from": "human", "value": message}],
        "chosen": {"from": "gpt", "value": pair.chosen},
        "rejected": {"from": "gpt", "value": pair.rejected},
    }


def _write(rows: Iterable[tuple[Question, Pair]], folder: Path, render: Render | None, row: Row, placeholders: tuple[str, ...]) -> Written:
    places, count, left_out = ImagePlaces(folder / "images", None), 0, 0
    with atomic(folder / PAIRS) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for question, pair in rows:
            message = rendered(question, render)
            texts = message.replace(IMAGE_TOKEN, ""), pair.chosen, pair.rejected
            if any(placeholder in text for text in texts for placeholder in placeholders):
                left_out += 1
                continue
            images = [str((places.folder / places.copy(image)).resolve()) for image in question.images]
            line = {**row(message, pair), "images": images, "id": pair.id, "origin": pair.origin}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
        if not count:
            raise RunError("there are no pairs to export; `mixpo status` says how many each stage made")
    return Written(count, left_out)
