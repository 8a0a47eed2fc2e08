"""Yes or no, in English and Chinese, read by words and never by position or letters."""

from __future__ import annotations

import re

from mixpo.verify.judgement import Judgement, Options, decide
from mixpo.verify.text import check_text, normal_text

_YES = frozenset({"yes", "yeah", "yep", "true", "correct"})
_NO = frozenset({"no", "nope", "false", "incorrect", "not", "cannot"})
_AUXILIARIES = frozenset(["is", "are", "was", "were", "do", "does", "did", "ca", "has", "have", "had", "wo", "would", "could", "should"])
_OPPOSITES = {"true": "false", "correct": "false", "false": "true", "incorrect": "true"}
_OPPOSITE = re.compile(r"\b(?:not|isnt)(?: entirely| quite)? (true|correct|false|incorrect)\b")
_NO_ZH = re.compile("不是|不对|不正确|错误|没有|否|错|不|假|非")
_YES_ZH = re.compile("是|对|正确|有|真")
_FEW = 2
"""An answer of at most this many words without yes or no in it is plainly another answer; a longer one cannot be told."""


def check_yes_no(predicted: str, gold: str, options: Options) -> Judgement:
    """Symmetric. Both yes and no in one answer, or a sentence with neither, is undecided."""
    left, right = read_yes_no(predicted), read_yes_no(gold)
    if len(left) == 1 and len(right) == 1:
        return decide(left == right, "answers")
    if len(left) > 1 or len(right) > 1:
        return Judgement("undecided", "yes and no in one answer")
    if not left and not right:
        return check_text(predicted, gold, options)
    other = normal_text(gold if left else predicted)
    is_short = 0 < len(other.split() if other.isascii() else other) <= _FEW
    return Judgement("wrong" if is_short else "undecided", "neither yes nor no")


def read_yes_no(text: str) -> frozenset[bool]:
    """{True} for yes, {False} for no, both for a contradiction, empty for neither."""
    plain = _OPPOSITE.sub(lambda match: _OPPOSITES[match.group(1)], normal_text(text))
    found: set[bool] = set()
    for word in plain.split():
        if word in _YES:
            found.add(True)
        elif word in _NO or (word.endswith("nt") and word[:-2] in _AUXILIARIES):
            found.add(False)
    without_no = _NO_ZH.sub("", plain)
    if without_no != plain:
        found.add(False)
    # Behind a negation ("它是不对的") a yes word is only grammar; in front of it, it contradicts.
    if _YES_ZH.search(without_no) and (without_no == plain or _YES_ZH.match(plain)):
        found.add(True)
    return frozenset(found)
