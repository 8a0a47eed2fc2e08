"""Numbers: read every one that a short answer holds, and compare. Arithmetic that is not worked out goes to computer algebra.

Exact decimals, never floats. An answer that can be read in two ways, one of which is right, is undecided.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Context, Decimal

from mixpo.verify.judgement import Judgement, Options, decide
from mixpo.verify.numerals import read_words
from mixpo.verify.plain import plain_characters, plain_latex
from mixpo.verify.text import check_text
from mixpo.verify.units import CURRENCY_SIGNS, PATTERN, Unit, read_unit

MAX_LENGTH = 1000
"""A longer text is no numeric answer."""
MAX_EXPONENT = 9999
ROUNDING = 1e-4
"""Up to this tolerance, tolerance is for rounded decimals: two whole numbers must be the same."""

_MANTISSA = r"(?:\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_SIGN = rf"(?:(?<![\w)\]}}])(?<![\d)\]}}]\s)(?P<sign>[-+])(?=[\d.{CURRENCY_SIGNS}])|^(?P<first_sign>[-+])\s*)?"
_POWER = r"(?:\s*[*x]\s*10\s*\^\s*[({]?\s*(?P<tens>[-+]?\d+)[)}]?|[eE](?P<exponent>[-+]?\d+)|\^[({]?(?P<power>[-+]?\d+)[)}]?)?"
_BELOW = r"(?:\s*/\s*(?P<below>\d+(?:\.\d+)?+)(?!\s*/)|\s+(?P<top>\d+)\s*/\s*(?P<bottom>\d++)(?!\s*/))?"
_SCALE = r"(?:\s*(?P<scale>hundred|thousand|million|billion|trillion|k|万|亿)(?![a-zA-Z]))?"
_NUMBER = re.compile(
    rf"(?i)(?<![A-Za-z_\d.:^])(?P<core>{_SIGN}(?:(?P<currency>[{CURRENCY_SIGNS}])\s?(?P<late_sign>-)?)?"
    rf"(?P<mantissa>(?>{_MANTISSA}))(?>{_POWER})(?>{_BELOW}))(?!:\d)"
    rf"(?>{_SCALE})(?:\s*(?P<percent>%|percent\b|per\s+cent\b)|\s*(?P<unit>{PATTERN}))?"
)
_SCALES = {"hundred": 2, "thousand": 3, "k": 3, "万": 4, "million": 6, "亿": 8, "billion": 9, "trillion": 12}
_DECIMAL_COMMA = re.compile(r"(?<![\d,.])(\d+),(\d{1,2})(?![\d,.])")
_NEGATIVE_WORD = re.compile(r"(?i)(?<![A-Za-z\d])(?:minus|negative)\s+(?=[\d.])|负\s*(?=\d)")
_ALGEBRA = re.compile(r"\\[a-zA-Z]|[√π^]|\b(?:sqrt|pi)\b|#\s*[+*/÷]\s*#|#\s-\s#|#[a-z]\b")
_VAGUE = re.compile(r"(?i)\b(?:half|quarter|third|dozen|couple|pair|several|few|many|double|twice|once)\b|半|几|双|\d:\d")
_EQUATION = re.compile(r"[=≈]")
_OUT_OF_REACH = Decimal("NaN")
_CONTEXT = Context(prec=60, Emax=10**6, Emin=-(10**6), traps=[])


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One number as written. whole: no point, fraction or exponent. percent: value counts hundredths."""

    value: Decimal
    whole: bool = True
    percent: bool = False
    unit: Unit | None = None


def check_number(predicted: str, gold: str, options: Options) -> Judgement:
    """Compare as numbers. Symmetric. One of several numbers matching is undecided; none matching is wrong."""
    if len(predicted) > MAX_LENGTH or len(gold) > MAX_LENGTH:
        return Judgement("undecided", "too long for a number")
    left, right = read_numbers(predicted), read_numbers(gold)
    if left is None or right is None:
        return options.algebra(predicted, gold)
    if not left and not right:
        return check_text(predicted, gold, options)
    if not left or not right:
        vague = _VAGUE.search(gold if left else predicted)
        return Judgement("undecided", "not in plain digits") if vague else Judgement("wrong", "no number")
    return _compare(left, right, options.tolerance)


def single_number(text: str) -> Number | None:
    """The number that `text` is, with nothing but a unit, sign or currency beside it; else None."""
    if len(text) > MAX_LENGTH:
        return None
    text = _prepare(text)
    match = _NUMBER.match(text)
    number = _number(match) if match and match.end() == len(text) else None
    return number if number and number.value.is_finite() else None


def read_numbers(text: str) -> list[Number] | None:
    """The numbers in `text`, equal ones once; None when it holds arithmetic that is not worked out.

    Of "3 + 4 = 7" only the worked-out side counts. Number words are read only where there are no digits.
    """
    text = _prepare(text)
    sides = [_read_side(side) for side in _EQUATION.split(text)]
    if len(sides) > 1:
        worked_out = [side for side in sides if side is not None and len(side) == 1]
        return worked_out[-1] if worked_out else _distinct([number for side in sides for number in side or []])
    numbers = sides[0]
    if numbers is None or numbers:
        return numbers
    return _distinct([Number(value=Decimal(value)) for value in read_words(text)])


def equal(left: Number, right: Number, tolerance: float) -> bool | None:
    """Whether two numbers agree.

    None when only a percent sign or a unit of another kind stands between them, or when a value is out of reach."""
    if not (left.value.is_finite() and right.value.is_finite()):
        return None
    if left.percent != right.percent:
        rate, bare = (left, right) if left.percent else (right, left)
        if _close(replace(rate, value=rate.value.scaleb(-2, _CONTEXT), whole=False), bare, tolerance):
            return True
        # "50%" for 50 leaves out the sign of a question about percent; "0.5%" for 0.5 may as well mean a half.
        return (True if abs(bare.value) >= 1 else None) if _close(rate, bare, tolerance) else False
    if left.unit and right.unit and left.unit != right.unit:
        if left.unit.dimension != right.unit.dimension:
            return None if _close(left, right, tolerance) else False
        return _close(_in_base_units(left), _in_base_units(right), tolerance)
    return _close(left, right, tolerance)


def _prepare(text: str) -> str:
    text = text.strip()
    if text.count("$") >= 2:
        text = text.replace("\\$", "¤").replace("$", " ").replace("¤", "\\$")
    return _NEGATIVE_WORD.sub("-", plain_characters(plain_latex(text)))


def _read_side(side: str) -> list[Number] | None:
    """The numbers on one side of an equation; None for arithmetic."""
    side = side.strip()
    numbers: list[Number] = []
    rest: list[str] = []
    position = 0
    for match in _NUMBER.finditer(side):
        numbers.append(_number(match))
        rest += [side[position : match.start()], "#"]
        position = match.end()
    rest.append(side[position:])
    if _ALGEBRA.search("".join(rest)):
        return None
    numbers += [
        Number(value=Decimal(f"{match.group(1)}.{match.group(2)}"), whole=False) for match in _DECIMAL_COMMA.finditer(side)
    ]  # fmt: skip
    return _distinct(numbers)


def _number(match: re.Match[str]) -> Number:
    """The number of a match; its value is NaN when out of reach (a giant exponent, a division by zero)."""
    groups = match.groupdict()
    value = Decimal(_digits(groups["mantissa"]))
    whole = "." not in _digits(groups["mantissa"])
    shift = int((groups["tens"] or groups["exponent"] or "0")[:9])
    power = int((groups["power"] or "1")[:9])
    if max(abs(shift), abs(power)) > MAX_EXPONENT:
        return Number(value=_OUT_OF_REACH)
    # Only what is needed: every operation of the context rounds, and a long whole number must stay exact.
    value = value.scaleb(shift, _CONTEXT) if shift else value
    value = _CONTEXT.power(value, power) if power != 1 else value
    whole = whole and shift >= 0 and power >= 0
    if groups["below"]:
        value, whole = _CONTEXT.divide(value, Decimal(groups["below"])), False
    if groups["bottom"]:
        value, whole = _CONTEXT.add(value, _CONTEXT.divide(Decimal(groups["top"]), Decimal(groups["bottom"]))), False
    if not value.is_finite():
        return Number(value=_OUT_OF_REACH)
    value = value.scaleb(_SCALES[groups["scale"].lower()], _CONTEXT) if groups["scale"] else value
    negative = "-" in (groups["sign"], groups["first_sign"], groups["late_sign"])
    unit = read_unit(groups["currency"] or groups["unit"] or "")
    return Number(value=value.copy_negate() if negative else value, whole=whole, percent=bool(groups["percent"]), unit=unit)


def _digits(mantissa: str) -> str:
    """Without thousands separators: "1,234.5" and "1.234,5" are both 1234.5."""
    if "," in mantissa and mantissa.rfind(",") > mantissa.rfind(".") >= 0:
        return mantissa.replace(".", "").replace(",", ".")
    return mantissa.replace(",", "")


def _compare(left: list[Number], right: list[Number], tolerance: float) -> Judgement:
    if len(left) == len(right):
        in_order = [equal(one, other, tolerance) for one, other in zip(left, right, strict=True)]
        if len(left) == 1:
            return decide(in_order[0], "numbers")
        if all(in_order):
            return Judgement("correct", "numbers agree in order")
    if any(equal(one, other, tolerance) is not False for one in left for other in right):
        return Judgement("undecided", "several numbers")
    return Judgement("wrong", "numbers differ")


def _distinct(numbers: list[Number]) -> list[Number]:
    """Each number once; a repetition without the unit is the same number."""
    kept: list[Number] = []
    for number in numbers:
        if not any(number.value == other.value and number.unit in (None, other.unit) for other in kept):
            kept.append(number)
    return kept


def _close(left: Number, right: Number, tolerance: float) -> bool:
    if left.value == right.value:
        return True
    if left.whole and right.whole and tolerance <= ROUNDING:
        return False
    difference = _CONTEXT.subtract(left.value, right.value).copy_abs()
    largest = max(left.value.copy_abs(), right.value.copy_abs())
    return difference.is_finite() and difference <= _CONTEXT.multiply(Decimal(repr(tolerance)), largest)


def _in_base_units(number: Number) -> Number:
    assert number.unit is not None
    factor = number.unit.factor
    return replace(number, value=_CONTEXT.multiply(number.value, factor), whole=number.whole and factor == factor.to_integral_value())
