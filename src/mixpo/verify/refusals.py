"""Answers that give none: refusals, not knowing, and words about what is missing. Read before yes, numbers and options are."""

from __future__ import annotations

import re

from mixpo.verify.text import normal_text

_NOT = r"(?:not|(?:is|are|was|were|do|does|did|ca|could|has|have|had|wo|would|should|ai)nt)"
_CAN_NOT = r"(?:can ?not|cant|could ?not|couldnt|(?:un|not )able to|(?:im|not )possible to|hard to|difficult to|no way to)(?: \w+){0,2}?"
_WE = r"\b(?:i|we)(?: am| are| was| were)?|\bim|\bai|\bmodel"
_SOLVE = r"know|tell|say|determine|decide|judge|answer|provide|give|solve|find|calculate|identify|choose|pick|select"
_SOLVED = "sure|certain|known|told|given|provided|solved|found|seen|calculated|made|determined|decided|judged|answered|identified"
_INPUT = r"(?:image|picture|photo|figure|diagram|attachment|screenshot)s?"
_FACTS = r"(?:information|data|details|context|answer|clue|comment)s?"
_GIVEN = "provided|given|available|applicable|determinable|specified|stated|mentioned|attached|included|uploaded|supplied|disclosed"
_HANDED = "include|included|attach|attached|upload|uploaded|provide|provided|send|sent|share|shared|give|given|add|added|show|shown"
_MISSING = "missing|unavailable|blank|unreadable|illegible"
_FACTS_ZH = "信息|数据|条件|答案|图(?!形|案|书|表|中|上)|照片|附件"
_SOLVE_ZH = "选择|选出|判断|确定|看|知道|回答|作答|解答|识别|辨认|得知|得出|分辨|确认|查看|访问|打开|处理|提供|给出|计算"
_ASK = "what|which|who|how|where|when|why|whether|if"
FORMS = {
    "cannot tell": rf"\b{_CAN_NOT} (?:{_SOLVE}|be (?:{_SOLVED}))\b",
    "does not know": r"\b(?:i|we) (?:do|did)(?: not|nt)(?: \w+)? know\b|\bno (?:idea|clue)\b|\bnot known\b",
    "not sure": rf"\b{_NOT}(?: \w+)? (?:sure|certain)\b|\b{_NOT}(?: \w+)? clear (?:if|whether)\b|\b{_NOT}(?: \w+){{0,2}} enough\b",
    "unsure": r"\b(?:unsure|uncertain|unclear|undetermined|unknown|insufficient|inconclusive)\b",
    "perhaps": r"\b(?:maybe|perhaps|possibly|depends|sometimes|part(?:ly|ially))\b",
    "not given": rf"(?:\b(?:{_NOT}|nothing)|^0)(?: \w+)? (?:{_GIVEN})\b"
    rf"|^{_NOT} (?:visible|shown|seen|clear|found)(?: (?:in|on|from|here)\b.*)?$",
    "does not say": rf"\b{_NOT}(?: \w+)? (?:say|specify|mention|state|tell|indicate)(?: (?:{_ASK})\b|$)",
    "no facts": rf"\bno (?:\w+ )?{_FACTS}\b|\b{_NOT} (?:provide|give|have|contain|see|find)(?: \w+){{0,3}} {_FACTS}\b",
    "no image": rf"\b(?:no|any|without)(?: \w+)? {_INPUT}(?: (?:(?:is|are|was|were|has been|have been|to) )?\w+)?$",
    "image missing": rf"\b{_INPUT} (?:(?:is|are|was|were|has|have|did|does|seems? to be|can|could) )?(?:{_MISSING}"
    rf"|(?:{_NOT}|cannot|failed to)(?: \w+)? (?:visible|shown|clear|(?:load|open|display|render)(?:ed|ing)?))\b",
    "fact missing": rf"^(?:\w+ ){{0,2}}(?:{_FACTS}|value|number|label|question|text) (?:is|are) (?:{_MISSING})$",
    "no access": rf"\b(?:no|{_NOT} have)(?: \w+){{0,2}} access\b",
    "apologises": rf"^(?:i am |im )?(?:so |very )?sorry(?: but)? (?:\w+ )*?(?:{_NOT}|no|unable|cannot)\b|^im sorry\b",
    "not handed over": rf"\byou (?:did|do|have)?(?: not|nt)(?: \w+)? (?:{_HANDED})\b"
    rf"|\b(?:i|we) (?:do|did|have)(?: not|nt)(?: \w+){{1,3}} {_INPUT}\b",
    "refuses": r"^(?:i|we) (?:can ?not|cant|wont|will not|would rather not|am unable|are unable)\b|^(?:im unable|id rather not)\b",
    "not applicable": r"\bn/a\b|^n ?a$",
    "不知道": r"不知道|不(?:太|大|是很)?清楚|(?:不|未|没)(?:能|太)?确定|未知|不详|不明(?![显亮白智])",
    "不好说": r"不(?:好|便|易)(?:说|判断|确定|回答)|[答说算]不(?:出|上|了)|难说|说不准|不一定|说不清|看不清|也许|或许|(?<!不)可能",
    "无法": rf"(?:无法|不能|难以|没法|没办法|无从)[^，。,. ]{{0,6}}(?:{_SOLVE_ZH})",
    "未提供": r"(?:没有?|未)(?:被|能)?(?:提供|提到|提及|给出|给定|说明|指明|标明|指出|上传|附[上带图])",
    "图片缺失": r"图[片像表中]?[^，。,. ]{0,3}(?:没有?|未|不|无法)(?:能|被|成功|正常)*(?:加载|显示|打开|上传|附上|清晰|清楚|完整)",
    "信息不足": rf"信息不足|(?:没有|缺少|缺乏)(?:足够|相关|任何|具体|更多)?的?(?:看到|收到|找到)?(?:{_FACTS_ZH})",
}
"""Forms of refusal in text that went through `normal_text` (which makes a nought of "none"), by what they say."""
_REFUSAL = re.compile("|".join(FORMS.values()))
_RULED_OUT = re.compile(
    rf"\b(?:cannot|{_NOT}) (?:\w+ )?be (?:yes|no|true|false)\b|\b{_NOT} (?:yes|no)\b"
    r"|不(?:可能|会|应该?)?是?[\"“「][是否对错]|(?:不(?:可能|会|应该?)|答案不)是?[是否对错]"
)
"""Rules an answer out and gives none: "The answer cannot be no"."""
_UNSEEN = re.compile(
    rf"(?:{_WE}) (?:{_CAN_NOT} |(?:do|did)(?: not|nt)(?: \w+)? )(?:see|view|access|read|recogni[sz]e|identify|make out|display|open)\b"
    "|看不[到见出]|没看[到见]"
)
"""Sees nothing, unless it plainly says yes or no first: "No, I do not see a dog"."""
UNSEEN = re.compile(
    r"(?i)\b(?:are|is|were|was)(?: not|n't) (?:\w+ )?(?:visible|shown|legible|readable|included|in the (?:image|picture))\b"
    r"|不可见|看不[见到清]|未显示"
)
"""What is counted cannot be seen. Of a yes/no question it may be the answer: "The dog is not visible"."""
_PLAINLY = re.compile(r"(?:yes|no)\b|是的|不是|否|没有|有|对")


def is_refusal(text: str) -> bool:
    """Whether an answer refuses, does not know, or says that what it needs is missing; "No, I see no dog" answers all the same."""
    plain = normal_text(text)
    return bool(_REFUSAL.search(plain) or _RULED_OUT.search(plain) or (_UNSEEN.search(plain) and not _PLAINLY.match(plain)))
