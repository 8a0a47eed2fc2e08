"""A whole run in small: numbered pictures, a script of answers, a tiny model. Seconds on one core."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mixpo.pipeline import build_plan, open_context
from mixpo.progress import Silent
from mixpo.recipe import load
from mixpo.run import Manifest, Run
from mixpo.stages.job import Context, Plan
from mixpo.stages.names import kind_of
from mixpo.stages.questions import read_sources

RECIPE = """
seed = 7
shard_size = 4
[source]
kind = "jsonl"
path = "questions.jsonl"
[model]
path = "{model}"
device = "cpu"
[prompt]
cot = "brief"
[sample]
engine = "scripted"
script = "script.jsonl"
n = 4
max_new_tokens = 64
[verify]
workers = 1
[train]
baselines = ["sft"]
learning_rate = 1e-3
batch_size = 8
tokens_per_batch = 2048
max_length = 400
save_every = 2
[evaluate]
max_new_tokens = 32
[[evaluate.sets]]
name = "held-out"
source = {{ kind = "jsonl", path = "held_out.jsonl" }}
[report]
examples = 4
"""


def picture(path: Path, number: int) -> None:
    """A little picture with colours of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (28, 28), ((number * 37) % 256, (number * 91) % 256, (number * 17) % 256)).save(path)


def rows(folder: Path, start: int, count: int, open_every: int = 5) -> list[dict[str, object]]:
    """Questions `start` to `start + count`, each with a picture; every `open_every`th has no answer."""
    made: list[dict[str, object]] = []
    for number in range(start, start + count):
        picture(folder / "images" / f"{number}.png", number)
        row: dict[str, object] = {"image": f"images/{number}.png", "question": f"What is number {number}?"}
        if open_every == 0 or number % open_every:
            row["answer"] = str(number)
        made.append(row)
    return made


def write_jsonl(path: Path, made: Sequence[object]) -> None:
    """One object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in made))


def script(numbers: Sequence[int]) -> list[dict[str, object]]:
    """Two right and two wrong answers to each question, and a description for open ones."""
    made: list[dict[str, object]] = []
    for number in numbers:
        # A wrong answer that holds the right one would be taken as agreeing with it.
        right, wrong = f"Final answer: {number}", "Final answer: 88"
        answers = [f"I look. {right}", f"I guess. {wrong}", f"Look: {right}", f"Well. {wrong}"]
        if number % 5 == 0 and number < 500:
            answers = [f"A picture of number {number} in way {way}." for way in range(4)]
        made.append({"question": f"What is number {number}?", "responses": answers})
    return made


def make(folder: Path, model: Path, count: int = 10, extra: str = "") -> Path:
    """Write recipe, questions, pictures and script into a folder; returns the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "questions.jsonl", rows(folder, 11, count))
    write_jsonl(folder / "held_out.jsonl", rows(folder, 501, 6, open_every=0))
    write_jsonl(folder / "script.jsonl", [*script(range(11, count + 11)), *script(range(501, 507))])
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(model=model) + extra)
    return recipe


def open_small(recipe: Path, root: Path, *overrides: str, limit: int | None = None) -> Context:
    """A context whose progress remembers what was said."""
    return open_context(load(recipe, overrides), recipe.parent, root, Silent(), limit)


def said(context: Context) -> list[str]:
    """What the stages had to say."""
    assert isinstance(context.progress, Silent)
    return context.progress.lines


def manifest_of(run: Run, stage: str) -> Manifest:
    """The manifest of a stage that has begun."""
    manifest = run.stage(stage).manifest
    assert manifest is not None
    return manifest


def plan_of(context: Context) -> Plan:
    """The plan of a run, with its sources read."""
    return build_plan(context, read_sources(context))


def unfinished(plan: Plan) -> set[str]:
    """The stages that a run would work on."""
    return {name for name, planned in plan.planned.items() if not planned.finished()}


def kinds(names: set[str]) -> set[str]:
    """The kinds of some stages."""
    return {kind_of(name) for name in names}
