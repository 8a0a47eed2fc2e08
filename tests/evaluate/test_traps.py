"""Traps of the released scripts that more than one benchmark shares, worked out by hand: what each extractor makes of a final answer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from bench_files import b64, fact, figures, load, outcomes, png, predictions, questions, reason, save_png, value
from table_files import jsonl, parquet, tsv

from mixpo.evaluate.benchmarks import BENCHMARKS, facts_of, prompt_of
from mixpo.evaluate.benchmarks.m3cot import read_official, read_paper
from mixpo.evaluate.benchmarks.mathvision import infer_letter
from mixpo.evaluate.benchmarks.mmvet import PROMPT as VET_PROMPT
from mixpo.evaluate.benchmarks.rules import extract_paper, extract_robust
from mixpo.prompts import PROMPTS
from mixpo.types import Question

ANIMALS = ["ant", "bee", "cat", "dog", "eel", "fox"]


@pytest.mark.parametrize(
    ("text", "paper", "robust"),
    [
        ("Final answer: B", "B", "B"),
        ("Final answer: **B**", "**B**", "B"),
        ("**Final answer:** B", "** B", "B"),
        (r"Final answer: \boxed{B}", r"\boxed{B}", "B"),
        ("The answer: it is early.\nFinal answer: B", "it is early.", "B"),  # the first match wins
        ("The final answer is B", "The final answer is B", "B"),  # no colon: the whole text
        ("final ANSWER: b\nmore", "b", "b"),  # one line, any case
        ("Final answer:\nB", "B", "B"),
        ("", "", None),
    ],
)
def test_the_final_answer_by_both_extractors(text: str, paper: str, robust: str | None) -> None:
    assert extract_paper(text, "cot") == paper
    assert extract_paper(text, "direct") == text  # the scripts look for a marker in chains of thought only
    assert extract_robust(text, "cot") == robust


def test_a_conclusion_names_one_of_the_options() -> None:
    text = "It crawls and bites.\nTherefore, the animal in the jar must be an ant."
    assert extract_robust(text, "cot") is None
    assert extract_robust(text, "cot", ["ant", "bee"]) == "Therefore, the animal in the jar must be an ant"


def test_the_chain_of_thought_prompt_is_the_released_one() -> None:
    assert PROMPTS["cot"].render("Q?") == (
        "Your task is to answer the question below. Give step by step reasoning before you answer, and when you're ready to answer, "
        'please use the format "Final answer: .."\n\nQuestion:\n\nQ?'
    )
    # These two are marked as a whole, and have no final answer to announce: VLMEvalKit's other prompt, its trailing space included.
    for name in ("mmvet", "llava_bench"):
        assert BENCHMARKS[name].cot == (
            "Your task is to answer the question below. Give step by step reasoning. \n\nQuestion:\n\n{question}"
        )
    # InternVL's script: question, an empty line, and the format.
    assert BENCHMARKS["mmhal"].cot == (
        "{question}\n\nPlease think step by step and output in the following format:\n\nRationale:\n{rationale}\nAnswer: {answer}\n\n"
        "where rationale is the reasoning process of the given question."
    )


def animal(number: int, **values: object) -> dict[str, object]:
    base: dict[str, object] = {"id": str(number), "question": f"Which {number}?", "choices": ANIMALS, "answer": "C",
                               "image": {"bytes": png(number), "path": None}, "domain": "science", "topic": "t"}  # fmt: skip
    return {**base, **values}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(A) is wrong, so it is (c).", "C"),  # the last one in brackets, any case
        ("The cat, not the bee", "C"),  # of the texts the last in the order of options
        ("It is not C. The answer is A", "C"),  # of the letters too
        ("so a, I think", "A"),
        ("Surely F!", "F"),
        ("[Answer] B [Rationale] because of the cat", "B"),
        ("(F) [Answer] the dog", "D"),
        ("(Z)", "Z"),
        ("nothing", None),
        ("", None),
    ],
)
def test_m3cots_own_rule(text: str, letter: str | None) -> None:
    assert read_official(text, ANIMALS) == letter
    asked = [
        Question(id="q", text="?", images=(), answer=gold, kind="choice", choices=tuple(ANIMALS), facts='{"id": ""}') for gold in "ABCDEF"
    ]
    assert outcomes("m3cot", asked, [text] * 6, "official") == "".join("c" if gold == letter else "w" for gold in "ABCDEF")


def test_m3cots_own_rule_stands_beside_the_others_where_it_differs(tmp_path: Path) -> None:
    parquet(tmp_path / "test.parquet", [animal(1), animal(2, answer="A"), animal(3, choices=["1", "10"], answer="B")])
    found = questions("m3cot", tmp_path)
    said = ["I see a bee, and a cat. Final answer: B", "Final answer: A", "Final answer: 10"]
    # robust reads B A B; InternVL's script reads B A A ("1" stands in "10"); the benchmark's own reads C A B.
    rows = predictions("m3cot", found, said, "robust", "cot")
    assert [row.outcome for row in rows] == ["wrong", "correct", "correct"]
    assert [[other.extractor for other in row.others] for row in rows] == [["paper", "official"]] * 3
    assert [[other.outcome == "correct" for other in row.others] for row in rows] == [[False, True], [True, True], [False, True]]


def test_a_gold_that_is_the_text_of_an_option(tmp_path: Path) -> None:
    """MathVision has a few; the released rule never accepts the value for them, here it is turned into the letter when read."""
    row = {"id": "1", "question": "Which?", "decoded_image": {"bytes": png(), "path": None}, "level": 1, "subject": "a"}
    parquet(tmp_path / "testmini.parquet", [{**row, "options": ["12", "15"], "answer": "15"}])
    found = questions("mathvision", tmp_path)
    assert found[0].answer == "B"
    assert outcomes("mathvision", found, ["15"], "robust") == outcomes("mathvision", found, ["(B)"], "paper") == "c"


def test_a_gold_that_is_no_option_is_compared_by_value(tmp_path: Path) -> None:
    """The released rule counts every answer to such a question as wrong."""
    row = {"id": "1", "question": "Which?", "decoded_image": {"bytes": png(), "path": None}, "level": 1, "subject": "a"}
    parquet(tmp_path / "testmini.parquet", [{**row, "options": ["$\\frac{1}{2}$", "$2$"], "answer": "0.5"}])
    asked = questions("mathvision", tmp_path) * 3
    assert outcomes("mathvision", asked, ["1/2", "$\\frac{1}{2}$", "2"], "robust") == "ccw"
    assert outcomes("mathvision", asked, ["1/2", "(A)", "2"], "paper") == "www"


def test_values_that_the_released_tolerances_judge_differently(tmp_path: Path) -> None:
    """VLMEvalKit allows 1e-6, MATH-V two decimals; ours is by value: a rounded one is not the value."""
    row = {"id": "1", "question": "How much?", "decoded_image": {"bytes": png(), "path": None}, "level": 1, "subject": "a", "options": []}
    parquet(tmp_path / "testmini.parquet", [{**row, "answer": "1/3"}, {**row, "id": "2", "answer": "0.5"}])
    found = questions("mathvision", tmp_path)
    for extractor in ("robust", "paper"):
        assert outcomes("mathvision", found, ["1/3", "1/2"], extractor) == "cc"
        assert outcomes("mathvision", found, ["0.33", "0.51"], extractor) == "ww"


def test_existence_does_not_enter_the_figure_of_relations(tmp_path: Path) -> None:
    save_png(tmp_path / "1.jpg")
    rows = [
        {"question_id": f"{category}{turn}", "image": "1.jpg", "text": f"{category}?\nA. {a}\nB. {b}", "correct_option": gold,
         "category": category}
        for category in ("subject", "exist") for turn, (a, b, gold) in enumerate((("x", "y", "A"), ("y", "x", "B")))
    ]  # fmt: skip
    jsonl(tmp_path / "crpe_relation.jsonl", rows)
    found = figures("crpe", questions("crpe", tmp_path), ["A", "B", "B", "A"])
    assert (found[0].value, found[0].n) == (100.0, 1)
    assert value(found, "row accuracy") == 100.0
    assert value(found, "circular accuracy", "exist") == 0.0


def test_an_empty_or_wordy_reply_is_wrong_and_raises_nothing(tmp_path: Path) -> None:
    """Of CRPE's released rule: an empty reply raised IndexError, and with a bare letter as gold any other text was right."""
    save_png(tmp_path / "1.jpg")
    jsonl(tmp_path / "crpe_relation.jsonl", [{"question_id": 1, "image": "1.jpg", "text": "Where?\nA. on\nB. under", "correct_option": "B",
                                             "category": "object"}])  # fmt: skip
    found = questions("crpe", tmp_path)
    assert [outcomes("crpe", found, [text], "paper") for text in ("", "I cannot say", " ")] == ["w", "w", "w"]


def test_no_yes_at_all_divides_nothing_by_zero(tmp_path: Path) -> None:
    parquet(tmp_path / "test.parquet", [
        {"question_id": str(n), "question": "Is it?", "answer": "no", "category": "random", "image": {"bytes": png(n), "path": None}}
        for n in range(2)
    ])  # fmt: skip
    found = figures("pope", questions("pope", tmp_path), ["no", "no"])
    assert [figure.value != figure.value for figure in found[:2]] == [True, True]  # F1 does not exist; it is neither 0 nor 100
    assert value(found, "accuracy") == 100.0
    assert value(found, "yes ratio", "random") == 0.0


def test_the_reference_is_shown_first_and_the_scale_is_said() -> None:
    rubric = BENCHMARKS["llava_bench"].rubric
    assert rubric is not None
    assert rubric.prompt.index("{reference}") < rubric.prompt.index("{answer}")
    assert "<AND>" in VET_PROMPT
    assert "<OR>" in VET_PROMPT


def test_a_choice_beyond_the_letters_of_the_released_script(tmp_path: Path) -> None:
    """InternVL's script knows A to E and raises IndexError at six options; the benchmark has up to seven."""
    seven = [*ANIMALS, "gnu"]
    parquet(tmp_path / "test.parquet", [animal(1, choices=seven, answer="G")])
    found = questions("m3cot", tmp_path)
    for extractor in ("robust", "paper"):
        assert outcomes("m3cot", found, ["G"], extractor) == outcomes("m3cot", found, ["the gnu"], extractor) == "c"


def test_images_that_are_nothing_are_said(tmp_path: Path) -> None:
    """A row without an image field, and one whose image is null, in a benchmark that needs one."""
    parquet(
        tmp_path / "test.parquet", [{"question_id": "1", "question": "Is there?", "answer": "yes", "category": "random", "image": None}]
    )
    (bad,) = load("pope", tmp_path)
    assert "no image" in reason(bad)


def test_prompts_of_the_eight_leave_braces_of_a_question_alone(tmp_path: Path) -> None:
    parquet(tmp_path / "test.parquet", [animal(1, question="What is {answer} in {x}?")])
    (found,) = questions("m3cot", tmp_path)
    assert "What is {answer} in {x}?" in (prompt_of(found, "direct") or "")


# --- against the released scripts ----------------------------------------------------------------------------------------------------


def script_can_infer(answer: str, choices: list[str]) -> str | None:
    """VLMEvalKit's `can_infer` at the time of the paper, restated line by line."""
    letters = "ABCDEFGH"[: len(choices)]
    plain = answer
    for sign in ".()[],:;!*#{}":
        plain = plain.replace(sign, " ")
    splits = [word.strip() for word in plain.split()]
    named = [letter for letter in letters if letter in splits]
    if len(named) == 1:
        return named[0]
    if not named and "Z" in splits:
        return None
    held = [letter for letter, text in zip(letters, choices, strict=True) if text.lower() in answer.lower()]
    return held[0] if len(held) == 1 else None


def script_post_process(pred: str, choices: list[str]) -> str:
    """`post_process` of InternVL's ScienceQA script, restated, with as many letters as there are choices."""
    option = dict(zip("ABCDEFGH", choices, strict=False))
    pred = pred.strip()
    if len(pred) == 1:
        return pred
    if len(pred) > 1 and pred[0] in option:
        return pred[0]
    if len(pred) > 1:
        for letter, text in option.items():
            if text in pred:
                return letter
    if len(pred) > 1 and pred[1] == ".":
        pred = pred[0]
    if len(pred) > 2 and pred[0] == "(" and pred[2] == ")":
        pred = pred[1]
    return pred


def test_rules_of_options_equal_the_scripts_on_random_answers() -> None:
    words = ["A", "B", "C", "F", "a", "Z", "(A)", "(b)", "**B**", "B.", "the", "cat", "dog", "1", "10", "1.4", ",", "not", "answer:", "is"]
    texts = ["cat", "dog", "a cat", "1", "10", "1.4", "C", "(A)", "No", "the"]
    rng = random.Random(0)
    for _ in range(3000):
        said = " ".join(rng.choice(words) for _ in range(rng.randint(0, 6)))
        choices = [rng.choice(texts) for _ in range(rng.randint(2, 7))]
        assert infer_letter(said, choices) == script_can_infer(said, choices), (said, choices)
        assert read_paper(said.strip(), choices) == script_post_process(said, choices), (said, choices)


def test_two_letters_leave_the_text_of_an_option() -> None:
    assert infer_letter("Neither A nor B fits; I say 15", ["12", "13", "15"]) == "C"
    assert infer_letter("A or B", ["12", "13", "15"]) is None


def test_choices_with_the_same_text_are_one_answer(tmp_path: Path) -> None:
    """MathVista's authors compare texts, not letters."""
    row = {"pid": "1", "question": "?", "decoded_image": {"bytes": png(), "path": None}, "question_type": "multi_choice",
           "answer_type": "text", "query": "?", "metadata": {"task": "t", "skills": ["s"]}}  # fmt: skip
    parquet(tmp_path / "testmini.parquet", [{**row, "choices": ["no", "no", "yes"], "answer": "no"}])
    asked = questions("mathvista", tmp_path)
    for extractor in ("robust", "paper"):
        assert [outcomes("mathvista", asked, [said], extractor) for said in ("A", "(B)", "no", "C", "yes")] == list("cccww")


def test_markers_in_direct_answers(tmp_path: Path) -> None:
    """The scripts look for one in chains of thought only; where they ask a language model, the marker stands in for it in both."""
    parquet(tmp_path / "m3cot" / "test.parquet", [animal(1, answer="A"), animal(2, answer="C")])
    asked = questions("m3cot", tmp_path / "m3cot")
    assert outcomes("m3cot", asked, ["Answer: C"] * 2, "paper", "direct") == "cw"  # begins with an A
    assert outcomes("m3cot", asked, ["Answer: C"] * 2, "paper", "cot") == "wc"
    row = {"id": "1", "question": "How many?", "decoded_image": {"bytes": png(), "path": None}, "level": 1, "subject": "a", "options": []}
    parquet(tmp_path / "vision" / "testmini.parquet", [{**row, "answer": "14"}])
    asked = questions("mathvision", tmp_path / "vision")
    assert outcomes("mathvision", asked, ["Answer: 14"], "paper", "direct") == outcomes("mathvision", asked, ["14"], "paper") == "c"


def test_columns_of_a_table_that_are_no_lists_or_numbers(tmp_path: Path) -> None:
    """VLMEvalKit reads a skill without brackets as one skill; a precision that is no number is said, and no traceback."""
    row = {"image": b64(1), "question": "Hint: h", "answer": "1.4", "question_type": "free_form", "answer_type": "float"}
    rows = [{"index": n, **row, "skills": skills, "precision": precision} for n, (skills, precision) in enumerate(
        [("geometry reasoning", "1.0"), ("['a', 'b']", "nan"), ("", "one")]
    )]  # fmt: skip
    tsv(tmp_path / "MathVista_MINI.tsv", rows)
    first, second, bad = load("mathvista", tmp_path)
    assert isinstance(first, Question)
    assert isinstance(second, Question)
    assert (fact(first, "skills"), fact(first, "precision")) == (["geometry reasoning"], 1)
    assert (fact(second, "skills"), fact(second, "precision")) == (["a", "b"], 0)
    assert reason(bad) == "precision 'one' is no number of decimal places"


def test_parts_of_a_reference_are_set_apart(tmp_path: Path) -> None:
    """As the benchmark's evaluator puts them before the judge."""
    save_png(tmp_path / "images" / "1.png")
    rows = {f"v1_{n}": {"imagename": "1.png", "question": f"{n}?", "answer": answer, "capability": ["ocr"]}
            for n, answer in enumerate(("-1<AND>-5", "a <OR> b", "plain"))}  # fmt: skip
    (tmp_path / "mm-vet.json").write_text(json.dumps(rows))
    assert [question.answer for question in questions("mmvet", tmp_path)] == ["-1 <AND> -5", "a <OR> b", "plain"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("What is it? <image1> Tell.", "What is it? Tell."),
        ("What is it?\n<image1>\nTell.", "What is it?\nTell."),
        ("<image1> What is it?<image2>", "What is it?"),
        ("See<image1><image2>here", "See here"),
        ("See <image1>\nhere", "See\nhere"),
    ],
)
def test_marks_of_images_go_and_lines_stay(tmp_path: Path, text: str, shown: str) -> None:
    """MathVision's text says where its one picture belongs; "Choices:" keeps a line of its own."""
    row = {"id": "1", "decoded_image": {"bytes": png(), "path": None}, "answer": "A", "level": 1, "subject": "a", "options": ["x", "y"]}
    table = f"Hint: h.\nQuestion: {text}\nChoices:\n(A) x\n(B) y"
    parquet(tmp_path / "testmini.parquet", [{**row, "question": text}, {**row, "id": "2", "question": table}])
    plain, ready = questions("mathvision", tmp_path)
    assert plain.text == f"<image>\n{shown}\n(A) x\n(B) y"
    assert ready.text == plain.text
    assert fact(ready, "direct") == f"Hint: h.\nQuestion: {shown}\nChoices:\n(A) x\n(B) y"


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("mathvista", {"question": "Hint: h.\nQuestion: Which?", "answer": "bee", "question_type": "multi_choice", "answer_type": "text"}),
        ("mathvision", {"question": "Hint: h.\nQuestion: Which?", "answer": "B"}),
        ("m3cot", {"question": "Which?", "answer": "B"}),
        ("crpe", {"question": "Which?", "answer": "B", "category": "object"}),
    ],
)
def test_options_in_columns_of_their_own(tmp_path: Path, name: str, row: dict[str, str]) -> None:
    """As in most tables of VLMEvalKit: A, B, C, ..., empty where a row has fewer. The model sees them, and the answer is among them."""
    options = dict(zip("ABCDEF", ANIMALS, strict=True))
    lone = {letter: animal if letter < "C" else "" for letter, animal in options.items()}
    path = tsv(tmp_path / "t.tsv", [{"index": 1, "image": b64(1), **row, **options}, {"index": 2, "image": b64(2), **row, **lone}])
    six, two = questions(name, tmp_path, path)
    assert (six.choices, two.choices) == (tuple(ANIMALS), ("ant", "bee"))
    assert (six.answer, six.kind) == ("B", "choice")
    for question, last in ((six, "F. fox"), (two, "B. bee")):
        for shown in (question.text, str(facts_of(question).get("direct", last))):
            assert shown.endswith(last)
            assert shown.count("A. ant") == shown.count(last) or shown == last
    assert outcomes(name, [six, two], ["B", "bee"]) == "cc"
    gap = {**options, "C": ""}
    (bad,) = load(name, tmp_path, tsv(tmp_path / "gap.tsv", [{"index": 1, "image": b64(1), **row, **gap}]))
    assert reason(bad) == "option C is empty before others that are not"


def test_a_folder_with_nothing_but_the_official_json(tmp_path: Path) -> None:
    row = {"question": "How many?", "image": "images/1.jpg", "choices": None, "answer": "3", "question_type": "free_form",
           "answer_type": "integer", "query": "Q", "metadata": {"task": "t", "skills": []}}  # fmt: skip
    save_png(tmp_path / "images" / "1.jpg")
    (tmp_path / "annot_testmini.json").write_text(json.dumps({"1": row}))
    (tmp_path / "source.json").write_text("{}")
    assert [fact(question, "id") for question in questions("mathvista", tmp_path)] == ["1"]
    # Beside tables it does not count: the hub's JSON names images that nobody has unpacked.
    parquet(
        tmp_path / "data" / "testmini-0.parquet", [{**row, "pid": "2", "metadata": None, "decoded_image": {"bytes": png(), "path": None}}]
    )
    assert [fact(question, "id") for question in questions("mathvista", tmp_path)] == ["2"]


def test_missing_values_as_numbers_do(tmp_path: Path) -> None:
    """JSON from pandas writes NaN for them."""
    save_png(tmp_path / "1.jpg")
    jsonl(tmp_path / "testmini.jsonl", [{"id": 4, "question": "How many?", "image": "1.jpg", "options": float("nan"), "answer": 3,
                                         "level": 1.0, "subject": float("nan")}])  # fmt: skip
    (question,) = questions("mathvision", tmp_path)
    assert (question.answer, question.choices, fact(question, "subject"), fact(question, "id")) == ("3", (), "", "4")


def test_a_list_among_other_numbers(tmp_path: Path) -> None:
    row = {"pid": "1", "query": "Q", "choices": None, "answer": "[1, 2]", "question_type": "free_form", "answer_type": "list",
           "decoded_image": {"bytes": png(), "path": None}, "metadata": {"task": "t", "skills": []}}  # fmt: skip
    parquet(tmp_path / "testmini.parquet", [row])
    (asked,) = questions("mathvista", tmp_path)
    said = {"The 2 values are [1, 2].": "c", "from [3] to [1, 2]": "c", "1 and 2": "c", "[2, 1]": "w", "The 2 are 1 and 2": "w", "[]": "w"}
    assert outcomes("mathvista", [asked] * len(said), list(said)) == "".join(said.values())


def test_an_options_number_that_a_table_made_a_decimal(tmp_path: Path) -> None:
    jsonl(
        tmp_path / "test.jsonl", [{"question": "Which?", "choices": ANIMALS, "answer": number, "image": None} for number in (0.0, 2.0, 2.5)]
    )
    first, third, bad = load("m3cot", tmp_path)
    assert (first.answer, third.answer) == ("A", "C")  # type: ignore[union-attr]
    assert "none of the 6 options" in reason(bad)
