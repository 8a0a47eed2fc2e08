"""Instruction texts: what the model is told around a question, and how its final answer is then found.

`style` names the marker that `mixpo.verify.extract` looks for. Wordings of "cot" and "cot_zh" are the released MPO prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Style = Literal["final", "final_zh", "boxed", "think", "whole"]
"""final: `Final answer: ..`; final_zh: `答案: ..`; boxed: `\\boxed{..}`; think: after `</think>`; whole: the entire response."""


class OwnStyle(NamedTuple):
    """A style of a user's own prompt. marker: text in front of the final answer. pattern: regular expression, if not a marker."""

    marker: str = ""
    pattern: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A template with one `{question}` slot, and the style in which the answer is then marked."""

    template: str
    style: Style | OwnStyle

    def render(self, question: str) -> str:
        """The user's message. Plain replacement: braces inside a question are left alone."""
        return self.template.replace("{question}", question)


_COT = (
    "Your task is to answer the question below. Give step by step reasoning before you answer, and when you're ready to "
    'answer, please use the format "Final answer: .."\n\nQuestion:\n\n{question}'
)
_COT_ZH = (
    "你的任务是回答以下问题。在回答之前，请逐步推理说明您是如何得到答案的。"
    '当您准备好回答时，请使用"答案: .."的格式来回答。\n\n问题:\n\n{question}'
)

PROMPTS: dict[str, Prompt] = {
    "plain": Prompt(template="{question}", style="whole"),
    "direct": Prompt(template="{question}\nAnswer the question using a single word or phrase.", style="whole"),
    "direct_zh": Prompt(template="{question}\n请用一个词或短语回答。", style="whole"),
    "cot": Prompt(template=_COT, style="final"),
    "cot_zh": Prompt(template=_COT_ZH, style="final_zh"),
    "brief": Prompt(template='{question}\nReason step by step, then write "Final answer: ..".', style="final"),
    "background": Prompt(
        template=(
            "Answer the question below. First state the background knowledge that it rests on, such as definitions, laws or facts. "
            'Then apply that knowledge to the image step by step, and end with a line "Final answer: ..".\n\nQuestion:\n\n{question}'
        ),
        style="final",
    ),
    "visual": Prompt(
        template=(
            "Answer the question below. First describe what the image shows that matters here: titles, labels, text and values. "
            'Then reason from that description step by step, and end with a line "Final answer: ..".\n\nQuestion:\n\n{question}'
        ),
        style="final",
    ),
    "grounded": Prompt(
        template=(
            "Answer the question below. Whenever you mention an object of the image, write "
            "<ref>its name</ref><box>[[x1, y1, x2, y2]]</box> with its bounding box in coordinates from 0 to 1000. "
            'Reason step by step, and end with a line "Final answer: ..".\n\nQuestion:\n\n{question}'
        ),
        style="final",
    ),
    "background_zh": Prompt(
        template='请回答下面的问题。先说明解题所依据的背景知识，再结合图像逐步推理，最后一行写"答案: .."。\n\n问题:\n\n{question}',
        style="final_zh",
    ),
    "visual_zh": Prompt(
        template=(
            "请回答下面的问题。先描述图像中与问题有关的内容（标题、标签、文字、数值），再逐步推理，"
            '最后一行写"答案: .."。\n\n问题:\n\n{question}'
        ),
        style="final_zh",
    ),
    "grounded_zh": Prompt(
        template=(
            "请回答下面的问题。每提到图像中的一个物体，就写成<ref>名称</ref><box>[[x1, y1, x2, y2]]</box>，"
            '坐标范围为0到1000。请逐步推理，最后一行写"答案: .."。\n\n问题:\n\n{question}'
        ),
        style="final_zh",
    ),
    "boxed": Prompt(
        template="{question}\n\nReason step by step, and put the final answer on the last line as \\boxed{answer}.",
        style="boxed",
    ),
    "think": Prompt(
        template="{question}\n\nThink first between <think> and </think>, then give the final answer inside \\boxed{}.",
        style="think",
    ),
}
"""The built-in prompts by name. `brief`, `direct` and `plain` suit small models."""

DIRECT_ENDINGS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
    "请用一个词或短语回答。",
)
"""Requests for a short answer that data sets and other tools append to a question."""
