"""Charts: the answers against a second way of working them out, the pixels against the values, and what the pools promise."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from failures import fails

from mixpo.errors import RecipeError
from mixpo.recipe import ChartsSource, parse
from mixpo.sources.charts import COLOURS, POOLS, QUARTERS, SIDE, UNIT, WORLD, DrawnChart, compose, draw, phrase
from mixpo.sources.puzzles import Puzzle


def by_hand(chart: DrawnChart, family: str, text: str) -> str:
    """The answer, from the question's words and the values alone."""
    values = chart.values
    named = [values[chart.colours.index(name)] for name in re.findall("|".join(COLOURS), text)]
    if family in ("value", "share"):
        return str(named[0])
    if family == "together":
        return str(named[0] + named[1])
    if family in ("compare", "trend"):
        first, second = named[:2] if family == "compare" else (values[-1], values[0])
        return "yes" if first > second else "no"
    if family == "total":
        return str(sum(values))
    if family == "gap":
        return str(max(values) - min(values))
    if family == "count":
        (limit,) = re.findall(r"\d", text)
        return str(len([value for value in values if value > int(limit)]))
    if family == "peak":
        options = dict(re.findall(r"^([A-D])\. (Q\d)$", text, re.M))
        return str(next(letter for letter, quarter in options.items() if values[QUARTERS.index(quarter)] == max(values)))
    best = min(values) if "smallest" in text else max(values)
    return next(colour for colour, value in zip(chart.colours, values, strict=True) if value == best)


@pytest.mark.parametrize("family", WORLD.families)
def test_answers_are_right(family: str) -> None:
    made = list(WORLD.puzzles("preference", 5, 100, (family,)))
    assert len(made) == 100
    assert all((puzzle.family, puzzle.answer) == (family, by_hand(chart, family, puzzle.text)) for chart, puzzle in made)
    assert len({re.sub("|".join(COLOURS), "", puzzle.text.split("\n")[0]) for _, puzzle in made}) >= 5, "few wordings"


def test_the_reasoning_leads_to_the_answer() -> None:
    for chart, puzzle in WORLD.puzzles("start", 1, 300, open_share=0.1):
        for left, sign, right, result in re.findall(r"(\d+) ([-+]) (\d+) = (\d+)", puzzle.steps):
            assert {"+": int(left) + int(right), "-": int(left) - int(right)}[sign] == int(result)
        assert all(int(number) in chart.values for number in re.findall(r"(?:is|[Hh]ighest|lowest) (\d+)", puzzle.steps))


def test_pools_share_no_chart() -> None:
    assert sorted(percent for pool in POOLS.values() for percent in pool) == list(range(100))
    for pool, percentiles in POOLS.items():
        assert all(chart.percentile() in percentiles for chart, _ in WORLD.puzzles(pool, 0, 50))


def test_pixels_show_the_values() -> None:
    """Heights of bars and points, and areas of slices, measured in the image."""
    rng, kinds = random.Random(3), set()
    for _ in range(60):
        chart = compose(rng, "test")
        kinds.add(chart.kind)
        pixels = np.asarray(draw(chart)).astype(int)  # (H, W, 3)
        assert pixels.shape == (SIDE, SIDE, 3)
        targets = np.array([COLOURS[name] for name in chart.colours])
        distance = np.abs(pixels[:, :, None] - targets).sum(axis=3)  # (H, W, colours)
        nearest, near = distance.argmin(axis=2), distance.min(axis=2) < 60
        if chart.kind == "pie":
            share = [100 * (near & (nearest == place)).sum() / near.sum() for place in range(len(targets))]
            assert np.abs(np.array(share) - chart.values).max() < 4
            continue
        for place, value in enumerate(chart.values):
            colour = place if chart.kind == "bars" else 0
            rows = np.flatnonzero(near[:, 8 + 16 * place] & (nearest[:, 8 + 16 * place] == colour))
            height = SIDE - 4 - (rows.min() if chart.kind == "bars" else rows.mean() + 0.5)
            assert abs(height - UNIT * value) <= 1.5, chart
    assert kinds == {"bars", "line", "pie"}


def test_questions_follow_from_the_settings(tmp_path: Path) -> None:
    """Any count is a prefix of a larger one, other seeds have other charts, open questions have no answer."""
    few, many, others = (
        list(WORLD.read(ChartsSource(kind="charts", count=count, seed=seed, open_share=0.25), tmp_path))
        for count, seed in ((10, 0), (100, 0), (100, 1))
    )
    assert few == many[:10]
    assert not {question.id for question in many} & {question.id for question in others}
    without = [question for question in many if question.answer is None]
    assert 12 <= len(without) <= 40
    assert all((question.kind, question.domain, question.source) == ("none", "open", "charts/preference") for question in without)


def test_unknown_family() -> None:
    with fails("unknown-family", RecipeError, key="source.families") as failure:
        list(WORLD.puzzles("test", 0, 1, ("totl",)))
    assert failure.parts[0] == "'totl', did you mean 'total'?"
    assert parse({"source": {"kind": "charts", "families": ["total"]}}, "r").source


def test_phrases_and_the_checker_of_this_test() -> None:
    assert {phrase(random.Random(n), "[a|b] c", "d") for n in range(20)} == {"a c", "b c", "d"}
    chart = DrawnChart("bars", ("red", "blue", "green", "gray"), (1, 2, 3, 4), 0)
    assert Puzzle("total", "", "11", "number", "").answer != by_hand(chart, "total", "What is the total?") == "10"
