"""Marks the saved answers of a model: verified, by a benchmark's own rules, or by a judge. Samples nothing, so it can be done again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mixpo.evaluate import judge as judging
from mixpo.evaluate import text
from mixpo.evaluate.benchmarks import BENCHMARKS, Benchmark, facts_of
from mixpo.evaluate.marking import by_judge, by_rule, by_verdict
from mixpo.recipe import EvaluationSource, Recipe
from mixpo.records import Prediction, Sampled
from mixpo.stages import prompting
from mixpo.stages.answer import answer_name, prompt_settings, source_name, wording_of
from mixpo.stages.base import Context, Job, Make, Plan
from mixpo.stages.models import ModelRef
from mixpo.stages.source import Index
from mixpo.stages.verify import judged_inputs
from mixpo.types import Question, Response, Verdict, content_id
from mixpo.verify import Verifier


def ready(recipe: Recipe, base: Path) -> None:
    """Raise MissingExtra or RecipeError where a judge is needed and cannot be asked, or a text task is unknown; no model is loaded."""
    text.ready(recipe.evaluate, base)
    judged = any(s.source.kind == "benchmark" and BENCHMARKS[s.source.name].rubric for s in recipe.evaluate.sets)
    if judged and recipe.evaluate.judge is not None:
        judging.ready(recipe.evaluate.judge)


def evaluate_job(context: Context, plan: Plan, index: Index, name: str, table: EvaluationSource, model: ModelRef, mode: str) -> Job:
    """Predictions from the answers of `model` to set `name` in a mode. Its settings are what two evaluations are compared by."""
    source, answers = source_name(name), answer_name(name, model, mode)
    answered = plan.planned[answers].job
    benchmark = BENCHMARKS[table.name] if table.kind == "benchmark" else None

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        with ExitStack() as stack:
            marker = stack.enter_context(Marker(context, benchmark, mode))
            yield lambda shard: marker.predictions(plan.rows(source, shard), plan.rows(answers, shard))

    return Job(
        kind="evaluate",
        name=f"evaluate/{name}/{model.name}/{mode}",
        title=f"evaluate {name}: {model.name}, {mode}",
        row=Prediction,
        settings={
            **answered.settings,
            "prompt": prompt_settings(context.recipe, table, wording_of(mode)),
            "mode": mode,
            **marking_settings(context, benchmark),
            "data": content_id(list(index.shards)),
            "questions": index.questions,
        },
        # The domain is part of the prediction; domain and source may decide the rule.
        inputs=judged_inputs(context, [" ".join(row) for row in zip(plan.shards(answers), index.domains, strict=True)], index),
        sizes=tuple(size * answered.settings["answers"] for size in index.sizes),
        unit="answers",
        needs=(source, answers),
        session=session,
        count=count_predictions,
    )


def marking_settings(context: Context, benchmark: Benchmark | None) -> dict[str, Any]:
    """What decides a mark: the verifier's settings, and for benchmarks the extractor or the judge."""
    table = context.recipe.evaluate
    verify = {"verify": context.recipe.verify.model_dump(exclude={"workers"})}
    if benchmark is None:
        return verify
    if benchmark.rubric is None:
        return {**verify, "benchmark": benchmark.name, "extractor": table.extractor}
    assert table.judge is not None
    rubric = judging.with_own_prompt(benchmark.rubric, table.judge, context.base, benchmark.name)
    return {"benchmark": benchmark.name, "judge": judging.settings(rubric, table.judge)}


class Marker:
    """Marks answers in one mode. Opens what it needs: the verifier's processes, or the judge's threads."""

    def __init__(self, context: Context, benchmark: Benchmark | None, mode: str) -> None:
        self._context, self._benchmark, self._mode = context, benchmark, mode
        self._verifier = Verifier(context.recipe.verify, cache=context.run.verdicts)
        self._threads: ThreadPoolExecutor | None = None
        table = context.recipe.evaluate.judge
        if benchmark is not None and benchmark.rubric is not None and table is not None:
            self._rubric = judging.with_own_prompt(benchmark.rubric, table, context.base, benchmark.name)
            self._judge = judging.Judge(table, context.run.root / "judged")
            self._threads = ThreadPoolExecutor(table.workers, thread_name_prefix="mixpo-judge")

    def __enter__(self) -> Marker:
        return self

    def __exit__(self, *raised: object) -> None:
        self._verifier.close()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def predictions(self, questions: Sequence[Question], answers: Sequence[Sampled]) -> Iterator[Prediction]:
        """The predictions of one shard, in order."""
        pairs = list(zip(questions, answers, strict=True))
        if self._threads is None:
            return (row for question, sampled in pairs for row in self._mark(question, sampled))
        each = [(question, response) for question, sampled in pairs for response in responses_of(sampled, self._count(sampled))]
        return self._threads.map(lambda item: self._ask(*item), each)

    def _count(self, sampled: Sampled) -> int:
        return self._context.recipe.evaluate.samples if self._mode == "sampled" else 1

    def _mark(self, question: Question, sampled: Sampled) -> Iterator[Prediction]:
        recipe, wording = self._context.recipe, wording_of(self._mode)
        responses = responses_of(sampled, self._count(sampled))
        if sampled.error:
            yield from (_failed(question, self._mode, response, sampled.error) for response in responses)
        elif self._benchmark is None:
            style = prompting.prompt_for(recipe.prompt, question, wording).style
            for response, verdict in zip(responses, self._verifier.verify_all(question, responses, style), strict=True):
                yield by_verdict(question, self._mode, response, verdict)
        else:
            options = self._verifier.options(question.choices)
            for response in responses:
                yield by_rule(self._benchmark, question, response, self._mode, wording, recipe.evaluate.extractor, options)

    def _ask(self, question: Question, response: Response) -> Prediction:
        assert self._benchmark is not None
        if response.finish == "error":
            return _failed(question, self._mode, response, "sampling failed")
        facts = facts_of(question)
        answer = self._rubric.part(response.text, wording_of(self._mode))
        asked = question.text.replace("<image>", "").strip()
        fields = {"question": asked, "reference": question.answer or "", "answer": answer, "context": str(facts.get("context", ""))}
        return by_judge(self._benchmark, question, response, self._mode, self._judge.mark(self._rubric, fields))


def responses_of(sampled: Sampled, count: int) -> tuple[Response, ...]:
    """The responses to a question; empty ones that failed where there are none."""
    if not sampled.error:
        return sampled.responses
    return tuple(Response(question=sampled.question, index=index, text="", finish="error") for index in range(count))


def _failed(question: Question, mode: str, response: Response, reason: str) -> Prediction:
    return by_verdict(question, mode, response, Verdict(outcome="undecided", reason=reason))


def count_predictions(rows: Sequence[Prediction]) -> Mapping[str, int]:
    """Answers by outcome, tokens, and how many were cut, failed, or not marked because the judge's reply could not be read."""
    counts: Counter[str] = Counter(answers=len(rows), failed=sum(row.finish == "error" for row in rows), correct=0)
    for row in rows:
        counts.update({row.outcome: 1, "tokens": row.tokens})
        counts[f"ended: {row.finish}"] += 1
    if any(row.judge for row in rows):
        counts["not marked"] = sum(row.score is None for row in rows)
    return counts
