"""Everything about a recipe that can be found wrong before the work: rows, images, model, template, lengths, extras.

Reads every row (up to a limit), decodes every image and puts every question through the model's processor; samples nothing.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from mixpo.commands.check_predictions import check_predictions, check_saved
from mixpo.commands.check_preferences import PreferencesCheck
from mixpo.commands.checked_model import CheckedModel, image_problems, measured
from mixpo.engines import api_key, require_served_extra
from mixpo.errors import MissingExtra, MixpoError, RecipeError
from mixpo.plural import first_few
from mixpo.progress import Progress
from mixpo.recipe import BenchmarkSource, Recipe, ServedModel, ServerTable, did_you_mean
from mixpo.sources import DUPLICATE
from mixpo.sources.build import FirstPlaces
from mixpo.sources.decontaminate import ContaminationFilter, open_filter
from mixpo.stages import evaluate
from mixpo.stages.answer import prompt_for
from mixpo.stages.engine import script_digest, where_of
from mixpo.stages.pair import without_correctness
from mixpo.stages.reading import NO_ANSWER, NO_RESPONSE, SourceReading
from mixpo.types import Notice, Question, Skipped, content_id
from mixpo.verify import Verifier
from mixpo.verify.custom import targets_of

OTHER_ANSWER = "the same question, with the same images, has another answer; keep one, or give a list of right answers. The other row:"
NO_PAIR = (
    "no question can give a pair: one with an answer needs pairs.correctness and sample.n of 2 or more, to be both right and wrong; "
    "one without needs pairs.dropout_ntp"
)
OTHERWISE = "they are asked in another way than in training; give them the domain, or name theirs as well"
NO_BRANCH = "no question has a known answer, and pairs.branches tells right from wrong by it; give answers, or remove [pairs.branches]"
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
    origins: set[str] = field(default_factory=set)
    """Sources and domains of all rows that can be used."""
    evaluated: set[str] = field(default_factory=set)
    """Those of the evaluation sets."""

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
            key = f"evaluate.sets.{name}" if name else "source" if source is recipe.source else "train.replay"
            reading = SourceReading(
                recipe=recipe,
                recipe_folder=recipe_folder,
                images=Path(images),
                table=source,
                limit=limit,
                evaluated=bool(name),
                replayed=key == "train.replay",
                contamination=contamination,
            )
            try:
                asked = _check_source(key, name, reading, model, checked, progress)
            except MixpoError as error:
                checked.add(key, str(error).removeprefix(f"{key}: "))
            else:
                if key == "source" and limit is None and recipe.sample.engine == "file":
                    check_saved(recipe, recipe_folder, asked, checked)
                if name and (limit is None or len(asked) < limit):
                    questions[name] = asked
        check_predictions(recipe, recipe_folder, questions, checked)
        PreferencesCheck(recipe, recipe_folder, Path(images), model, contamination, checked).run(progress, limit)
    if limit is None and not checked.findings:  # with either, some sources may not have been seen
        _check_origins(recipe, checked)
    if model is not None:
        model.close()
    return checked


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
    if recipe.train.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        checked.add("train.optimizer", str(MissingExtra('train.optimizer = "adamw_8bit"', "bitsandbytes")))
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


def _check_origins(recipe: Recipe, checked: Checked) -> None:
    """A notice for each source or domain that the recipe names and no row has: a typo, or a rule without use; and for those that decide
    how a model is asked, where no evaluation set has them."""
    judge = recipe.verify.judge
    asked, there = ["image.limits"] if recipe.evaluate.sets else [], first_few(sorted(checked.evaluated), 5) or "they have none"
    if any(s.source.kind != "benchmark" for s in recipe.evaluate.sets):  # a benchmark has prompts of its own
        asked += ["prompt.by_domain", "prompt.by_source"]
    named = {
        "image.limits": [pattern for limits in recipe.image.limits for pattern in limits.sources],
        "prompt.by_domain": recipe.prompt.by_domain,
        "prompt.by_source": recipe.prompt.by_source,
        "verify.rules": recipe.verify.rules,
        "verify.custom": targets_of(recipe.verify),
        "verify.judge.sources": judge.sources if judge else (),
        "pairs.correctness_except": recipe.pairs.correctness_except,
    }
    for key, patterns in named.items():
        for pattern in patterns:
            if pattern != "*" and not any(fnmatchcase(name, pattern) for name in checked.origins):
                hint = did_you_mean(pattern, sorted(checked.origins))
                checked.add(key, f"{pattern!r} matches no source or domain of the questions{hint}", to="notices")
            elif pattern != "*" and key in asked and not any(fnmatchcase(name, pattern) for name in checked.evaluated):
                checked.add(key, f"{pattern!r} matches no question of the evaluation sets: {OTHERWISE} ({there})", to="notices")


def _check_model(recipe: Recipe, recipe_folder: Path, checked: Checked) -> CheckedModel | None:
    try:
        model = CheckedModel(recipe, recipe_folder)
    except MixpoError as error:
        checked.add("model.path", str(error))
        return None
    for problem in model.problems:
        checked.add(f"model.path: {model.folder}", problem)
    if model.quantized:
        checked.add("model.quantization", model.quantized, to="notices")
    return model


def _check_source(
    name: str, evaluated: str, reading: SourceReading, model: CheckedModel | None, checked: Checked, progress: Progress
) -> list[Question]:
    """The questions of an evaluation set that has predictions, and of a source with saved responses; none of others, which may be large.

    name: as the recipe calls the source. evaluated: the name of its evaluation set, "" for training sources.
    """
    recipe, limit, contamination = reading.recipe, reading.limit, reading.contamination
    asked: list[Question] = []
    kept = any(evaluated == recipe.evaluate.set_of(predictions) for predictions in recipe.evaluate.predictions)
    saved = name == "source" and recipe.sample.engine == "file"
    answers = FirstPlaces()
    before, usable, pairable, answered = len(checked.findings) + len(checked.left_out), 0, False, False
    progress.start(f"check {name}", min(getattr(reading.table, "count", 0) or limit or 0, limit or 10**12), "questions")
    for item in reading.rows():
        if isinstance(item, Notice):
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
        if other := answers.add(asked_id(item.question), item.where):
            checked.add(item.where, f"{OTHER_ANSWER} {other}")
        unseen = isinstance(reading.table, BenchmarkSource) and reading.images_unchecked
        if reading.replayed and not item.question.sft_response:
            checked.add(item.where, NO_RESPONSE)
            continue
        problems = [] if unseen else question_problems(recipe, item.question, model, evaluated=reading.evaluated)
        if contamination is not None and not evaluated and not problems and (reason := contamination.reason(item.question)):
            checked.add(item.where, reason, to="left_out")
            continue
        for problem in problems:
            checked.add(item.where, problem)
        if contamination is not None and evaluated:
            contamination.add(evaluated, item.question)
        if saved:
            asked.append(item.question)
        usable += 1
        origins = {item.question.source, item.question.domain} - {""}
        checked.origins |= origins
        if evaluated:
            checked.evaluated |= origins
        pairable = pairable or _can_pair(recipe, item.question)
        answered = answered or item.question.answer is not None
        progress.advance(1)
        if usable == limit:
            break
    progress.finish()
    checked.counts[f"{name}: questions"] = usable
    if usable and not pairable and name == "source":
        checked.add(name, NO_PAIR)
    if usable and not answered and name == "source" and recipe.pairs.branches is not None:
        checked.add(name, NO_BRANCH)
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
    branches, excepted = recipe.pairs.branches, without_correctness(recipe.pairs, question)
    if branches is not None and not branches.only_mixed and not excepted:
        return True
    by_verdict = (recipe.pairs.correctness or branches is not None) and not excepted
    return by_verdict and (recipe.sample.n > 1 or (recipe.pairs.rationales and bool(question.rationale)))


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
