"""What a response without a marker plainly concludes: a short line, one of the options, or the one value of its last sentence."""

from __future__ import annotations

import re

from mixpo.verify.number import is_bound, read_numbers, single_number
from mixpo.verify.number_words import read_whole, read_words
from mixpo.verify.options import ANOTHER, read_options
from mixpo.verify.refusals import is_refusal
from mixpo.verify.wrapping import bare, line_answer

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
LETTERED = re.compile(r"[*_ \t]*(?:\(([A-Ja-j])\)|([A-J])[.):：](?=[\s*]|\Z|[^\x00-\x7f]))")
_SENTENCE = re.compile(r"[^\n。！？]+?(?:(?<![ \t(.][A-Z])(?<!\A[A-Z])[.!?](?=\s+[^\sa-z]|\s*\n)|[。！？]|(?=\n)|\Z)")
_SO = re.compile(r"(?i)\W*(?:(?:therefore|thus|hence|so|in (?:total|conclusion|summary)|finally|consequently|overall)\b|所以|因此|故|综上)")
_DIGIT = re.compile(r"\d")
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
NO_CONCLUSION = re.compile(r"(?i)\b(?:not|none)\b[^.]{0,30}\b(?:options?|choices?)\b|\bmistake in the\b|please provide|不在选项")


def concluded(text: str, choices: tuple[str, ...]) -> str | None:
    """What a response without a marker plainly concludes: a short line, an option, or the one number of its last sentence."""
    text = text.strip()
    sentences = [match.group() for match in _SENTENCE.finditer(text) if match.group().strip()]
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
    if any(is_refusal(sentence) or NO_CONCLUSION.search(sentence) for sentence in (*so[-1:], sentences[-1])):
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
    lettered = [(match.group(1) or match.group(2), line) for line in lines if (match := LETTERED.match(line))]
    if len({letter for letter, _ in lettered}) > 1:
        return None  # a list of options
    if lettered and lettered[0][1] in (lines[0], lines[-1]):
        return line_answer(lettered[0][1])
    if (word := _YES_NO.match(sentences[0])) and word.group(1).casefold() in {choice.casefold() for choice in choices}:
        return word.group(1)
    for sentence in _conclusions(sentences):
        answer = bare(sentence) or ""
        if (
            len(read_options(answer, choices) - {ANOTHER}) == 1
            and not is_refusal(answer)
            and not (_PLAN.match(answer) or _ASSUMED.search(answer))
        ):
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
    if tail and (single_number(tail) or read_whole(tail) is not None or _RATIO.fullmatch(tail)):
        return tail
    count = _COUNT.match(sentence)
    if count and (count.group(1).isdigit() or (read_whole(count.group(1)) or 1) != 1):
        rest = _COMPARED.sub("", sentence[count.end() :])
        return None if read_words(rest) not in ([], [1]) or read_numbers(rest) not in ([], read_numbers("1")) else count.group(1)
    is_value = len(sentence) <= MAX_SENTENCE and _DIGIT.search(sentence) and not is_bound(sentence)
    return line_answer(sentence) if is_value and len(read_numbers(sentence.strip()) or ()) == 1 else None
