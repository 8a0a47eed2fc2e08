"""One plain spelling for characters and LaTeX marks that mean the same, shared by the checks. Never changes what a text says."""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_MINUS = str.maketrans({"−": "-", "﹣": "-", "－": "-", "‐": "-", "‑": "-", "⁄": "/", "∶": ":", "∕": "/", "×": "*", "·": "*", "⋅": "*"})
_DASH_AFTER_DIGIT = re.compile(r"(?<=\d)(\s*)[–—](?=\s*\d)")
_THOUSANDS_SPACE = re.compile("(?<=\\d)[\u00a0\u202f\u2009](?=\\d{3}(?!\\d))")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|sf|it)|mbox)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"(?:(\d)\s{0,3})?\\[dtc]?frac\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))")
_LATEX_SIGN = re.compile(r"[\\{~°]")
_LATEX_WORDS = re.compile(r"\\(times|cdot|div|approx|Omega|left|right|quad|degree|circ|infty|displaystyle)(?![a-zA-Z])")
_LATEX_SIGNS = {
    "times": "*", "cdot": "*", "div": "/", "approx": "≈", "degree": "°", "circ": "°", "infty": "∞", "Omega": "Ω",
}  # fmt: skip
_DEGREES = re.compile(r"\^\s*\{?\s*°\s*\}?")


def plain_characters(text: str) -> str:
    """Full-width forms, superscripts (as ^2), vulgar fractions (as 1/2), and minus signs in ASCII; single spaces, stripped."""
    if text.isascii():  # nothing below looks for an ASCII character
        return " ".join(text.split())
    text = _THOUSANDS_SPACE.sub(",", text)
    text = _VULGAR.sub(lambda match: f" {unicodedata.normalize('NFKC', match.group())} ", text)
    text = _SUPERSCRIPT_RUN.sub(lambda match: "^" + match.group().translate(_SUPERSCRIPTS), text)
    text = unicodedata.normalize("NFKC", text).translate(_MINUS)
    text = _DASH_AFTER_DIGIT.sub(" to ", text).replace("–", "-").replace("—", "-")
    return " ".join(text.split())


def plain_latex(text: str) -> str:
    """The LaTeX that surrounds plain numbers and units, as plain text: fractions of digits, spaces, \\text, signs."""
    if not _LATEX_SIGN.search(text):  # each line below looks for one of these
        return text
    text = text.replace("\\%", "%").replace("\\$", "$").replace("{,}", ",")
    text = re.sub(r"\\[,!;:](?=\d{3}(?!\d))", ",", text) if re.search(r"\d\\[,!;:]\d{3}", text) else text
    text = re.sub(r"\\[,!;: ]|~", " ", text)
    text = _TEXT_COMMAND.sub(r" \1 ", text)
    text = _FRACTION.sub(_plain_fraction, text)
    text = _LATEX_WORDS.sub(lambda match: _LATEX_SIGNS.get(match.group(1), " "), text)
    return _DEGREES.sub("°", text)


def _plain_fraction(match: re.Match[str]) -> str:
    whole, top, top_digit, bottom, bottom_digit = match.groups()
    return f"{whole} " * bool(whole) + f"{top or top_digit}/{bottom or bottom_digit}"
