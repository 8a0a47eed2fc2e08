"""The columns of rows: which are used, which look like a used one, and which belong to another table of the recipe."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from pathlib import Path

from mixpo.errors import SourceError
from mixpo.plural import amount
from mixpo.types import Notice

FIELDS = ("question", "image", "answer", "choices", "rationale", "domain", "source", "id", "messages", "conversations")
"""The fields of a row that have a meaning. `id` finds saved responses; identity is the content."""

LOOKALIKES = {
    **dict.fromkeys(("images", "img", "imgs", "picture", "pictures", "photo", "photos"), "image"),
    **dict.fromkeys((f"{of}_{what}{s}" for of in ("image", "img") for what in ("path", "file", "url") for s in ("", "s")), "image"),
    **dict.fromkeys(("prompt", "query", "instruction", "text", "problem"), "question"),
    **dict.fromkeys(("answers", "label", "gt", "gt_answer", "ground_truth", "groundtruth", "solution", "target"), "answer"),
    **dict.fromkeys(("options", "choice", "candidates"), "choices"),
}
"""Names that other formats use. Such a field next to a missing one of ours is an error, never silently unused."""

SIDES = ("chosen", "rejected", "rejected_response", "rejected_messages", "completions")
"""Columns of preference pairs."""
SAMPLED = ("responses", "resps", "outputs")
"""Columns of saved responses."""
UNSUPPORTED = ("video", "videos", "audio", "audios", "tools", "functions")
"""Columns that are part of the prompt, and that no table reads."""
RESPONSES_UNUSED = "source-holds-responses"


class ColumnUse:
    """Follows the columns of the rows of one file.

    where: the file, for messages. kind: of the source. used: the columns that have a meaning there.
    """

    def __init__(self, where: str | Path, kind: str, used: Container[str] = FIELDS) -> None:
        self.where, self.kind, self.used = str(where), kind, used
        self._unknown: Counter[str] = Counter()

    def see(self, row: Mapping[str, object]) -> None:
        """Note the columns of a row. Raises SourceError when it holds a preference pair, which no source uses."""
        unused = [name for name, value in row.items() if name not in self.used and value not in (None, "", [], {})]
        self._unknown.update(unused)
        self.refuse_pairs(unused, row)

    def refuse_pairs(self, unused: Sequence[str], columns: Collection[str]) -> None:
        """Raise SourceError when one of the unused columns is of preference pairs, naming the kind that reads them."""
        if sides := [name for name in SIDES if name in unused]:
            held, kind = ", ".join(sides), pair_kind(columns)
            message = f'{self.where}: holds preference pairs ({held}), which source.kind = "{self.kind}" does not use; read them with'
            raise SourceError(f'{message} [[preferences]] kind = "{kind}"', code="source-holds-pairs", path=self.where, key=sides[0])

    def notices(self) -> Iterator[Notice]:
        """What to tell at the end: the columns that nothing used, once. Saved responses are an error where no engine reads them."""
        yield from unused_columns(self.where, self._unknown)
        if held := [name for name in SAMPLED if name in self._unknown]:
            text = f'holds sampled responses ({held[0]}), which nothing uses; read them with [sample] engine = "file" and sample.responses'
            yield Notice(where=self.where, text=text, code=RESPONSES_UNUSED)


def unused_columns(where: str, rows: Mapping[str, int]) -> Iterator[Notice]:
    """A notice with the columns that nothing used and the number of rows that hold them, where there are any."""
    if rows:
        named = ", ".join(f"{name} ({amount(count, 'row')})" for name, count in sorted(rows.items()))
        yield Notice(where=where, text=f"columns that are not used: {named}")


def pair_kind(columns: Collection[str]) -> str:
    """The kind of [[preferences]] for rows with these columns."""
    if "completions" in columns:
        return "vlfeedback"
    if "rejected_response" in columns or "rejected_messages" in columns or ("messages" in columns and "chosen" not in columns):
        return "ms-swift"
    if "conversations" in columns or "instruction" in columns:
        return "llama-factory"
    return "mmpr" if "question" in columns and "prompt" not in columns else "trl"


def refuse_unsupported(row: Mapping[str, object], names: Collection[str] = UNSUPPORTED) -> None:
    """Raise SourceError for a row with a video, a sound or tools: without them its prompt would be another one."""
    if name := next((name for name in names if row.get(name) not in (None, "", "[]", [], {})), ""):
        raise SourceError(f"has {name}, which is not supported (text and images only)", code="row-unsupported-column", key=name)


def check_fields(row: Mapping[str, object]) -> None:
    """Refuse a row that seems to have one of our fields under another name."""
    refuse_unsupported(row)
    for name in row:
        if name in FIELDS or row[name] in (None, "", []):
            continue
        meant = LOOKALIKES.get(name.casefold()) or _near(name)
        if meant is not None and row.get(meant) in (None, "", []):
            raise SourceError(f"unknown field {name!r}, did you mean {meant!r}? It would not be used", code="unknown-field", key=name)
    if not any(row.get(name) is not None for name in ("question", "messages", "conversations")):
        raise SourceError(
            f"no field 'question'; the row has {', '.join(map(repr, row)) or 'no fields'}", code="field-missing", key="question"
        )


def _near(name: str) -> str | None:
    # Close enough for a slip of the pen (imge, anwser), not for a field of its own (image_id, answer_type).
    return next(iter(difflib.get_close_matches(name.casefold(), ("image", "question", "answer", "choices"), n=1, cutoff=0.8)), None)
