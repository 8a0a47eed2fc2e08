"""Formulas: the same spelling or plain numbers are decided here in microseconds, everything else by computer algebra in a worker.

What a parser is known to misread (prose, units, ratios) never reaches it.
"""

from __future__ import annotations

import itertools
import math
import re

from mixpo.verify.compare_numbers import check_number
from mixpo.verify.judgement import Judgement, Options
from mixpo.verify.latex import key, take_text, to_latex
from mixpo.verify.number import PLACES, single_number
from mixpo.verify.pool import FormulaPool
from mixpo.verify.text import check_text, rearranged
from mixpo.verify.units import PATTERN, read_unit
from mixpo.verify.values import differ

MAX_LENGTH = 1000
"""A longer formula is undecided unless it is spelled the same: parsers slow down without bound."""
MAX_DEPTH = 30

_RATIO = re.compile(r"(?i)(?:(?:the )?ratio(?: is)?:? )?\d{1,9}(?:\s*(?::|to|比)\s*\d{1,9}){1,9}")
_QUOTIENT = re.compile(r"\d{1,9}\s*/\s*\d{1,9}")
_CLOCK_PARTS = re.compile(r"\D[0-5]\d$")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_LONG_WORD = re.compile(r"[A-Za-z]{3,}|[^\x00-\x7f]{2,}")
_FUNCTION_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt max min gcd lcm mod and or "
    "pmatrix bmatrix vmatrix matrix cases array"
)
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_MATHEMATICS = re.compile(r"[\d=<>+*/^_|]|\\(?!text|mathrm|mbox)[a-zA-Z]+|(?<![A-Za-z])[A-Za-z](?![A-Za-z])")
_UNIT_TEXT = re.compile(
    r"(?:\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}|(?<=[\d}\s)])\s*((?:square|cubic|sq\.?)?\s*[A-Za-z/]+))\s*(?:\^\{?([23])\}?)?\s*$"
)
_BARE_UNITS = re.compile(r"(?i)(?:square |cubic |sq\.? )?units?")
_UNIT = re.compile(rf"(?i){PATTERN}")
_NAME = re.compile(r"^(?:\\(?:angle|overline|triangle)\s*\{?|∠)?[A-Z]{2,3}\}?\s*=(?!.*=)")
"""A line or an angle in front of its value: "CD = 3", which is no product."""
_DEGREES = re.compile(r"\\circ|°|\\degree")
_QUOTIENT_OF_PRODUCT = re.compile(r"\\frac\{\d+\}\{\d+\}(?=[A-Za-z(\\])")
_NAMED_ROOT = re.compile(r"[A-Za-z]_?\{?\d\}?\s*=")
_DECIMAL = re.compile(r"-?(\d+)\.(\d+)")
_NATURAL, _COMMON = re.compile(r"\\?ln(?![a-z])"), re.compile(r"\\?log(?![a-z_])")


def check_formula(predicted: str, gold: str, options: Options) -> Judgement:
    """Compare as formulas; a time-out, a crash, or one side that cannot be parsed is undecided."""
    if max(len(predicted), len(gold)) > MAX_LENGTH:
        return Judgement("undecided", "formula too long")
    left, right = to_latex(predicted), to_latex(gold)
    if key(left) == key(right) != "":
        return Judgement("correct", "same formula")
    if single_number(left) and single_number(right):
        return check_number(left, right, options)
    if ratios := compare_ratios(left, right):
        return ratios
    if not any(_MATHEMATICS.search(one) for one in (left, right)):
        if left != right and rearranged(left, right):
            return Judgement("undecided", "the same letters in another order")  # "ab" is "ba" where it is a product
        return check_text(" ".join(take_text(left)) or left, " ".join(take_text(right)) or right, options)
    return options.algebra(predicted, gold)


def compare_algebra(predicted: str, gold: str, pool: FormulaPool, tolerance: float) -> Judgement:
    """Parse both and compare with computer algebra, unless there are words or units with the formulas that it would misread."""
    if max(len(predicted), len(gold)) > MAX_LENGTH:
        return Judgement("undecided", "formula too long")
    formulas = [to_latex(text) for text in (predicted, gold)]
    if "=" not in formulas[0] or "=" not in formulas[1]:
        formulas = [_NAME.sub("", formula) for formula in formulas]
    (left, left_unit), (right, right_unit) = map(_take_unit, formulas)
    if left_unit and right_unit and read_unit(left_unit) != read_unit(right_unit):
        return Judgement("undecided", "units differ")
    if key(left) == key(right) != "":
        return Judgement("correct", "same formula")
    if key(left).casefold() == key(right).casefold():
        return Judgement("undecided", "upper and lower case")
    if max(_depth(left), _depth(right)) > MAX_DEPTH:
        return Judgement("undecided", "formula nested too deeply")
    if _primes(left) != _primes(right):
        return Judgement("undecided", "a prime that the parser drops")
    if _words(left) or _words(right):
        return Judgement("undecided", "words with the formula")
    judgement = _compare_values(left, right, pool, tolerance)
    if judgement.outcome != "wrong":
        return judgement
    if convention := _conventions(to_latex(predicted), to_latex(gold)):
        return Judgement("undecided", convention)
    rounding = max(_rounding(left), _rounding(right))
    if rounding > tolerance and _compare_values(left, right, pool, rounding).outcome != "wrong":
        return Judgement("undecided", "rounded")
    return judgement


def _compare_values(left: str, right: str, pool: FormulaPool, tolerance: float) -> Judgement:
    return Judgement("wrong", "values differ") if differ(left, right, tolerance) else pool.compare(left, right, tolerance)


def _rounding(latex: str) -> float:
    """The relative error of a decimal that was rounded to enough places (see `number.PLACES`), at most; else 0."""
    match = _DECIMAL.fullmatch(latex.rpartition("=")[2].strip())
    if not match or max(len(match.group(2)), len((match.group(1) + match.group(2)).lstrip("0")) - 1) < PLACES:
        return 0.0
    return 0.5 * 10.0 ** -len(match.group(2)) / (abs(float(match.group())) or 1.0)


def compare_ratios(left: str, right: str) -> Judgement | None:
    """Proportional ratios are equal, as is a quotient; what may be times of day ("3:30" and "1:10") is undecided. None for no ratio."""
    ratios = _RATIO.fullmatch(left), _RATIO.fullmatch(right)
    if ratios == (None, None):
        return None
    values: list[list[int] | None] = []
    for ratio, text in zip(ratios, (left, right), strict=True):
        quotient = ratio or _QUOTIENT.fullmatch(text.replace("}{", "/").removeprefix("\\frac{").removesuffix("}"))
        parts = [int(part) for part in re.findall(r"\d+", quotient.group())] if quotient else [0]
        values.append([part // math.gcd(*parts) for part in parts] if parts[-1] else None)
    if values[0] is None or values[1] is None:
        return Judgement("undecided", "a ratio against something else")
    if values[0] != values[1]:
        return Judgement("wrong", "ratios differ")
    clocks = [ratio is not None and _CLOCK_PARTS.search(ratio.group()) is not None for ratio in ratios]
    return Judgement("undecided", "ratios or times of day") if all(clocks) else Judgement("correct", "ratios agree")


def _take_unit(latex: str) -> tuple[str, str]:
    """The formula and the unit behind it, "" when there is none."""
    match = _UNIT_TEXT.search(latex)
    if not match or match.start() == 0:
        return latex, ""
    name = (match.group(1) or match.group(2)).strip()
    name += f"^{match.group(3)}" if match.group(3) else ""
    is_word = match.group(1) is not None or len(name) > 1
    if is_word and (_BARE_UNITS.fullmatch(name) or _UNIT.fullmatch(name)):
        return latex[: match.start()].strip(), "" if _BARE_UNITS.fullmatch(name) else name
    return latex, ""


def _depth(latex: str) -> int:
    """How deep brackets of any kind are nested; parsers take exponential time over it."""
    return max(itertools.accumulate((character in "([{") - (character in ")]}") for character in latex), default=0)


def _primes(latex: str) -> int:
    """How often something is primed, behind the name that it is given to."""
    value = latex.rpartition("=")[2]
    return value.count("'") + value.count("\\prime")


def _words(latex: str) -> list[str]:
    """Words that are no function names: an algebra system takes them for products of letters."""
    return [word for word in _LONG_WORD.findall(_COMMAND.sub(" ", latex)) if word.lower() not in _FUNCTIONS]


def _conventions(left: str, right: str) -> str:
    """A convention that is read in two ways and may be all that sets the formulas apart; "" when there is none."""
    for one, other in ((left, right), (right, left)):
        if _NAMED_ROOT.search(one) and not _NAMED_ROOT.search(other):
            return "named solutions"
        if _NATURAL.search(one) and _COMMON.search(other):
            return "base of the logarithm"
        if _DEGREES.search(one) and not _DEGREES.search(other):
            return "degrees or radians"
        if _QUOTIENT_OF_PRODUCT.search(one):
            return "1/2x may be x/2 or 1/(2x)"
    return ""
