"""Texts for the pages: stretches that differ, and formulas in them. Nothing here makes HTML; templates escape every piece.

A formula is set by KaTeX in the browser from the text of its piece. So it must be one piece: where a difference would cut it, all of
it is marked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from mixpo.report.text_diff import DiffSpan, Kind
from mixpo.types import IMAGE_TOKEN

SNIPPET = 120
"""Characters of a question that lists show."""
MAX_FORMULA = 2000
"""Characters of a formula; longer ones are shown as they are written."""
_BODY = rf"{{1,{MAX_FORMULA}}}?"
_ENVIRONMENTS = "equation|align|alignat|aligned|gather|gathered|array|cases|[bpvBV]?matrix"
"""Those of LaTeX that stand without dollars and that KaTeX knows."""
_FORMULA = re.compile(
    rf"\$\$(?P<a>[^$]{_BODY})\$\$"
    rf"|\\\[(?P<b>.{_BODY})\\\]"
    rf"|\\\((?P<c>.{_BODY})\\\)"
    # One dollar opens before and closes after something, and no digit follows, so that prices stay prices.
    rf"|(?<![\\$a-zA-Z0-9])\$(?P<d>(?![\s$])[^$\n]{_BODY}(?<![\s\\]))\$(?![\d$])"
    # With spaces inside there must be something that no price has, and no price may follow.
    rf"|(?<![\\$a-zA-Z0-9])\$(?=[^$\n]{{0,{MAX_FORMULA}}}(?:\\[a-zA-Z]|[\^_=]))(?P<f>[ ][^$\n]{{1,{MAX_FORMULA}}}[ ])\$(?![\d$]|[ ]\d)"
    rf"|(?P<g>\\begin\{{(?P<name>(?:{_ENVIRONMENTS})\*?)\}}.{_BODY}\\end\{{(?P=name)\}})"
    r"|(?P<e>\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]{0,200}\}){0,200}\}){0,500}\})",
    re.DOTALL,
)

Math = Literal["", "inline", "display"]


class TextPart(NamedTuple):
    """A stretch of text. math: how its formula is set, "" for words; tex: the formula without its marks."""

    kind: Kind
    text: str
    math: Math = ""
    tex: str = ""


def brief(question: str) -> str:
    """The beginning of a question on one line, without the marks where its images stand."""
    return " ".join(question.replace(IMAGE_TOKEN, "").split())[:SNIPPET]


def formulas(text: str) -> Iterator[tuple[int, int, Math, str]]:
    """(start, end, how it is set, source) of each formula."""
    for match in _FORMULA.finditer(text):
        name = match.lastgroup or ""
        yield match.start(), match.end(), "display" if name in "abg" else "inline", match[name]


def parts(pieces: Sequence[DiffSpan]) -> list[TextPart]:
    """The pieces of one text with its formulas as parts of their own."""
    text = "".join(piece.text for piece in pieces)
    kinds, made, at = _Kinds(pieces), [], 0
    for start, end, math, tex in formulas(text):
        made += [TextPart(kind, stretch) for kind, stretch in kinds.cut(text, at, start)]
        made.append(TextPart(kinds.strongest(start, end), text[start:end], math, tex))
        at = end
    return made + [TextPart(kind, stretch) for kind, stretch in kinds.cut(text, at, len(text))]


def plain(text: str) -> list[TextPart]:
    """The parts of a text that is compared with nothing."""
    return parts([DiffSpan("same", text)] if text else [])


def shade(value: float | None) -> str:
    """The CSS class for the value of a step: "v0" (none right) to "v4" (all right); "" if it is unknown."""
    return "" if value is None else f"v{round(4 * value)}"


class _Kinds:
    """Which kind each stretch of a text is."""

    def __init__(self, pieces: Sequence[DiffSpan]) -> None:
        self.spans: list[tuple[int, int, Kind]] = []
        at = 0
        for piece in pieces:
            self.spans.append((at, at + len(piece.text), piece.kind))
            at += len(piece.text)

    def cut(self, text: str, start: int, end: int) -> Iterator[tuple[Kind, str]]:
        for low, high, kind in self.spans:
            if low < end and high > start:
                yield kind, text[max(low, start) : min(high, end)]

    def strongest(self, start: int, end: int) -> Kind:
        kinds = {kind for low, high, kind in self.spans if low < end and high > start}
        return "own" if "own" in kinds else "same" if "same" in kinds else "kept"
