"""Files of preference pairs, for tests: the same two pairs as each tool writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from table_files import jsonl, parquet


def pictures(folder: Path) -> Path:
    """Write three pictures, 0.png to 2.png."""
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (28, 28), colour).save(folder / f"{number}.png")
    return folder


def picture(folder: Path, number: int) -> dict[str, object]:
    """An image as Parquet files of the Hub hold it."""
    return {"bytes": (folder / f"{number}.png").read_bytes(), "path": f"{number}.png"}


def meta(folder: Path, rows: Sequence[object], **entry: object) -> Path:
    """An MMPR collection of one annotation."""
    jsonl(folder / "annotations" / "set.jsonl", rows)
    path = folder / "meta.json"
    path.write_text(json.dumps({"set": {"root": ".", "annotation": "annotations/set.jsonl", "repeat_time": 1, **entry}}))
    return path


Q1, Q2 = "<image>\nWhat color?", "<image>\nand <image>\nalike?"
SIDES = [("It is red.", "It is blue."), ("No.", "Yes.")]


def mmpr(folder: Path) -> Path:
    rows: list[dict[str, object]] = [
        {"image": "0.png", "question": "What color?"},
        {"image": ["1.png", "2.png"], "question": "<image>\nand <image>\nalike?"},
    ]
    return meta(folder, [{**row, "chosen": c, "rejected": r} for row, (c, r) in zip(rows, SIDES, strict=True)])


def parts(text: str) -> list[dict[str, str]]:
    first, *rest = text.split("<image>\n")
    made = [{"type": "text", "text": first}] if first else []
    for piece in rest:
        made += [{"type": "image"}, {"type": "text", "text": piece}]
    return made


IMAGES = [["0.png"], ["1.png", "2.png"]]


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def trl(folder: Path) -> Path:
    return jsonl(folder / "trl.jsonl", [
        {"prompt": [turn("user", parts(q))], "chosen": [turn("assistant", parts(c))], "rejected": [turn("assistant", r)], "images": i}
        for q, (c, r), i in zip((Q1, Q2), SIDES, IMAGES, strict=True)
    ])  # fmt: skip


def trl_implicit(folder: Path) -> Path:
    return jsonl(folder / "implicit.jsonl", [
        {"chosen": [turn("user", parts(q)), turn("assistant", c)], "rejected": [turn("user", parts(q)), turn("assistant", r)], "images": i}
        for q, (c, r), i in zip((Q1, Q2), SIDES, IMAGES, strict=True)
    ])  # fmt: skip


def trl_standard(folder: Path) -> Path:
    rows = [{"prompt": q, "chosen": c, "rejected": r, "images": i} for q, (c, r), i in zip((Q1, Q2), SIDES, IMAGES, strict=True)]
    return jsonl(folder / "standard.jsonl", rows)


def trl_parquet(folder: Path) -> Path:
    return parquet(folder / "data" / "train-0.parquet", [
        {"prompt": q, "chosen": c, "rejected": r, "images": [picture(folder, n) for n in numbers]}
        for q, (c, r), numbers in zip((Q1, Q2), SIDES, ([0], [1, 2]), strict=True)
    ])  # fmt: skip


def swift(folder: Path) -> Path:
    return jsonl(folder / "swift.jsonl", [
        {"messages": [turn("user", q), turn("assistant", c)], "rejected_response": r, "images": i}
        for q, (c, r), i in zip((Q1, Q2), SIDES, IMAGES, strict=True)
    ])  # fmt: skip


def swift_messages(folder: Path) -> Path:
    return jsonl(folder / "swift.jsonl", [
        {"messages": [turn("user", q), turn("assistant", c)], "rejected_messages": [turn("user", q), turn("assistant", r)], "images": i}
        for q, (c, r), i in zip((Q1, Q2), SIDES, IMAGES, strict=True)
    ])  # fmt: skip


def sharegpt(folder: Path) -> Path:
    said = [{"from": "human", "value": Q1}], [{"from": "human", "value": Q2}]
    rows = [
        {"talk": q, "good": {"from": "gpt", "value": c}, "bad": {"from": "gpt", "value": r}, "pictures": i}
        for q, (c, r), i in zip(said, SIDES, IMAGES, strict=True)
    ]
    (folder / "pairs.json").write_text(json.dumps(rows, indent=1))
    columns = {"messages": "talk", "chosen": "good", "rejected": "bad", "images": "pictures"}
    entries = {
        "mine": {"file_name": "pairs.json", "formatting": "sharegpt", "ranking": True, "columns": columns},
        "other": {"file_name": "sft.json"},
    }
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return folder / "dataset_info.json"


def alpaca(folder: Path) -> Path:
    rows = [
        {"instruction": q.split("\n")[0], "input": q.partition("\n")[2], "chosen": c, "rejected": r, "images": i}
        for q, (c, r), i in zip((Q1, Q2), SIDES, IMAGES, strict=True)
    ]
    jsonl(folder / "pairs.jsonl", rows)
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "pairs.jsonl", "ranking": True}}))
    return folder / "dataset_info.json"


def rlaif_v(folder: Path) -> Path:
    rows = [
        {"ds_name": "x", "question": q, "chosen": c, "rejected": r, "image": [picture(folder, n) for n in numbers], "idx": 1}
        for q, (c, r), numbers in zip((Q1, Q2), SIDES, ([0], [1, 2]), strict=True)
    ]
    return parquet(folder / "rlaif.parquet", rows)


def rlhf_v(folder: Path) -> Path:
    rows = [
        {"text": json.dumps({"question": q, "chosen": c, "rejected": r}), "image": [picture(folder, n) for n in numbers]}
        for q, (c, r), numbers in zip((Q1, Q2), SIDES, ([0], [1, 2]), strict=True)
    ]
    return parquet(folder / "rlhf.parquet", rows)


def vlfeedback(folder: Path) -> Path:
    def rated(text: str, *ratings: str) -> dict[str, object]:
        aspects = zip(("Helpfulness", "Visual Faithfulness", "Ethical Considerations"), ratings, strict=True)
        return {"response": text, "model": "m", "annotations": {name: {"Rating": rating, "Rationale": ""} for name, rating in aspects}}

    rows = [
        {"prompt": q, "completions": [rated(r, "2", "1", "5"), rated(c, "5", "4", "N/A")], "images": [picture(folder, n) for n in numbers]}
        for q, (c, r), numbers in zip((Q1, Q2), SIDES, ([0], [1, 2]), strict=True)
    ]
    return parquet(folder / "rated.parquet", rows)


WRITERS = {
    "mmpr": [mmpr], "trl": [trl, trl_implicit, trl_standard, trl_parquet], "ms-swift": [swift, swift_messages],
    "llama-factory": [sharegpt, alpaca], "rlaif-v": [rlaif_v], "rlhf-v": [rlhf_v], "vlfeedback": [vlfeedback],
}  # fmt: skip
EVERY = [(kind, write) for kind, writers in WRITERS.items() for write in writers]
