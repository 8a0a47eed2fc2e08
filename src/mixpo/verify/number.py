"""One reader of numbers: every one that a short answer holds, and whether two agree. Exact decimals, never floats.

| part of a number (`_NUMBER`) | as written                                         | read as                                         |
| ---------------------------- | -------------------------------------------------- | ----------------------------------------------- |
| sign                         | "-5", "- 5" at the start, "minus 5", "负5", "$-5"   | negative; in "3-5" it parts two numbers         |
| mantissa                     | "1,234.5", "1.234,5", ".5"                         | without separators; "3,5" is also 3.5           |
| power                        | "3 x 10^4", "3e4", "2^3"                           | worked out; out of reach above `MAX_EXPONENT`   |
| fraction                     | "3/4", "1 1/2", "3 and a half"                     | worked out                                      |
| scale                        | "2 million", "2k", "2万"                            | times a power of ten                            |
| percent, unit                | "5%", "5 per cent", "$5", "5 cm/s"                 | kept with the value; see `units.py`             |

Around numbers: "5 ft 6 in" is one, of "3 + 4 = 7" the worked-out side counts, and of "x = 3, y = 4" both. Arithmetic that is not worked
out (`_ALGEBRA`) goes to computer algebra. Words (`number_words.py`) are read where there are no digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Context, Decimal

from mixpo.verify.number_words import NUMBER_WORD, read_whole, read_words
from mixpo.verify.text import normal_text
from mixpo.verify.units import CURRENCY_SIGNS, PATTERN, Unit, may_convert, read_unit
from mixpo.verify.wrapping import plain_characters, plain_latex

MAX_LENGTH = 1000
"""A longer text is no numeric answer."""
MAX_EXPONENT = 9999
PLACES = 3
"""Decimals rounded to fewer places (and fewer digits than four) were rounded too early."""
ROUNDING = 1e-4
"""Up to this tolerance, tolerance is for rounded decimals: two whole numbers must be the same."""

_MANTISSA = r"(?:\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_SIGN = rf"(?:(?<![\w)\]}}])(?<![\d)\]}}]\s)(?P<sign>[-+])(?=[\d.{CURRENCY_SIGNS}])|^(?P<first_sign>[-+])\s*)?"
_POWER = r"(?:\s*[*x]\s*10\s*\^\s*[({]?\s*(?P<tens>[-+]?\d+)[)}]?|[eE](?P<exponent>[-+]?\d+)|\^[({]?(?P<power>[-+]?\d+)[)}]?)?"
_BELOW = r"(?:\s*/\s*(?P<below>\d+(?:\.\d+)?+)(?!\s*/)|\s+(?:and\s+)?(?P<top>\d+)\s*/\s*(?P<bottom>\d++)(?!\s*/))?"
_SCALE = r"(?:(?:\s*(?P<scale>hundred|thousand|million|billion|trillion|万|亿|(?-i:k))|(?P<letter>(?-i:[KMB]|bn)))(?![a-zA-Z]))?"
_NUMBER = re.compile(
    rf"(?i)(?<![A-Za-z_\d.:^])(?P<core>{_SIGN}(?:(?P<currency>[{CURRENCY_SIGNS}])\s?(?P<late_sign>-)?)?"
    rf"(?P<mantissa>(?>{_MANTISSA}))(?>{_POWER})(?>{_BELOW}))(?!:\d)"
    rf"(?>{_SCALE})(?:(?=\s*\S)\s*(?:(?P<percent>%|percent\b|per\s+cent\b)|(?P<unit>{PATTERN})))?"
)
_SCALES = {"hundred": 2, "thousand": 3, "k": 3, "万": 4, "million": 6, "m": 6, "亿": 8, "billion": 9, "b": 9, "bn": 9, "trillion": 12}
_DECIMAL_COMMA = re.compile(r"(?<![\d,.])(\d+),(\d{1,2})(?![\d,.])")
_NEGATIVE_WORD = re.compile(r"(?i)(?<![A-Za-z\d])(?:minus|negative)\s+(?=[\d.])|负\s*(?=\d)")
_ALGEBRA = re.compile(
    r"\\[a-zA-Z]|[√∛∜π^]|\b(?:sqrt|pi)\b|#\s*[+*/÷]\s*#|#\s-\s#|#[a-z]\b|#\s*[-+*/]\s*[A-Za-z](?!\s*[A-Za-z])"
    r"|-\(|\|\s*#|\b(?:log|ln|sin|cos|tan)\s*\(?\s*#|#\s*(?:out of\s*#|dozen)"
    r"|(?<![A-Za-z])(?!w/)(?:[a-z]\s*[-+*/]|[A-Za-z]{1,2}\s*[+*/])\s*#|(?<![A-Za-z])[a-z]\("
    r"|#\s*(?:plus|times|multiplied by|divided by|mod)\s*#|\broot of\b"
)
_BOUND = re.compile(
    r"(?i)\b(?:at (?:least|most)|(?:more|less|fewer|greater|larger|smaller|lower|higher|other) than|up to|over|under|not|nearly|almost)"
    rf"\s+(?:[-+$]?\d|(?:{NUMBER_WORD})\b)|[<>≤≥]\s*[-+$]?\d[\d.,]*+(?!\s*>)|\d\s?\+(?!\s*[\w(])|\d(?-i:[ADEHIO-SUX-Z])(?![\w+-])|(?<![\d.,])(?:[.,]++|\b)\d[\d.,]*+\s+or\s+(?:more|less|fewer)\b"
    r"|\b(?:half|third|quarter|twice|double|triple)\s+(?:of\s+)?(?:the\s+)?\d|\d\s*(?:squared|cubed)\b|\d‰|\b(?:1[5-9]|20)\d0s\b"
    r"|超过|至少|至多|最多|最少|不到|不足|不是|大于|小于|多于|少于|以上|以下"
)
"""Not the number itself but a bound of it, another number than it, or a label ("12A")."""
_EQUATION = re.compile(r"[=≈]")
_CLAUSE = re.compile(r"[;；，或和]\s*|,\s+|,(?=[A-Za-z])|\s+(?:and|or)\s+")
_ASSIGNMENT = re.compile(r"\s*\\?[A-Za-z]\w{0,2}\s*=")
_AND_PART = re.compile(r"(?i)(?<![\d.,/])(\d{1,9}) and (?:a|one) (half|third|quarter)\b")
_PART = {"half": "1/2", "third": "1/3", "quarter": "1/4"}
_GAP = re.compile(r"\s*(?:and\s+)?")
_FEET = re.compile(r"(\d)\s?['′’]\s?(\d{1,2}(?:\.\d{1,9})?)(?:\s?(?:[\"″”]|''))?(?![\w'′’])")
_OUT_OF_REACH = Decimal("NaN")
_CONTEXT = Context(prec=60, Emax=10**6, Emin=-(10**6), traps=[])


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One number as written. whole: no point, fraction or exponent. percent: value counts hundredths.

    places: how many digits follow the point of a plain decimal; None for everything else.
    scale: the power of ten that a word such as "million" stands for; it is in the value.
    """

    value: Decimal
    whole: bool = True
    percent: bool = False
    unit: Unit | None = None
    places: int | None = None
    scale: int = 0


def same_quantities(left: str, right: str, tolerance: float) -> bool | None:
    """Whether the same words stand around equal numbers: "1 1/2 cups" and "1.5 cups". None where the words differ."""
    if max(len(left), len(right)) > MAX_LENGTH:
        return None
    texts = [_prepare(left), _prepare(right)]
    numbers = [[_number(match) for match in _NUMBER.finditer(text)] for text in texts]
    rests = {normal_text(_NUMBER.sub(" # ", text)) for text in texts}
    if len(rests) > 1 or len(numbers[0]) != len(numbers[1]) or not numbers[0]:
        return None
    pairs = [equal(one, other, tolerance) for one, other in zip(*numbers, strict=True)]
    return None if None in pairs and False not in pairs else all(pairs)


def is_bound(text: str) -> bool:
    """Whether a text states a bound, a multiple or a label where a number is asked for."""
    return not text.isdecimal() and _BOUND.search(text) is not None


def single_number(text: str) -> Number | None:
    """The number that `text` is, with nothing but a unit, sign or currency; else None."""
    if len(text) > MAX_LENGTH:
        return None
    if text.isdecimal():
        return Number(value=Decimal(text))
    text, position, number = _prepare(text), 0, None
    while match := _NUMBER.match(text, position):
        part = _number(match)
        number = _joined(number, part) if number else part
        if number is None or match.end() == len(text):
            return number if number and number.value.is_finite() else None
        gap = _GAP.match(text, match.end())
        position = gap.end() if gap else match.end()
    return None


def one_number(text: str) -> Number | None:
    """The number that `text` is, in digits as `single_number` reads them or as a word."""
    value = read_whole(text)
    return single_number(text) if value is None else Number(value=Decimal(value))


def read_numbers(text: str) -> list[Number] | None:
    """The numbers in `text`, equal ones once; None when it holds arithmetic that is not worked out.

    Of "3 + 4 = 7" only the worked-out side counts, of "x = 3, y = 4" both. Number words are read only where there are no digits.
    """
    if text.isdecimal():  # as most are
        return [Number(value=Decimal(text))]
    text = _prepare(text)
    clauses = _CLAUSE.split(text) if text.count("=") > 1 else []
    if len(clauses) > 1 and all(map(_ASSIGNMENT.match, clauses)):
        matches = [read_numbers(clause) for clause in clauses]
        return None if None in matches else distinct([number for numbers in matches for number in numbers or ()])
    sides = [_read_side(side) for side in _EQUATION.split(text)]
    if len(sides) > 1:
        worked_out = [side for side in sides if side is not None and len(side) == 1]
        return worked_out[-1] if worked_out else distinct([number for side in sides for number in side or []])
    numbers = sides[0]
    if numbers is None or numbers:
        return numbers
    return distinct([Number(value=Decimal(value)) for value in read_words(text)])


def equal(left: Number, right: Number, tolerance: float) -> bool | None:
    """Whether two numbers agree.

    None when only a percent sign, a unit of another kind or rounding stands between them, or when a value is out of reach."""
    if not (left.value.is_finite() and right.value.is_finite()):
        return None
    if left.percent != right.percent:
        rate, bare = (left, right) if left.percent else (right, left)
        places = None if rate.places is None else rate.places + 2
        part = replace(rate, value=rate.value.scaleb(-2, _CONTEXT), whole=False, places=places)
        if _close(part, bare, tolerance):
            return True
        # "50%" for 50 omits the sign of a question about percent; "0.5%" for 0.5 may as well mean a half.
        if _close(rate, bare, tolerance):
            return True if abs(bare.value) >= 1 and not bare.unit else None
        return None if _is_rounded(part, bare) or _is_rounded(bare, part) else False
    if left.unit and right.unit and left.unit != right.unit:
        if left.unit.dimension != right.unit.dimension:
            return None if _close(left, right, tolerance) or may_convert(left.unit, right.unit) else False
        return _close(_in_base_units(left), _in_base_units(right), tolerance)
    if _close(left, right, tolerance):
        return True
    if left.scale != right.scale and 0 in (left.scale, right.scale):  # only one says "million" of what an axis may count in millions
        one, other = (replace(number, value=number.value.scaleb(-number.scale, _CONTEXT), whole=False) for number in (left, right))
        if _close(one, other, tolerance):
            return None
    return None if _is_rounded(left, right) or _is_rounded(right, left) else False


def _is_rounded(rounded: Number, exact: Number) -> bool:
    """Whether one is the other, correctly rounded to three or more places or to four or more digits, as in 3.142 for pi."""
    digits = rounded.value.as_tuple().digits
    if not rounded.places or max(rounded.places, len(digits) - 1) < PLACES or exact.whole:
        return False
    if exact.places is not None and exact.places <= rounded.places:
        return False
    error = _CONTEXT.subtract(rounded.value, exact.value).copy_abs()
    return error <= Decimal(5).scaleb(-rounded.places - 1)


def _prepare(text: str) -> str:
    if text.count("$") >= 2:
        text = text.replace("\\$", "¤").replace("$", " ").replace("¤", "\\$")
    if "°" not in text:
        text = _FEET.sub(r"\1 ft \2 in", text)
    text = _AND_PART.sub(lambda match: f"{match.group(1)} {_PART[match.group(2).lower()]}", text)
    return _NEGATIVE_WORD.sub("-", plain_characters(plain_latex(text)))


def _read_side(side: str) -> list[Number] | None:
    """The numbers on one side of an equation; None for arithmetic."""
    side, position = side.strip(), 0
    numbers: list[Number] = []
    rest: list[str] = []
    for match in _NUMBER.finditer(side):
        number, gap = _number(match), side[position : match.start()]
        if numbers and _GAP.fullmatch(gap) and (joined := _joined(numbers[-1], number)):
            numbers[-1] = joined
        else:
            numbers.append(number)
            rest += [gap, "#"]
        position = match.end()
    rest.append(side[position:])
    if _ALGEBRA.search("".join(rest)):
        return None
    if rest == ["", "#", "-", "#", ""] and numbers[0].value.compare(numbers[1].value) == 1:
        return None  # no range runs downwards: a difference
    return distinct(numbers + [Number(value=Decimal(".".join(parts)), whole=False) for parts in _DECIMAL_COMMA.findall(side)])


def _number(match: re.Match[str]) -> Number:
    """The number of a match; its value is NaN when out of reach (a giant exponent, a division by zero)."""
    if match.group().isdecimal():
        return Number(value=Decimal(match.group()))
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
    whole = whole and min(shift, power) >= 0
    if groups["below"]:
        value, whole = _CONTEXT.divide(value, Decimal(groups["below"])), False
    if groups["bottom"]:
        value, whole = _CONTEXT.add(value, _CONTEXT.divide(Decimal(groups["top"]), Decimal(groups["bottom"]))), False
    if not value.is_finite():
        return Number(value=_OUT_OF_REACH)
    scale = groups["scale"] or groups["letter"]
    tens = _SCALES[scale.lower()] if scale else 0
    value = value.scaleb(tens, _CONTEXT) if tens else value
    negative = "-" in (groups["sign"], groups["first_sign"], groups["late_sign"])
    unit = read_unit(groups["currency"] or groups["unit"] or "")
    is_decimal = not whole and not scale and match.end("core") == match.end("mantissa")
    return Number(
        value=value.copy_negate() if negative else value,
        whole=whole,
        percent=bool(groups["percent"]),
        unit=unit,
        places=len(groups["mantissa"].rpartition(".")[2]) if is_decimal else None,
        scale=tens,
    )


def _joined(large: Number, small: Number) -> Number | None:
    """One quantity in two units, "5 ft 6 in" or "1 h 30 min", in the first; None where they are two quantities."""
    if not large.unit or not small.unit or large.unit.dimension != small.unit.dimension or large.unit.factor <= small.unit.factor:
        return None
    part = _CONTEXT.divide(_CONTEXT.multiply(small.value, small.unit.factor), large.unit.factor).copy_sign(large.value)
    return Number(value=_CONTEXT.add(large.value, part), whole=False, unit=large.unit)


def _digits(mantissa: str) -> str:
    """Without thousands separators: "1,234.5" and "1.234,5" are both 1234.5."""
    if "," in mantissa and mantissa.rfind(",") > mantissa.rfind(".") >= 0:
        return mantissa.replace(".", "").replace(",", ".")
    return mantissa.replace(",", "")


def distinct(numbers: list[Number]) -> list[Number]:
    """Each number once; a repetition without the unit is the same number."""
    kept: list[Number] = []
    for number in numbers:
        if not any(_repeats(number, other) for other in kept):
            kept.append(number)
    return kept


def _repeats(number: Number, other: Number) -> bool:
    if number.percent != other.percent:
        return equal(number, other, 0.0) is True
    return number.value == other.value and number.unit in (None, other.unit)


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
