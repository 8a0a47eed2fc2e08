"""Recognise text that speaks of a missing image instead of answering ("I cannot see the image", "未提供图片").

A list of patterns, each with what it stands for; no judgement of whether an answer is right. The patterns want the image itself as the
object, so that "I cannot see a dog in the picture" or "there is no picture on the wall" are descriptions and not blindness.
"""

from __future__ import annotations

import re

_IMG = r"(?:images?|pictures?|photos?|photographs?|screenshots?|figures?|diagrams?|charts?|attachments?)\b(?!['’]s)"
_DET = r"(?:(?:the|any|an?|this|that|these|your|actual|original|attached|uploaded|provided|such|specific)\s+){0,3}"
_NOT = r"(?:cannot|can(?:'t|’t| not)|could(?:n't|n’t| not)|unable to|not able to|do(?:n't|n’t| not)|did(?:n't|n’t| not))"
_SEE = r"(?:see|view|access|open|display|load|analy[sz]e|inspect|examine|look at|process|interpret|receive)"
_GIVEN = r"(?:provided|attached|included|given|uploaded|supplied|shared|available|accessible|visible|shown|loaded|displayed)"
_IS = r"(?:is|are|was|were|has been|have been|seems to be|appears to be)"
_TU = r"(?:图片|图像|照片|图表|截图|图(?![片像表形案]))(?!上|里|中|内(?!容))"
_GEI = r"(?:提供|上传|附上|附带|给出|发送|分享|显示|加载)"

PATTERNS: dict[str, str] = {
    "cannot see the image": rf"\b{_NOT}\s+(?:\w+\s+){{0,2}}?{_SEE}\s+{_DET}{_IMG}(?!\s+(?:on|of|hanging)\b)",
    "no access to the image": rf"(?:\bno|\bnot\s+have|n['’]t\s+have)\s+(?:any\s+)?access\s+to\s+{_DET}{_IMG}",
    "no ability to see images": r"(?:\bnot|n['’]t)\s+have\s+the\s+(?:ability|capability)\s+to\s+(?:directly\s+)?(?:see|view|access)\b",
    "no image provided": rf"\bno\s+(?:actual\s+)?{_IMG}\s+(?:{_IS}\s+)?(?:here|{_GIVEN}|to\s+(?:refer|look|analy[sz]e|describe))\b",
    "there is no image": (
        rf"\bthere\s+(?:is|was|are|were)(?:\s+no|n['’]t\s+an?|\s+not\s+an?)\s+{_IMG}"
        r"(?!\s+(?:on|of|in(?!\s+(?:your|this|the\s+(?:message|question|prompt)))|hanging)\b)"
    ),
    "the image is not provided": (
        rf"\b{_IMG}\s+(?:you\s+\w+\s+)?(?:is|are|was|were|has|have|could|can|does)\s*(?:not|n['’]t)\s+(?:been\s+|be\s+)?{_GIVEN}\b(?!\s+with)"
    ),
    "you did not provide an image": rf"\byou\s+(?:have|did|had)\s*(?:not|n['’]t)\s+(?:yet\s+)?\w+\s+{_DET}{_IMG}",
    "without seeing the image": (
        rf"\bwithout\s+(?:(?:seeing|viewing|being able to (?:see|view)|(?:having\s+)?access to|looking at)\s+{_DET}{_IMG}"
        r"|(?:the|your)\s+(?:actual\s+|attached\s+)?(?:image|picture|photo)\b(?!['’]s))"
    ),
    "please provide the image": (
        r"\b(?:please|could you|can you|if you)\s+(?:\w+\s+)?(?:provide|upload|share|attach|send|supply)\s+(?:me\s+)?(?:with\s+)?"
        rf"{_DET}{_IMG}"
    ),
    "as a text model": r"\bas\s+an?\s+(?:text[- ](?:based|only)|(?:large\s+)?language|AI)(?:\s+AI|\s+language)?\s+(?:model|assistant)\b",
    "zh: cannot see": (
        r"(?:无法|不能|没法|没办法|未能|看不到|看不见|见不到)(?:直接|实际)?(?:看到|查看|看见|访问|打开|识别|分析|观察|浏览|获取|接收)?"
        rf"(?:您|你)?(?:所)?(?:{_GEI})?(?:的)?(?:任何|这张|该|此|具体的?)?{_TU}"
    ),
    "zh: no image provided": rf"(?:没有|未|并未|没)(?:有)?(?:{_GEI}|看到|收到)(?:任何|相关的?|具体的?|一张)?(?:的)?{_TU}",
    "zh: there is no image": r"(?:这里|此处|题目|题中|问题)(?:中)?(?:并)?没有(?:任何)?(?:图片|图像|照片|附图|配图)",
    "zh: the image is not provided": rf"(?:图片|图像|照片|附图)(?:并)?(?:没有|未能|未|无法|不能)(?:被)?(?:{_GEI}|查看|看到|打开)",
    "zh: please provide": rf"请(?:您|你)?(?:先|再|重新)?(?:{_GEI})(?:一下|相关的?|一张|清晰的?|该|这张){{0,2}}(?:的)?{_TU}",
    "zh: as a text model": r"作为(?:一个|一名|一款)?(?:基于)?(?:纯)?(?:文本|文字|语言|AI|人工智能)[^，。,.\n]{0,6}(?:模型|助手)",
}
"""What each pattern stands for, and the pattern (matched without regard to case). All quantifiers are bounded or over single words."""

_COMPILED = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in PATTERNS.items()}


def blind_phrase(text: str, start: int = 0) -> str | None:
    """The name of the first pattern with a match that reaches past `start` characters of the text, or None.

    `start` is how much of the text was there before; a match that ends within it is not what was newly written, one that begins
    there and is completed after it is.
    """
    for name, pattern in _COMPILED.items():
        if any(match.end() > start for match in pattern.finditer(text)):
            return name
    return None
