"""The rules of data sets against numbers worked out by hand, a slow edit distance, and what must hold for every text."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpo.recipe import VerifyTable
from mixpo.types import AnswerKind, Question, Response
from mixpo.verify import Verifier, check
from mixpo.verify.dataset_metrics import RULES, anls, relaxed_accuracy, rule_of, vqa_accuracy

EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("said", "score"),
    # Of ten people `said` gave the answer: the mean over the ten ways to leave one out of min(1, rest / 3).
    [(0, 0.0), (1, 9 * (1 / 3) / 10), (2, (2 * (1 / 3) + 8 * (2 / 3)) / 10), (3, (3 * (2 / 3) + 7) / 10), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_over_ten(said: int, score: float) -> None:
    golds = ["The cat."] * said + [f"dog {number}" for number in range(10 - said)]
    assert vqa_accuracy("cat", golds) == pytest.approx(score)


@pytest.mark.parametrize(
    ("predicted", "golds", "score"),
    [
        ("two", ["2", "3"], 1.0),
        ("4", ["2", "3"], 0.0),
        ("", ["a"], 0.0),
        ("don't", ["dont"], 1.0),
        ("a red, car", ["Red car"], 1.0),
        ("x", [], 0.0),
    ],
)
def test_vqa_accuracy_with_few_answers(predicted: str, golds: list[str], score: float) -> None:
    assert vqa_accuracy(predicted, golds) == score


@pytest.mark.parametrize(
    ("predicted", "gold", "right"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("95", "100", True),
        ("94.9", "100", False),
        ("-95", "-100", True),
        ("95", "-100", False),
        ("0", "0", True),
        ("0.001", "0", False),
        ("2010", "2010", True),
        ("2011", "2010", False),  # a year, though within 5 %
        ("1999", "2000", False),
        ("2150", "2100", True),  # no year any more
        ("48%", "50%", True),
        ("48", "50%", True),
        ("1,030", "1000", True),
        ("$1,030", "$1,000", True),
        ("Blue", "blue", True),
        ("bleu", "blue", False),
        ("about 100", "100", True),
        ("nan", "100", False),
        ("1e999999", "100", False),
    ],
)
def test_relaxed_accuracy(predicted: str, gold: str, right: bool) -> None:
    assert relaxed_accuracy(predicted, [gold]) == right
    assert relaxed_accuracy(predicted, ["no such answer", gold]) == right


@pytest.mark.parametrize(
    ("predicted", "golds", "score"),
    [
        ("invoice", ["Invoice"], 1.0),
        ("invoce", ["invoice"], 1 - 1 / 7),  # similarity, not distance: one letter of seven is missing
        ("invoice  no 12", ["invoice no 12"], 1.0),
        ("abcd", ["abxy"], 0.5),
        ("abcd", ["axyz"], 0.0),  # 1 - 3/4 lies below the threshold
        ("abcd", ["axyz", "abcx"], 0.75),
        ("", ["abc"], 0.0),
        ("", [""], 1.0),
        ("anything", [], 0.0),
        ("x" * 5000, ["y" * 5000], 0.0),
    ],
)
def test_anls(predicted: str, golds: list[str], score: float) -> None:
    assert anls(predicted, golds) == pytest.approx(score)


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
@EXAMPLES
def test_anls_is_the_definition(left: str, right: str) -> None:
    @cache
    def edits(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(edits(i - 1, j) + 1, edits(i, j - 1) + 1, edits(i - 1, j - 1) + (left[i - 1] != right[j - 1]))

    similarity = 1 - edits(len(left), len(right)) / max(len(left), len(right), 1)
    assert anls(left, [right]) == pytest.approx(similarity if similarity >= 0.5 else 0.0)


TEXTS = st.one_of(st.text(max_size=30), st.sampled_from(["7", "2010", "50%", "a cat", "１２", "1/0", "-", "\ud800"]))


@pytest.mark.parametrize("name", RULES)
@given(predicted=TEXTS, golds=st.lists(TEXTS, max_size=11))
@EXAMPLES
def test_scores_lie_between_0_and_1_and_more_right_answers_never_hurt(name: str, predicted: str, golds: list[str]) -> None:
    score = RULES[name].score
    assert 0 <= score(predicted, golds) <= 1
    if name != "vqa":  # there, the ten are a vote
        assert score(predicted, [*golds, predicted]) == 1
    assert score(predicted, golds) == score(predicted, golds[::-1])


@pytest.mark.parametrize(
    ("predicted", "golds", "rule", "outcome"),
    [
        ("103", ["100"], "relaxed", "correct"),
        ("103", ["100"], "", "wrong"),
        ("2011", ["2010"], "relaxed", "wrong"),
        ("one hundred", ["100"], "relaxed", "correct"),  # the rule reads no words; the comparison by kind does
        ("invoce", ["invoice"], "anls", "undecided"),  # similar enough for the metric, not to learn from
        ("invoice number 123456789o", ["invoice number 1234567890"], "anls", "correct"),
        ("receipt", ["invoice"], "anls", "wrong"),
        ("cat", ["cat"] * 3 + ["dog"] * 7, "vqa", "correct"),
        ("cat", ["cat"] + ["dog"] * 9, "vqa", "undecided"),
        ("cow", ["cat"] + ["dog"] * 9, "vqa", "wrong"),
        ("2.0", ["2"] + ["dog"] * 9, "vqa", "undecided"),
        ("dog", ["cat", "dog"], "", "correct"),
        ("the black dog", ["cat", "dog"], "", "undecided"),
        ("cow", ["cat", "dog"], "", "wrong"),
    ],
)
def test_rules_and_several_right_answers(predicted: str, golds: list[str], rule: str, outcome: str) -> None:
    assert check(predicted, golds, rule=rule).outcome == outcome


def test_an_unknown_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown rule 'vqaa'; known: vqa, relaxed, anls"):
        check("a", "b", rule="vqaa")


def asked(source: str = "", domain: str = "", answer: str = "100", kind: AnswerKind = "number") -> Question:
    return Question(id="q", text="?", answer=answer, kind=kind, source=source, domain=domain)


def test_the_rule_comes_from_the_recipe_by_source_then_domain() -> None:
    table = VerifyTable(rules={"chartqa_*": "relaxed", "chart": "anls", "vqa": "vqa"})
    assert rule_of(asked("chartqa_train", "chart"), table) == "relaxed"
    assert rule_of(asked("other", "chart"), table) == "anls"
    assert rule_of(asked("ChartQA_train"), table) == ""
    assert rule_of(asked("ChartQA_trainval_30k"), VerifyTable(mmpr_rules=True)) == "relaxed"
    assert rule_of(asked("docvqa_en"), VerifyTable(mmpr_rules=True, rules={"docvqa*": "text"})) == "text"
    assert rule_of(asked("docvqa_en"), VerifyTable()) == ""


def test_the_verifier_applies_it() -> None:
    answer = Response(question="q", index=0, text="Final answer: 103")
    with Verifier(VerifyTable(rules={"chart": "relaxed", "plain": "text"})) as verifier:
        assert verifier.verify(asked(domain="chart"), answer, "final").reason == "relaxed accuracy"
        assert verifier.verify(asked(domain="map"), answer, "final").reason == "numbers differ"
        # An answer kind as rule replaces the kind of the question.
        assert verifier.verify(asked(domain="plain", answer="103", kind="formula"), answer, "final").outcome == "correct"
        several = Question(id="q", text="?", answer="100", answers=("100", "103"), kind="number")
        assert verifier.verify(several, answer, "final").outcome == "correct"
