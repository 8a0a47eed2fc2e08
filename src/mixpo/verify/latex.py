"""Formulas in one LaTeX spelling, whatever they were typed in: Unicode signs, keyboard notation, LaTeX. Does no algebra."""

from __future__ import annotations

import functools
import re

from mixpo.verify.wrapping import closing_brace, plain_characters, unwrap

_SIGNS = {
    "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
    "∞": r"\infty ", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ",
    "∅": r"\emptyset ", r"\varnothing": r"\emptyset ",
    "μ": r"\mu ", "σ": r"\sigma ", "φ": r"\phi ", "ω": r"\omega ", "Δ": r"\Delta ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "<=": r"\le ", ">=": r"\ge ", "!=": r"\ne ", "**": "^", "或": " or ", "和": " and ", "、": ",", "°": r"^{\circ}",
}  # fmt: skip
_SIGN = re.compile("|".join(re.escape(sign) for sign in sorted(_SIGNS, key=len, reverse=True)))
_LEAD_IN = re.compile(
    r"(?i)^(?:(?:so|thus|hence|therefore)[, ]+)?(?:the\s+)?(?:[a-z]{2,20} ){1,4}(?:[a-z]{1,5} )?(?:is|equals|are)[:\s]+"
    r"(?!(?:.*[^\\a-z])?[a-z]{4})|^[\u4e00-\u9fff]{1,12}(?:是|为|等于)[:\s]*(?=[-\\√\d(A-Za-z][^\u4e00-\u9fff]*$)"
)
"""Words that say what is measured, in front of its value."""
_COMMANDS = re.compile(r"(?<![\\A-Za-z])(sqrt|pi|infty|arcsin|arccos|arctan|sin|cos|tan|log|ln|exp)(?![A-Za-z])")
_QUOTIENT = re.compile(r"(?<![\w.^{}\])/])(\d+)\s*/\s*(\d+)(?![\d.]|\s*/)")
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?![\w.])")
_ROOT = re.compile(r"√\s*(?=[({])|√\s*([A-Za-z0-9]+|\\[a-zA-Z]+)")
_OPEN = re.compile(r"(?:\\sqrt|√|\^)\s*\(")
_POWER = re.compile(r"\^\s*(-?\d+)")
_SPACING = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|\\[,;!: ]|\\(?=\s)|[\s~]")
_COMMAND_SPACE = re.compile(r"(\\[a-zA-Z]+)\s+")
_SINGLE = re.compile(r"\{([A-Za-z0-9])\}")


@functools.lru_cache(maxsize=1024)
def to_latex(text: str) -> str:
    """The formula that `text` holds as LaTeX without delimiters; leaves alone what it does not know."""
    text = _LEAD_IN.sub("", unwrap(text) or text.strip())
    for delimiter in ("$", "\\(", "\\)", "\\[", "\\]"):
        text = text.replace(delimiter, " ") if not text.startswith("\\$") else text
    # Signs before NFKC, which would turn some of them into other characters.
    text = _SIGN.sub(lambda match: _SIGNS[match.group()], text)
    text = plain_characters(text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("*", r"\cdot ")
    text = _COMMANDS.sub(r"\\\1", _SCIENTIFIC.sub(r"\1\\times 10^{\2}", text))
    text = _braces_for_parentheses(text)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match.group(1)}}}" if match.group(1) else r"\sqrt", text)
    # "3/4 x" means three quarters of x, and a LaTeX grammar would divide by the product.
    return _QUOTIENT.sub(r"\\frac{\1}{\2}", _POWER.sub(r"^{\1}", text)).strip()


def key(latex: str) -> str:
    """What two spellings of the same LaTeX share: no spacing, \\left, \\right, or braces around one character."""
    latex = _COMMAND_SPACE.sub(r"\1 ", latex)
    latex = re.sub(r"(\\[a-zA-Z]+) (?=[A-Za-z])", r"\1{}", latex)
    return _SINGLE.sub(r"\1", _SPACING.sub("", latex))


def _braces_for_parentheses(text: str) -> str:
    """ "x^(1/2)" and "sqrt(x+1)" group with parentheses what LaTeX groups with braces."""
    position = 0
    while match := _OPEN.search(text, position):
        opening = match.end() - 1
        closing = closing_brace(text, opening, "()")
        if closing is None:
            return text
        text = f"{text[:opening]}{{{text[opening + 1 : closing]}}}{text[closing + 1 :]}"
        position = opening + 1
    return text


def take_text(latex: str) -> list[str]:
    """The contents of every \\text-like command."""
    texts = []
    for match in re.finditer(r"\\(?:text(?:bf|it|rm)?|mathrm|mbox|operatorname)\s*\{", latex):
        end = closing_brace(latex, match.end() - 1)
        texts.append(latex[match.end() : end].strip())
    return texts
