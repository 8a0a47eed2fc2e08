"""The script that trains the bundled base models: what they learn from, one reduced course, and resuming it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(TOOLS))
    try:
        import train_tiny
    finally:
        sys.path.pop(0)
    return train_tiny


@pytest.mark.parametrize("world", ["digits", "charts"])
def test_answers_follow_the_shares(script: ModuleType, world: str) -> None:
    """Careful lessons never guess, and most answers of the last lesson to a family are of the manner with the largest share."""
    base = script.WORLDS[world]()
    lessons = [lesson for cycle in base.course for lesson in cycle.lessons]
    assert all(set(lesson.shares) == set(base.world.families) for lesson in lessons)
    assert all(sum(shares) == pytest.approx(1) for lesson in lessons for shares in lesson.shares.values())
    careful = [answer for _, message, answer in base.examples(3, 200, lessons[0]) if "step by step" in message]
    assert all(answer.endswith(answer.partition("Final answer: ")[2]) and "I would say" not in answer for answer in careful)
    mixed = [answer for _, message, answer in base.examples(3, 400, lessons[-1]) if "step by step" in message]
    hasty = sum(answer.startswith("I would say") for answer in mixed) / len(mixed)
    assert abs(hasty - sum(shares[1] for shares in lessons[-1].shares.values()) / len(lessons[-1].shares)) < 0.1


@pytest.mark.slow
def test_a_course_is_trained_saved_and_resumed(script: ModuleType, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base = script.WORLDS["charts"]()
    lesson, cycle = type(base.course[0].lessons[0]), type(base.course[0])
    shares = base.course[0].lessons[-1].shares
    base.batch, base.course = 4, (cycle(1e-3, (lesson(1, shares, 1.0), lesson(1, shares))), cycle(1e-3, (lesson(1, shares),)))
    done: list[int] = []
    whole = vars(script)["run"]

    def interrupted(*arguments: object) -> None:
        if done:
            raise KeyboardInterrupt
        whole(*arguments)
        done.append(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            script.train(base, tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["cycle-1.safetensors"]
    script.train(base, tmp_path, 0)
    assert not list(tmp_path.glob("cycle-*"))
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    picture, message, _ = next(base.examples(0, 1, lesson(1, shares)))
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": message}]}], add_generation_prompt=True
    )
    inputs = processor(text=[prompt], images=[base.world.draw(picture)], return_tensors="pt")
    trained_on = processor.tokenizer(prompt.replace(*base.image))["input_ids"]
    assert inputs["input_ids"][0].tolist() == trained_on, "training must see the prompts that the processor makes"
    assert model(**inputs).logits.shape[:2] == (1, len(trained_on))
