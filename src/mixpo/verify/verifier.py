"""The pipeline's verifier: a verdict on each response to a question with a known answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from mixpo.recipe import VerifyTable
from mixpo.types import Question, Response, Verdict
from mixpo.verify.check import CHECKS, judge_all, make_algebra
from mixpo.verify.extract import extract
from mixpo.verify.judgement import OUTCOMES, Judgement, Options
from mixpo.verify.pool import FormulaPool
from mixpo.verify.rules import rule_of

CustomCheck = Callable[[str, str], str | bool]
"""A user's check of (extracted answer, ground truth): True, False, or "correct", "wrong" or "undecided"."""


REMEMBERED = 1024
"""Decided comparisons kept in memory: the samples of a question mostly end in the same few answers."""


class Verifier:
    """Extracts and judges. Processes start only when a formula really needs one; close it, or use it in `with`.

    settings: tolerance, time limit and number of workers. style: how answers are marked where `verify` is not told.
    custom: replaces the built-in checks; whatever it raises makes that one verdict undecided.
    cache: a file in which the verdicts on formulas are kept for the next time.
    """

    def __init__(
        self, settings: VerifyTable | None = None, *, style: str = "auto", custom: CustomCheck | None = None, cache: Path | None = None
    ) -> None:
        settings = settings or VerifyTable()
        self._style = style
        self._custom = custom
        self._settings = settings
        self._pool = FormulaPool(timeout_s=settings.timeout_s, workers=settings.workers, cache=cache)
        self._algebra = make_algebra(self._pool, settings.tolerance)
        self._threads: ThreadPoolExecutor | None = None
        self._decided: dict[tuple[object, ...], Judgement] = {}

    def verify(self, question: Question, response: Response, style: str | None = None) -> Verdict:
        """Judge one response; safe to call from several threads. A question without an answer gets "undecided"."""
        extracted, judgement = self._judge(question, response, style or self._style)
        return Verdict(
            question=question.id, index=response.index, outcome=judgement.outcome, extracted=extracted, reason=judgement.reason
        )  # fmt: skip

    def verify_all(self, question: Question, responses: Sequence[Response], style: str | None = None) -> tuple[Verdict, ...]:
        """Judge all responses to a question, in order; formulas are compared on all workers at once."""
        if question.kind != "formula" or self._settings.workers == 1 or len(responses) < 2:
            return tuple(self.verify(question, response, style) for response in responses)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._settings.workers, thread_name_prefix="mixpo-verify")
        return tuple(self._threads.map(lambda response: self.verify(question, response, style), responses))

    def options(self, choices: Sequence[str] = ()) -> Options:
        """What a single check is called with under these settings."""
        return Options(tolerance=self._settings.tolerance, algebra=self._algebra, choices=tuple(choices))

    def close(self) -> None:
        self._pool.close()
        if self._threads is not None:
            self._threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _judge(self, question: Question, response: Response, style: str) -> tuple[str | None, Judgement]:
        if response.finish == "error":
            return None, Judgement("undecided", "sampling failed")
        if question.answer is None:
            return None, Judgement("undecided", "no ground truth")
        extracted = extract(response.text, style)
        if extracted is None:
            is_cut = response.finish == "length"
            return None, Judgement("malformed", "cut at the length limit" if is_cut else "no clear final answer")
        if self._custom is not None:
            return extracted, _ask_custom(self._custom, extracted, question.answer)
        rule = rule_of(question, self._settings)
        kind = rule if rule in CHECKS else "auto" if question.kind == "none" else question.kind
        return extracted, self._compared(extracted, golds_of(question), kind, "" if rule in CHECKS else rule, question.choices)

    def _compared(self, extracted: str, golds: tuple[str, ...], kind: str, rule: str, choices: tuple[str, ...]) -> Judgement:
        key = (extracted, golds, kind, rule, choices)
        if (known := self._decided.get(key)) is not None:
            return known
        options = Options(tolerance=self._settings.tolerance, algebra=self._algebra, choices=choices)
        judgement = judge_all(extracted, golds, kind, rule, options)
        if judgement.outcome != "undecided":
            if len(self._decided) >= REMEMBERED:
                self._decided.clear()
            self._decided[key] = judgement
        return judgement


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
