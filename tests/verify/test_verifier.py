"""The pipeline's verifier: what each response ends as, and that processes start only for formulas that need them."""

import subprocess
import sys
from typing import Any

import pytest

from mixpo.recipe import VerifyTable
from mixpo.types import AnswerKind, Finish, Question, Response, Verdict
from mixpo.verify import Verifier


def question(answer: str | None = "7", kind: AnswerKind = "number", **other: Any) -> Question:
    return Question(id="q1", text="How many?", answer=answer, kind=kind, **other)


def response(text: str, finish: Finish = "stop", index: int = 3) -> Response:
    return Response(question="q1", index=index, text=text, finish=finish)


@pytest.mark.parametrize(
    ("text", "finish", "outcome", "extracted", "reason"),
    [
        ("3 + 4 = 7. Final answer: 7", "stop", "correct", "7", "same text"),
        ("3 + 4 = 8. Final answer: 8", "stop", "wrong", "8", "numbers differ"),
        ("I count and count", "stop", "malformed", None, "no clear final answer"),
        ("I count and count", "length", "malformed", None, "cut at the length limit"),
        ("Final answer: 7", "length", "correct", "7", "same text"),
        ("Final answer: 7 or 8", "stop", "undecided", "7 or 8", "several numbers"),
        ("Final answer: 7", "error", "undecided", None, "sampling failed"),
        ("", "stop", "malformed", None, "no clear final answer"),
    ],
)
def test_outcomes(text: str, finish: Finish, outcome: str, extracted: str | None, reason: str) -> None:
    with Verifier() as verifier:
        verdict = verifier.verify(question(), response(text, finish), "final")
    assert verdict == Verdict(question="q1", index=3, outcome=outcome, extracted=extracted, reason=reason)  # type: ignore[arg-type]


def test_style_of_the_verifier_and_of_the_call() -> None:
    with Verifier(style="boxed") as verifier:
        assert verifier.verify(question(), response("\\boxed{7}")).outcome == "correct"
        assert verifier.verify(question(), response("Final answer: 7")).outcome == "malformed"
        assert verifier.verify(question(), response("Final answer: 7"), "final").outcome == "correct"
        assert verifier.verify(question(), response("7"), "whole").outcome == "correct"


def test_settings_are_used() -> None:
    with Verifier(VerifyTable(tolerance=0.05)) as relaxed, Verifier() as exact:
        assert relaxed.verify(question("100"), response("104"), "whole").outcome == "correct"
        assert exact.verify(question("100"), response("104"), "whole").outcome == "wrong"


def test_choices_and_open_questions() -> None:
    with Verifier() as verifier:
        lettered = question("B", "choice", choices=("cat", "dog"))
        assert [v.outcome for v in (verifier.verify(lettered, response(text), "whole") for text in ("dog", "A", "B. dog"))] == [
            "correct", "wrong", "correct",
        ]  # fmt: skip
        assert verifier.verify(question(None, "none"), response("anything"), "whole").outcome == "undecided"


CUSTOM: dict[str, list[object]] = {
    "correct": [True, "correct"],
    "wrong": [False, "wrong"],
    "undecided": ["undecided", "maybe", "malformed", None, 1],
}


@pytest.mark.parametrize(("answer", "outcome"), [(answer, outcome) for outcome, answers in CUSTOM.items() for answer in answers])
def test_custom_check(answer: Any, outcome: str) -> None:
    seen = []

    def custom(extracted: str, gold: str) -> Any:
        seen.append((extracted, gold))
        return answer

    with Verifier(custom=custom) as verifier:
        assert verifier.verify(question("9"), response("Final answer: **7**"), "final").outcome == outcome
        assert verifier.verify(question("9"), response("no marker"), "final").outcome == "malformed"
    assert seen == [("7", "9")]


def test_custom_check_that_raises_is_undecided() -> None:
    with Verifier(custom=lambda extracted, gold: float(extracted) == float(gold)) as verifier:
        assert verifier.verify(question(), response("7.0"), "whole").outcome == "correct"
        verdict = verifier.verify(question(), response("seven"), "whole")
    assert (verdict.outcome, verdict.reason) == ("undecided", "custom check raised ValueError")


def test_verify_all_keeps_order_and_compares_formulas_on_all_workers() -> None:
    texts = ["(x-1)(x+1)", "x^2+1", "x^2-1", "\\frac{", "9^{9^{9^{9}}}", "x^2 - 1"]
    responses = [response(text, index=number) for number, text in enumerate(texts)]
    with Verifier(VerifyTable(timeout_s=4.0, workers=2)) as verifier:
        verdicts = verifier.verify_all(question("x^2-1", "formula"), responses, "whole")
        assert len(verifier._pool.processes()) <= 2
        assert verifier.verify_all(question("x^2-1", "formula"), responses, "whole") == verdicts
    assert [verdict.index for verdict in verdicts] == [0, 1, 2, 3, 4, 5]
    assert [verdict.outcome for verdict in verdicts] == ["correct", "wrong", "correct", "undecided", "undecided", "correct"]
    assert verifier._pool.processes() == []


def test_cheap_answers_start_no_process() -> None:
    with Verifier() as verifier:
        for kind, answer, text in [
            ("number", "7", "8"),
            ("text", "cat", "dog"),
            ("formula", "\\frac12", "\\dfrac{1}{2}"),
            ("choice", "A", "B"),
        ]:
            verifier.verify(question(answer, kind), response(text), "whole")  # type: ignore[arg-type]
        assert verifier._pool.processes() == []


def test_importing_is_light() -> None:
    code = "import sys, mixpo.verify; print(sorted({'sympy', 'math_verify', 'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout == "[]\n"
