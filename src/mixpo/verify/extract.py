"""Find the final answer that a response states. Knows nothing about whether it is right.

None means malformed: no clear final answer, an empty one, or only the placeholder of the instruction. The last marker wins, because
reasoning that quotes the instruction or revises itself comes first. Every pattern runs in time linear in the text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from mixpo.verify.wrapping import Box, boxes, unwrap

SHORT_CHARACTERS = 60
SHORT_WORDS = 8
"""A single line within both limits is taken as an answer without a marker, where a style allows that."""

# Emphasis may stand on either side of the colon: "**Final answer:** B", "**Final answer**: B", "### Final Answer: B".
# A heading "Answer" may also stand alone on its line.
_FINAL = re.compile(r"(?im)(?<![A-Za-z])(?:final[ \t]+)?answer[*_ \t]*[:：]|^[#*_ \t]*(?:final[ \t]+)?answer[*_ \t]*$")
_FINAL_SENTENCE = re.compile(r"(?i)(?<![A-Za-z])(?:final[ \t]+)?answer[*_]*[ \t]+is\b[*_ \t]*[:：]?")
_FINAL_ZH = re.compile(r"(?m)答案[*_ \t]*+(?:是|为)?[*_ \t]*[:：]|【(?:最终)?答案】|^[#*_ \t]*最终答案[*_ \t]*$")
_FINAL_ZH_SENTENCE = re.compile(r"答案[*_ \t]*应?该?当?(?:是|为|选)[*_ \t]*[:：]?")
_ANSWER_TAG = re.compile(r"<answer>")
_PLACEHOLDER = re.compile(r"(?i)\.\.|…|[\[{<(]?(?:your |final |the )*answer[\]}>)]?\Z")
_NEXT_BOX = re.compile(r"[\s$]{0,9}(?:[,，、&]|and\b|or\b|和|或|,\s?and\b|,\s?or\b)[\s$]{0,9}(?:[A-Za-z]\w?\s?=\s?)?")
"""What joins two boxes that are one answer."""
_FAREWELL = re.compile(
    r"(?i)[ \t*_]*(?:i hope|hope this|let me know|feel free|please let me|if you (?:have|need)|is there anything|希望|如果您?有|请告诉)"
)
"""A last line that only takes leave of the reader."""
FAREWELLS = 3
_FENCE = re.compile(r"```[a-z]{0,12}[ \t]*\n\s*")
_SENTENCE_END = re.compile(r"[。！？]|[.!?](?=\s)")

Found = tuple[int, str | None]
"""Where an answer was found, and the answer (None: a marker with nothing behind it)."""


def extract(text: str, style: str = "auto") -> str | None:
    """The final answer in `text`, free of emphasis, math delimiters, boxes and a trailing full stop; None when malformed.

    style: a `mixpo.prompts.Style`, or "auto", which takes whichever marker stands last, or else a short single line.
    Raises ValueError for an unknown style.
    """
    try:
        find = STYLES[style]
    except KeyError:
        raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}") from None
    return find(text)


def _final(text: str) -> str | None:
    return _resolve(_after(text, _FINAL) or _closing(text, _FINAL_SENTENCE))


def _final_zh(text: str) -> str | None:
    return _resolve(_after(text, _FINAL_ZH) or _closing(text, _FINAL_ZH_SENTENCE))


def _boxed(text: str) -> str | None:
    return _resolve(_last_box(text))


def _think(text: str) -> str | None:
    """What follows the reasoning; a reasoning block that never ends holds no final answer."""
    answer = _after_thinking(text)
    if answer is None:
        return None
    found = _last_marker(answer)
    return found[1] if found else _short(answer)


def _whole(text: str) -> str | None:
    """Everything, for direct answers; a marker is taken off only where the text starts with it."""
    plain = text.lstrip("*_# \t\r\n")
    match = _FINAL.match(plain) or _FINAL_ZH.match(plain)
    return _bare(plain[match.end() :].lstrip("*_ \t") if match else text)


STYLES: dict[str, Callable[[str], str | None]] = {
    "final": _final,
    "final_zh": _final_zh,
    "boxed": _boxed,
    "think": _think,
    "whole": _whole,
    "auto": _think,
}


def _bare(text: str | None) -> str | None:
    """The unwrapped answer; None for nothing, and for the placeholder of an instruction that the response only repeats."""
    answer = unwrap(text) if text is not None else ""
    return None if not answer or _PLACEHOLDER.match(answer) else answer


def _resolve(found: Found | None) -> str | None:
    return found[1] if found else None


def _last_marker(text: str) -> Found | None:
    """What stands behind whichever marker stands last; a closing sentence counts only where there is no marker."""
    marked = [_after(text, _FINAL), _after(text, _FINAL_ZH), _last_box(text), _tagged(text)]
    found = [candidate for candidate in marked if candidate]
    if not found:
        found = [candidate for candidate in (_closing(text, _FINAL_SENTENCE), _closing(text, _FINAL_ZH_SENTENCE)) if candidate]
    return max(found, key=lambda candidate: candidate[0]) if found else None


def _after(text: str, marker: re.Pattern[str]) -> Found | None:
    """What stands behind the last `marker`: the rest of its line, or the next line with content, or a whole display formula."""
    found = _last_match(text, marker)
    if found is None:
        return None
    start, end = found
    rest = text[end:].lstrip(" \t\r\n*_:：")
    if fence := _FENCE.match(rest):
        rest = rest[fence.end() :]
    if rest.startswith("- ") and "\n" in text[end : len(text) - len(rest)]:
        rest = rest[1:].lstrip()  # an item of a list on a line of its own, not a sign
    content = _display(rest) or (rest.splitlines() or [""])[0]
    return start, _content(content)


def _last_match(text: str, marker: re.Pattern[str]) -> tuple[int, int] | None:
    """Where the last match begins and ends. A marker stands in one line, so lines are looked at from the end; most responses are long."""
    end = len(text)
    while end >= 0:
        start = text.rfind("\n", 0, end) + 1
        line = text[start:end]
        if "answer" in line.lower() or "答案" in line:
            matches = list(marker.finditer(line))
            if matches:
                return start + matches[-1].start(), start + matches[-1].end()
        end = start - 1
    return None


def _display(rest: str) -> str | None:
    """A display formula, which may run over several lines."""
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        end = rest.find(closing, len(opening)) if rest.startswith(opening) else -1
        if end >= 0:
            return rest[: end + len(closing)]
    return None


@functools.lru_cache(maxsize=1024)
def _content(content: str) -> str | None:
    """An answer taken from its line; a box on that line is the answer."""
    inside = boxes(content)
    if inside:
        return _in_boxes(content, inside)[1]
    return _bare(content.removeprefix("<answer>").split("</answer>")[0])


def _closing(text: str, marker: re.Pattern[str]) -> Found | None:
    """ "The final answer is B." as a last line: what follows, up to the end of that sentence."""
    text = text.rstrip()
    for _ in range(FAREWELLS):
        cut = text.rfind("\n")
        if cut > 0 and _FAREWELL.match(text, cut + 1):
            text = text[:cut].rstrip()
    lines = text.strip().splitlines()
    if not lines:
        return None
    matches = list(marker.finditer(lines[-1]))
    if not matches:
        return None
    rest = lines[-1][matches[-1].end() :].strip()
    answer = _content(_SENTENCE_END.split(rest, maxsplit=1)[0])
    return (len(text) - len(lines[-1]) + matches[-1].start(), answer) if answer else None


def _last_box(text: str) -> Found | None:
    found = boxes(text)
    return _in_boxes(text, found) if found else None


def _in_boxes(text: str, found: list[Box]) -> Found:
    """What stands in the last box, together with those right before it: "\\boxed{3} and \\boxed{5}" is "3, 5"."""
    start, _, content = found[-1]
    answers = [_bare(content)]
    for box in reversed(found[:-1]):
        if answers[0] is None or not _NEXT_BOX.fullmatch(text, box.end, start):
            break
        start = box.start
        answers.append(_bare(box.content))
    distinct = list(dict.fromkeys(answer for answer in reversed(answers) if answer))
    return start, ", ".join(distinct) if distinct else None


def _tagged(text: str) -> Found | None:
    """What stands inside the last `<answer>` tag."""
    matches = list(_ANSWER_TAG.finditer(text))
    if not matches:
        return None
    inside, closed, _ = text[matches[-1].end() :].partition("</answer>")
    if not closed:
        return matches[-1].start(), None
    return matches[-1].start(), _resolve(_last_marker(inside)) or _bare(inside)


def _after_thinking(text: str) -> str | None:
    _, closed, rest = text.rpartition("</think>")
    if closed:
        return rest
    return None if "<think>" in text else text


def _short(text: str) -> str | None:
    """A single short line is an answer by itself."""
    lines = text.strip().splitlines()
    if len(lines) != 1 or len(lines[0]) > SHORT_CHARACTERS or len(lines[0].split()) > SHORT_WORDS:
        return None
    return _content(lines[0])
