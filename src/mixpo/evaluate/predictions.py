"""Responses that another tool generated: read from its output file and matched to the questions of a benchmark. No model is needed.

Formats: the output files of MathVista (`output_*.json`), MATH-V and M3CoT (JSONL), VLMEvalKit's result tables (xlsx, tsv), lmms-eval's
`*_samples_*.jsonl`, and JSONL with an id and a response. Pickle files are refused: opening one runs its code.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixpo.errors import EvaluateError, SourceError
from mixpo.evaluate.benchmarks.base import Fields, Place, facts_of
from mixpo.evaluate.benchmarks.files import rows
from mixpo.plural import amount
from mixpo.types import IMAGE_TOKEN, Question, Skipped

ID_FIELDS = ("pid", "id", "question_id", "index", "key", "image_id")
"""Fields that identify a question, in the order of preference."""
RESPONSE_FIELDS = ("response", "prediction", "messages", "filtered_resps", "resps", "output", "model_answer")
"""Fields that hold the response, in the order of preference; a chat's last message is the response."""
GIVEN_FIELDS = ("extraction", "model_answer", "res")
"""Fields with the short answer that the other tool extracted: MathVista, MATH-V, VLMEvalKit."""
TEXT_FIELDS = ("question", "input", "prompt", "query")
"""Fields with the question or prompt, to verify a match by id."""
NO_ROW = "the predictions file has no response to this question"
"""Why a question has no response."""
STEM = 40
"""Characters at the start of a question, letters and digits alone, that must occur in the row's question or prompt."""
NAMED = 3
"""Rows named in an error message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedRow:
    """One row of a predictions file. where: file and line. given: the short answer that came with it, None without one.

    ids: values of its id fields. number: lmms-eval's `doc_id`, the position in the data. target: the gold answer in the row, "" if none.
    """

    where: str
    ids: tuple[str, ...]
    number: int | None
    asked: str
    target: str
    category: str
    response: str
    given: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Rows by question id, the rows that were skipped with the reason, and the questions without a row."""

    rows: Mapping[str, PredictedRow]
    skipped: Sequence[Skipped]
    missing: Sequence[Question]
    counts: Mapping[str, int] = field(default_factory=dict)


def read_predictions(path: Path) -> Iterator[PredictedRow | Skipped]:
    """The rows of a predictions file; one without a response is Skipped. Raises EvaluateError for a file that cannot be read."""
    if not path.is_file():
        raise EvaluateError(f"{path}: no such predictions file", code="predictions-missing", path=path)
    if path.suffix.casefold() in (".pkl", ".pickle"):
        message = f"{path}: pickle files are not opened, because opening one runs its code; convert it to .xlsx, .tsv or .jsonl"
        raise EvaluateError(message, code="predictions-pickle", path=path)
    try:
        for place in rows([path]):
            yield place if isinstance(place, Skipped) else _row(place)
    except SourceError as error:
        raise EvaluateError(str(error), code="predictions-unreadable", path=path) from None


def _row(place: Place) -> PredictedRow | Skipped:
    where, fields = place
    doc = fields.get("doc") if isinstance(fields.get("doc"), Mapping) else {}
    nested = [value for value in fields.values() if isinstance(value, Mapping) and "question_id" in value]
    known: dict[str, Any] = {**(nested[0] if nested else {}), **(doc or {}), **fields}
    # LLaVA's answer files call the response "text", next to a prompt; its question files have a text without one.
    names = (*RESPONSE_FIELDS, *(("text",) if "prompt" in known else ()))
    named = [(name, known[name]) for name in names if known.get(name) is not None]
    if not named:
        return Skipped(where=where, reason=f"no response: none of the fields {', '.join(RESPONSE_FIELDS)}")
    number = known.get("doc_id")
    return PredictedRow(
        where=where,
        ids=tuple(dict.fromkeys(_plain(known[name]) for name in ID_FIELDS if known.get(name) not in (None, ""))),
        number=number if isinstance(number, int) else None,
        asked=" ".join(_last(known[name], 0) for name in TEXT_FIELDS if known.get(name)) or _first_message(known),
        target=_plain(known.get("target", "")),
        category=str(known.get("category", "")).strip().casefold(),
        response=_last(named[0][1], -1),
        given=_given(known, named[0][0]),
    )


def _plain(value: object) -> str:
    """An id as text: 3, 3.0 and " 3 " are one."""
    return str(value).strip().removesuffix(".0")


def _last(value: object, position: int) -> str:
    """Text, or the text at one end of a list, however deep: lmms-eval nests responses, a chat is a list."""
    while isinstance(value, (list, tuple)):
        value = value[position] if value else ""
    return "" if value is None else str(value)


def _first_message(fields: Fields) -> str:
    return _last(fields.get("messages"), 0)


def _given(fields: Fields, response: str) -> str | None:
    name = next((name for name in GIVEN_FIELDS if name != response and fields.get(name) is not None), None)
    return None if name is None else str(fields[name]).strip()


# --- matching -----------------------------------------------------------------------------------------------------------


def match(rows: Iterable[PredictedRow | Skipped], questions: Sequence[Question]) -> Matched:
    """Assign each row to a question: by id, verified by the question's text where the row has it; by position and gold answer (lmms-eval);
    else by a text that only one question has. The first row of a question counts; further ones are skipped as duplicates."""
    index = _Index(questions)
    assigned: dict[str, PredictedRow] = {}
    skipped: list[Skipped] = []
    counts = dict.fromkeys(("rows", "duplicates", "unmatched"), 0)
    for row in rows:
        counts["rows"] += 1
        if isinstance(row, Skipped):
            skipped.append(row)
            counts["unmatched"] += 1
            continue
        candidates, reason = index.candidates(row)
        free = next((question for question in candidates if question.id not in assigned), None)
        if free is not None:
            assigned[free.id] = row
            continue
        if candidates:
            reason = f"a second row for the same question as {assigned[candidates[0].id].where}"
        counts["duplicates" if candidates else "unmatched"] += 1
        skipped.append(Skipped(where=row.where, reason=reason))
    missing = [question for question in questions if question.id not in assigned]
    return Matched(rows=assigned, skipped=skipped, missing=missing, counts={**counts, "missing": len(missing)})


class _Index:
    """Questions by what rows of predictions name them by."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._all = questions
        self._by_id: dict[str, list[Question]] = defaultdict(list)
        self._by_text: dict[str, list[Question]] = defaultdict(list)
        for question in questions:
            # Of a benchmark, and of a row of one's own.
            for name in {_plain(facts_of(question).get("id", "")), question.row_id} - {""}:
                self._by_id[name].append(question)
            self._by_text[_letters(question.text)].append(question)

    def candidates(self, row: PredictedRow) -> tuple[list[Question], str]:
        """The questions that a row may answer: several only where they ask the same. Without one, the reason."""
        named = [question for name in row.ids for question in self._by_id.get(name, ())]
        if not named and not row.ids and row.number is not None and row.number < len(self._all):
            question = self._all[row.number]
            named = [question] if not row.target or row.target in _golds(question) else []
        if row.category:
            of_category = [question for question in named if row.category in facts_of(question).get("categories", ())]
            named = of_category or named
        same = [question for question in named if not row.asked or _asks(row.asked, question)]
        if same and len({question.text for question in same}) == 1:
            return same, ""
        if row.asked and (by_text := self._by_text.get(_letters(row.asked))):
            return by_text, ""
        if same:
            return [], f"its id {', '.join(row.ids)} belongs to {amount(len(same), 'question')}; add a category or the question's text"
        if named:
            return [], f"its question is another one than that of id {', '.join(row.ids)} in the data"
        place = f"position {row.number} with the answer {row.target!r}" if row.number is not None else "it has no id"
        return [], f"no question with the id {', '.join(row.ids)}" if row.ids else f"no question matches: {place}"


def _golds(question: Question) -> set[str]:
    """The gold answer as a row may state it: letter, text of the option, or as in the file."""
    gold = question.answer or ""
    position = ord(gold) - ord("A") if len(gold) == 1 else -1
    texts = question.choices[position : position + 1] if position >= 0 else ()
    return {_plain(text) for text in (gold, *texts, str(facts_of(question).get("answer", gold)))}


def _asks(asked: str, question: Question) -> bool:
    """Whether the row's question or prompt holds the beginning of the question, or the reverse."""
    own, other = _letters(_stem(question.text)), _letters(_stem(asked))
    return own[:STEM] in _letters(asked) or (bool(other) and other[:STEM] in _letters(question.text))


def _stem(text: str) -> str:
    """The first line of what is asked, without images, hint and "Question:"."""
    body = text.replace(IMAGE_TOKEN, "").rpartition("Question:")[2].strip()
    return next((line for line in body.splitlines() if line.strip()), body)


def _letters(text: str) -> str:
    return re.sub(r"<image ?\d*>|[\W_]+", "", text).casefold()


def check_complete(path: Path, matched: Matched, total: int, allowed: float) -> None:
    """Raise EvaluateError where more than a share `allowed` of the questions has no row."""
    if len(matched.missing) <= allowed * total:
        return
    names = [str(facts_of(question).get("id") or question.label) for question in matched.missing[:NAMED]]
    reasons = "".join(f"; {item.where}: {item.reason}" for item in matched.skipped[:NAMED])
    message = (
        f"{path}: has responses to {len(matched.rows)} of {amount(total, 'question')}; missing are {', '.join(names)}"
        f"{' and others' if len(matched.missing) > NAMED else ''}{reasons}; grade only these with --partial (in a recipe: partial = true)"
    )
    raise EvaluateError(message, code="predictions-incomplete", path=path)
