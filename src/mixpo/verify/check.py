"""Compare an extracted answer with the ground truth: the table of checks by answer kind, and the one function over it."""

from __future__ import annotations

import atexit
import functools
import re
from collections.abc import Callable, Sequence

from mixpo.types import Verdict
from mixpo.verify.choice import check_choice
from mixpo.verify.compare_numbers import check_number
from mixpo.verify.dataset_metrics import RULES, judge_by
from mixpo.verify.formula import check_formula, compare_algebra, compare_ratios
from mixpo.verify.judgement import UNSURE, Algebra, Judgement, Options
from mixpo.verify.kinds import guess_kind
from mixpo.verify.latex import to_latex
from mixpo.verify.number import one_number, same_quantities
from mixpo.verify.options import listed
from mixpo.verify.pool import FormulaPool
from mixpo.verify.refusals import is_refusal
from mixpo.verify.text import LETTERS, check_text
from mixpo.verify.wrapping import plain_characters
from mixpo.verify.yes_no import check_yes_no

TOLERANCE = 1e-6
TIMEOUT_S = 5.0
_QUOTIENT = re.compile(r"\d{1,9}\s*/\s*\d{1,9}|\\[dt]?frac\{\d{1,9}\}\{\d{1,9}\}")
_NAME = re.compile("[A-Za-z]{1,2}")
_JOINT = re.compile(r"(?i)[,&、，和与]|and")
_SPACE = re.compile(r"(?<!\d) | (?!\d)| (?=\d{3}(?!\d))")


def check_words(predicted: str, gold: str, options: Options) -> Judgement:
    """Free text; where both sides are plain numbers ("2.0" and "2"), or count the same things, they are compared as numbers."""
    if any(map(_QUOTIENT.fullmatch, (predicted, gold))) and (ratios := compare_ratios(to_latex(predicted), to_latex(gold))):
        return ratios
    judgement = check_text(predicted, gold, options)
    if judgement.outcome != "wrong":
        return judgement
    if (letters := listed(predicted)) and letters == listed(gold) and len(gold) <= LETTERS:
        return Judgement("correct" if _JOINT.search(predicted) else "undecided", "the same letters")  # "A and C" for AC
    if _NAME.fullmatch(gold) and guess_kind(predicted) == "formula":
        return check_formula(predicted, gold, options)  # √(x²) for x
    if same_quantities(predicted, gold, options.tolerance):
        return Judgement("correct", "the same quantity")
    # "2.0" for 2; one side may be spelled out: "eleven" for 11, "一半" for 0.5.
    texts = (predicted, gold)
    numbers = sum(one_number(text) is not None for text in texts)
    if numbers == 0 or (numbers == 1 and all(re.search(r"\d", text) for text in texts)):
        return judgement
    by_number = check_number(predicted, gold, options)
    return by_number if numbers == 2 or by_number.outcome == "undecided" else judgement


Check = Callable[[str, str, Options], Judgement]
CHECKS: dict[str, Check] = {
    "choice": check_choice,
    "number": check_number,
    "formula": check_formula,
    "text": check_words,
    "yes_no": check_yes_no,
}
"""One function for each answer kind."""


def check(
    predicted: str,
    gold: str | Sequence[str],
    kind: str = "auto",
    choices: Sequence[str] | None = None,
    *,
    rule: str = "",
    tolerance: float = TOLERANCE,
    timeout_s: float = TIMEOUT_S,
) -> Verdict:
    """Whether the extracted answer `predicted` agrees with `gold`, or with any of several right answers.

    kind: a `mixpo.types.AnswerKind` other than "none", or "auto", which guesses from the ground truth and the choices.
    choices: the texts of the options in letter order. rule: a name from `mixpo.verify.dataset_metrics.RULES` whose say comes first.
    tolerance: relative, for numbers. timeout_s: processor time, for formulas.
    Equal texts are always correct. Never hangs; whatever cannot be told is "undecided". Raises ValueError for an unknown kind or rule.
    """
    golds = (gold,) if isinstance(gold, str) else tuple(gold)
    algebra = make_algebra(_shared_pool(timeout_s), tolerance)
    options = Options(tolerance=tolerance, algebra=algebra, choices=tuple(choices or ()))
    outcome, reason = judge_all(predicted, golds, kind, rule, options)
    if not predicted.strip() and outcome != "correct":
        return Verdict(outcome="malformed", reason="no answer")
    return Verdict(outcome=outcome, extracted=predicted, reason=reason)


def judge_all(predicted: str, golds: Sequence[str], kind: str, rule: str, options: Options) -> Judgement:
    """The judgement over all right answers. rule: "" or a name from `RULES`, which has the first say.

    An answer is wrong only when the rule and the comparison by kind both say so; where they disagree it is undecided, except that
    with a single right answer the comparison by kind may find right what the rule spells too narrowly.
    """
    if rule and rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; known: {', '.join(RULES)}")
    if rule:
        by_rule = judge_by(RULES[rule], predicted, golds)
        if by_rule.outcome != "wrong":
            return by_rule
    by_kind = judge_any(predicted, golds, kind, options)
    if rule and by_kind.outcome == "correct" and len(set(golds)) > 1:
        return Judgement("undecided", "the rule and the comparison by kind disagree")
    return by_kind


def judge_any(predicted: str, golds: Sequence[str], kind: str, options: Options) -> Judgement:
    """Correct with any of the right answers; wrong only with all of them."""
    distinct = list(dict.fromkeys(golds)) or [""]
    same = [gold for gold in distinct if same_spelling(predicted, gold)]
    judgements = [judge(predicted, gold, kind, options) for gold in same[:1] or distinct]
    rank = {"correct": 0, "undecided": 1, "wrong": 2}
    return min(judgements, key=lambda judgement: rank[judgement.outcome])


def judge(predicted: str, gold: str, kind: str, options: Options) -> Judgement:
    """The judgement of one comparison; see `check`."""
    if kind == "auto":
        kind = guess_kind(gold, options.choices)
    if kind not in CHECKS:
        raise ValueError(f"unknown answer kind {kind!r}; known: auto, {', '.join(CHECKS)}")
    if same_spelling(predicted, gold):
        return Judgement("correct", "same text")
    if not gold.strip():
        return Judgement("undecided", "no ground truth")
    if kind in ("text", "formula") and is_refusal(predicted) and not is_refusal(gold):
        return UNSURE
    return CHECKS[kind](predicted, gold, options)


def same_spelling(predicted: str, gold: str) -> bool:
    """Equal but for spacing and character forms (full-width letters, minus signs); case counts, as x and X may differ."""
    return predicted == gold or _unspaced(predicted) == _unspaced(gold)


def _unspaced(text: str) -> str:
    """Without spaces, but for one that parts two numbers: "1 1/2" is not "11/2", while "1 000" is "1000"."""
    plain = plain_characters(text)
    return _SPACE.sub("", plain) if " " in plain else plain


def make_algebra(pool: FormulaPool, tolerance: float) -> Algebra:
    """Computer algebra in `pool`, as the checks call it."""
    return lambda predicted, gold: compare_algebra(predicted, gold, pool, tolerance)


@functools.cache
def _shared_pool(timeout_s: float) -> FormulaPool:
    """The workers behind `check`; one pool for each time limit in use, ended with the program."""
    pool = FormulaPool(timeout_s=timeout_s, workers=1)
    atexit.register(pool.close)
    return pool
