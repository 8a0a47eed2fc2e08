"""Record files: Parquet shards whose schema follows from the frozen dataclass of a row, written whole or not at all.

One shard holds the rows of one block of questions, in order. Knows nothing about stages.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mixpo import sealed
from mixpo.errors import RecordError, first_line, refused, unwritable
from mixpo.plural import amount
from mixpo.types import Finish, Origin, Outcome, Pair, Place, Response, Verdict

if TYPE_CHECKING:
    import pyarrow as pa  # imported where used: `mixpo status` reads no records

Row = TypeVar("Row")

ANSWERED_BY = "answered by: "
"""How answers of a model behind a server are counted in a manifest, by what the server calls itself."""


# --- rows (questions are stored as mixpo.types.Question) --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """All responses to one question; `error` is empty unless the question failed (then `responses` is empty).

    attempts: how often it was tried.
    """

    question: str
    responses: tuple[Response, ...] = ()
    error: str = ""
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One verdict for each response of a question, in the order of the responses.

    unread: verdicts that are undecided because the judge's reply could not be read. judge_checked, judge_agreed: verdicts by rules that
    the judge was asked about too, and those that it shares.
    """

    question: str
    verdicts: tuple[Verdict, ...] = ()
    unread: int = 0
    judge_checked: int = 0
    judge_agreed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Valued(Judged):
    """One verdict for each continuation of a question's branches. places: where its responses were cut, by response and tokens."""

    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """How many questions, responses or pairs were dropped for one reason."""

    reason: str
    count: int


PROMPT_REFUSED = "the prompt cannot be used"
"""Drop reason of the reference stage, followed by ": ", the location of the question and why its model refuses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The pairs of one question, and what was dropped. marked: responses whose verdict was set by a person."""

    question: str
    pairs: tuple[Pair, ...] = ()
    dropped: tuple[Drop, ...] = ()
    marked: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Unique responses of one question's pairs with their summed log-prob under the reference policy.

    chosen, rejected: positions in `responses`, one each per pair. repeats: how often one epoch trains on each pair; empty for once.
    Everything a training group needs, pixels excepted.
    prompts: for each response the number of the prompt it is scored under; empty where all have the first.
    prompt_tokens: length of each of these prompts with template and images, in the order of their first response.
    origins: of each pair. token_logps: for `train.loss.hold`, for each of these prompts, the log-prob of every token as float16, relative
    error at most 2^-11; common beginnings once (see `mixpo.train.hold`). Empty where no recipe needs them.
    """

    question: str
    responses: tuple[tuple[int, ...], ...] = ()
    logps: tuple[float, ...] = ()
    chosen: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    repeats: tuple[int, ...] = ()
    dropped: tuple[Drop, ...] = ()
    prompts: tuple[int, ...] = ()
    prompt_tokens: tuple[int, ...] = ()
    origins: tuple[Origin, ...] = ()
    token_logps: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherReading:
    """The outcome under an extractor other than the recipe's.

    extractor: "robust", "paper", or "official" for the rule of a benchmark's own script. outcome: by it.
    """

    extractor: str
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One scored response. mode: "cot", "direct" or "sampled" (index counts the samples).

    outcome, extracted: by the recipe's extractor; others: by the other extractors of a benchmark with rules.
    score: the judge's score as a share of the maximum, or None without a judge or if its reply could not be parsed.
    reply: the judge's reply. judge: its name, version and prompt digest. unread: the reply could not be parsed, so the response
    counts nowhere.
    """

    question: str
    mode: str
    index: int = 0
    text: str
    tokens: int
    finish: Finish
    outcome: Outcome
    extracted: str | None = None
    reason: str = ""
    domain: str = ""
    others: tuple[OtherReading, ...] = ()
    score: float | None = None
    reply: str = ""
    judge: str = ""
    unread: bool = False


# --- schema and codec from a dataclass ---------------------------------------------------------------------------------

_SCALARS: dict[Any, str] = {str: "string", int: "int64", float: "double", bool: "bool", bytes: "binary"}
"""Names of Arrow types."""


def schema_of(row: type) -> pa.Schema:
    """The Arrow schema of a dataclass: never inferred from data, so all shards of a table agree."""
    result: pa.Schema = _schema(typing.cast(Any, row))
    return result


# Annotations are read once: once per small shard, that took a third of the time of reading it.
@cache
def _schema(row: Any) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(list(_struct(row)))


def _struct(row: type) -> pa.StructType:
    import pyarrow as pa

    hints = typing.get_type_hints(row)
    return pa.struct([pa.field(f.name, _arrow(hints[f.name]), nullable=_optional(hints[f.name])) for f in dataclasses.fields(row)])


def _optional(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) and type(None) in hint.__args__


def _arrow(hint: Any) -> pa.DataType:
    import pyarrow as pa

    if hint in _SCALARS:
        return pa.type_for_alias(_SCALARS[hint])
    if dataclasses.is_dataclass(hint):
        return _struct(typing.cast(type, hint))
    if typing.get_origin(hint) is tuple:
        return pa.list_(_arrow(typing.get_args(hint)[0]))
    if typing.get_origin(hint) is typing.Literal:
        return pa.string()
    if _optional(hint):
        return _arrow(next(a for a in hint.__args__ if a is not type(None)))
    raise TypeError(f"no Arrow type for {hint!r}")


@cache
def _decoder(hint: Any) -> Any:
    """A function from Arrow's Python value to the annotated type; None where the value is already right."""
    if dataclasses.is_dataclass(hint):
        row = typing.cast(type, hint)
        hints = typing.get_type_hints(row)
        inner = {f.name: d for f in dataclasses.fields(row) if (d := _decoder(hints[f.name])) is not None}
        return lambda value: row(**{**value, **{name: decode(value[name]) for name, decode in inner.items()}})
    if typing.get_origin(hint) is tuple:
        decode = _decoder(typing.get_args(hint)[0])
        return tuple if decode is None else lambda value: tuple(map(decode, value))
    return None


def from_plain(row: type[Row], value: dict[str, Any]) -> Row:
    """A row from its `dataclasses.asdict` form, as JSON gives it back."""
    made: Row = _decoder(typing.cast(Any, row))(value)
    return made


# --- files -------------------------------------------------------------------------------------------------------------


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it is flushed to disk and renamed over `path`.

    A process killed in between leaves `path` as it was. A full disk raises RunError and removes the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not a process id: machines that share a disk do not share those.
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def storable(text: str) -> bool:
    """Whether a file can hold a text. JSON can name half of a character (a cut emoji), which no file can hold."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_rows(path: Path, row: type[Row], rows: Sequence[Row]) -> None:
    """Write one shard of `row` records, see `write_table`."""
    import pyarrow as pa

    write_table(path, pa.Table.from_pylist([dataclasses.asdict(r) for r in rows], schema=schema_of(row)))  # type: ignore[call-overload]


def write_table(path: Path, table: pa.Table) -> None:
    """Write one shard atomically (Parquet, zstd level 1), sealed by a digest of the whole file and its name.

    Every page has a checksum as well, which other readers of Parquet can verify.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink, how = pa.BufferOutputStream(), {"compression": "zstd", "compression_level": 1, "write_page_checksum": True, "store_schema": False}
    with pq.ParquetWriter(sink, table.schema, **how) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({sealed.SEAL: sealed.UNSEALED})
    content = sealed.seal(path, sink.getvalue().to_pybytes())
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def read_rows(path: Path, row: type[Row]) -> list[Row]:
    """Read one shard. Raises RecordError when the file is torn, fails its checksum or holds another kind of record."""
    decode = _decoder(typing.cast(Any, row))
    return [decode(value) for value in _read(path, row).to_pylist()]


def read_row(path: Path, row: type[Row], number: int) -> Row:
    """Row `number` (from 0) of one shard; the others are not decoded. Raises RecordError as `read_rows` does, or without such a row."""
    table = _read(path, row)
    if not 0 <= number < table.num_rows:
        raise RecordError(
            f"{path}: has {amount(table.num_rows, 'row')}, not row {number}; it was written again meanwhile",
            code="record-rewritten",
            path=path,
        )
    result: Row = _decoder(typing.cast(Any, row))(table.slice(number, 1).to_pylist()[0])
    return result


def read_column(path: Path, row: type, name: str) -> list[Any]:
    """One column of a shard, without decoding the others. Raises as `read_rows`."""
    return list(_read(path, row, [name]).column(name).to_pylist())


def check_shard(path: Path) -> bytes:
    """The content of a shard, for who decodes it by other means. Raises RecordError when it is missing or fails its checksum."""
    try:
        return sealed.verified(path)
    except FileNotFoundError:
        raise RecordError(f"{path}: missing; run the same command again to write it", code="record-missing", path=path) from None
    except PermissionError as error:
        raise RecordError(str(refused(error, path)), code="system-refused", path=path) from None
    except (OSError, ValueError, MemoryError) as error:
        raise broken_record(path, error) from None


def _read(path: Path, row: type, columns: list[str] | None = None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.BufferReader(check_shard(path))) as file:
            # One thread: shards are small, and starting others costs more than it saves.
            result, table = file.schema_arrow, file.read(columns, use_threads=False)
    # Where the seal is right and the file is not one of ours.
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise broken_record(path, error) from None
    if not result.equals(schema_of(row), check_metadata=False):
        raise RecordError(
            f"{path}: holds other columns than {row.__name__} records; it was written by another version, use --force",
            code="record-schema",
            path=path,
        )
    return table


def broken_record(path: Path, error: BaseException) -> RecordError:
    """The error for a file of records that cannot be read."""
    message = f"{path}: not a readable record file ({first_line(error)}); delete it, and `mixpo run` writes it again"
    return RecordError(message, code="record-broken", path=path)
