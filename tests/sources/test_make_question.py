"""From raw fields to a Question: marks, options, answer kinds, identity."""

from __future__ import annotations

from typing import Any

import pytest
from failures import fails
from hypothesis import given
from hypothesis import strategies as st

from mixpo.errors import SourceError
from mixpo.sources.build import lettered, make_question, parse_options, shows
from mixpo.types import ImageRef, content_id

ONE = (ImageRef(path="/a.png", digest="a" * 64),)
TWO = (*ONE, ImageRef(path="/b.png", digest="b" * 64))

KINDS = {
    "number": [
        "5",
        "-5",
        "−3",
        "3.14",
        ".5",
        "1,234",
        "12,345,678.9",
        "$5",
        "40%",
        "2e5",
        "1.5E-3",
        "5 cm",
        "3.2 m/s",
        "20°",
        "25 °C",
        "9 cm²",
        "12.",
        "3/4",
        r"\frac{1}{2}",
    ],
    "formula": [
        r"\frac{x}{2}",
        "$x$",
        "x^2+1",
        "2x+3",
        "y = 2x + 1",
        "sqrt(3)",
        "√3",
        "2π",
        "(1, 2)",
        "x=3",
        "x^{2}",
        "3*4",
        "sin(2x)",
    ],
    "yes_no": ["yes", "No", "YES.", "是", "否", "true", "对"],
    "choice": ["A", "(b)"],
    "text": [
        "red",
        "top left",
        "x-ray",
        "t-shirt",
        "b",
        "2-3",
        "1990-1995",
        "2024/05/06",
        "3rd",
        "5 apples",
        "12:30",
        "3 AM",
        "two",
        "1, 2, 3",
        "1,23",
        "Yes, it is",
        "北京",
        "a dog (brown)",
        "iPhone 4",
        "3D",
        "-",
        "C++",
        "U.S.A.",
    ],
}


@pytest.mark.parametrize(("kind", "answer"), [(kind, answer) for kind, answers in KINDS.items() for answer in answers])
def test_kind_of_a_row(kind: str, answer: str) -> None:
    assert make_question(text="What?", answer=answer).kind == kind


@given(st.integers(), st.booleans())
def test_every_integer_is_a_number(value: int, separators: bool) -> None:
    answer = f"{value:,}" if separators else str(value)
    assert make_question(text="What?", answer=answer).kind == make_question(text="What?", answer=answer, kind="number").kind == "number"


def test_images_go_first_when_nothing_is_marked() -> None:
    assert make_question(text="What?", images=TWO).text == "<image>\n<image>\nWhat?"
    assert make_question(text="Compare <image> with <image>.", images=TWO).text == "Compare <image> with <image>."
    assert make_question(text="What?").text == "What?"


@pytest.mark.parametrize(
    ("text", "images", "reason"),
    [
        ("<image> What?", (), "1 <image> token but 0 images"),
        ("<image><image> What?", ONE, "2 <image> tokens but 1 image"),
        ("<image> What?", TWO, "1 <image> token but 2 images"),
        ("<image>\n ", ONE, "question is empty"),
        ("  ", (), "question is empty"),
        ("\ud83d", (), "surrogate"),
        (5, (), "question must be text, not a number"),
        (None, (), "question must be text, not null"),
    ],
)
def test_bad_texts(text: object, images: tuple[ImageRef, ...], reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        make_question(text=text, images=images)


@pytest.mark.parametrize(
    "more",
    [
        {"answer": "2\udfff"},
        {"answer": ["2", "\ud83d"]},
        {"answer": "A", "choices": ["\ud800", "y"]},
        {"rationale": "so \ud83d"},
        {"domain": "\ud83d"},
    ],
)
def test_half_a_character_is_no_text(more: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="surrogate"):
        make_question(text="What?", **more)


def test_identity_is_content() -> None:
    question = make_question(text="How many?\r\n", images=ONE, answer=3, domain="count", source="here")
    assert question.id == content_id("<image>\nHow many?", ["a" * 64], "3", [])
    moved = make_question(text="How many?", images=[ImageRef(path="/elsewhere.png", digest="a" * 64)], answer=" 3 ", source="there")
    assert moved.id == question.id
    others = [
        make_question(text="How many?", images=TWO[1:], answer=3),
        make_question(text="How many?", images=ONE, answer=4),
        make_question(text="How many dogs?", images=ONE, answer=3),
        make_question(text="How many?", images=ONE, answer="A", choices=["3", "4"]),
        make_question(text="How many?", images=ONE),
    ]
    assert len({question.id, *(other.id for other in others)}) == 6


@pytest.mark.parametrize(
    ("answer", "gold", "kind"),
    [(3, "3", "number"), (2.5, "2.5", "number"), (" red ", "red", "text"), ("", None, "none"), (None, None, "none")],
)
def test_answers(answer: object, gold: str | None, kind: str) -> None:
    question = make_question(text="What?", answer=answer)
    assert (question.answer, question.kind) == (gold, kind)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (True, 'answer is true; write it as text, "yes" or "no"'),
        (float("nan"), "answer is nan"),
        ([["a"]], "not a list"),
        ({"a": 1}, "not an object"),
    ],
)
def test_bad_answers(answer: object, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        make_question(text="What?", answer=answer)


def test_several_right_answers() -> None:
    question = make_question(text="What?", answer=["red", "blue", "red", " ", None])
    assert (question.answer, question.answers, question.kind) == ("red", ("red", "blue", "red"), "text")
    assert make_question(text="What?", answer=["2", "two"]).kind == "text"
    assert make_question(text="What?", answer=["2", "3"]).kind == "number"
    # The same answers in another order are the same question; a list of one is that one.
    assert make_question(text="What?", answer=["red", "red", "blue"]).id == question.id
    assert make_question(text="What?", answer=["red", "red"]) == make_question(text="What?", answer="red")
    assert make_question(text="What?", answer=[]).kind == "none"


def test_several_right_options() -> None:
    question = make_question(text="Which?", answer=["red", "B"], choices=["red", "blue", "green"])
    assert (question.answer, question.answers, question.kind) == ("A", ("A", "B"), "choice")


def test_a_rationale_is_no_part_of_the_identity() -> None:
    question = make_question(text="What?", answer="red", rationale=" It glows. Final answer: red ")
    assert question.rationale == "It glows. Final answer: red"
    assert question.id == make_question(text="What?", answer="red").id
    with pytest.raises(SourceError, match="rationale must be text, not a list"):
        make_question(text="What?", rationale=["a"])


# --- options -----------------------------------------------------------------------------------------------------------

OPTIONS = {
    "Which?\nA. red\nB. blue": ("red", "blue"),
    "Which?\n(A) red\n(B) blue\n(C) a b c\nAnswer with the letter.": ("red", "blue", "a b c"),
    "A) 1\nB) 2": ("1", "2"),
    "哪个？\nA．红\nB、蓝": ("红", "蓝"),
    "Which?\nA: red\n\nB: blue\n": ("red", "blue"),
    "Notes\nA. x\nB. y\nWhich?\nA. red\nB. blue\nC. green": ("red", "blue", "green"),
    "Which?\nA. red": (),
    "Which?\nB. red\nC. blue": (),
    "A. red\nsomething\nB. blue": (),
    "A dog and\nB cat": (),
    "": (),
}


@pytest.mark.parametrize("text", OPTIONS)
def test_parse_options(text: str) -> None:
    assert parse_options(text) == OPTIONS[text]


@given(st.lists(st.text("abc de1", min_size=1).map(str.strip).filter(bool), min_size=2, max_size=26))
def test_lettered_options_are_read_back(options: list[str]) -> None:
    text = f"Which?\n{lettered(options)}\nAnswer with the letter."
    assert parse_options(text) == tuple(options)
    assert shows(text, options)
    assert not shows("Which?", options)


@pytest.mark.parametrize(("answer", "letter"), [("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("blue", "B"), ("Blue", "B")])
def test_answer_of_embedded_options(answer: str, letter: str) -> None:
    question = make_question(text="Which?\nA. red\nB. blue", answer=answer)
    assert (question.answer, question.kind, question.choices) == (letter, "choice", ("red", "blue"))


def test_lines_that_do_not_fit_the_answer_are_not_options() -> None:
    question = make_question(text="Which is right?\nA. red\nB. blue", answer="C")
    assert (question.answer, question.kind, question.choices) == ("C", "choice", ())


@pytest.mark.parametrize(("answer", "choices"), [(1, ["1", "2", "3"]), (2, ["2", "3", "5"]), (0, ["1", "0"]), ([3, 1], ["3", "1", "2"])])
def test_a_number_that_may_be_a_code_is_refused(answer: object, choices: list[str]) -> None:
    """1 may be the choice "1", or the second one of a list that is counted from 0."""
    with fails("answer-is-a-code", SourceError, key="answer"):
        make_question(text="Which?", answer=answer, choices=choices)


@pytest.mark.parametrize(("answer", "choices", "letter"), [("1", ["1", "2", "3"], "A"), (10, ["5", "10"], "B"), (4, ["2", "3", "4"], "C")])
def test_a_number_that_is_no_code_is_a_choice(answer: object, choices: list[str], letter: str) -> None:
    assert make_question(text="Which?", answer=answer, choices=choices).answer == letter


def test_choices_are_added_to_a_text_that_lacks_them() -> None:
    question = make_question(text="Which?", choices=["red", 5], answer="red")
    assert (question.text, question.answer, question.choices) == ("Which?\nA. red\nB. 5", "A", ("red", "5"))
    assert make_question(text="Which? (A) red (B) 5", choices=["red", 5], answer="B").text == "Which? (A) red (B) 5"
    assert make_question(text="Which?", choices={"A": "x", "B": "y"}, answer="B").choices == ("x", "y")
    assert make_question(text="Which?", choices=["red", "blue"]).kind == "none"


def test_a_letter_comes_before_the_text_of_an_option() -> None:
    assert make_question(text="Which?", choices=["B", "A"], answer="A").answer == "A"


@pytest.mark.parametrize(
    ("choices", "answer", "reason"),
    [
        (["a1", "b1"], "C", "'C' is not among the 2 choices; give the letter of one"),
        (["x1", "x1"], "x1", "equals several of the 2 choices"),
        (["one"], "A", "2 to 26 options"),
        (["one", ""], "A", "2 to 26 options"),
        ("one, two", "A", "choices must be a list, not text"),
        ({"A": "1", "C": "2"}, "A", "keys A, B"),
    ],
)
def test_bad_choices(choices: object, answer: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        make_question(text="Which?", choices=choices, answer=answer)


@pytest.mark.parametrize(
    ("kind", "answer", "reason"),
    [
        ("number", "red", "the answer is 'red'"),
        ("number", "2 or 3", "2 or 3"),
        ("yes_no", "maybe", "the answer is 'maybe'"),
        ("choice", "red", "no choices"),
    ],
)
def test_an_answer_that_does_not_fit_the_kind(kind: str, answer: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        make_question(text="What?", answer=answer, kind=kind)


def test_kinds_given() -> None:
    assert make_question(text="What?", answer="5", kind="text").kind == "text"
    assert make_question(text="What?\nA. 1\nB. 2", answer="B", kind="text").choices == ()
    assert make_question(text="Which option in the picture?", answer="B", kind="choice").kind == "choice"
    assert make_question(text="How many?", answer="5 apples", kind="number").kind == "number"
    opened = make_question(text="What?", answer="5", kind="none")
    assert (opened.answer, opened.kind) == (None, "none")
    with pytest.raises(SourceError, match="has choices"):
        make_question(text="What?", answer="A", choices=["1", "2"], kind="number")
