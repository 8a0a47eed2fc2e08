"""JSONL files in the MMPR prompt format: one object a line with question, image (path, list or absent), answer (or none).

Optional: choices, domain, source; messages, of which the last one is then the question, or which stand before it. A line that cannot be
used is skipped with file:line and the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

from mixpo.errors import SourceError
from mixpo.recipe import JsonlSource
from mixpo.sources.build import Kind, SourceRow, described, make_question
from mixpo.sources.columns import FIELDS, LOOKALIKES, ColumnUse, check_fields
from mixpo.sources.images import Pictures
from mixpo.sources.messages import turns_of
from mixpo.types import Notice, Question, Skipped

Line = tuple[str, dict[str, object]]
"""Where a row stands (file:line) and its fields."""
Made = TypeVar("Made")

MAX_ROW_BYTES = 4 << 20
"""Longer lines are skipped: no prompt and response is that long."""


def read(source: JsonlSource, recipe_folder: Path, images: Path) -> Iterator[SourceRow | Skipped | Notice]:
    """The rows of the file in order. Raises SourceError when there is no file, no row, or no root folder."""
    path, root = recipe_folder / source.path, recipe_folder / source.root
    if not root.is_dir():
        raise SourceError(f"source.root: {root} is not a folder", code="not-a-folder", path=root, key="source.root")
    pictures = Pictures(root, images)

    def made(where: str, row: Mapping[str, object]) -> SourceRow:
        return SourceRow(where=where, question=question_of(row, pictures, source.answer_kind, source.domain, path.stem))

    yield from each(lines(path), made, ColumnUse(path, source.kind))


def each(
    rows: Iterable[Line | Skipped | Notice], make: Callable[[str, Mapping[str, object]], Made], columns: ColumnUse
) -> Iterator[Made | Skipped | Notice]:
    """`make` of every row with its file:line; a row that it refuses with a SourceError, like one that was no row, is Skipped.

    columns: are told of all rows, and what they have to say comes at the end.
    """
    for line in rows:
        if isinstance(line, (Skipped, Notice)):
            yield line
            continue
        where, row = line
        columns.see(row)
        try:
            yield make(where, row)
        except SourceError as error:
            yield Skipped(where=where, reason=str(error))
    yield from columns.notices()


def question_of(
    row: Mapping[str, object],
    pictures: Pictures,
    kind: Kind = "auto",
    domain: str = "",
    source: str = "",
    bare: Callable[[str], str] = str,
) -> Question:
    """A row as a Question; `domain` and `source` are the defaults of the row's. Raises SourceError with the reason.

    bare: takes off what other tools have put around the question.
    """
    check_fields(row)
    turns = turns_of(row)
    return make_question(
        text=bare(turns.question) if isinstance(turns.question, str) else turns.question,
        images=pictures.all(turns.images or row.get("image")),
        answer=row.get("answer"),
        choices=row.get("choices"),
        rationale=row.get("rationale") or turns.response,
        kind=kind,
        domain=_label(row, "domain") or domain,
        source=_label(row, "source") or source,
        row_id=row.get("id"),
        history=turns.history,
    )


def _label(row: Mapping[str, object], name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise SourceError(f"{name} must be text, not {described(value)}", code="field-not-text", key=name)
    return value or ""


def lines(path: Path, key: str = "source.path") -> Iterator[Line | Skipped]:
    """The objects of a JSONL file with their places; blank lines are passed over. Memory does not grow with the file.

    Raises SourceError when the file is missing, empty, one JSON array, or of another format altogether.
    """
    if not path.is_file():
        raise SourceError(
            f"{path}: {'is not a file' if path.exists() else 'no such file'}; check {key} (relative to the recipe)",
            code="file-missing",
            path=path,
            key=key,
        )
    empty = True
    try:
        with path.open("rb") as stream:
            for number, content in enumerate(_pieces(stream), start=1):
                if len(content) > MAX_ROW_BYTES:
                    yield Skipped(where=f"{path}:{number}", reason=f"the line is longer than {MAX_ROW_BYTES >> 20} MB")
                    continue
                content = content.removeprefix(b"\xef\xbb\xbf") if number == 1 else content
                if not content.strip():
                    continue
                if empty and (problem := _other_format(content)):
                    raise SourceError(f"{path}: {problem}", code="file-not-jsonl", path=path)
                empty = False
                yield _parse(f"{path}:{number}", content)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})", code="file-unreadable", path=path) from None
    if empty:
        raise SourceError(f"{path}: holds no rows", code="no-rows", path=path)


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is too long only the beginning, so that no line fills the memory."""
    while content := stream.readline(MAX_ROW_BYTES + 1):
        yield content
        while len(content) > MAX_ROW_BYTES and not content.endswith(b"\n"):
            content = stream.readline(MAX_ROW_BYTES + 1)


_BINARY = {
    b"\x1f\x8b": "is compressed; unpack it with gunzip",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": 'is a Parquet file; source.kind = "hub" reads a folder of those',
    b"\xff\xfe": "is UTF-16 text; save the file as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save the file as UTF-8",
}
"""By the first bytes of a file."""


def _other_format(content: bytes) -> str:
    """What is wrong with a whole file, by its first line that is not blank; "" where nothing is to be seen."""
    for beginning, problem in _BINARY.items():
        if content.startswith(beginning):
            return problem
    line = content.strip()
    if line.startswith(b"["):
        return "holds one JSON array; write one object a line instead (jq -c '.[]' does it)"
    columns = {column.strip(b" \"'").decode(errors="replace").casefold() for column in re.split(rb"[,;\t]", line)}
    if not line.startswith(b"{") and len(columns) > 1 and columns.intersection((*FIELDS, *LOOKALIKES)):
        return (
            "is a table (CSV or TSV); write one JSON object a line instead "
            '(pandas.read_csv(..).to_json(.., orient="records", lines=True) does it)'
        )
    return ""


def _parse(where: str, content: bytes) -> Line | Skipped:
    try:
        row = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Skipped(where=where, reason=f"not UTF-8 text (byte {error.start + 1} of the line); save the file as UTF-8")
    except json.JSONDecodeError as error:
        torn = "" if content.endswith(b"\n") else "; the file ends in this line, so its end may be missing"
        return Skipped(where=where, reason=f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}{torn}")
    except ValueError:  # Python reads no integer of more than 4,300 digits
        return Skipped(where=where, reason="not usable JSON: an integer has too many digits")
    except RecursionError:
        return Skipped(where=where, reason="not usable JSON: nested too deeply")
    if not isinstance(row, dict):
        return Skipped(where=where, reason=f"holds {described(row)}, not an object")
    return where, row
