"""Export to a folder that `datasets.load_dataset(FOLDER)` reads in one call and the Hub shows with its images, and its upload.

    FOLDER/data/train-00000.parquet   the pairs, images inside as encoded bytes
    FOLDER/README.md                  the card
    FOLDER/examples/0.png             the images of the card

Written with Arrow alone: the `datasets` library is not needed for it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mixpo.errors import MissingExtra, RunError, first_line
from mixpo.export.base import ExportCount, ExportRows, Render, image_path
from mixpo.plural import amount
from mixpo.records import atomic, write_text
from mixpo.types import Pair, Question

ROWS = 512
"""Pairs in one file: the images of so many are in memory together."""
EXAMPLES = 3
"""Pairs that the card shows."""

TEXTS = (
    "question",
    "prompt",
    "chosen",
    "rejected",
    "answer",
    "chosen_answer",
    "rejected_answer",
    "origin",
    "domain",
    "source",
    "id",
    "question_id",
)
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
_VALUE = {"dtype": "string", "_type": "Value"}
_FEATURES = {
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
    "history": {"feature": {"role": _VALUE, "content": _VALUE}, "_type": "List"},
    **dict.fromkeys(TEXTS, _VALUE),
}
SCHEMA = pa.schema([("images", pa.list_(_IMAGE)), ("history", pa.list_(_TURN)), *((name, pa.string()) for name in TEXTS)]).with_metadata(
    {"huggingface": json.dumps({"info": {"features": _FEATURES}})}
)
"""Fixed: a column of texts is one also where all are missing. The metadata says that `images` are images."""


def export_datasets(rows: Iterable[tuple[Question, Pair]], folder: Path, render: Render | None = None) -> ExportCount:
    """Write the pairs; replaces the files of an earlier export. Raises RunError when there are none."""
    counts: Counter[str] = Counter()
    shown: list[tuple[Question, Pair]] = []
    exported = ExportRows(rows, render)
    stream, number = iter(exported), 0
    shutil.rmtree(folder / "data", ignore_errors=True)
    while block := list(islice(stream, ROWS)):
        table = pa.Table.from_pylist([_row(*row) for row in block], schema=SCHEMA)
        with atomic(folder / "data" / f"train-{number:05d}.parquet") as temporary:
            # Small row groups, or a viewer must read all images to show one.
            pq.write_table(table, temporary, compression="zstd", compression_level=1, row_group_size=100)
        counts.update(pair.origin for _, pair, _ in block)
        shown += [(question, pair) for question, pair, _ in block if question.images][: EXAMPLES - len(shown)]
        number += 1
    write_text(folder / "README.md", _card(folder, counts, shown))
    return exported.count


def push(folder: Path, name: str, *, private: bool = True) -> str:
    """Upload an exported folder to the Hub as the data set `name` ("user/name"); returns its address.

    Uses the token that `hf auth login` or the environment gives. Raises RunError when the Hub refuses.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise MissingExtra("the upload to the Hub", "hub") from None
    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type="dataset", folder_path=str(folder), commit_message="Preference pairs of mixpo")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        message = f"{name}: the Hub refused the upload ({first_line(error)}); check the name and `hf auth whoami`"
        raise RunError(message, code="hub-refused", key=name) from error
    return f"https://huggingface.co/datasets/{name}"


def _row(question: Question, pair: Pair, prompt: str) -> dict[str, Any]:
    paths = [image_path(image) for image in question.images]
    return {
        "images": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
        "history": [{"role": turn.role, "content": turn.text} for turn in question.history],
        "question": question.text,
        "prompt": prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "answer": question.answer,
        "chosen_answer": pair.chosen_answer,
        "rejected_answer": pair.rejected_answer,
        "origin": pair.origin,
        "domain": question.domain,
        "source": question.source,
        "id": pair.id,
        "question_id": question.id,
    }


def _card(folder: Path, counts: Counter[str], shown: Sequence[tuple[Question, Pair]]) -> str:
    head = ["---", "configs:", "- config_name: default", "  data_files:", "  - split: train", "    path: data/train-*.parquet"]
    head += ["task_categories:", "- image-text-to-text", "tags:", "- preference", "- dpo", "- mpo", "---", "", "# Preference pairs", ""]
    by_origin = ", ".join(f"{count:,} {origin}" for origin, count in sorted(counts.items()))
    made = [
        "of answers to questions about images, made with mixpo by the method of",
        "Mixed Preference Optimization (arXiv 2411.10442): a model's own answers, compared with known answers",
        "(`correctness`, `format`), or finished without the image (`dropout_ntp`)."
        + " Those of a `branch` share the beginning of an answer and part at one step." * ("branch" in counts)
        + " Those `imported` were ready-made." * ("imported" in counts),
    ]
    ready = ["of responses to prompts with images, ready-made elsewhere and exported with mixpo."]
    first, *rest = ready if set(counts) == {"imported"} else made
    body = [
        f"{amount(counts.total(), 'pair')} ({by_origin}) {first}",
        *rest,
        "",
        '```python\nfrom datasets import load_dataset\n\npairs = load_dataset("path/or/name", split="train")\n```',
        "",
    ]
    return "\n".join([*head, *body, *(line for number, row in enumerate(shown) for line in _example(folder, number, *row))]) + "\n"


def _example(folder: Path, number: int, question: Question, pair: Pair) -> Iterator[str]:
    image = image_path(question.images[0])
    copy = folder / "examples" / f"{number}{image.suffix}"
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image, copy)
    yield f"![The image of example {number + 1}](examples/{copy.name})"
    yield ""
    for name, text in (("question", question.text), ("chosen", pair.chosen), ("rejected", pair.rejected)):
        # Indented code: whatever a model wrote is shown and never read as Markdown or HTML.
        yield from (f"**{name}**", "", *(f"    {line}" for line in text.splitlines()), "")
