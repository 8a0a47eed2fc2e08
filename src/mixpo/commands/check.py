"""Everything about a recipe that can be found wrong before the work: rows, images, model, template, lengths, extras.

Reads every row (up to a limit), decodes every image and puts every question through the model's processor; samples nothing.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from mixpo.commands.check_predictions import check_predictions
from mixpo.commands.check_preferences import PreferencesCheck
from mixpo.commands.checked_model import CheckedModel, image_problems, measured
from mixpo.engines import api_key, require_served_extra
from mixpo.errors import MissingExtra, MixpoError, RecipeError
from mixpo.progress import Progress
from mixpo.recipe import AnySource, BenchmarkSource, Recipe, ServedModel, ServerTable
from mixpo.sources import DUPLICATE
from mixpo.sources.build import FirstPlaces
from mixpo.sources.decontaminate import ContaminationFilter, open_filter
from mixpo.stages import evaluate
from mixpo.stages.answer import prompt_for
from mixpo.stages.engine import script_digest, where_of
from mixpo.stages.pair import without_correctness
from mixpo.stages.source import NO_ANSWER, accepted, rows_of
from mixpo.types import Notice, Question, Skipped, content_id
from mixpo.verify import Verifier

OTHER_ANSWER = "the same question, with the same images, has another answer; keep one, or give a list of right answers. The other row:"
NO_RESPONSE = "a row of train.replay without an answer is not trained on; remove it or give its answer"
NO_PAIR = (
    "no question can give a pair: one with an answer needs pairs.correctness and sample.n of 2 or more, to be both right and wrong; "
    "one without needs pairs.dropout_ntp"
)
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""Extra and module of each tracker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something to correct. where: a file and line, a row, a file, or a recipe key."""

    where: str
    problem: str


@dataclass(kw_only=True)
class Checked:
    """What was checked. `left_out` (what evaluation sets keep out of training), `notices` and `notes` need no correction."""

    counts: Counter[str] = field(default_factory=Counter)
    left_out: list[Finding] = field(default_factory=list)
    duplicates: list[Finding] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notices: list[Finding] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, problem: str, to: Literal["findings", "left_out", "duplicates", "notices"] = "findings") -> None:
        """Put something on one of the lists."""
        getattr(self, to).append(Finding(where=where, problem=problem))


def check(recipe: Recipe, recipe_folder: Path, progress: Progress, limit: int | None = None) -> Checked:
    """Check everything; what is wrong is a finding, never an exception. limit: usable rows to check in each source."""
    checked = Checked()
    _check_extras(recipe, recipe_folder, checked)
    model = _check_model(recipe, recipe_folder, checked) if recipe.needs_model else None
    questions: dict[str, list[Question]] = {}
    contamination = _open_filter(recipe)
    with TemporaryDirectory(prefix="mixpo-check-") as images:
        # The training source last: evaluation sets say what must not be in it.
        replay = recipe.train.replay.source if recipe.train.replay else None
        for name, source in (*((s.name, s.source) for s in recipe.evaluate.sets), ("", recipe.source), ("", replay)):
            if source is None:
                continue
            rows = _Rows(recipe=recipe, recipe_folder=recipe_folder, source=source, images=Path(images), evaluated=name, limit=limit)
            try:
                asked = _check_source(rows, model, contamination, checked, progress)
            except MixpoError as error:
                checked.add(rows.name, str(error))
            else:
                if name and (limit is None or len(asked) < limit):
                    questions[name] = asked
        check_predictions(recipe, recipe_folder, questions, checked)
        PreferencesCheck(recipe, recipe_folder, Path(images), model, contamination, checked).run(progress, limit)
    if model is not None:
        model.close()
    return checked


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows of one source. evaluated: the name of its evaluation set, "" for the training source. images: where copies are kept."""

    recipe: Recipe
    recipe_folder: Path
    source: AnySource
    images: Path
    evaluated: str
    limit: int | None

    @property
    def name(self) -> str:
        """As the recipe calls it."""
        if self.evaluated:
            return f"evaluate.sets.{self.evaluated}"
        return "source" if self.source is self.recipe.source else "train.replay"


def _open_filter(recipe: Recipe) -> ContaminationFilter | None:
    """What evaluation sets will keep out of training; None where nothing, or where the library for it is missing (a finding)."""
    try:
        return open_filter(recipe.evaluate)
    except MissingExtra:
        return None


def _check_extras(recipe: Recipe, recipe_folder: Path, checked: Checked) -> None:
    for tracker in recipe.train.trackers:
        if importlib.util.find_spec(TRACKERS[tracker]) is None:
            checked.add("train.trackers", str(MissingExtra(f"the tracker {tracker!r}", tracker)))
    if (recipe.train.lora or recipe.model.adapter) and importlib.util.find_spec("peft") is None:
        key = "train.lora" if recipe.train.lora else "model.adapter"
        checked.add(key, str(MissingExtra(key, "lora")))
    if recipe.evaluate.decontaminate == "similar" and importlib.util.find_spec("imagehash") is None:
        checked.add("evaluate.decontaminate", str(MissingExtra('evaluate.decontaminate = "similar"', "similar")))
    for problem in engine_problems(recipe):
        checked.add("sample.engine", problem)
    for served in recipe.evaluate.served:
        for problem in served_problems(served):
            checked.add("evaluate.served", problem)
    try:
        evaluate.ready(recipe, recipe_folder)
    except MixpoError as error:
        checked.add("evaluate", str(error))
    try:
        with Verifier(recipe.verify, recipe_folder=recipe_folder) as verifier:
            verifier.start()
    except MixpoError as error:
        checked.add("verify.custom", str(error))
    for engine in dict.fromkeys((recipe.sample.engine, recipe.evaluate.engine or "")):
        try:
            script_digest(recipe, recipe_folder, engine)
        except MixpoError as error:
            checked.add("sample.responses" if engine == "file" else "sample.script", str(error))


def engine_problems(recipe: Recipe) -> Iterator[str]:
    """What keeps the recipe's engine from starting: a library, a key, a server that does not answer. Nothing is started."""
    table, engines = recipe.sample, {recipe.sample.engine, recipe.evaluate.engine}
    if "vllm" in engines and importlib.util.find_spec("vllm") is None:
        yield 'sample.engine = "vllm" needs vLLM, which brings its own torch; docs/engines.md says how to install it'
    if "openai" not in engines:
        return
    try:
        require_served_extra('sample.engine = "openai"')
    except MissingExtra as error:
        yield str(error)
        return
    from mixpo.engines.openai.server import missing_program

    if table.server.start and (problem := missing_program(table.server.start[0])):
        yield problem
    yield from _silent(table.server, "sample.server")


def served_problems(served: ServedModel) -> Iterator[str]:
    """What keeps a served model from answering."""
    try:
        require_served_extra("evaluate.served")
    except MissingExtra as error:
        yield str(error)
    else:
        yield from _silent(served.server, where_of(served))


def _silent(table: ServerTable, where: str) -> Iterator[str]:
    """A key that is not set, and servers that do not answer."""
    key = ""
    try:
        key = api_key(table, where)
    except RecipeError as error:
        yield str(error)
    from mixpo.engines.openai.engine import unavailable_servers

    yield from unavailable_servers(table.urls, where, key)


def _check_model(recipe: Recipe, recipe_folder: Path, checked: Checked) -> CheckedModel | None:
    try:
        model = CheckedModel(recipe, recipe_folder)
    except MixpoError as error:
        checked.add("model.path", str(error))
        return None
    for problem in model.problems:
        checked.add(f"model.path: {model.folder}", problem)
    return model


def _check_source(
    rows: _Rows, model: CheckedModel | None, contamination: ContaminationFilter | None, checked: Checked, progress: Progress
) -> list[Question]:
    """The questions of an evaluation set that has predictions; none of other sources, which may be large."""
    name, limit, table = rows.name, rows.limit, rows.recipe.evaluate
    asked: list[Question] = []
    kept = any(rows.evaluated == table.set_of(predictions) for predictions in table.predictions)
    answers = FirstPlaces()
    before, usable, pairable = len(checked.findings) + len(checked.left_out), 0, False
    progress.start(f"check {name}", min(getattr(rows.source, "count", 0) or limit or 0, limit or 10**12), "questions")
    for item in rows_of(rows.source, rows.recipe_folder, rows.images):
        if isinstance(item, Notice):
            accepted(rows.recipe, item)
            checked.add(item.where, item.text, to="notices")
            continue
        if isinstance(item, Skipped):
            if item.reason == DUPLICATE:
                checked.notes[f"{name}: duplicate rows"] += 1
                checked.add(item.where, f"{item.reason}: {item.repeats}", to="duplicates")
            else:
                checked.add(item.where, item.reason)
            continue
        if kept:
            asked.append(item.question)
        unseen = isinstance(rows.source, BenchmarkSource) and rows.source.images == "optional"
        if other := answers.add(asked_id(item.question), item.where):
            checked.add(item.where, f"{OTHER_ANSWER} {other}")
        problems = [] if unseen else question_problems(rows.recipe, item.question, model, evaluated=bool(rows.evaluated))
        if contamination is not None and not rows.evaluated and not problems and (reason := contamination.reason(item.question)):
            checked.add(item.where, reason, to="left_out")
            continue
        if name == "train.replay" and not (item.question.rationale or item.question.answer):
            problems.append(NO_RESPONSE)
        for problem in problems:
            checked.add(item.where, problem)
        if contamination is not None and rows.evaluated:
            contamination.add(rows.evaluated, item.question)
        usable += 1
        pairable = pairable or _can_pair(rows.recipe, item.question)
        progress.advance(1)
        if usable == limit:
            break
    progress.finish()
    checked.counts[f"{name}: questions"] = usable
    if usable and not pairable and name == "source":
        checked.add(name, NO_PAIR)
    if not usable:
        checked.add(name, "no row is usable" if len(checked.findings) + len(checked.left_out) > before else "the source holds no rows")
    return asked


def asked_id(question: Question) -> str:
    """An id of what is asked, whatever the answer; a benchmark may ask the same thing twice, so its facts belong to it."""
    history = [[message.role, message.text] for message in question.history]
    return content_id(question.text, [image.digest for image in question.images], list(question.choices), history, question.facts)


def _can_pair(recipe: Recipe, question: Question) -> bool:
    """Whether the settings let answers to this question become a pair at all."""
    if question.answer is None:
        return recipe.pairs.dropout_ntp
    if recipe.pairs.dropout_from == "all" and recipe.pairs.dropout_ntp:
        return True
    correctness = recipe.pairs.correctness and not without_correctness(recipe.pairs, question)
    return correctness and (recipe.sample.n > 1 or (recipe.pairs.rationales and bool(question.rationale)))


def question_problems(recipe: Recipe, question: Question, model: CheckedModel | None, evaluated: bool) -> list[str]:
    """Everything wrong with one question: broken images, control tokens, image tokens, length, a missing answer."""
    if evaluated and question.answer is None:
        return [*image_problems(recipe, model, question), NO_ANSWER]
    problems, tokens = measured(recipe, model, question, prompt_for(recipe, question, "cot"))
    if problems or model is None:
        return problems
    new = recipe.evaluate.max_new_tokens if evaluated else recipe.sample.max_new_tokens
    if tokens + new > model.context:
        return [f"over-long: a prompt of {tokens} tokens and {new} new ones do not fit into the model's {model.context}; shorten it"]
    if not evaluated and tokens >= recipe.train.max_length:
        return [
            f"over-long: a prompt of {tokens} tokens leaves no room for an answer in train.max_length = {recipe.train.max_length}; raise it"
        ]
    return []
