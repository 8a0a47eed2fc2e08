"""Several sources: in turn, by share or number, under their names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import small_run

from mixpo.cli import main
from mixpo.pipeline import open_context
from mixpo.progress import Silent
from mixpo.recipe import load
from mixpo.stages.questions import known_sources, read_sources
from mixpo.types import Question

MIXTURE = """
shard_size = 100
[[source]]
name = "first"
domain = "maths"
{first}
source = {{ kind = "jsonl", path = "first.jsonl" }}
[[source]]
name = "second"
source = {{ kind = "jsonl", path = "second.jsonl", domain = "charts" }}
"""


def mixture(folder: Path, first: str = "", limit: int | None = None) -> list[Question]:
    small_run.write_jsonl(folder / "first.jsonl", small_run.rows(folder, 100, 60))
    small_run.write_jsonl(folder / "second.jsonl", [*small_run.rows(folder, 300, 2), *small_run.rows(folder, 100, 1)])
    (folder / "recipe.toml").write_text(MIXTURE.format(first=first))
    context = open_context(load(folder / "recipe.toml"), folder, folder / "run", Silent(), limit)
    index = read_sources(context).train
    return [question for shard in index.shards for question in context.run.stage("source").read(shard, Question)]


def test_sources_come_in_turn_under_their_names(tmp_path: Path) -> None:
    questions = mixture(tmp_path)
    assert [question.source for question in questions[:5]] == ["first", "second", "first", "second", "first"]
    assert Counter((q.source, q.domain) for q in questions) == {("first", "maths"): 60, ("second", "charts"): 2}
    assert "duplicate" in (tmp_path / "run" / "source" / "skipped.jsonl").read_text()


def test_a_weight_uses_a_share_and_a_count_the_beginning(tmp_path: Path) -> None:
    every = [question.id for question in mixture(tmp_path) if question.source == "first"]
    some = [question.id for question in mixture(tmp_path, "weight = 0.5") if question.source == "first"]
    assert 20 <= len(some) <= 40
    assert some == [id_ for id_ in every if id_ in some]
    assert [question.id for question in mixture(tmp_path, "count = 3") if question.source == "first"] == every[:3]
    assert [question.source for question in mixture(tmp_path, limit=4)] == ["first", "second"] * 2


def test_a_resolved_recipe_reads_back(tmp_path: Path) -> None:
    mixture(tmp_path)
    recipe = load(tmp_path / "recipe.toml")
    assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe
    context = open_context(recipe, tmp_path, tmp_path / "run", Silent())
    assert known_sources(context.run, recipe).train.questions == 62


def test_check_names_a_rule_that_matches_no_source(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixture(tmp_path)
    recipe = tmp_path / "recipe.toml"
    tables = """
[sample]
max_new_tokens = 64
[[image.limits]]
sources = ["chart*"]
max_pixels = 700
[verify.rules]
secnd = "number"
[pairs]
correctness_except = ["first", "math", "*"]
"""
    recipe.write_text(recipe.read_text() + f'[model]\npath = "{tiny_folder}"\n' + tables)
    assert main(["check", str(recipe)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "matches no source" in line] == [
        "verify.rules: 'secnd' matches no source or domain of the questions, did you mean 'second'?",
        "pairs.correctness_except: 'math' matches no source or domain of the questions, did you mean 'maths'?",
    ]
    assert main(["check", str(recipe), "--limit", "1"]) == 0
    assert "matches no source" not in capsys.readouterr().out
