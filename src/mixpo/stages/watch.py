"""What a training watches: greedy answers of the policy to the first questions of an evaluation set, marked as the evaluation would."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixpo.engines import create
from mixpo.engines.base import Request
from mixpo.stages.answer import params, prompt_for, source_name
from mixpo.stages.evaluate import Marker
from mixpo.stages.job import Context, Plan
from mixpo.types import Question

if TYPE_CHECKING:
    from mixpo.train.metrics import EvaluatePolicy, PolicyMetrics
    from mixpo.vlm.load import Vlm


def watch_of(context: Context, plan: Plan, vlm: Vlm) -> EvaluatePolicy | None:
    """The watch that the recipe asks for, on a policy that changes in place; None without [train.watch]."""
    from mixpo.evaluate.benchmarks import BENCHMARKS
    from mixpo.evaluate.score import score

    table = context.recipe.train.watch
    if table is None:
        return None
    sets = context.recipe.evaluate.sets
    chosen = next(s for s in sets if s.name == (table.set or sets[0].name))
    benchmark = BENCHMARKS[chosen.source.name] if chosen.source.kind == "benchmark" else None
    questions = _first(plan, source_name(chosen.name), table.count)
    requests = [
        Request(key=q.id, prompt=prompt_for(context.recipe, q, "cot"), images=q.images, seeds=(0,), indices=(0,)) for q in questions
    ]  # fmt: skip
    how = params(context.recipe, "cot")

    def watch() -> PolicyMetrics:
        from mixpo.train.metrics import PolicyMetrics

        engine = create("transformers", vlm=vlm, image=context.recipe.image, batch_size=context.recipe.evaluate.batch_size)
        answers = list(engine.sample(requests, how))
        engine.close()
        with Marker(context, benchmark, "cot") as marker:
            found = score(marker.predictions(questions, answers))
        return PolicyMetrics(accuracy=found.accuracy, tokens=found.mean_tokens, loops=found.loops / found.n, cut=found.cut / found.n)

    return watch


def _first(plan: Plan, name: str, count: int) -> list[Question]:
    questions: list[Question] = []
    for number in range(len(plan.shards(name))):
        questions += plan.rows(name, number)
        if len(questions) >= count:
            break
    return questions[:count]
