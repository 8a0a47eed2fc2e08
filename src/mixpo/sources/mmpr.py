"""MMPR collections: a meta.json that names JSONL annotations, read as questions. Their pairs are read by `mixpo.preferences`.

    {"name": {"root": "images/x", "annotation": "annotations/x.jsonl", "repeat_time": 1, "length": 1000, ...}, ...}

`repeat_time` below 1 keeps that share of the rows, chosen by their content. Above 1 it says how often a pair is trained on,
which means nothing for a question to be sampled: there it counts as 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from mixpo.errors import SourceError
from mixpo.plural import amount
from mixpo.prompts import DIRECT_ENDINGS, PROMPTS
from mixpo.recipe import MmprSource, did_you_mean
from mixpo.sources.build import SourceRow, can_be_path, short
from mixpo.sources.columns import FIELDS, ColumnUse
from mixpo.sources.images import Pictures
from mixpo.sources.jsonl import Line, each, lines, question_of
from mixpo.types import IMAGE_TOKEN, Notice, Skipped, content_id

MOST_REPEATS = 1_000
"""Largest `repeat_time` of a data set."""
PAIR_FIELDS = ("answer_gt", "origin", "question_id")
"""Fields that a row may have from an export of pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One entry of meta.json with its paths found."""

    name: str
    where: str
    root: Path
    path: Path
    share: float
    length: int | None


# --- questions ---------------------------------------------------------------------------------------------------------


def read(source: MmprSource, recipe_folder: Path, images: Path) -> Iterator[SourceRow | Skipped | Notice]:
    """The questions of a collection of prompts, data set by data set; a collection of pairs is refused.

    A prompt's wrapping (the released chain-of-thought text, "Answer the question using a single word or phrase.") is taken
    off, since the recipe puts its own around. Raises SourceError when meta.json or a file that it names is unusable.
    """
    for annotation in _annotations(recipe_folder / source.path, recipe_folder / source.root, source.datasets):
        pictures = Pictures(annotation.root, images)

        def made(where: str, row: Mapping[str, object], pictures: Pictures = pictures, name: str = annotation.name) -> SourceRow:
            return SourceRow(where=where, question=question_of(_plain(row), pictures, source.answer_kind, source=name, bare=bare_question))

        yield from each(_kept(annotation), made, ColumnUse(annotation.path, source.kind, (*FIELDS, *PAIR_FIELDS)))


def bare_question(text: str) -> str:
    """The question without a built-in prompt around it and without a request for a short answer. Marks in front stay in front."""
    marks = ""
    body = text.strip()
    while body.startswith(IMAGE_TOKEN):
        marks, body = f"{marks}{IMAGE_TOKEN}\n", body[len(IMAGE_TOKEN) :].lstrip()
    for name in ("cot", "cot_zh", "background", "visual", "grounded", "background_zh", "visual_zh", "grounded_zh"):
        before, after = PROMPTS[name].template.split("{question}")
        if body.startswith(before) and body.endswith(after):
            body = body[len(before) : len(body) - len(after)]
    for ending in DIRECT_ENDINGS:
        body = body.removesuffix(ending).rstrip()
    return marks + body.strip()


def _plain(row: Mapping[str, object]) -> dict[str, object]:
    """A row in the fields of a JSONL source. It is known by its data set, not by a source of its own."""
    plain = {key: value for key, value in row.items() if key not in (*PAIR_FIELDS, "source")}
    if plain.get("answer") is None and row.get("answer_gt") is not None:
        plain["answer"] = row["answer_gt"]
    if not isinstance(plain.get("domain"), str):
        plain.pop("domain", None)
    return plain


def _kept(annotation: Annotation) -> Iterator[Line | Skipped | Notice]:
    """The rows that `repeat_time` keeps; what it drops, and a wrong `length`, are reported once each."""
    total = left_out = 0
    for line in lines(annotation.path):
        total += 1
        if isinstance(line, Skipped) or annotation.share >= 1 or _draw(annotation.name, line[1]) < annotation.share:
            yield line
        else:
            left_out += 1
    if left_out:
        yield Notice(where=annotation.where, text=f"repeat_time = {annotation.share} drops {left_out} of {amount(total, 'row')}")
    if annotation.length is not None and annotation.length != total:
        yield Notice(
            where=annotation.where,
            text=f"length = {annotation.length}, but {annotation.path} has {amount(total, 'row')}; is it complete?",
        )


def _draw(name: str, row: Mapping[str, object]) -> float:
    """A number in [0, 1) that depends on the row's content alone, so that order and other rows change nothing."""
    return int(content_id("repeat_time", name, row), 16) / 2.0**64


# --- meta.json ---------------------------------------------------------------------------------------------------------


def _annotations(meta: Path, root: Path, wanted: Sequence[str] = ()) -> list[Annotation]:
    """The entries to read, in the order of meta.json, all checked before the first row is read."""
    entries = _load(meta)
    for name in wanted:
        if name not in entries:
            raise SourceError(
                f"source.datasets: {meta} has no {name!r}{did_you_mean(name, entries)}; it has {', '.join(entries)}",
                code="unknown-dataset",
                path=meta,
                key="source.datasets",
            )
    return [_annotation(meta, root, name, entries[name]) for name in entries if not wanted or name in wanted]


def _load(meta: Path) -> dict[str, object]:
    if not meta.is_file():
        raise SourceError(
            f"{meta}: no such file; source.path must name the meta.json of a collection", code="file-missing", path=meta, key="source.path"
        )
    try:
        entries = json.loads(meta.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{meta}: not readable as JSON ({error})", code="file-broken", path=meta) from None
    if not isinstance(entries, dict) or not entries:
        raise SourceError(
            f'{meta}: must be an object {{"name": {{"root": .., "annotation": ..}}, ..}} with at least one data set',
            code="meta-invalid",
            path=meta,
        )
    return entries


def _annotation(meta: Path, root: Path, name: str, entry: object) -> Annotation:
    where = f"{meta}: {name}"
    if not isinstance(entry, dict):
        raise SourceError(f"{where}: must be an object with root and annotation", code="meta-entry-invalid", path=meta, key=name)
    folder, path = (_below(root, entry, key, where) for key in ("root", "annotation"))
    if not folder.is_dir():
        raise SourceError(
            f"{where}: root {folder} is not a folder; set source.root to the folder that it is relative to",
            code="not-a-folder",
            path=folder,
            key=name,
        )
    if not path.is_file():
        raise SourceError(
            f"{where}: annotation {path} not found; set source.root to the folder that it is relative to",
            code="file-missing",
            path=path,
            key=name,
        )
    share, length = entry.get("repeat_time", 1), entry.get("length")
    if not is_repeat_time(share):
        raise SourceError(
            f"{where}: repeat_time must be a number above 0, at most {MOST_REPEATS:,} (got {short(share)})",
            code="meta-entry-invalid",
            path=meta,
            key=name,
        )
    if length is not None and (isinstance(length, bool) or not isinstance(length, int)):
        raise SourceError(f"{where}: length must be a whole number (got {short(length)})", code="meta-entry-invalid", path=meta, key=name)
    return Annotation(name=name, where=where, root=folder, path=path, share=float(share), length=length)


def is_repeat_time(value: object) -> TypeGuard[float]:
    """Whether a data set may be repeated so often: a number above 0, at most MOST_REPEATS."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MOST_REPEATS


def _below(root: Path, entry: Mapping[str, object], key: str, where: str) -> Path:
    value = entry.get(key)
    if not can_be_path(value):
        raise SourceError(f"{where}: {key} must be a path (got {short(value)})", code="meta-entry-invalid", key=key)
    path = root / value
    if not path.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"{where}: {key} {value!r} lies outside source.root {root}", code="meta-path-outside-root", path=path, key=key)
    return path
