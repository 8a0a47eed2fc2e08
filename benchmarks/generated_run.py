"""A run of any size for the viewer: every stage up to the pairs, written with pyarrow column by column. No model had a part in it."""

from __future__ import annotations

import dataclasses
import random
import typing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from mixpo import sealed
from mixpo.images import save_content
from mixpo.recipe import parse
from mixpo.records import Judged, Paired, Sampled, schema_of, write_table
from mixpo.run import Manifest, Run, now
from mixpo.types import ImageRef, Question, content_id

RESPONSES, PAIRS = 8, 5
"""Responses of each question; pairs of a question with right and wrong ones."""
DOMAINS = ("count", "compare", "sum", "colour", "position")
BLIND = " and nothing can be seen."
SPEECH = (
    "the picture shows three digits and a small red square beside them so we add what we see first then look at the corner again "
    "because the largest value is written there which gives $x=4$ for the sum on the left"
)


def questions_for(pairs: int) -> int:
    """How many questions give at least so many pairs: of ten, one is open, one all right and one all wrong."""
    return -(-pairs // (7 * PAIRS + 2)) * 10


def write_run(root: Path, questions: int, shard_size: int = 64, seed: int = 0) -> Path:
    """Write a run with these many questions; returns its folder."""
    rng, run = random.Random(seed), Run(root)
    pool = [" ".join(rng.choices(SPEECH.split(), k=18)).capitalize() + "." for _ in range(997)]
    pictures = [_picture(number, run.images) for number in range(12)]
    tokens = pa.array(np.random.default_rng(seed).integers(0, 32_000, 4096))
    shards = -(-questions // shard_size)
    names = {stage: [f"{n:05d}-{content_id(stage, n)}" for n in range(shards)] for stage in ("source", *_STAGES)}
    for stage in names:
        run.stage(stage).folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        block = _Block(range(number * shard_size, min((number + 1) * shard_size, questions)), pool, pictures, tokens, seed)
        for stage, table in block.tables().items():
            write_table(run.stage(stage).path(names[stage][number]), table)
    for stage, written in names.items():
        run.stage(stage).save_manifest(
            Manifest(
                stage=stage,
                settings={},
                inputs=names["source"],
                shards=written,
                finished=True,
                started=now(),
                counts={"questions": questions},
            )
        )
    recipe = parse(
        {"source": {"kind": "jsonl", "path": "questions.jsonl"}, "report": {"title": f"{questions:,} generated questions"}}, "generated"
    )
    (root / "recipe.json").write_text(sealed.dumps(recipe.model_dump(mode="json")))
    (root / "command.json").write_text(sealed.dumps({"recipe_folder": str(root), "limit": None}))
    return root


_STAGES = ("round-1/sample", "round-1/continue", "round-1/verify", "round-1/pair")


def _picture(number: int, folder: Path) -> ImageRef:
    image = Image.new("RGB", (320, 240), (235, 238, 242))
    draw = ImageDraw.Draw(image)
    for place in range(3):
        x = 30 + 95 * place
        draw.rounded_rectangle((x, 70, x + 75, 170), 12, fill=((number * 37 + place * 80) % 256, (number * 91) % 256, 150))
    draw.text((140, 200), f"picture {number}", fill=(40, 40, 60))
    return save_content(image, folder)


class _Block:
    """The rows of one shard of every stage."""

    def __init__(self, numbers: range, pool: Sequence[str], pictures: Sequence[ImageRef], tokens: pa.Array, seed: int) -> None:
        self.numbers, self.pool, self.pictures, self.tokens = numbers, pool, pictures, tokens
        self.rng = np.random.default_rng([seed, numbers.start])
        self.ids = [f"{number:016x}" for number in numbers]
        self.answers = self.rng.integers(100, size=len(numbers)).tolist()
        self.right = [0 if n % 10 in (0, 2) else RESPONSES if n % 10 == 1 else PAIRS for n in numbers]
        said = [answer + (i >= right) for answer, right in zip(self.answers, self.right, strict=True) for i in range(RESPONSES)]
        picked = self.rng.integers(len(pool), size=(len(said), 3)).tolist()
        self.texts = [f"{pool[a]} {pool[b]} {pool[c]}\nFinal answer: {last}" for (a, b, c), last in zip(picked, said, strict=True)]

    def tables(self) -> dict[str, pa.Table]:
        """Stage -> records."""
        return dict(
            zip(
                ("source", *_STAGES),
                (self._source(), self._sampled(False), self._sampled(True), self._judged(), self._paired()),
                strict=True,
            )
        )

    def _open(self, place: int) -> bool:
        return self.numbers[place] % 10 == 0

    def _source(self) -> pa.Table:
        rows = [
            {
                "id": id_, "text": f"<image>\nWhat is number {number:,} of the {DOMAINS[number % 5]} puzzles? {self.pool[number % 997]}",
                "images": [{"path": p.path, "digest": p.digest}], "answer": None if self._open(place) else str(self.answers[place]),
                "kind": "none" if self._open(place) else "number", "choices": [], "domain": DOMAINS[number % 5], "source": "generated",
                "answers": [], "rationale": "", "facts": "", "history": [], "row_id": "", "verbatim": False,
            }
            for place, (number, id_) in enumerate(zip(self.numbers, self.ids, strict=True))
            for p in [self.pictures[number % len(self.pictures)]]
        ]  # fmt: skip
        return pa.Table.from_pylist(rows, schema=schema_of(Question))

    def _ids(self, count: int) -> pa.Array:
        """Token ids of so many texts."""
        starts = self.rng.integers(4000, size=count)
        picked = (starts[:, None] + np.arange(70)[None, :]).ravel() % len(self.tokens)
        return pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * 70, pa.int32()), self.tokens.take(pa.array(picked)))

    def _sampled(self, blind: bool) -> pa.Table:
        """Sampled responses; with `blind` two continuations of every open question."""
        per = [(2 if self._open(place) else 0) if blind else RESPONSES for place in range(len(self.ids))]
        total, owners = sum(per), [id_ for id_, count in zip(self.ids, per, strict=True) for _ in range(count)]
        index = [i for count in per for i in range(count)]
        texts = [text[:40] + BLIND for text in self.texts[:total]] if blind else self.texts
        empty = pa.ListArray.from_arrays(pa.array([0] * (total + 1), pa.int32()), pa.array([], pa.float64()))
        columns = [
            owners,
            index,
            texts,
            self._ids(total),
            ["stop"] * total,
            empty,
            ["generated"] * total,
            index,
            [20 if blind else 0] * total,
        ]
        return _table(Sampled, {"question": self.ids, "responses": (per, columns), "error": [""] * len(self.ids)})

    def _judged(self) -> pa.Table:
        per = [0 if self._open(place) else RESPONSES for place in range(len(self.ids))]
        rows = [(place, i) for place, count in enumerate(per) for i in range(count)]
        outcome = ["correct" if i < self.right[place] else "wrong" if i < RESPONSES - 1 else "malformed" for place, i in rows]
        said = [str(self.answers[place] + (i >= self.right[place])) for place, i in rows]
        columns = [[self.ids[place] for place, _ in rows], [i for _, i in rows], outcome, said, ["numbers compared"] * len(rows)]
        return _table(Judged, {"question": self.ids, "verdicts": (per, columns)})

    def _paired(self) -> pa.Table:
        per = [2 if self._open(place) else PAIRS if 0 < right < RESPONSES else 0 for place, right in enumerate(self.right)]
        rows = [
            (place, i, i if self._open(place) else PAIRS + i % (RESPONSES - PAIRS)) for place, count in enumerate(per) for i in range(count)
        ]
        text = [(self.texts[place * RESPONSES + a], self.texts[place * RESPONSES + b]) for place, a, b in rows]
        origin = ["dropout_ntp" if self._open(place) else "format" if b == RESPONSES - 1 else "correctness" for place, _, b in rows]
        answers = [None if self._open(place) else str(self.answers[place]) for place, _, _ in rows]
        wrong = [None if self._open(place) else str(self.answers[place] + 1) for place, _, _ in rows]
        columns = [
            [f"{self.numbers[place]:012x}{i:04x}" for place, i, _ in rows], [self.ids[place] for place, _, _ in rows],
            [a for a, _ in text], [a[:40] + BLIND if o == "dropout_ntp" else b for (a, b), o in zip(text, origin, strict=True)],
            origin, self._ids(len(rows)), self._ids(len(rows)), [i for _, i, _ in rows], [b for _, _, b in rows], answers, wrong,
            [20 if o == "dropout_ntp" else 0 for o in origin],
        ]  # fmt: skip
        return _table(Paired, {"question": self.ids, "pairs": (per, columns), "dropped": ([0] * len(self.ids), [[], []])})


def _table(row: type, columns: dict[str, typing.Any]) -> pa.Table:
    """A table of records; a nested column is given as (lengths, its first fields in order). What is not given has its default."""
    schema, arrays, hints = schema_of(row), [], typing.get_type_hints(row)
    defaults = {field.name: field.default for field in dataclasses.fields(row)}
    for field in schema:
        given = columns.get(field.name, [defaults[field.name]] * len(columns["question"]))
        if isinstance(given, tuple):
            lengths, parts = given
            inner = list(field.type.value_type)
            rest = dataclasses.fields(typing.get_args(hints[field.name])[0])[len(parts) :]
            parts = [*parts, *([one.default] * sum(lengths) for one in rest)]
            values = [part if isinstance(part, pa.Array) else pa.array(part, f.type) for part, f in zip(parts, inner, strict=True)]
            values = [value.cast(f.type) for value, f in zip(values, inner, strict=True)]
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
            arrays.append(pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(values, fields=inner)).cast(field.type))
        else:
            arrays.append(pa.array(given, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
