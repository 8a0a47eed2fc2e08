"""Export to the JSONL files of ms-swift and LLaMA-Factory: a message with `<image>` where each image stands, and two answers.

    FOLDER/pairs.jsonl            one pair a line
    FOLDER/images/ab/ab..ef.png   copies of images, named by content
    FOLDER/dataset_info.json      LLaMA-Factory only: what the columns mean

Both read image paths as they are or below a folder that is set; absolute paths work in either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mixpo.errors import RunError
from mixpo.pairs.export import ImagePlaces, Render, rendered
from mixpo.records import atomic, write_text
from mixpo.types import Pair, Question

PAIRS = "pairs.jsonl"

Row = Callable[[str, Pair], dict[str, Any]]
"""From the rendered message and the pair to the fields of one line, images excepted."""


def export_swift(rows: Iterable[tuple[Question, Pair]], folder: Path, render: Render | None = None) -> int:
    """Write pairs for `swift rlhf --dataset FOLDER/pairs.jsonl`; returns how many. Raises RunError when there are none."""
    return _write(rows, folder, render, _swift)


def export_llama_factory(rows: Iterable[tuple[Question, Pair]], folder: Path, render: Render | None = None) -> int:
    """Write pairs for LLaMA-Factory (`dataset_dir: FOLDER`, `dataset: mixpo`); returns how many. Raises RunError without any."""
    count = _write(rows, folder, render, _llama_factory)
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


def _write(rows: Iterable[tuple[Question, Pair]], folder: Path, render: Render | None, row: Row) -> int:
    places, count = ImagePlaces(folder / "images", None), 0
    with atomic(folder / PAIRS) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for question, pair in rows:
            images = [str((places.folder / places.copy(image)).resolve()) for image in question.images]
            line = {**row(rendered(question, render), pair), "images": images, "id": pair.id, "origin": pair.origin}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
        if not count:
            raise RunError("there are no pairs to export; `mixpo status` says how many each stage made")
    return count
