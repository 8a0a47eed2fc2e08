"""Marks the saved answers of a model: verified, by a benchmark's own rules, or by a judge. Samples nothing, so it can be done again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mixpo.errors import EvaluateError
from mixpo.evaluate import lm_eval
from mixpo.evaluate.lm_eval import TextScore
from mixpo.plural import amount
from mixpo.recipe import EvaluationSource, Recipe
from mixpo.records import Prediction, Sampled
from mixpo.run import Manifest
from mixpo.stages import prompting, verdict_judge
from mixpo.stages.answer import answer_name, prompt_settings, source_name, wording_of
from mixpo.stages.attempts import attempts_of
from mixpo.stages.job import Context, Job, Make, Plan
from mixpo.stages.models import ModelRef, settings_of
from mixpo.stages.predictions import given_answers
from mixpo.stages.question_index import QuestionIndex
from mixpo.stages.verdict_judge import Ruled, VerdictJudge
from mixpo.stages.verify import custom_code, judged_inputs, say_timeouts
from mixpo.types import Question, Response, Verdict, content_id

if TYPE_CHECKING:
    from mixpo.evaluate.benchmarks import Benchmark
    from mixpo.evaluate.benchmarks.base import Extraction, Rubric
    from mixpo.evaluate.judge import Judge, JudgeReply


def ready(recipe: Recipe, recipe_folder: Path) -> None:
    """Raise MissingExtra or RecipeError where a judge is needed and cannot be asked, or a text task is unknown; no model is loaded."""
    from mixpo.evaluate import judge as judging

    lm_eval.ready(recipe.evaluate, recipe_folder)
    judged = any(recipe.evaluate.asks_judge(s.source) for s in recipe.evaluate.sets)
    if judged and recipe.evaluate.judge is not None:
        judging.ready(recipe.evaluate.judge)
    if recipe.verify.judge is not None:
        judging.ready(recipe.verify.judge, verdict_judge.WHERE)


def evaluate_job(context: Context, plan: Plan, index: QuestionIndex, name: str, table: EvaluationSource, model: ModelRef, mode: str) -> Job:
    """Predictions from the answers of `model` to set `name` in a mode. Its settings are what two evaluations are compared by."""
    source, answers = source_name(name), answer_name(name, model, mode)
    answered = plan.planned[answers].job
    benchmark = None
    if table.kind == "benchmark":
        from mixpo.evaluate.benchmarks import BENCHMARKS

        benchmark = BENCHMARKS[table.name]
    folder = f"evaluate/{name}/{model.name}/{mode}"
    settings = {
        **answered.settings,
        "prompt": "of the other tool" if model.predictions else prompt_settings(context.recipe, table, wording_of(mode)),
        "mode": mode,
        **grading_settings(context, benchmark),
        "data": content_id(list(index.shards)),
        "questions": index.questions,
    }
    # The domain is part of the prediction; domain and source may decide the rule.
    marked = judged_inputs(context, [" ".join(row) for row in zip(plan.shards(answers), index.domains, strict=True)], index)
    attempts = attempts_of(context.run.stage(folder), settings, marked)

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        with ExitStack() as stack:
            given = given_answers(context.run.stage(answers)) if settings.get("extractor") == "given" else {}
            marker = stack.enter_context(Grader(context, benchmark, mode, given, settings.get("partial", False)))
            yield lambda shard: marker.predictions(plan.rows(source, shard), plan.rows(answers, shard), attempts.counts.get(shard, 0))
            say_timeouts(context, folder, marker.verifier)
            marker.say_unread(folder)

    return Job(
        kind="evaluate",
        name=folder,
        title=f"evaluate {name}: {model.name}, {mode}",
        row=Prediction,
        settings=settings,
        inputs=attempts.inputs,
        sizes=tuple(size * answered.settings["answers"] for size in index.sizes),
        unit="answers",
        needs=(source, answers),
        session=session,
        count=count_predictions,
        check=check_judged,
        attempts=attempts,
    )


def check_judged(manifest: Manifest) -> None:
    """Raise EvaluateError where a score by "paper" would not be a published one, because its scripts ask a language model."""
    if count := manifest.counts.get(WITHOUT_JUDGE, 0):
        raise EvaluateError(
            f"{manifest.stage}: {count} of {amount(manifest.counts['answers'], 'response')} without a final-answer marker, where the "
            'released scripts ask a language model; add [evaluate.judge] and set evaluate.extractor = "judge", or use "robust"',
            code="paper-needs-judge",
            key="evaluate.extractor",
        )


def grading_settings(context: Context, benchmark: Benchmark | None) -> dict[str, Any]:
    """What decides a mark: the verifier's settings, and for benchmarks the extractor or the judge."""
    table = context.recipe.evaluate
    verify = {"verify": context.recipe.verify.deciding("evaluate"), **custom_code(context)}
    if benchmark is None:
        return {**verify, **verdict_judge.settings(context)}
    read = {} if benchmark.rubric else {**verify, "extractor": table.extractor_of(benchmark.name)}
    wording = wording_of_judge(context, benchmark)
    if wording is None or table.judge is None:
        return {**read, "benchmark": benchmark.name}
    from mixpo.evaluate import judge as judging

    return {**read, "benchmark": benchmark.name, "judge": judging.settings(wording, table.judge)}


def wording_of_judge(context: Context, benchmark: Benchmark) -> Rubric | Extraction | None:
    """What the judge receives, with the user's own wording if there is one; None where no judge is asked."""
    from mixpo.evaluate import judge as judging

    table = context.recipe.evaluate
    if table.judge is None:
        return None
    if benchmark.rubric is not None:
        return judging.with_own_prompt(benchmark.rubric, table.judge, context.recipe_folder, benchmark.name)
    if benchmark.extraction is not None and table.extractor_of(benchmark.name) == "judge":
        return judging.with_own_prompt(benchmark.extraction, table.judge, context.recipe_folder, benchmark.name)
    return None


class Grader:
    """Marks answers in one mode. Opens what it needs: the verifier's processes, or the judge's threads."""

    def __init__(
        self,
        context: Context,
        benchmark: Benchmark | None,
        mode: str,
        given: Mapping[str, str] = MappingProxyType({}),
        partial: bool = False,
    ) -> None:
        """given: short answers by question id that came with predictions. partial: questions without a response are not graded."""
        from mixpo.evaluate import judge as judging
        from mixpo.verify import Verifier

        self._context, self._benchmark, self._mode, self._given, self._partial = context, benchmark, mode, given, partial
        self.verifier = Verifier(context.recipe.verify, cache=context.run.verdicts, recipe_folder=context.recipe_folder)
        by_judge = context.recipe.verify.judge if benchmark is None else None
        self._verdict_judge = VerdictJudge(context, by_judge) if by_judge is not None else None
        table = context.recipe.evaluate.judge
        self._wording = wording_of_judge(context, benchmark) if benchmark is not None else None
        self._judge: Judge | None = None
        if self._wording is not None and table is not None:
            self._judge = judging.Judge(table, context.run.root / "judged", context.progress.say)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *raised: object) -> None:
        self.verifier.close()
        for judge in (self._verdict_judge, self._judge):
            if judge is not None:
                judge.close()

    def predictions(self, questions: Sequence[Question], answers: Sequence[Sampled], again: int = 0) -> Iterator[Prediction]:
        """The predictions of one shard, in order. again: retries of the judge where its reply cannot be read."""
        pairs = [pair for pair in zip(questions, answers, strict=True) if not (self._partial and pair[1].error)]
        if self._verdict_judge is not None:
            return self._decided(self._verdict_judge, pairs, again)
        if self._judge is None:
            return (row for question, sampled in pairs for row in self._mark(question, sampled))
        each = [(question, response) for question, sampled in pairs for response in responses_of(sampled, self._count(sampled))]
        ask = partial(self._ask, self._judge, again)
        replies = self._judge.threads.map(lambda item: ask(*item), each)
        return (self._judged(question, response, reply) for (question, response), reply in zip(each, replies, strict=True))

    def say_unread(self, stage: str) -> None:
        """Say how many replies of the judge of [verify.judge] could not be read."""
        if self._verdict_judge is not None:
            self._verdict_judge.say_unread(self._context.progress.say, stage)

    def _count(self, sampled: Sampled) -> int:
        return self._context.recipe.evaluate.samples if self._mode == "sampled" else 1

    def _mark(self, question: Question, sampled: Sampled) -> Iterator[Prediction]:
        from mixpo.evaluate.grading import by_extraction, by_rule, by_verdict

        recipe, wording = self._context.recipe, wording_of(self._mode)
        responses = responses_of(sampled, self._count(sampled))
        if sampled.error:
            yield from (_failed(question, self._mode, response, sampled.error) for response in responses)
        elif self._benchmark is None:
            for response, verdict in zip(responses, self._verdicts(question, responses), strict=True):
                yield by_verdict(question, self._mode, response, verdict)
        else:
            options, extractor = self.verifier.options(question.choices), recipe.evaluate.extractor_of(self._benchmark.name)
            for response in responses:
                if extractor == "given":
                    short = self._given.get(question.id, "")
                    yield by_extraction(self._benchmark, question, response, self._mode, wording, short, options, "given")
                    continue
                yield by_rule(self._benchmark, question, response, self._mode, wording, extractor, options)

    def _verdicts(self, question: Question, responses: Sequence[Response]) -> tuple[Verdict, ...]:
        style = prompting.prompt_for(self._context.recipe.prompt, question, wording_of(self._mode)).style
        return self.verifier.verify_all(question, responses, style)

    def _decided(self, judge: VerdictJudge, pairs: Sequence[tuple[Question, Sampled]], again: int) -> Iterator[Prediction]:
        """Predictions by rules, and by the judge of [verify.judge] where they leave a verdict to it."""
        from mixpo.evaluate.grading import by_verdict

        rows = []
        for question, sampled in pairs:
            responses = responses_of(sampled, self._count(sampled))
            rows.append(Ruled(question=question, responses=responses, verdicts=self._verdicts(question, responses)))
        for row, (_, sampled), decided in zip(rows, pairs, judge.decide(rows, again), strict=True):
            for response, one in zip(row.responses, decided, strict=True):
                if sampled.error:
                    yield _failed(row.question, self._mode, response, sampled.error)
                else:
                    yield by_verdict(row.question, self._mode, response, one.verdict, one.reply)

    def _ask(self, judge: Judge, again: int, question: Question, response: Response) -> str | JudgeReply[Any] | None:
        """What the judge says of one answer; a short answer that needs no judge; None where there is no answer to judge."""
        from mixpo.evaluate.benchmarks import facts_of
        from mixpo.evaluate.benchmarks.base import Rubric

        assert self._wording is not None
        if response.finish == "error":
            return None
        facts, wording = facts_of(question), self._wording
        asked = question.text.replace("<image>", "").strip()
        if isinstance(wording, Rubric):
            answer = wording.part(response.text, wording_of(self._mode))
            fields = {"question": asked, "reference": question.answer or "", "answer": answer, "context": str(facts.get("context", ""))}
            return judge.ask(wording, fields, wording.read, again)
        short = wording.quick(response.text, question, facts)
        if short is not None:
            return short
        fields = {"question": str(facts.get("direct", asked)), "answer": response.text}
        return judge.ask(wording, fields, partial(wording.read, question=question, facts=facts), again)

    def _judged(self, question: Question, response: Response, reply: str | JudgeReply[Any] | None) -> Prediction:
        from mixpo.evaluate.benchmarks.base import Rubric
        from mixpo.evaluate.grading import by_extraction, by_judge
        from mixpo.evaluate.judge import JudgeReply

        assert self._benchmark is not None
        if reply is None:
            return _failed(question, self._mode, response, "sampling failed")
        if isinstance(self._wording, Rubric):
            assert isinstance(reply, JudgeReply)
            return by_judge(self._benchmark, question, response, self._mode, reply)
        options = self.verifier.options(question.choices)
        return by_extraction(self._benchmark, question, response, self._mode, wording_of(self._mode), reply, options)


def responses_of(sampled: Sampled, count: int) -> tuple[Response, ...]:
    """The responses to a question; empty ones that failed where there are none."""
    if not sampled.error:
        return sampled.responses
    return tuple(Response(question=sampled.question, index=index, text="", finish="error") for index in range(count))


def _failed(question: Question, mode: str, response: Response, reason: str) -> Prediction:
    from mixpo.evaluate.grading import by_verdict

    return by_verdict(question, mode, response, Verdict(outcome="undecided", reason=reason))


WITHOUT_JUDGE = "needing a judge"
"""How a manifest counts responses that extractor = "paper" cannot read without a judge."""


def count_predictions(rows: Sequence[Prediction]) -> Mapping[str, int]:
    """Answers by outcome, tokens, and how many were cut, failed, or count nowhere because the judge's reply could not be read."""
    from mixpo.evaluate.grading import NEEDS_JUDGE

    counts: Counter[str] = Counter(answers=len(rows), failed=sum(row.finish == "error" for row in rows), correct=0)
    for row in rows:
        counts.update({row.outcome: 1, "tokens": row.tokens})
        counts[f"ended: {row.finish}"] += 1
    if without := sum(row.reason == NEEDS_JUDGE for row in rows):
        counts[WITHOUT_JUDGE] = without
    if any(row.judge for row in rows):
        counts["judge not readable"] = sum(row.unread for row in rows)
    return counts


def text_job(context: Context, model: ModelRef) -> Job:
    """Every task of the recipe on one model."""
    recipe = context.recipe

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        def make(shard: int) -> Sequence[TextScore]:
            from mixpo.vlm.prompt import context_limit

            vlm = context.models.load(model)
            return lm_eval.run_tasks(vlm.model, vlm.processor.tokenizer, context_limit(vlm), recipe.evaluate, context.recipe_folder)

        yield make

    return Job(
        kind="text",
        name=f"text/{model.name}",
        title=f"text tasks: {model.name}",
        row=TextScore,
        settings={**settings_of(recipe, "text", model), **lm_eval.settings(recipe.evaluate, context.recipe_folder)},
        inputs=("all",),
        sizes=(1,),
        unit="models",
        needs=tuple(filter(None, [model.job])),
        session=session,
        count=lambda rows: {"scores": len(rows)},
    )


def text_scores(plan: Plan) -> list[dict[str, Any]]:
    """The scores of all models whose text tasks are done."""
    return [
        {"model": planned.job.name.removeprefix("text/"), **asdict(row)}
        for planned in plan.planned.values()
        if planned.job.kind == "text" and planned.finished()
        for row in plan.rows(planned.job.name, 0)
    ]
