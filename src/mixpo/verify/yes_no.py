"""Yes or no, in English and Chinese, read by words and never by position or letters."""

from __future__ import annotations

import re

from mixpo.verify.judgement import UNSURE, Judgement, Options, decide
from mixpo.verify.refusals import is_refusal
from mixpo.verify.text import check_text, normal_text

_YES = frozenset({"yes", "yeah", "yep", "true", "correct"})
_NO = frozenset({"no", "nope", "false", "incorrect", "not", "cannot"})
_ALONE = dict.fromkeys(["y", "t", "right", "thats right", "definitely", "certainly", "absolutely", "affirmative", "indeed"], "yes")
_ALONE |= dict.fromkeys(["it is", "it does", "they are", "they do", "there is", "there are", "he is", "she is"], "yes")
_ALONE |= dict.fromkeys(["of course", "sure", "surely", "without doubt", "no doubt"], "yes")
_ALONE |= dict.fromkeys(["n", "f", "wrong", "thats wrong", "never"], "no")
"""Whole answers that mean yes or no; inside a sentence these words mean something else."""
_AUXILIARIES = frozenset(["is", "are", "was", "were", "do", "does", "did", "ca", "has", "have", "had", "wo", "would", "could", "should"])
_OPPOSITES = {"true": "false", "correct": "false", "false": "true", "incorrect": "true"}
_OPPOSITE = re.compile(r"\b(?:not|isnt)(?: entirely| quite)? (true|correct|false|incorrect)\b")
_NO_ZH = re.compile("不是|不对|不正确|错误|没有|否|错|不|假|非")
_RIGHT_ZH = re.compile("[没不]错")
_IDIOM_ZH = re.compile("不出(?:意外|所料)|不用说|毫[不无](?:疑问|犹豫)|不[仅但管]")
"""Phrases whose negation is none of the answer."""
_YES_ZH = re.compile(r"是|对|正确|有|真|可以|\A[能会]")
_FEW = 2
"""An answer of at most this many words without yes or no in it is plainly another answer; a longer one cannot be told."""


def check_yes_no(predicted: str, gold: str, options: Options) -> Judgement:
    """Symmetric. Both yes and no in one answer, a sentence with neither, or one of not knowing is undecided."""
    if is_refusal(predicted) or is_refusal(gold):
        return UNSURE
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
    plain = _RIGHT_ZH.sub("对", _IDIOM_ZH.sub("", normal_text(text)))
    plain = _OPPOSITE.sub(lambda match: _OPPOSITES[match.group(1)], _ALONE.get(plain, plain))
    values: set[bool] = set()
    for word in plain.split():
        if word in _YES:
            values.add(True)
        elif word in _NO or (word.endswith("nt") and word[:-2] in _AUXILIARIES):
            values.add(False)
    without_no = _NO_ZH.sub("", plain)
    if without_no != plain:
        values.add(False)
    # Behind a negation ("它是不对的") a yes word is only grammar; in front of it, it contradicts.
    if _YES_ZH.search(without_no) and (without_no == plain or _YES_ZH.match(plain)):
        values.add(True)
    return frozenset(values)
