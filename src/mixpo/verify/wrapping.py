"""Presentation: strips what surrounds an answer (emphasis, delimiters, boxes), and spells characters and LaTeX in one plain form."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import NamedTuple

_BOX = re.compile(r"\\f?box(?:ed)?[ \t]*(?:(\{)|([A-Za-z0-9]+))")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|sf|it)|boldsymbol|mbox|f?box(?:ed)?)[ \t]*\{")
_SPECIAL_TOKEN = re.compile(r"(?:<\|[\w ]{1,40}\|>|</s>|<eos>|<end_of_turn>)\Z")
_ABBREVIATION = re.compile(r"(?:^|\s)(?:[^\W\d_]\.){2,}\Z")
_PLAIN = re.compile(r"[A-Za-z0-9]+(?: [A-Za-z0-9]+)*")
"""Nothing to take off: most answers."""
_BRACKETS = ("(", "[", "{")
_PLACEHOLDER = re.compile(r"(?i)\.\.|…|[\[{<(]?(?:your |final |the )*answer[\]}>)]?\Z")
_NEXT_BOX = re.compile(r"[\s$]{0,9}(?:[,，、&]|and\b|or\b|和|或|,\s?and\b|,\s?or\b)[\s$]{0,9}(?:[A-Za-z]\w?\s?=\s?)?")
"""What joins two boxes that are one answer."""
_SENTENCE_END = re.compile(
    r"(?<![ \t(.][A-Za-z])(?<!\A[A-Za-z])(?<!\b(?:Mr|Ms|Dr|St|No|vs))(?<!\b(?:Mrs|Fig|etc|e\.g|i\.e))"
    r"[.!?](?=\s+[^\sa-z=+*/-])|[。！？](?=.)"
)
"""Behind a sentence, and not behind an initial, the letter of an option or an abbreviation."""
_BLANK = re.compile(r"[\s.…_*\-–—\"'“”]*\Z")
_PAIRS = (
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("__", "__"), ("*", "*"), ("```", "```"), ("`", "`"),
    ('"', '"'), ("“", "”"), ("‘", "’"), ("'", "'"), ("「", "」"), ("《", "》"), ("<answer>", "</answer>"),
)  # fmt: skip
_ROUNDS = 20
"""Deeper nesting than this is no presentation; it is left as it stands."""
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_MINUS = str.maketrans({"−": "-", "﹣": "-", "－": "-", "‐": "-", "‑": "-", "⁄": "/", "∶": ":", "∕": "/", "×": "*", "·": "*", "⋅": "*"})
_TEXT_ARGUMENT = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|sf|it)|mbox)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"(?:(\d)\s{0,3})?\\[dtc]?frac\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))")
_LATEX_SIGN = re.compile(r"[\\{~°]")
_LATEX_WORDS = re.compile(r"\\(times|cdot|div|approx|Omega|left|right|quad|degree|circ|infty|displaystyle)(?![a-zA-Z])")
_LATEX_SIGNS = {
    "times": "*", "cdot": "*", "div": "/", "approx": "≈", "degree": "°", "circ": "°", "infty": "∞", "Omega": "Ω",
}  # fmt: skip
_DEGREES = re.compile(r"\^\s*\{?\s*°\s*\}?")


class Box(NamedTuple):
    """A `\\boxed{..}` in a text: where it starts, where it ends, and what is in it (None: its braces never close, the text was cut)."""

    start: int
    end: int
    content: str | None


def boxes(text: str) -> list[Box]:
    """Every outermost box, in order."""
    result: list[Box] = []
    position = 0
    while match := _BOX.search(text, position):
        if match.group(2):
            result.append(Box(match.start(), match.end(), match.group(2)))
            position = match.end()
            continue
        end = closing_brace(text, match.end() - 1)
        if end is None:
            result.append(Box(match.start(), len(text), None))
            break
        position = end + 1
        result.append(Box(match.start(), position, text[match.end() : end]))
    return result


def closing_brace(text: str, opening: int, signs: str = "{}") -> int | None:
    """Where the brace opened at `opening` closes; escaped ones do not count. signs: the opening and the closing sign."""
    depth = 0
    position = opening
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == signs[0]:
            depth += 1
        elif character == signs[1]:
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def unwrap(text: str) -> str:
    """The bare answer; "" when nothing but presentation is there (as in the placeholder "..")."""
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return text
    for _ in range(_ROUNDS):
        bare = _unwrap_once(text)
        if bare == text:
            break
        text = bare
    return "" if _BLANK.match(text) else text


def bare(text: str | None) -> str | None:
    """The unwrapped answer; None for nothing, and for the placeholder of an instruction that the response only repeats."""
    answer = unwrap(text) if text is not None and text.strip() not in _BRACKETS else ""
    return None if not answer or _PLACEHOLDER.match(answer) else answer


@functools.lru_cache(maxsize=1024)
def line_answer(line: str) -> str | None:
    """The answer in a line: what is in its box, else its first sentence."""
    if inside := boxes(line):
        return in_boxes(line, inside)[1]
    line = line.removeprefix("<answer>").split("</answer>")[0]
    if line.count("**") == 1:
        line = line.partition("**")[0]  # the marker took the other half
    cut = _SENTENCE_END.search(line)
    return bare(line[: cut.start()] if cut else line)


def in_boxes(text: str, inside: list[Box]) -> tuple[int, str | None]:
    """Where the last box starts and what is in it, together with those right before it: "\\boxed{3} and \\boxed{5}" is "3, 5"."""
    start, _, content = inside[-1]
    answers = [bare(content)]
    for box in reversed(inside[:-1]):
        if answers[0] is None or not _NEXT_BOX.fullmatch(text, box.end, start):
            break
        start = box.start
        answers.append(bare(box.content))
    distinct = list(dict.fromkeys(answer for answer in reversed(answers) if answer))
    return start, ", ".join(distinct) or None


def _unwrap_once(text: str) -> str:
    text = _SPECIAL_TOKEN.sub("", text.strip()).strip()
    for opening, closing in _PAIRS:
        inside = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inside and closing not in inside:
            return inside
    match = _TEXT_COMMAND.match(text)
    if match and closing_brace(text, match.end() - 1) == len(text) - 1:
        return text[match.end() : -1]
    return _trim(text)


def _trim(text: str) -> str:
    """Without emphasis left over from a marker ("B**") and without a sentence's full stop; "14.0" and "U.S." stay."""
    for emphasis in ("**", "__"):
        if text.count(emphasis) == 1:
            text = text.removeprefix(emphasis).removesuffix(emphasis)
    if text.count("*") == 1:
        text = text.removesuffix("*")
    if text.endswith((".", "。", "．")) and not _ABBREVIATION.search(text):
        text = text[:-1]
    return text.strip()


def plain_characters(text: str) -> str:
    """Full-width forms, superscripts (as ^2), vulgar fractions (as 1/2), and minus signs in ASCII; single spaces, stripped."""
    if text.isascii():  # nothing below looks for an ASCII character
        return " ".join(text.split())
    text = _VULGAR.sub(lambda match: f" {unicodedata.normalize('NFKC', match.group())} ", text)
    text = _SUPERSCRIPT_RUN.sub(lambda match: "^" + match.group().translate(_SUPERSCRIPTS), text)
    text = unicodedata.normalize("NFKC", text).translate(_MINUS)
    return " ".join(text.replace("–", "-").replace("—", "-").split())


def plain_latex(text: str) -> str:
    """The LaTeX that surrounds plain numbers and units, as plain text: fractions of digits, spaces, \\text, signs."""
    if not _LATEX_SIGN.search(text):  # each line below looks for one of these
        return text
    text = text.replace("\\%", "%").replace("\\$", "$").replace("{,}", ",")
    text = re.sub(r"\\[,!;: ]|~", " ", re.sub(r"(?<=\d)\\[,!;:](?=\d{3}(?!\d))", ",", text))
    text = _TEXT_ARGUMENT.sub(r" \1 ", text).replace(" ^", "^")
    text = _FRACTION.sub(_plain_fraction, text)
    text = _LATEX_WORDS.sub(lambda match: _LATEX_SIGNS.get(match.group(1), " "), text)
    return _DEGREES.sub("°", text)


def _plain_fraction(match: re.Match[str]) -> str:
    whole, top, top_digit, bottom, bottom_digit = match.groups()
    return f"{whole} " * bool(whole) + f"{top or top_digit}/{bottom or bottom_digit}"
