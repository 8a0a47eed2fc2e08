"""The pipeline's verifier: a verdict on each response to a question with a known answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from mixpo.prompts import OwnStyle
from mixpo.recipe import VerifyTable
from mixpo.types import Question, Response, Verdict
from mixpo.verify.check import CHECKS, judge_all, make_algebra
from mixpo.verify.custom import CustomChecks
from mixpo.verify.dataset_metrics import rule_of
from mixpo.verify.extract import extract
from mixpo.verify.judgement import OUTCOMES, Algebra, Judgement, Options
from mixpo.verify.pool import EXCEEDED, FormulaPool

Compare = Callable[[str], Judgement]
CustomCheck = Callable[[str, str], str | bool]
"""A user's check of (extracted answer, ground truth): True, False, or "correct", "wrong" or "undecided"."""

REMEMBERED = 1024
"""Decided comparisons kept in memory: samples, and questions with options, mostly end in the same few answers."""
BATCH = 8
"""Responses of one question that are judged at a time; fixed, so that neither load nor the number of workers decides what is compared."""
MAX_TIMEOUTS = 4
"""Time-outs among the responses to one question after which its other formulas are not compared."""


class Verifier:
    """Extracts and judges. Processes start only when a formula really needs one; close it, or use it in `with`.

    settings: tolerance, time limit and number of workers. style: how answers are marked where `verify` is not told.
    thinking: the chat template opens a block of reasoning, which a response has to end before it answers; seen by itself where another
        response to the same question ends one.
    custom: replaces the built-in checks; whatever it raises makes that one verdict undecided.
    cache: a file in which the verdicts on formulas are kept for the next time. recipe_folder: where `settings.custom` is imported from;
        RecipeError by `start` if it cannot be.
    """

    def __init__(
        self,
        settings: VerifyTable | None = None,
        *,
        style: str | OwnStyle = "auto",
        thinking: bool = False,
        custom: CustomCheck | None = None,
        cache: Path | None = None,
        recipe_folder: Path = Path(),
    ) -> None:
        settings = settings or VerifyTable()
        self._checks = CustomChecks(settings, recipe_folder)
        self._style = style
        self._thinking = thinking
        self._custom = custom
        self._settings = settings
        self._pool = FormulaPool(timeout_s=settings.timeout_s, workers=settings.workers, cache=cache)
        self._algebra = make_algebra(self._pool, settings.tolerance)
        self._threads: ThreadPoolExecutor | None = None
        self._decided: dict[tuple[object, ...], Judgement] = {}

    def verify(self, question: Question, response: Response, style: str | OwnStyle | None = None) -> Verdict:
        """Judge one response; safe to call from several threads. A question without an answer gets "undecided"."""
        return self.verify_all(question, (response,), style)[0]

    def verify_all(self, question: Question, responses: Sequence[Response], style: str | OwnStyle | None = None) -> tuple[Verdict, ...]:
        """Judge all responses to a question, in order; formulas are compared on all workers at once."""
        compare = self._comparison(question, self._algebra)
        # A response that closes a block of reasoning without opening one shows that the prompt opened it for all of them.
        thinking = self._thinking or any("</think>" in one.text and "<think>" not in one.text for one in responses)

        target = self._checks.target(question) if question.answer is not None else ""

        def verdict_on(response: Response, compare: Compare | None = compare) -> Verdict:
            try:
                if target and response.finish != "error":
                    extracted = extract(response.text, style or self._style, question.choices, thinking=thinking)
                    return self._checks.verdict(target, question, response, extracted)
                extracted, (outcome, reason) = _judge(question, response, style or self._style, thinking, compare)
            except TimeoutError as error:
                extracted, outcome, reason = None, "undecided", str(error)
            return Verdict(question=question.id, index=response.index, outcome=outcome, extracted=extracted, reason=reason)

        verdicts: list[Verdict] = []
        for start in range(0, len(responses), BATCH):
            capped = sum(verdict.reason.startswith(EXCEEDED) for verdict in verdicts) >= MAX_TIMEOUTS
            judge_one = partial(verdict_on, compare=self._comparison(question, _not_compared)) if capped else verdict_on
            verdicts += self._map(judge_one, responses[start : start + BATCH], question.kind == "formula" or bool(target))
        return tuple(verdicts)

    def _map(self, verdict_on: Callable[[Response], Verdict], responses: Sequence[Response], slow: bool) -> Iterable[Verdict]:
        """The verdicts in order; on all workers at once where they are `slow`."""
        if not slow or self._settings.workers == 1 or len(responses) < 2:
            return map(verdict_on, responses)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._settings.workers, thread_name_prefix="mixpo-verify")
        return self._threads.map(verdict_on, responses)

    @property
    def timeouts(self) -> int:
        """Distinct formula comparisons so far that reached the time limit twice."""
        return self._pool.timeouts

    def options(self, choices: Sequence[str] = ()) -> Options:
        """What a single check is called with under these settings."""
        return Options(tolerance=self._settings.tolerance, algebra=self._algebra, choices=tuple(choices))

    def start(self) -> Self:
        """Import the custom checks of the settings now. Raises RecipeError when one cannot be imported."""
        self._checks.start()
        return self

    def close(self) -> None:
        self._pool.close()
        self._checks.close()
        if self._threads is not None:
            self._threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _comparison(self, question: Question, algebra: Algebra) -> Compare | None:
        """How an extracted answer to this question is judged; None without a ground truth."""
        if question.answer is None:
            return None
        gold = question.answer
        if custom := self._custom:
            return lambda extracted: _ask_custom(custom, extracted, gold)
        golds, rule = golds_of(question), rule_of(question, self._settings)
        options = Options(tolerance=self._settings.tolerance, algebra=algebra, choices=question.choices)
        kind: str = "auto" if question.kind == "none" else question.kind
        if rule in CHECKS:
            kind, rule = rule, ""
        decided = self._decided

        def compare(extracted: str) -> Judgement:
            key = (extracted, golds, kind, rule, question.choices)
            if (known := decided.get(key)) is not None:
                return known
            judgement = judge_all(extracted, golds, kind, rule, options)
            if judgement.outcome != "undecided":
                if len(decided) >= REMEMBERED:
                    decided.clear()
                decided[key] = judgement
            return judgement

        return compare


def _judge(
    question: Question, response: Response, style: str | OwnStyle, thinking: bool, compare: Compare | None
) -> tuple[str | None, Judgement]:
    """The extracted answer and what is thought of it. Raises TimeoutError as `extract`."""
    if response.finish == "error":
        return None, Judgement("undecided", "sampling failed")
    if compare is None:
        return None, Judgement("undecided", "no ground truth")
    extracted = extract(response.text, style, question.choices, thinking=thinking)
    if extracted is None:
        is_cut = response.finish == "length"
        return None, Judgement("malformed", "cut at the length limit" if is_cut else "no clear final answer")
    return extracted, compare(extracted)


def _not_compared(_predicted: str, _gold: str) -> Judgement:
    return Judgement("undecided", f"not compared after {MAX_TIMEOUTS} time-outs for this question")


def golds_of(question: Question) -> tuple[str, ...]:
    """Every right answer to a question with a known one."""
    return question.answers or ((question.answer,) if question.answer is not None else ())


def _ask_custom(custom: CustomCheck, extracted: str, gold: str) -> Judgement:
    # The user's code may raise anything, and one bad row must not end the run; the verdict and the stage's counts say what happened.
    try:
        answer = custom(extracted, gold)
    except Exception as error:
        return Judgement("undecided", f"custom check raised {type(error).__name__}")
    if isinstance(answer, bool):
        return Judgement("correct" if answer else "wrong", "custom check")
    if answer in OUTCOMES:
        return Judgement(OUTCOMES[answer], "custom check")
    return Judgement("undecided", f"custom check returned {answer!r:.40}")
