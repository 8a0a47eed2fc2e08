"""Branches of sampled responses (`pairs.branches`): continuations with the image from several places, and the value of each place.

Two jobs after the verdicts on the sampled responses: one samples, one judges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial

from mixpo.engines.base import Request
from mixpo.pairs.branches import Decode, cuts, places
from mixpo.recipe import BranchesTable
from mixpo.records import Judged, Sampled, Valued
from mixpo.stages import prompting
from mixpo.stages.engine import EngineOpener
from mixpo.stages.job import Context, Job, Plan, title
from mixpo.stages.models import ModelRef
from mixpo.stages.pair import without_correctness
from mixpo.stages.question_index import QuestionIndex
from mixpo.stages.responses import request_of, response_job
from mixpo.stages.sample import params
from mixpo.stages.verify import verdict_job
from mixpo.types import Question


def branch_job(context: Context, plan: Plan, index: QuestionIndex, number: int, model: ModelRef) -> Job:
    """Round `number`: sampled responses cut at several places and continued with the image.

    Which ones follows from the verdicts of the verify stage, not from what people corrected: no label samples anything again.
    """
    recipe = context.recipe
    engine = EngineOpener(context, model, params(recipe.sample), recipe.sample.batch_size, "branch")
    sampled, verified = f"round-{number}/sample", f"round-{number}/verify"

    def requests(shard: int) -> Iterator[Request]:
        for question, answers, judged in zip(*(plan.rows(name, shard) for name in ("source", sampled, verified)), strict=True):
            if question.answer is not None and not without_correctness(recipe.pairs, question):
                yield from requests_for(context, question, answers, judged, number, model)

    parts = [plan.shards(verified), *([index.domains, index.sources] if recipe.pairs.correctness_except else [])]
    return response_job(
        context,
        plan,
        engine,
        requests,
        kind="branch",
        name=f"round-{number}/branch",
        title=title(context, number, "branch"),
        settings=recipe.deciding("branch"),
        inputs=tuple(" ".join(row) for row in zip(*parts, strict=True)),
        index=index,
        needs=("source", sampled, verified, *filter(None, [model.job])),
    )


def requests_for(context: Context, question: Question, answers: Sampled, judged: Judged, number: int, model: ModelRef) -> Iterator[Request]:
    """One request for each prompt whose responses to a question are cut."""
    recipe, table = context.recipe, _table(context)
    if not judged.verdicts:
        return
    decode, end_ids = _words(context, model)
    by_prompt: dict[int, dict[int, tuple[int, ...]]] = {}
    for response, place, kept in cuts(answers, judged, table, recipe.seed, decode, end_ids):
        prefixes = by_prompt.setdefault(prompting.number_of(recipe, question, response.index), {})
        prefixes.update(dict.fromkeys(table.indices(response.index, place), response.token_ids[:kept]))
    asked = prompting.with_system(recipe.prompt, question)
    for prompt, prefixes in sorted(by_prompt.items()):
        text = prompting.prompts_of(recipe, question)[prompt].render(question.text)
        request = request_of(asked, text, tuple(prefixes), recipe.seed, "branch", number)
        yield replace(request, prefixes=tuple(prefixes.values()))


def value_job(context: Context, plan: Plan, index: QuestionIndex, number: int, model: ModelRef) -> Job:
    """Round `number`: judge the continuations, by the rules of sampled responses, and give each place its value."""
    table, sampled, continued = _table(context), f"round-{number}/sample", f"round-{number}/branch"

    def rows(shard: int, judged_rows: Iterator[Judged]) -> Iterator[Valued]:
        for answers, branches, judged in zip(plan.rows(sampled, shard), plan.rows(continued, shard), judged_rows, strict=True):
            same = {field.name: getattr(judged, field.name) for field in fields(Judged)}
            decode = _words(context, model)[0] if branches.responses else str
            yield Valued(**same, places=tuple(places(answers, branches, judged, table, decode)))

    return verdict_job(
        context,
        plan,
        index,
        (number, "value", "branch"),
        asked=table.response_of,
        row=Valued,
        rows=rows,
        count=count_valued,
        needs=(sampled,),
    )


def _table(context: Context) -> BranchesTable:
    table = context.recipe.pairs.branches
    assert table is not None
    return table


def _words(context: Context, model: ModelRef) -> tuple[Decode, Sequence[int]]:
    """How ids become text, and which of them end a turn."""
    from mixpo.vlm.prompt import decode

    vlm = context.models.words(model)
    return partial(decode, vlm), vlm.end_ids


def count_valued(rows: Sequence[Valued]) -> Mapping[str, int]:
    """Questions with branches, places, those whose continuations end right and wrong, and verdicts by outcome."""
    counts: Counter[str] = Counter(
        questions=len(rows), branched=sum(bool(row.places) for row in rows), places=0, mixed_places=0, verdicts=0
    )
    for row in rows:
        counts.update(verdict.outcome for verdict in row.verdicts)
        mixed = sum(place.value is not None and 0 < place.value < 1 for place in row.places)
        counts.update(places=len(row.places), mixed_places=mixed, verdicts=len(row.verdicts))
    return counts
