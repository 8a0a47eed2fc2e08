"""A verdict on every answer to a question that has a known one: sampled ones, and continuations of branches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from mixpo.integrity import FileRecord
from mixpo.pairs.statistics import balance_of
from mixpo.plural import amount
from mixpo.prompts import OwnStyle, Style
from mixpo.records import Judged, Sampled, atomic
from mixpo.run import Manifest
from mixpo.stages import prompting, verdict_judge
from mixpo.stages.attempts import attempts_of
from mixpo.stages.job import Context, Job, Make, Plan, Planned, nothing_else, title
from mixpo.stages.question_index import QuestionIndex
from mixpo.stages.verdict_judge import Decided, Ruled, VerdictJudge
from mixpo.types import Question, Response

if TYPE_CHECKING:
    from mixpo.verify import Verifier


def ready(context: Context, jobs: Iterable[Planned]) -> None:
    """Raise RecipeError where one of these jobs needs a custom check that cannot be used: before the stages that it needs are made."""
    if context.recipe.verify.custom and any(one.job.kind in ("verify", "value", "evaluate") and not one.finished() for one in jobs):
        from mixpo.verify import Verifier

        with Verifier(context.recipe.verify, recipe_folder=context.recipe_folder) as verifier:
            verifier.start()


def verify_job(context: Context, plan: Plan, index: QuestionIndex, number: int) -> Job:
    """Round `number`: judge the sampled answers. Open questions get no verdicts."""
    n = context.recipe.sample.n
    return verdict_job(
        context,
        plan,
        index,
        (number, "verify", "sample"),
        # Responses to prompt.open, for DropoutNTP, were not asked for an answer.
        asked=lambda response: response if response < n else None,
        check=lambda manifest: check_verdicts(context, plan, manifest),
    )


def _as_they_are(shard: int, rows: Iterator[Judged]) -> Iterator[Judged]:
    return rows


def verdict_job(
    context: Context,
    plan: Plan,
    index: QuestionIndex,
    what: tuple[int, Literal["verify", "value"], Literal["sample", "branch"]],
    *,
    asked: Callable[[int], int | None],
    row: type[Judged] = Judged,
    rows: Callable[[int, Iterator[Judged]], Iterator[Judged]] = _as_they_are,
    count: Callable[[Sequence[Any]], Mapping[str, int]] | None = None,
    check: Callable[[Manifest], None] = nothing_else,
    needs: tuple[str, ...] = (),
) -> Job:
    """A verdict on each response of a stage.

    what: the round, the kind of this stage, and the kind of the stage with the responses. asked: from the index of a response to that of
    the sampled response whose prompt it has; None for one without verdict. row, rows: the records of a shard, made from plain ones.
    """
    recipe, (number, kind, of) = context.recipe, what
    name, upstream = f"round-{number}/{kind}", f"round-{number}/{of}"

    def ruled(verifier: Verifier, question: Question, sampled: Sampled) -> Ruled:
        if question.answer is None:
            return Ruled(question=question, responses=(), verdicts=())
        prompts, by_style = prompting.prompts_of(recipe, question), dict[Style | OwnStyle, list[Response]]()
        for response in sampled.responses:
            if (place := asked(response.index)) is not None:
                by_style.setdefault(prompts[prompting.number_of(recipe, question, place)].style, []).append(response)
        verdicts = [verdict for style, of_style in by_style.items() for verdict in verifier.verify_all(question, of_style, style)]
        responses = {response.index: response for of_style in by_style.values() for response in of_style}
        verdicts.sort(key=lambda verdict: verdict.index)
        return Ruled(question=question, responses=[responses[verdict.index] for verdict in verdicts], verdicts=verdicts)

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        from mixpo.verify import Verifier

        with ExitStack() as stack:
            verifier = Verifier(recipe.verify, cache=context.run.verdicts, recipe_folder=context.recipe_folder).start()
            stack.enter_context(verifier)
            judge = stack.enter_context(closing(VerdictJudge(context, recipe.verify.judge))) if recipe.verify.judge else None

            def make(shard: int) -> Iterator[Judged]:
                pairs = zip(plan.rows("source", shard), plan.rows(upstream, shard), strict=True)
                by_rules = (ruled(verifier, question, sampled) for question, sampled in pairs)
                if judge is None:
                    return rows(shard, (Judged(question=one.question.id, verdicts=tuple(one.verdicts)) for one in by_rules))
                kept = list(by_rules)
                decided = judge.decide(kept, attempts.counts.get(shard, 0), compare=True)
                return rows(shard, (judged_row(one.question, of_one) for one, of_one in zip(kept, decided, strict=True)))

            yield make
            say_timeouts(context, name, verifier)
            if judge is not None:
                judge.say_unread(context.progress.say, name)

    settings = verdict_judge.settings(context)
    if kind == "verify":  # what decides these verdicts decides which responses are cut as well, and so the inputs of "value"
        settings |= {**recipe.deciding("verify"), "styles": prompting.styles(recipe.prompt), **custom_code(context)}
    attempts = attempts_of(context.run.stage(name), settings, judged_inputs(context, plan.shards(upstream), index))
    return Job(
        kind=kind,
        name=name,
        title=title(context, number, kind),
        row=row,
        settings=settings,
        inputs=attempts.inputs,
        sizes=index.sizes,
        needs=("source", upstream, *needs),
        session=session,
        count=count or count_judged,
        check=check,
        attempts=attempts if recipe.verify.judge else None,
    )


def judged_row(question: Question, decided: Sequence[Decided]) -> Judged:
    """The record of a question that a judge was asked about."""
    from mixpo.evaluate.grading import UNREAD

    compared = [one for one in decided if one.sampled and one.reply is not None and one.reply.value is not None]
    return Judged(
        question=question.id,
        verdicts=tuple(one.verdict for one in decided),
        unread=sum(one.verdict.reason == UNREAD for one in decided),
        judge_checked=len(compared),
        judge_agreed=sum(one.reply is not None and one.reply.value == one.verdict.outcome for one in compared),
    )


def say_timeouts(context: Context, stage: str, verifier: Verifier) -> None:
    """Say how many comparisons of a stage took too long."""
    if verifier.timeouts:
        what, limit = amount(verifier.timeouts, "comparison"), context.recipe.verify.timeout_s
        context.progress.say(f"{stage}: {what} reached verify.timeout_s = {limit:g} twice; the verdicts are undecided")


def check_verdicts(context: Context, plan: Plan, manifest: Manifest) -> None:
    """After new verdicts: list the questions that are all wrong, and say how often a judge agrees with the rules."""
    if list_all_wrong(context, plan, manifest.stage, manifest) and (checked := manifest.counts.get(CHECKED, 0)):
        agreed, of = manifest.counts.get(AGREED, 0), amount(checked, "sampled verdict")
        context.progress.say(f"{manifest.stage}: the judge agrees with the rules on {agreed} of {of} ({agreed / checked:.0%})")


def custom_code(context: Context) -> dict[str, Any]:
    """The settings' entry for the code of custom checks; empty without any."""
    if not context.recipe.verify.custom:
        return {}  # importing the verifier takes longer than the rest of `mixpo status`
    from mixpo.verify.custom import code_digest

    digests = code_digest(context.recipe.verify, context.recipe_folder)
    return {"custom_code": digests} if digests else {}


UNDECIDED = "undecided: "
"""How a count of undecided verdicts by reason begins."""
JUDGED_BY = "judge "
"""How the reason of a verdict begins that a judge decided."""
CHECKED, AGREED = "verdicts compared with the judge", "verdicts that the judge shares"
"""Counts of the verdicts by rules that the judge was asked about too."""
ALL_WRONG = "all_wrong.jsonl"
"""Next to the verdicts: the questions whose decided answers are all wrong, as a source reads them."""


def list_all_wrong(context: Context, plan: Plan, name: str, manifest: Manifest) -> bool:
    """Write the questions whose decided answers are all wrong or malformed; False where the manifest knows the list already.

    They are rows of a JSONL source: give them a `rationale`, or sample them again with other settings.
    """
    path = context.run.stage(name).folder / ALL_WRONG
    if ALL_WRONG in manifest.files and not FileRecord.parse(manifest.files[ALL_WRONG]).damage(path):
        return False
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for shard in range(len(plan.shards(name))):
            for question, judged in zip(plan.rows("source", shard), plan.rows(name, shard), strict=True):
                if balance_of(judged) == "all_wrong":
                    stream.write(json.dumps(_as_row(question), ensure_ascii=False) + "\n")
    manifest.files[ALL_WRONG] = str(FileRecord.of(path))
    return True


def _as_row(question: Question) -> dict[str, Any]:
    return {
        "image": [image.path for image in question.images],
        "question": question.text,
        "answer": list(question.answers) or question.answer,
        **({"choices": list(question.choices)} if question.choices else {}),
        **({"rationale": question.rationale} if question.rationale else {}),
        "domain": question.domain,
        "source": question.source,
    }


def judged_inputs(context: Context, shards: Sequence[str], index: QuestionIndex) -> tuple[str, ...]:
    """What a verdict depends on apart from the answer: the kinds, and where rules are named by them, sources and domains."""
    table = context.recipe.verify
    parts = [shards, index.kinds]
    if table.rules or table.mmpr_rules or isinstance(table.custom, dict) or (table.judge and table.judge.sources):
        parts += [index.domains, index.sources]
    return tuple(" ".join(row) for row in zip(*parts, strict=True))


def count_judged(rows: Sequence[Judged]) -> Mapping[str, int]:
    """Verdicts by outcome, undecided ones also by reason; questions whose decided answers are all right, and all wrong."""
    counts: Counter[str] = Counter(questions=len(rows), judged=0, verdicts=0, all_right=0, all_wrong=0)
    for row in rows:
        outcomes = [verdict.outcome for verdict in row.verdicts]
        counts.update(outcomes)
        counts["verdicts"] += len(outcomes)
        counts.update(f"{UNDECIDED}{verdict.reason}" for verdict in row.verdicts if verdict.outcome == "undecided")
        if outcomes:
            counts["judged"] += 1
            counts["all_right"] += balance_of(row) == "all_right"
            counts["all_wrong"] += balance_of(row) == "all_wrong"
        counts.update(f"decided by {verdict.reason}" for verdict in row.verdicts if verdict.reason.startswith(JUDGED_BY))
        counts.update({name: count for name, count in ((CHECKED, row.judge_checked), (AGREED, row.judge_agreed)) if count})
    return counts
