"""Markdown tables of recipe keys (from the pydantic models) and of record fields (from the dataclasses). Writes no files."""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mixpo import recipe as models
from mixpo.evaluate.lm_eval import TextScore
from mixpo.recipe.base import CHOOSES_STAGES, Decides
from mixpo.records import Drop, Judged, OtherReading, Paired, Prediction, Sampled, Scored, Valued
from mixpo.run import Manifest
from mixpo.stages.report import ReportFile
from mixpo.study.schema import Study
from mixpo.train.metrics import StepMetrics
from mixpo.types import ImageRef, Message, Pair, Place, Question, Response, Skipped, Verdict

WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", bytes: "bytes", type(None): "null", Any: "any value"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

COMMON = {
    "question": "`Question.id`.",
    "index": "index of the response, as in `Response.index`.",
    "domain": "domain of the question; may be empty.",
    "source": "where the question came from: file, data set or pool.",
    "finish": "how the response ended: by itself, truncated at the token limit, or with an error.",
    "extracted": "the final answer found, or null.",
    "reason": "why, in a few words.",
    "images": "the images, in order.",
    "engine": "name of the engine; for a served model also what it calls itself.",
    "seed": "its sampling seed.",
    "tokens": "length in tokens.",
    "seconds": "wall-clock time, summed over resumed parts.",
    "path": "path of the file.",
    "dropped": "what was dropped, by reason.",
    "Question.kind": "how its answer is compared.",
    "ImageRef.digest": "SHA-256 of the file's bytes.",
    "Message.role": "who speaks.",
    "Sampled.responses": "the responses, by index.",
    "Sampled.error": "why the question failed; else empty.",
    "Response.text": "the generated text, without control tokens.",
    "Judged.verdicts": "empty for open questions.",
    "Valued.verdicts": "of the continuations, by index.",
    "Valued.unread": "as in Judged.",
    "Valued.judge_checked": "as in Judged.",
    "Valued.judge_agreed": "as in Judged.",
    "Paired.pairs": "the pairs, possibly none.",
    "Pair.id": "digest of origin, question, texts, indices and cut.",
    "Pair.chosen": "text of the better response.",
    "Pair.rejected": "text of the worse response.",
    "Pair.origin": "why the rejected one is worse: a wrong answer, no clear final answer, continued without the image or to a wrong end.",
    "Pair.chosen_answer": "its extracted final answer.",
    "Pair.rejected_answer": "its extracted final answer.",
    "Drop.count": "how many.",
    "Scored.responses": "token ids of each unique response.",
    "Scored.logps": "log-prob of each under the reference, summed over its tokens, in nats; empty with an online reference.",
    "Scored.chosen": "for each pair, the position of its chosen response.",
    "Scored.rejected": "for each pair, the position of its rejected response.",
    "StepMetrics.learning_rate": "of this step.",
    "StepMetrics.pairs": "in this step.",
    "StepMetrics.seconds": "of this step.",
    "StepMetrics.tokens_per_second": "`tokens` / `seconds`.",
    "StepMetrics.pairs_per_second": "`pairs` / `seconds`.",
    "Prediction.text": "the response.",
    "Prediction.outcome": "as in a [Verdict](#verdict).",
    "ReportFile.bytes": "its size.",
    "Manifest.stage": "the folder of the stage.",
    "Manifest.settings": "everything in the recipe that decides the output.",
    "Manifest.inputs": "names of the shards it was made from.",
    "Manifest.shards": "names of its own shards, in order.",
    "Manifest.finished": "whether all of them exist.",
    "Manifest.counts": "what was made and what was dropped.",
    "Manifest.started": "when the work began, UTC.",
    "Manifest.versions": "of packages that affect the numbers.",
    "Manifest.format": "version of the layout of a run directory.",
    "Skipped.where": "file:line, or the name of a row.",
    "Skipped.stage": "the stage that skipped it.",
}
"""What fields are whose docstring leaves it to their name; a docstring that says it wins."""

RECORDS: dict[str, tuple[type, ...]] = {
    "Question": (Question, ImageRef, Message),
    "Sampled": (Sampled, Response),
    "Judged": (Judged, Verdict),
    "Valued": (Valued, Place),
    "Paired": (Paired, Pair, Drop),
    "Scored": (Scored,),
    "StepMetrics": (StepMetrics,),
    "Prediction": (Prediction, OtherReading),
    "TextScore": (TextScore,),
    "ReportFile": (ReportFile,),
    "Manifest": (Manifest,),
    "Skipped": (Skipped,),
}
"""Each record with the structures inside it."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells hold no line breaks and no bare pipes."""
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def cell(text: str, breaks: str = "<br>") -> str:
    """Text that fits into a table cell."""
    shown = text if breaks != "<br>" else text.replace("<", "&lt;")
    return shown.replace("|", "\\|").replace("\n", breaks)


# --- recipe ------------------------------------------------------------------------------------------------------------


def recipe_sections() -> str:
    """Every table of a recipe, in the order of the model."""
    fields = models.Recipe.model_fields
    plain = {name: field for name, field in fields.items() if not _models_in(field.annotation)}
    parts = ["## Top level", "These go above the first `[table]`.", _keys("", models.Recipe, plain)]
    for name, field in fields.items():
        if name not in plain:
            parts += _sources(field) if name == "source" else _section(name, field)
    return "\n\n".join(parts)


def study_sections() -> str:
    """Every table of a study."""
    fields = Study.model_fields
    plain = {name: field for name, field in fields.items() if not _models_in(field.annotation)}
    parts = ["### Top level", _study_keys(Study, plain)]
    for name, field in fields.items():
        for model in _models_in(field.annotation):
            heading = f"[[{name}]]" if typing.get_origin(field.annotation) is tuple else f"[{name}]"
            parts += [f"### {heading}", _text(model), _study_keys(model)]
    return "\n\n".join(parts)


def _study_keys(model: type[BaseModel], fields: dict[str, FieldInfo] | None = None) -> str:
    """As `_keys`, without the column of stages: a study decides none."""
    texts = _docstrings(model)
    rows = [
        (f"`{name}`", cell(_study_type(name, field), " "), _default(field), cell(texts.get(name, ""), " "))
        for name, field in (fields or model.model_fields).items()
    ]
    return table(("key", "type", "default", "meaning"), rows)


def _study_type(name: str, field: FieldInfo) -> str:
    if name == "source":
        return "table, as [source](recipe.md#source)"
    return ", ".join([type_words(field.annotation).removesuffix(" or null"), *_bounds(field)])


def _sources(field: FieldInfo) -> list[str]:
    parts = [
        "## source",
        "Where questions come from. `kind` selects the keys; `[[evaluate.sets]]` has the same tables, and `benchmark`.",
    ]
    kinds = [model for model in _models_in(field.annotation) if model is not models.MixtureSource]
    kinds.append(models.BenchmarkSource)
    for model in kinds:
        kind = typing.get_args(model.model_fields["kind"].annotation)[0]
        rest = {name: field for name, field in model.model_fields.items() if name != "kind"}
        parts += [f"### source: {kind}", _text(model), _keys("source", model, rest)]
    several = "`[[source]]` instead of `[source]`: several sources, one question of each in turn. Training shuffles all pairs."
    return [*parts, "### Several sources", several, _keys("source", models.MixturePart)]


def _section(path: str, field: FieldInfo) -> list[str]:
    """The section of a table, and those of the tables inside it."""
    (model,) = _models_in(field.annotation)
    many = typing.get_origin(field.annotation) is tuple
    name = f"`[[{path}]]`" if many else f"`[{path}]`"
    head = f"## {path}" if "." not in path else f"### {path}"
    parts = [head, f"{name} {_text(model)}", _keys(path, model)]
    inner: dict[type, tuple[str, FieldInfo]] = {}
    for key, nested in model.model_fields.items():
        found = _models_in(nested.annotation)
        if len(found) == 1:
            inner.setdefault(found[0], (f"{path}.{key}", nested))
    for nested_path, nested in inner.values():
        if _models_in(nested.annotation) == [models.PromptText]:
            parts += ["### A prompt of your own", "A table instead of a prompt's name.", _keys("prompt", models.PromptText)]
            parts += ["### Several prompts", "A list of tables instead of one prompt.", _keys("prompt", models.PromptShare)]
        else:
            parts += _section(nested_path, nested)
    return parts


def _text(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string below each field in the source; pydantic would read it at every start of mixpo."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__[: model.__mro__.index(models.Table) + 1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                texts[ast.unparse(field.target)] = inspect.cleandoc(str(below.value.value))
    return texts


def _keys(path: str, model: type[BaseModel], fields: dict[str, FieldInfo] | None = None) -> str:
    rows, texts = [], _docstrings(model)
    for name, field in (fields or model.model_fields).items():
        kind = _recipe_type(f"{path}.{name}", field)
        bounds = ", ".join(_bounds(field))
        rows.append(
            (
                f"`{name}`",
                cell(f"{kind}, {bounds}" if bounds else kind, " "),
                _default(field),
                _decides(field),
                cell(field.description or texts.get(name, ""), " "),
            )
        )
    return table(("key", "type", "default", "decides", "meaning"), rows)


def _decides(field: FieldInfo) -> str:
    """The stages that become stale with a key; empty for one that decides no record, and for a table."""
    marker = next((item for item in field.metadata if isinstance(item, Decides)), None)
    return "which stages there are" if marker is CHOOSES_STAGES else ", ".join(marker.stages) if marker else ""


def _recipe_type(path: str, field: FieldInfo) -> str:
    """The type of a key; tables are links to their sections. TOML has no null: a key without a value is left out."""
    nested = _models_in(field.annotation)
    if models.PromptText in nested:
        return type_words(field.annotation)
    if len(nested) > 1:
        return "table, as [source](#source)"
    if nested:
        return f"table [{path}](#{path.replace('.', '')})"
    return type_words(field.annotation).removesuffix(" or null")


def _bounds(field: FieldInfo) -> Iterator[str]:
    for rule in field.metadata:
        for name, word in BOUNDS.items():
            if (value := getattr(rule, name, None)) is not None:
                yield f"{word} {value:,}" if isinstance(value, int) else f"{word} {value:g}"
        if pattern := getattr(rule, "pattern", None):
            yield f"matching `{pattern}`"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "the defaults of that table"
    if value is None:
        return "not set"
    return f"`{json.dumps(value).replace('e-0', 'e-')}`"


def _models_in(hint: Any) -> list[type[BaseModel]]:
    """The recipe tables that an annotation allows."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    return [model for part in typing.get_args(hint) for model in _models_in(part)]


# --- records -----------------------------------------------------------------------------------------------------------


def record_sections() -> str:
    """Fields of every record, with the structures inside it."""
    parts = []
    for name, rows in RECORDS.items():
        parts += [f"### {name}", about(rows[0]), _fields(rows[0])]
        for inner in rows[1:]:
            parts += [f"#### {inner.__name__}", about(inner), _fields(inner)]
    return "\n\n".join(parts)


def about(row: type) -> str:
    """What a dataclass says of itself, without what it says of its fields."""
    text = _joined(row)
    first = next(_mentions(row, text), None)
    return text if first is None else text[: first.start()].strip()


def meanings(row: type) -> dict[str, str]:
    """What the docstring of a dataclass says of its fields: "name: text", "one / two: text", "part_*: text"."""
    text, names = _joined(row), [field.name for field in dataclasses.fields(row)]
    found: dict[str, str] = {}
    mentions = [*_mentions(row, text)]
    for number, mention in enumerate(mentions):
        end = mentions[number + 1].start() if number + 1 < len(mentions) else len(text)
        for pattern in _names(mention[1]):
            found |= dict.fromkeys(fnmatch.filter(names, pattern), text[mention.end() : end].strip().rstrip(";"))
    return found


def _joined(row: type) -> str:
    return " ".join((row.__doc__ or "").split())


def _mentions(row: type, text: str) -> Iterator[re.Match[str]]:
    names = [field.name for field in dataclasses.fields(row)]
    for match in re.finditer(r"(?:^|(?<=[.;)] ))([a-z_]+\*?(?:(?:, | / )[a-z_]+\*?)*): ", text):
        if all(fnmatch.filter(names, pattern) for pattern in _names(match[1])):
            yield match


def _names(listed: str) -> list[str]:
    return re.split(r", | / ", listed)


def _fields(row: type) -> str:
    hints, known = typing.get_type_hints(row), meanings(row)
    rows = []
    for name in (field.name for field in dataclasses.fields(row)):
        meaning = known.get(name) or COMMON.get(f"{row.__name__}.{name}") or COMMON[name]
        rows.append((f"`{name}`", cell(type_words(hints[name]), " "), cell(meaning, " ")))
    return table(("field", "type", "meaning"), rows)


# --- types in words ----------------------------------------------------------------------------------------------------


def type_words(hint: Any) -> str:
    """An annotation for people."""
    if hint in WORDS:
        return WORDS[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f'`"{value}"`' for value in inner)
    if origin is typing.Annotated:
        return type_words(inner[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_words(part) for part in inner)
    if origin in (tuple, list):
        return f"list of {_plural(type_words(inner[0]))}"
    if origin is dict:
        return "table" if inner[1] is Any else f"table of {_plural(type_words(inner[1]))}"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        anchors = {models.PromptText: "[table](#a-prompt-of-your-own)", models.PromptShare: "[table](#several-prompts)"}
        return anchors.get(hint, "table")
    if dataclasses.is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"  # type: ignore[union-attr]
    raise TypeError(f"no words for {hint!r}")


def _plural(words: str) -> str:
    return {"text": "texts", "whole number": "whole numbers", "number": "numbers", "table": "tables"}.get(words, words)
