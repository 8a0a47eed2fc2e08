"""Find the final answer that a response states. Knows nothing about right and wrong; None means malformed.

One grammar: a marker, then the form of what it announces. The last marker wins, because reasoning that quotes the instruction or
revises itself comes first; without one, what the response plainly concludes counts.

| marker (`MARKERS`)                          | form of the answer behind it                                              |
| ------------------------------------------- | ------------------------------------------------------------------------- |
| "Final answer:", "答案:", "<answer>"          | a display formula, the box in the line, or its first sentence             |
| "The answer is", "正确选项是"                  | the same, unless it is a question, a condition, a negation or a remark    |
| `\\boxed{`                                  | what is in the last box, and in those that are joined to it               |
| none: one short line                        | the line; of "There are three bars" or "So it is 5" the value             |
| none, choices known                         | a first or last line with a letter, else a sentence that names one option |
| none (last "so", last, first sentence)      | the one value that it states: in bold, behind its verb, or a count        |

Every pattern runs in time linear in the text.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import regex

from mixpo.prompts import OwnStyle
from mixpo.verify.number import is_bound, one_number, read_numbers
from mixpo.verify.number_words import read_whole, read_words
from mixpo.verify.options import ANOTHER, read_options
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
    "tag": re.compile("<answer>"),
}
"""Where an answer is announced, by the family that a style asks for."""
_WORDS = {"final": "answer", "sentence": "answer option choice solution", "final_zh": "答", "sentence_zh": "答 选", "tag": "<answer>"}
"""Each marker of the family holds one of these; most responses hold none."""
STYLES: dict[str, tuple[str, ...]] = {
    "final": ("final", "sentence"),
    "final_zh": ("final_zh", "sentence_zh"),
    "boxed": ("box",),
    "think": (*MARKERS, "box"),
    "whole": (),
    "auto": (*MARKERS, "box"),
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


SHORT_CHARACTERS = 60
SHORT_WORDS = 8
"""A single line within both limits is taken as an answer without a marker, where a style allows that."""
MAX_SENTENCE = 160
"""Characters of a sentence whose only number is its value."""
_ASSUMED = re.compile(r"(?i)\b(?:if|whether|suppose|assum\w+|otherwise)\b,? (?:that )?(?:the )?(?:\w+ )?(?:answer|option|choice)\b")
"""An option that is only considered."""
_STEP = re.compile(r"(?i)\W*(?:first\b|let\b|let's|to\b|we (?:need|want|have to|are given)\b|given\b|in order\b|step\b|首先|设|已知|根据)")
"""A first sentence that only sets out."""
_PLAN = re.compile(
    r"(?i)\W*(?:step[ \t]+\d+[ \t]*[:：.]|first(?:ly)?,|let(?:'s| us| me)\b|(?:we|i|you) (?:need|have|want|should|must)\b|in order to\b"
    r"|第[一二三四五\d]步|首先|让我们?)(?!.*(?:\b(?:so|thus|hence|therefore|is|are)\b|[=是]))"
)
"""Any sentence that says what to do and nothing of what comes of it: "Step 1: turn to (A)."."""
_FAREWELL = re.compile(
    r"(?i)[ \t*_]*(?:i hope|hope this|let me know|feel free|please let me|if you (?:have|need)|is there anything|希望|如果您?有|请告诉)"
)
"""A sentence that only takes leave of the reader."""
_LETTERED = re.compile(r"[*_ \t]*(\([A-Ja-j](?=\))|[A-J](?=[.):：](?:[\s*]|\Z|[^\x00-\x7f])))")
_SENTENCE = re.compile(r"[^\n。！？]+?(?:(?<![ \t(.][A-Z])(?<!\A[A-Z])[.!?](?=\s+[^\sa-z]|\s*\n)|[。！？]|(?=\n)|\Z)")
_SO = re.compile(r"(?i)\W*(?:(?:therefore|thus|hence|so|in (?:total|conclusion|summary)|finally|consequently|overall)\b|所以|因此|故|综上)")
_YES_NO = re.compile(r"(?i)\W*(yes|no|true|false|是|否|对|错)\b(?=[,.!，。！])")
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_BEHIND_VERB = re.compile(
    r"(?i).*(?:\b(?:is|are|was|were|be|equals?|approximately|about)\b|[=≈是为]|(?<!\d)[:：])[ \t*$]*"
    r"(?=[-+$€£¥\\√]?\d|[a-z]+[ .]*\Z|[-\\√π(])"
)
_DIMENSION = re.compile(r"[ \t]+(?:long|wide|tall|high|deep|old|away|apart|in (?:length|width|height|total|all))\.?\s*$")
"""What is measured, behind a number and its unit: "2 inches long"."""
_COUNT = re.compile(
    r"(?i)(?:.*\b(?:there (?:are|is|were|was)|ha(?:s|ve|d)|in total,?)|\W*)\s+"
    r"(?:a total of |exactly |only )?([a-z]+(?:-\w+)?|\d+)\s+(?=[a-z])"
)
"""A count in front of what is counted: "There are three bars above 4"."""
_COMPARED = re.compile(r"(?i)\b(?:than|above|below|over|under|least|most|of|in|from)\s+[-$]?\d[\d.,]*%?")
_RATIO = re.compile(r"\d[\d.]*\s?:\s?\d[\d.]*")
_ITEM = re.compile(r"[-*•\s]*[\w -]{1,40}[:：]\s*\S+(?:\s\S+)?\s*\Z")
_NO_CONCLUSION = re.compile(r"(?i)\b(?:not|none)\b[^.]{0,30}\b(?:options?|choices?)\b|\bmistake in the\b|please provide|不在选项")


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
    is_own = isinstance(style, OwnStyle)
    if not is_own and style not in STYLES:
        raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}")
    if style == "whole":
        return _whole(text)
    is_free = style in ("think", "auto")
    if is_own or is_free or thinking:
        _, closed, rest = text.rpartition("</think>")
        if "<think>" in rest or (thinking and not closed):
            return None  # a reasoning block that never ends holds no final answer
        text = rest
    if isinstance(style, OwnStyle):
        return _behind_own(text, style)
    follow_up = _FOLLOW_UP.search(text, 1)
    for part in (text[: follow_up.start()], text) if follow_up else (text,):
        if stated := _last_marker(part, STYLES[style], tuple(choices)):
            return stated.answer
        if is_free and (answer := _concluded(part, tuple(choices))):
            return answer
        if is_refusal(part) or _NO_CONCLUSION.search(part):
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


def _last_marker(text: str, families: Sequence[str], choices: tuple[str, ...] = ()) -> _Stated | None:
    """What is stated behind whichever marker stands last, unless that is a remark on the value stated before it."""
    lowered = text.lower()
    stated = [
        _announced(text, family) for family in families if family != "box" and any(word in lowered for word in _WORDS[family].split())
    ]
    if "box" in families and (inside := boxes(text)):
        stated.append(iter([_Stated(*in_boxes(text, inside))]))
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
        is_open = family == "tag" and "</answer>" not in text[match.end() :]
        answer = None if is_open else _content_behind(text, match.end())
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
    several = list(itertools.takewhile(_LETTERED.match, lines)) if "\n" in text[end : end + 3] else []
    display = _DISPLAY.match(rest)
    return "; ".join(several) if len(several) > 1 else line_answer(display.group() if display else lines[0])


def _concluded(text: str, choices: tuple[str, ...]) -> str | None:
    """What a response without a marker plainly concludes: a short line, an option, or the one number of its last sentence."""
    text = text.strip()
    sentences = [sentence for sentence in _SENTENCE.findall(text) if sentence.strip()]
    while len(sentences) > 1 and _FAREWELL.match(sentences[-1]):
        sentences.pop()
    if not sentences:
        return None
    lines = text.splitlines()
    if len(lines) == 1 and len(text) <= SHORT_CHARACTERS and len(text.split()) <= SHORT_WORDS:
        if text.endswith(("?", "？")) or _PLAN.match(text):
            return None
        return (not choices and (_COUNT.match(text) or _SO.match(text)) and _value(text)) or bare(text)
    so = [sentence for sentence in sentences if _SO.match(sentence)]
    if any(is_refusal(sentence) or _NO_CONCLUSION.search(sentence) for sentence in (*so[-1:], sentences[-1])):
        return None
    if choices:
        return _concluded_option(lines, sentences, choices)
    if all(map(_ITEM.match, sentences[-2:])):
        return None  # several values in a list
    bold = [*dict.fromkeys(_BOLD.findall(text))]
    sentences += [f"**{bold[0]}**"] if len(bold) == 1 else []
    return next((answer for sentence in _conclusions(sentences) if (answer := _value(sentence))), None)


def _conclusions(sentences: list[str]) -> list[str]:
    """The sentences that may conclude, the likeliest first: the last one with "so", the last one, the first one."""
    so = [sentence for sentence in sentences if _SO.match(sentence)]
    first = [sentences[0]] if not _STEP.match(sentences[0]) else []
    return list(dict.fromkeys([*so[-1:], sentences[-1], *first]))


def _concluded_option(lines: list[str], sentences: list[str], choices: tuple[str, ...]) -> str | None:
    """A first or last line that starts with a letter, else the sentence that names exactly one option."""
    lettered = [line for line in lines if _LETTERED.match(line)]
    if len({_LETTERED.findall(line)[0] for line in lettered}) > 1:
        return None  # a list of options
    if lettered and lettered[0] in (lines[0], lines[-1]):
        return line_answer(lettered[0])
    if (word := _YES_NO.match(sentences[0])) and word.group(1).casefold() in {choice.casefold() for choice in choices}:
        return word.group(1)
    for sentence in _conclusions(sentences):
        answer = bare(sentence) or ""
        names_one = len(read_options(answer, choices) - {ANOTHER}) == 1
        if names_one and not (is_refusal(answer) or _PLAN.match(answer) or _ASSUMED.search(answer)):
            return line_answer(sentence)
    return None


def _value(sentence: str) -> str | None:
    """The one value that a sentence states: in bold, behind its verb or equals sign, as a count, or as its only number."""
    bold = _BOLD.findall(sentence)
    if len(bold) == 1 and len(read_numbers(bold[0]) or ()) == 1:
        return line_answer(bold[0])
    if sentence.endswith("?"):
        return None
    behind = _BEHIND_VERB.match(sentence)
    tail = line_answer(_DIMENSION.sub("", sentence[behind.end() :])) if behind else None
    if tail and (one_number(tail) or _RATIO.fullmatch(tail)):
        return tail
    count = _COUNT.match(sentence)
    if count and (count.group(1).isdigit() or (read_whole(count.group(1)) or 1) != 1):
        rest = _COMPARED.sub("", sentence[count.end() :])
        return None if read_words(rest) not in ([], [1]) or read_numbers(rest) not in ([], read_numbers("1")) else count.group(1)
    is_value = len(sentence) <= MAX_SENTENCE and re.search(r"\d", sentence) and not is_bound(sentence)
    return line_answer(sentence) if is_value and len(read_numbers(sentence.strip()) or ()) == 1 else None
