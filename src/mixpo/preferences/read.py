"""A [[preferences]] table as questions and pairs, in order, with every row that was skipped and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mixpo.errors import SourceError
from mixpo.plural import amount
from mixpo.preferences.build import PreferenceRow, build
from mixpo.preferences.collections import Part, other_format, parts_of
from mixpo.preferences.formats import FORMATS, Format, Row, recognise, renamed, supported
from mixpo.preferences.rows import Lines, rows_of
from mixpo.recipe import PreferencesTable
from mixpo.sources.build import without_duplicates
from mixpo.sources.columns import LOOKALIKES, SAMPLED, refuse_unsupported, unused_columns
from mixpo.sources.images import Pictures
from mixpo.types import Notice, Pair, Question, Skipped, content_id

DUPLICATE = "duplicate of an earlier pair (same prompt, images and responses)"

FIRST_ROWS = 100
"""So many rows may be of no known format before one is, and the file is still read."""

_ELSEWHERE = (
    (SAMPLED, 'saved responses are read by [sample] engine = "file"'),
    (("answer", "solution"), "questions with answers are read by [source]"),
    (("completion",), "a response with a label (KTO) is no pair; join a good and a poor one of each prompt as chosen and rejected"),
    (("messages", "conversations"), "conversations with one response are SFT rows, which [train.replay] reads"),
)
"""Columns of rows that another table reads, and which."""
_SIDES = re.compile(r"(?i)chosen|reject|prefer|output_\d")
"""Columns of pairs whose format is not known."""

_NUMBERED = re.compile(r"(?i)(image|img|picture)_?\d+")
"""Columns of one image each."""

GENERIC = ("jsonl", "hub")
"""Kinds whose columns the recipe names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """One pair with its question. where: file and line, or row."""

    where: str
    question: Question
    pair: Pair


def read(tables: Iterable[PreferencesTable], base: Path, images: Path) -> Iterator[Imported | Skipped | Notice]:
    """The pairs of all tables, none of them twice. base: folder of the recipe. images: folder for images that have no file of their own.

    Raises SourceError, while iterating, when the files as a whole cannot be used: missing, or of another format than `kind` says.
    """
    items = (item for table in tables for item in _table(table, base, images))
    return without_duplicates(items, lambda item: item.pair.id if isinstance(item, Imported) else "", DUPLICATE)


def _table(table: PreferencesTable, base: Path, images: Path) -> Iterator[Imported | Skipped | Notice]:
    parts = parts_of(table, base)
    if table.kind == "auto" and parts[0].format is not None:
        yield Notice(where=table.path, text=f"read as {parts[0].format.name}")
    for part in parts:
        yield from _part(part, table, base, images)


def _part(part: Part, table: PreferencesTable, base: Path, images: Path) -> Iterator[Imported | Skipped | Notice]:
    pictures = Pictures(part.root, images, also=(base / table.root,) if table.root else (), key="preferences.root")
    rows: Lines = rows_of(part.path, table)
    if table.count:
        rows = islice(rows, table.count)
    form, counts, unknown = part.format, Counter[str](), Counter[str]()
    unseen = dict(table.columns)
    unrecognised: SourceError | None = None
    for line in rows:
        counts["rows"] += 1
        if isinstance(line, Skipped):
            yield line
            continue
        where, row = line
        if form is None or (counts["rows"] == 1 and part.format is not None):
            try:
                form = _format_of(part, table, row)
            except SourceError as error:
                if error.code != "preferences-unknown-format" or counts["rows"] >= FIRST_ROWS:
                    raise
                unrecognised = error
                yield Skipped(where=where, reason=str(error).removeprefix(f"{part.path}: "))
                continue
            if table.kind == "auto" and part.format is None:
                yield Notice(where=table.path, text=f"read as {form.name}")
        unknown.update(name for name, value in row.items() if name not in form.columns and value not in (None, "", [], {}))
        unseen = {ours: column for ours, column in unseen.items() if column not in row} if unseen else unseen
        try:
            refuse_unsupported(row)
            for parsed in form.parse(row):
                _refuse_lost_images(row, parsed)
                repeat = _repeats(part, parsed)
                counts["dropped"] += not repeat
                if repeat:
                    origin = where.removeprefix(f"{base}/")
                    question, pair = build(parsed, pictures, where=origin, source=part.name, domain=table.domain, repeat=repeat)
                    yield Imported(where=where, question=question, pair=pair)
        except SourceError as error:
            yield Skipped(where=where, reason=str(error))
    if form is None and unrecognised is not None:
        raise unrecognised
    for ours, column in unseen.items():
        raise _no_column(part, table, ours, column, unknown)
    yield from _notices(part, table, counts, unknown)


def _notices(part: Part, table: PreferencesTable, counts: Counter[str], unknown: Counter[str]) -> Iterator[Notice]:
    """What to tell about a file after its last row."""
    where, rows = table.path if part.name == Path(table.path).stem else f"{table.path}: {part.name}", counts["rows"]
    if not rows:
        yield Notice(where=where, text="holds no rows")
    if counts["dropped"]:
        yield Notice(where=where, text=f"repeat_time = {part.repeat:g} drops {amount(counts['dropped'], 'pair')}")
    if part.length is not None and part.length != rows and not table.count:
        yield Notice(where=where, text=f"length = {part.length}, but the file has {amount(rows, 'row')}; is it complete?")
    yield from unused_columns(where, unknown)


def _format_of(part: Part, table: PreferencesTable, row: Row) -> Format:
    """The format of a file by its first row. Raises SourceError where the recipe says another one, or none is recognised."""
    if part.format is not None:
        if part.format.fits(row):
            return part.format
    elif table.kind in GENERIC:
        return _generic(part, table, row)
    elif table.kind != "auto" and FORMATS[table.kind].fits(row):
        return FORMATS[table.kind]
    actual = recognise(row)
    if actual and table.kind == "auto" and part.format is None:
        return FORMATS[actual]
    if actual:
        raise other_format(part.path, actual, part.format.name if part.format else table.kind)
    has = ", ".join(map(repr, row)) or "no columns"
    elsewhere = () if any(map(_SIDES.search, row)) else _ELSEWHERE
    hint = next(
        (hint for names, hint in elsewhere if any(name in row for name in names)),
        'set kind = "jsonl" and name the columns: columns = { prompt = "..", chosen = "..", rejected = ".." }',
    )
    message = f"{part.path}: no preference pairs of a known format ({', '.join(supported())}); the first row has {has}; {hint}"
    raise SourceError(message, code="preferences-unknown-format", path=part.path)


def _generic(part: Part, table: PreferencesTable, row: Row) -> Format:
    """The format of rows whose columns the recipe names, or that have our names."""
    columns = table.columns
    for name in ("chosen", "rejected"):
        if (column := columns.get(name, name)) not in row:
            raise _no_column(part, table, name, column, row)
    turns = all(isinstance(row[columns.get(name, name)], list) for name in ("chosen", "rejected"))
    # Conversations hold their prompt; of two texts it would be guessed.
    if (column := columns.get("prompt", "prompt")) not in row and (column != "prompt" or not ("question" in row or turns)):
        raise _no_column(part, table, "prompt", column, row)
    return Format(
        name=table.kind, fits=lambda row: True, parse=renamed(columns), columns=FORMATS["trl"].columns | frozenset(columns.values())
    )


def _no_column(part: Part, table: PreferencesTable, name: str, column: str, has: Iterable[str]) -> SourceError:
    key = f"preferences.columns.{name}"
    message = f"{part.path}: no column {column!r} for {name}; it has {', '.join(has)}; set {key}"
    return SourceError(message, code="preferences-no-column", path=part.path, key=key)


def _refuse_lost_images(row: Row, parsed: PreferenceRow) -> None:
    """Raise SourceError for a row without images that has a column like ours for them: its question may be about an image.

    So for one with images in numbered columns (`image_1`), which hold more than one image.
    """
    alone = parsed.images in (None, "", [])
    held = [name for name, value in row.items() if value not in (None, "", [])]
    if name := next((name for name in held if _NUMBERED.fullmatch(name) or (alone and LOOKALIKES.get(name.casefold()) == "image")), ""):
        hint = f'call it "images", or set kind = "jsonl" and columns = {{ images = "{name}", .. }}'
        hint = hint if alone else 'put all images of a row in one list, "images"'
        raise SourceError(f"has {'no image, but ' if alone else ''}a column {name!r}; {hint}", code="preference-unknown-images", key=name)


def _repeats(part: Part, row: PreferenceRow) -> int:
    """How often a pair is trained on in one epoch: repeat_time, its fraction drawn by the content of the pair alone."""
    whole, fraction = int(part.repeat), part.repeat % 1
    if not fraction:
        return whole
    prompt = [[message.role, message.text] for message in row.prompt]
    lot = int(content_id("repeat_time", part.name, prompt, str(row.chosen), str(row.rejected)), 16) / 2.0**64
    return whole + (lot < fraction)
