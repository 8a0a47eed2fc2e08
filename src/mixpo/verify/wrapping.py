"""Take off what stands around an answer: emphasis, math delimiters, boxes, text commands, quotes, a trailing full stop."""

from __future__ import annotations

import re
from typing import NamedTuple

_BOX = re.compile(r"\\f?box(?:ed)?[ \t]*(?:(\{)|([A-Za-z0-9]+))")
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|sf|it)|boldsymbol|mbox|f?box(?:ed)?)[ \t]*\{")
_SPECIAL_TOKEN = re.compile(r"(?:<\|[\w ]{1,40}\|>|</s>|<eos>|<end_of_turn>)\Z")
_ABBREVIATION = re.compile(r"(?:^|\s)(?:[^\W\d_]\.){2,}\Z")
_PLAIN = re.compile(r"[A-Za-z0-9]+(?: [A-Za-z0-9]+)*")
"""Nothing to take off: most answers."""
_BLANK = re.compile(r"[\s.…_*\-–—\"'“”]*\Z")
_PAIRS = (
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("__", "__"), ("*", "*"), ("```", "```"), ("`", "`"),
    ('"', '"'), ("“", "”"), ("‘", "’"), ("'", "'"), ("「", "」"), ("《", "》"), ("<answer>", "</answer>"),
)  # fmt: skip
_ROUNDS = 20
"""Deeper nesting than this is no presentation; it is left as it stands."""


class Box(NamedTuple):
    """A `\\boxed{..}` in a text: where it starts, where it ends, and what is in it (None: its braces never close, the text was cut)."""

    start: int
    end: int
    content: str | None


def boxes(text: str) -> list[Box]:
    """Every outermost box, in order."""
    found: list[Box] = []
    position = 0
    while match := _BOX.search(text, position):
        if match.group(2):
            found.append(Box(match.start(), match.end(), match.group(2)))
            position = match.end()
            continue
        end = closing_brace(text, match.end() - 1)
        if end is None:
            found.append(Box(match.start(), len(text), None))
            break
        position = end + 1
        found.append(Box(match.start(), position, text[match.end() : end]))
    return found


def closing_brace(text: str, opening: int) -> int | None:
    """Where the brace opened at `opening` closes; escaped braces do not count."""
    depth = 0
    position = opening
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
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


def _unwrap_once(text: str) -> str:
    text = _SPECIAL_TOKEN.sub("", text.strip()).strip()
    for opening, closing in _PAIRS:
        inside = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inside and closing not in inside and opening not in inside:
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
