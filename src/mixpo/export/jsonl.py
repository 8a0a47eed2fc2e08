"""Export to the JSONL files of TRL, ms-swift and LLaMA-Factory.

    FOLDER/pairs.jsonl            one pair a line
    FOLDER/images/ab/ab..ef.png   copies of the images, named by content
    FOLDER/dataset_info.json      LLaMA-Factory: what the columns mean

Every line has the fields of its format and "images", "id", "question_id" and "origin". Images are paths of the copies: relative to FOLDER
for LLaMA-Factory, which looks for them there; absolute for TRL and ms-swift, which take relative ones from the folder that they are started
in. [[preferences]] reads all of them also after FOLDER has moved. Pairs whose text contains a placeholder of the tool are skipped:
processors would put an image there, LLaMA-Factory stops.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mixpo.export.base import ExportCount, ExportRows, ImageCopies, Render, write_lines
from mixpo.records import write_text
from mixpo.types import IMAGE_TOKEN, ImageRef, Message, Pair, Question

PAIRS = "pairs.jsonl"

MEDIA = (IMAGE_TOKEN, "<video>", "<audio>")
"""Placeholders of ms-swift and LLaMA-Factory."""
SWIFT = (*MEDIA, "<bbox>", "<ref-object>", "<cot-process>", "<start-image>")
"""Those of ms-swift."""


def export_trl(rows: Iterable[tuple[Question, Pair]], folder: Path, render: Render | None = None) -> ExportCount:
    """TRL's conversational preference format, which `datasets.load_dataset("json", data_files=...)` reads in one call.

    "prompt", "chosen" and "rejected" are lists of messages, whose content is a list of parts {"type": "image" | "text", "text"} with
    images where the question has them; both sides have one. To train, cast the images: `data.cast_column("images", [datasets.Image()])`.
    """
    return _write(ExportRows(rows, render, (IMAGE_TOKEN,)), folder / PAIRS, _trl, ImageCopies(folder / "images").absolute)


def export_swift(rows: Iterable[tuple[Question, Pair]], folder: Path, render: Render | None = None) -> ExportCount:
    """For `swift rlhf --dataset FOLDER/pairs.jsonl`."""
    return _write(ExportRows(rows, render, SWIFT), folder / PAIRS, _swift, ImageCopies(folder / "images").absolute)


def export_llama_factory(rows: Iterable[tuple[Question, Pair]], folder: Path, render: Render | None = None) -> ExportCount:
    """For LLaMA-Factory with `dataset_dir: FOLDER` and `dataset: mixpo`."""
    copies = ImageCopies(folder / "images")
    count = _write(ExportRows(rows, render, MEDIA), folder / PAIRS, _llama_factory, lambda image: f"images/{copies.copy(image)}")
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "system": "system", "images": "images"}
    entry = {"file_name": PAIRS, "formatting": "sharegpt", "ranking": True, "columns": columns}
    write_text(folder / "dataset_info.json", json.dumps({"mixpo": entry}, indent=2) + "\n")
    return count


Fields = Callable[[Sequence[Message], Pair], dict[str, Any]]


def _write(rows: ExportRows, path: Path, fields: Fields, locate: Callable[[ImageRef], str]) -> ExportCount:
    """Write one line for each pair. Raises RunError when there are no pairs.

    fields: from the messages up to the prompt and the pair to the fields of the format.
    """

    def line(question: Question, pair: Pair, prompt: str) -> dict[str, Any]:
        turns = (*question.history, Message(role="user", text=prompt))
        images = [locate(image) for image in question.images]
        return {"images": images, **fields(turns, pair), "id": pair.id, "question_id": question.id, "origin": pair.origin}

    write_lines(path, (line(*row) for row in rows))
    return rows.count


def _swift(turns: Sequence[Message], pair: Pair) -> dict[str, Any]:
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    return {"messages": [*messages, {"role": "assistant", "content": pair.chosen}], "rejected_response": pair.rejected}


def _llama_factory(turns: Sequence[Message], pair: Pair) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    return {
        "system": "".join(turn.text for turn in turns if turn.role == "system"),
        "conversations": [{"from": names[turn.role], "value": turn.text} for turn in turns if turn.role != "system"],
        "chosen": {"from": "gpt", "value": pair.chosen},
        "rejected": {"from": "gpt", "value": pair.rejected},
    }


def _trl(turns: Sequence[Message], pair: Pair) -> dict[str, Any]:
    return {
        "prompt": [{"role": turn.role, "content": _parts(turn.text) if turn.role == "user" else [_text(turn.text)]} for turn in turns],
        "chosen": [{"role": "assistant", "content": [_text(pair.chosen)]}],
        "rejected": [{"role": "assistant", "content": [_text(pair.rejected)]}],
    }


def _parts(prompt: str) -> list[dict[str, str | None]]:
    """The message as parts, in order. A line break right after an image is dropped: chat templates set their own."""
    first, *others = prompt.split(IMAGE_TOKEN)
    parts: list[dict[str, str | None]] = [_text(first)] if first else []
    for piece in others:
        parts.append({"type": "image", "text": None})
        if text := piece.removeprefix("\n"):
            parts.append(_text(text))
    return parts


def _text(text: str) -> dict[str, str | None]:
    return {"type": "text", "text": text}
