"""Earlier turns and system messages of [source] rows: the same conversation in sampling, training and evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_run

from mixpo.engines.openai.protocol import conversation
from mixpo.errors import RecipeError
from mixpo.pipeline import run_recipe
from mixpo.recipe import parse
from mixpo.types import Message
from mixpo.vlm import prompt as vlm_prompt
from mixpo.vlm import trial

SYSTEM = Message(role="system", text="Be brief.")


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt that is rendered for the model."""
    seen: list[str] = []
    render = vlm_prompt.render_prompt

    def spy(*given: Any) -> str:
        seen.append(render(*given))
        return seen[-1]

    monkeypatch.setattr(vlm_prompt, "render_prompt", spy)
    return seen


@pytest.mark.slow
def test_the_same_conversation_everywhere(tmp_path: Path, tiny_folder: Path, prompts: list[str]) -> None:
    recipe = small_run.make(tmp_path, tiny_folder, count=4)
    for name in ("questions", "held_out"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        turns = [{"role": "user", "content": "<image>\nWhat is this?"}, {"role": "assistant", "content": "A number."}]
        small_run.write_jsonl(tmp_path / f"{name}.jsonl", [{**row, "messages": turns} for row in rows])
    text = recipe.read_text().replace("[prompt]\n", '[prompt]\nsystem = "Be brief."\n')
    recipe.write_text(text.replace("[evaluate]\n", '[evaluate]\nengine = "transformers"\n'))
    context = small_run.open_small(recipe, tmp_path / "run", "train.baselines=[]", "evaluate.modes=['cot']", "evaluate.max_new_tokens=2")
    plan = run_recipe(context)
    question = plan.rows("source", 0)[0]
    assert [turn.text for turn in question.history] == ["<image>\nWhat is this?", "A number."]
    prompts = [prompt for prompt in prompts if trial.TEXT not in prompt]  # without those that only try the model
    assert all("Be brief." in prompt and "A number." in prompt for prompt in prompts)
    assert len({prompt for prompt in prompts if "What is number 11?" in prompt}) == 1
    assert any("What is number 501?" in prompt for prompt in prompts)
    other = small_run.open_small(recipe, tmp_path / "run", "train.baselines=[]", "prompt.system=Be long.")
    assert {"sample", "reference", "train", "answer"} <= small_run.kinds(small_run.unfinished(small_run.plan_of(other)))


def test_messages_for_a_server() -> None:
    history = (SYSTEM, Message(role="user", text="<image>\nWhat?"), Message(role="assistant", text="A cat, not <image>."))
    turns = conversation(history, "Like <image>?", ["data:a", "data:b"], "<image>")
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[1]["content"] == [{"type": "image_url", "image_url": {"url": "data:a"}}, {"type": "text", "text": "What?"}]
    assert turns[2]["content"] == "A cat, not <image>."
    assert turns[3]["content"][1] == {"type": "image_url", "image_url": {"url": "data:b"}}


@pytest.mark.parametrize(
    ("template", "stray"),
    [
        ("{question} {choices}", "choices"),
        ("Context: {context}\n{question}", "context"),
        ("{question}{qustion}", "qustion"),
        (r'{question} Write \boxed{answer} or \frac{a}{b}, x_{max}, {1, 2}, {"answer": 5} and { answer }.', ""),
        (r"{question} Put it in \boxed{}.", ""),
    ],
)
def test_a_stray_slot_is_an_error(template: str, stray: str) -> None:
    data = {"source": {"kind": "digits"}, "prompt": {"cot": {"template": template, "style": "boxed"}}}
    if not stray:
        parse(data, "recipe")
        return
    with pytest.raises(RecipeError) as caught:
        parse(data, "recipe")
    assert caught.value.code == "recipe-invalid"
    assert f"unknown slot {{{stray}}}" in str(caught.value)
    assert "known: {question}" in str(caught.value)
