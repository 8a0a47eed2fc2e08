"""Find the final answer that a response states: a marker, then the form of what it announces. Knows nothing about right and wrong.

None means malformed: no clear final answer, an empty one, or only the placeholder of the instruction. The last marker wins, because
reasoning that quotes the instruction or revises itself comes first. Every pattern runs in time linear in the text.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import regex

from mixpo.prompts import OwnStyle
from mixpo.verify.conclude import LETTERED, NO_CONCLUSION, concluded
from mixpo.verify.number_words import read_words
from mixpo.verify.options import read_options
from mixpo.verify.refusals import is_refusal
from mixpo.verify.wrapping import bare, boxes, in_boxes, line_answer
from mixpo.verify.yes_no import read_yes_no

PATTERN_S = 1.0
"""Time limit of a user's pattern on one response; the built-in ones are linear in the text."""
MAX_CONTENT = 600
"""Characters behind a marker that may belong to the answer."""
MAX_MARKERS = 8
"""So many markers at the end of a response are tried; all but the last are only asked when those after them announce nothing."""

_SUBJECT = (
    r"(?:(?:(?:final|correct|right|best|most[ \t]\w+)[*_]*+[ \t]++)*+(?:answer|(?<=The )solution)(?:[ \t]+(?:choice|option|letter))*"
    r"|(?:correct|right|best|final|only)[ \t]+(?:answer[ \t]+)?(?:option|choice|letter)(?:[ \t]+letter)?)[*_]*+"
    r"(?:[ \t]+to[ \t][^.:\n]{1,120}?)?"
)
_VERB = (
    r"[*_ \t,]++(?:(?:therefore|thus|then|hence)[, \t]+)?"
    r"(?:is|are|would be|should be|must be|will be|has to be)(?:[ \t]+(?:therefore|thus|hence))?\b"
)
MARKERS = {
    # Emphasis may be on either side of the colon: "**Final answer:** B", "**Final answer**: B", "### Final Answer: B".
    # A heading "Answer" may also stand alone on its line.
    "final": re.compile(r"(?im)(?<![A-Za-z])(?:final[ \t]+)?answer[*_ \t]*[:：]|^[#*_ \t]*(?:final[ \t]+)?answer[*_ \t]*$"),
    "sentence": re.compile(rf"(?i)(?<![A-Za-z]){_SUBJECT}{_VERB}[*_ \t]*[:：]?"),
    "final_zh": re.compile(r"(?m)答案[*_ \t]*+(?:是|为)?[*_ \t]*[:：]|(?<![回问解])答[:：]|【(?:最终)?答案】|^[#*_ \t]*最终答案[*_ \t]*$"),
    "sentence_zh": re.compile(
        r"(?:答案|正确选项|正确的选项|选项)[*_ \t]*应?该?当?(?:是|为|选)[*_ \t]*[:：]?|(?:故|应|所以|因此)选择?[*_ \t:：]*(?=\(?[A-J])"
    ),
}
"""Where an answer is announced, by the family that a style asks for."""
_EN, _ZH = ("answer", "option", "choice", "solution"), ("答", "选")
_WORDS = {"final": _EN[:1], "sentence": _EN, "final_zh": _ZH[:1], "sentence_zh": _ZH}
"""Each marker of the family holds one of these; most responses hold none."""
STYLES: dict[str, tuple[str, ...]] = {
    "final": ("final", "sentence"),
    "final_zh": ("final_zh", "sentence_zh"),
    "boxed": ("box",),
    "think": (*MARKERS, "box", "tag"),
    "whole": (),
    "auto": (*MARKERS, "box", "tag"),
}
"""The families of markers that count under a style."""

_HYPOTHESIS = re.compile(r"(?i)\b(?:if|whether|suppose|assum\w+|otherwise)\b[^.!?\n]*$")
_OPTION_TEXT = re.compile(r"(?<![A-Za-z])\(?[A-J][).:][ \t]*(?:[Tt]he[ \t]+)?$")
"""In front of a marker that belongs to the text of an option: "(D) the correct choice is the last one"."""
_NO_ANSWER_GIVEN = re.compile(
    r"(?i)\W*(?:(?:not|n't|neither|to|found|given|obtained|calculated|determined|derived|inconclusive|unclear|unknown|missing|impossible|unable)\b"
    r"|(?:in)?correct\W*$|wrong\W*$|right\W*$|as follows|based on|in the form|(?:simply )?the same\b|an? (?:integer|number|value|decimal)\b"
    r"|the (?:values?|options?|one|number) (?:that|which)|(?:either|one of|whichever)\b"
    r"|\?|;|[^.]{0,40}\bcan(?:not|'t)\b|不|正确|错误|无法|未)"
)
"""What follows "the answer is" where no answer follows: a negation, a judgement, the way to it."""
_REMARK = re.compile(r"(?=\D)[a-z\u4e00-\u9fff' -]+[.!]?")
"""Words without a number: behind an answer that is one they remark on it, as in "Note: the answer is rounded.\""""
_VALUE = re.compile(r"\d|\W*[A-J]\W*\Z|\b(?i:yes|no|true|false)\W*\Z|[是否对错]\W*\Z")
_QUESTION = re.compile(r"[^.!?\n]*\?")
_DISPLAY = re.compile(r"(?s)\$\$.*?\$\$|\\\[.*?\\\]")
"""A display formula, which may run over several lines."""
_FENCE = re.compile(r"```[a-z]{0,12}[ \t]*\n\s*")
_FOLLOW_UP = re.compile(r"(?im)^[#*_ \t]*(?:question|hint|human|user|instruction|问题|提示)[ \t]*\d*[ \t]*[:：]")
"""A model that continues with a conversation of its own."""
_LAST_BOLD = re.compile(r"\n[ \t]*\*\*([^*\n]{1,80})\*\*[.\s]*\Z")
"""A last line that is bold and nothing else."""


class _Stated(NamedTuple):
    """Where an answer is stated, and the answer (None: a marker with nothing behind it). by_sentence: "the answer is ..."."""

    position: int
    answer: str | None
    by_sentence: bool = False


def extract(text: str, style: str | OwnStyle = "auto", choices: Sequence[str] = (), *, thinking: bool = False) -> str | None:
    """The final answer in `text`, free of emphasis, math delimiters, boxes and a trailing full stop; None when malformed.

    style: a `mixpo.prompts.Style`, an `OwnStyle`, or "auto", which takes whichever marker stands last, or else what is plainly concluded.
    choices: the texts of the options in letter order; a conclusion without a marker then has to name one of them.
    thinking: the prompt opened a block of reasoning, which the response has to end before it answers.
    Raises ValueError for an unknown style, TimeoutError when the pattern of an own style takes longer than `PATTERN_S`.
    """
    if isinstance(style, OwnStyle):
        rest = _after_thinking(text, thinking)
        return None if rest is None else _behind_own(rest, style)
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}")
    if style == "whole":
        return _whole(text)
    is_free = style in ("think", "auto")
    if is_free or thinking:
        rest = _after_thinking(text, thinking)
        if rest is None:
            return None
        text = rest
    follow_up = _FOLLOW_UP.search(text, 1)
    for part in (text[: follow_up.start()], text) if follow_up else (text,):
        if stated := _last_marker(part, STYLES[style], tuple(choices)):
            return stated.answer
        if is_free and (answer := concluded(part, tuple(choices))):
            return answer
        if is_refusal(part) or NO_CONCLUSION.search(part):
            return None  # a refusal; what follows answers a question of its own
    return None


def _behind_own(text: str, style: OwnStyle) -> str | None:
    """The answer behind the last marker, or in the last match of the pattern."""
    expression, flags = (style.pattern, 0) if style.pattern else (regex.escape(style.marker.strip()), regex.IGNORECASE)
    try:
        matches = list(regex.finditer(expression, text, flags, timeout=PATTERN_S, concurrent=True))
    except TimeoutError:
        raise TimeoutError(f"the pattern of the final answer took longer than {PATTERN_S:g} s") from None
    if not matches or style.marker:
        return _content_behind(text, matches[-1].end()) if matches else None
    return bare(matches[-1].group(1) if matches[-1].re.groups else matches[-1].group())


def _whole(text: str) -> str | None:
    """Everything, for direct answers; a marker is taken off only where the text starts with it."""
    plain = text.lstrip("*_# \t\r\n")
    match = MARKERS["final"].match(plain) or MARKERS["final_zh"].match(plain)
    return bare(plain[match.end() :].lstrip("*_ \t") if match else text)


def _after_thinking(text: str, opened: bool) -> str | None:
    """What follows the reasoning; a reasoning block that never ends holds no final answer."""
    _, closed, rest = text.rpartition("</think>")
    return rest if "<think>" not in rest and (closed or not opened) else None


def _last_marker(text: str, families: Sequence[str], choices: tuple[str, ...] = ()) -> _Stated | None:
    """What is stated behind whichever marker stands last, unless that is a remark on the value stated before it."""
    lowered = text.lower()
    stated = [_announced(text, family) for family in families if any(word in lowered for word in _WORDS.get(family, ()))]
    if "box" in families and (inside := boxes(text)):
        stated.append(iter([_Stated(*in_boxes(text, inside))]))
    if "tag" in families:
        stated.append(_tagged(text, families))
    backwards = heapq.merge(*stated, key=lambda one: -one.position)
    last = next(backwards, None)
    if not last or not last.by_sentence or not last.answer or not _is_remark(last.answer, choices):
        return last
    return next((one for one in backwards if one.answer and _VALUE.search(one.answer)), last)


def _is_remark(answer: str, choices: tuple[str, ...]) -> bool:
    """Whether an answer consists of words that are no number, none of the options, and neither yes nor no."""
    if not _REMARK.fullmatch(answer) or read_yes_no(answer) or read_words(answer) or is_refusal(answer):
        return False
    return not (choices and read_options(answer, choices))


def _announced(text: str, family: str) -> Iterator[_Stated]:
    """What the markers of a family announce, the last one first; sentences that announce nothing are passed over."""
    matches = list(MARKERS[family].finditer(text))
    is_sentence = family.startswith("sentence")
    for match in reversed(matches[-MAX_MARKERS:]):
        answer = _content_behind(text, match.end())
        if not is_sentence:
            yield _Stated(match.start(), answer)
            continue
        if (bold := _LAST_BOLD.search(text, match.end())) and not text[match.end() : match.end() + 40].partition("\n")[0].strip(" *_:："):
            answer = line_answer(bold.group(1))  # "The answer is:", an explanation, and the answer in bold
        before = text[max(0, match.start() - 160) : match.start()]
        is_statement = not _OPTION_TEXT.search(before) and not _HYPOTHESIS.search(before) and not _QUESTION.match(text, match.end())
        if answer and is_statement and not _NO_ANSWER_GIVEN.match(text[match.end() : match.end() + 80]):
            yield _Stated(match.start(), answer, by_sentence=True)


def _content_behind(text: str, end: int) -> str | None:
    """The answer behind a marker: a display formula, or the first sentence of the line, or of the next line with content."""
    rest = text[end : end + MAX_CONTENT].lstrip(" \t\r\n*_:：")
    if fence := _FENCE.match(rest):
        rest = rest[fence.end() :]
    if rest.startswith("- ") and "\n" in text[end : end + MAX_CONTENT].partition("- ")[0]:
        rest = rest[1:].lstrip()  # an item of a list on a line of its own, not a sign
    lines = rest.splitlines() or [""]
    several = list(itertools.takewhile(LETTERED.match, lines)) if "\n" in text[end : end + 3] else []
    display = _DISPLAY.match(rest)
    return "; ".join(several) if len(several) > 1 else line_answer(display.group() if display else lines[0])


def _tagged(text: str, families: Sequence[str]) -> Iterator[_Stated]:
    """What stands inside the last `<answer>` tag."""
    start = text.rfind("<answer>")
    if start < 0:
        return
    inside, closed, _ = text[start + len("<answer>") :].partition("</answer>")
    marked = _last_marker(inside, [family for family in families if family != "tag"]) if closed else None
    yield _Stated(start, ((marked and marked.answer) or bare(inside)) if closed else None)
