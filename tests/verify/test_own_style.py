"""Answer markers and patterns of a user's own prompt."""

from __future__ import annotations

import pytest

from mixpo.errors import RecipeError
from mixpo.prompts import OwnStyle
from mixpo.recipe import parse
from mixpo.stages import prompting
from mixpo.types import Question, Response
from mixpo.verify import Verifier, extract
from mixpo.verify import extract as extraction

PROMPT = {"template": "{question}\nEnd with a line 'Result: ..'.", "marker": "Result:"}
QUESTION = Question(id="q", text="How many?", answer="4", kind="number")


@pytest.mark.parametrize(
    ("text", "style", "expected"),
    [
        ("I see 2 + 2. Result: 4.", OwnStyle(marker="Result:"), "4"),
        ("result: 3. No.\n**RESULT:** $4$", OwnStyle(marker="Result:"), "4"),
        ("Result: 3\nI was wrong. Result: 4 apples.", OwnStyle(marker=" Result: "), "4 apples"),
        ("So it is 4.", OwnStyle(marker="Result:"), None),
        ("Result: ..", OwnStyle(marker="Result:"), None),
        ("Result: 3 <think> Result: 5", OwnStyle(marker="Result:"), None),
        ("<think>Result: 3</think> Result: 4", OwnStyle(marker="Result:"), "4"),
        ("İ hope. ERGEBNIS> 4", OwnStyle(marker="ERGEBNIS>"), "4"),
        ("[[3]] or rather [[4]]", OwnStyle(pattern=r"\[\[(.+?)\]\]"), "4"),
        ("the value 12 cm", OwnStyle(pattern=r"\d+ cm"), "12 cm"),
        ("nothing", OwnStyle(pattern=r"\d+"), None),
        ("abc", OwnStyle(pattern=r"a|(\d)"), None),
    ],
)
def test_the_last_marker_or_match_counts(text: str, style: OwnStyle, expected: str | None) -> None:
    assert extract(text, style) == expected


def test_a_slow_pattern_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction_module(), "PATTERN_S", 0.05)
    slow = OwnStyle(pattern=r"(a+a+)+[^a]{1000}\w(b)")
    response = Response(question="q", index=0, text="a" * 5000)
    with Verifier() as verifier:
        verdict = verifier.verify(QUESTION, response, slow)
    assert (verdict.outcome, verdict.extracted) == ("undecided", None)
    assert verdict.reason == "the pattern of the final answer took longer than 0.05 s"


def extraction_module() -> object:
    """`mixpo.verify.extract` is also the function in it."""
    import sys

    assert callable(extraction)
    return sys.modules["mixpo.verify.extract"]


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ({}, "one of style, marker and pattern"),
        ({"style": "final", "marker": "Result:"}, "one of style, marker and pattern"),
        ({"marker": "  "}, "one of style, marker and pattern"),
        ({"pattern": "(a"}, "pattern is not a regular expression: missing )"),
    ],
)
def test_a_prompt_has_one_way_to_mark_its_answer(style: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse({"source": {"kind": "digits"}, "prompt": {"cot": {"template": "{question}", **style}}}, "r.toml")
    assert message in str(caught.value)


def test_the_marker_of_a_recipe_decides_verdicts() -> None:
    recipe = parse({"source": {"kind": "digits"}, "prompt": {"cot": PROMPT}}, "r.toml")
    (prompt,) = prompting.prompts_of(recipe, QUESTION)
    texts = ("Result: 4", "Result: 5", "Final answer: 4")
    with Verifier() as verifier:
        verdicts = verifier.verify_all(QUESTION, [Response(question="q", index=i, text=t) for i, t in enumerate(texts)], prompt.style)
    assert [verdict.outcome for verdict in verdicts] == ["correct", "wrong", "malformed"]
    other = parse({"source": {"kind": "digits"}, "prompt": {"cot": {**PROMPT, "marker": "Final:"}}}, "r.toml")
    assert prompting.styles(recipe.prompt) != prompting.styles(other.prompt)
