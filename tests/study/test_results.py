"""The numbers of a study against hand-computed ones, and its page, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scipy import stats

from mixpo.records import Prediction
from mixpo.study import results as module
from mixpo.study import tables
from mixpo.study.render import render
from mixpo.study.results import results
from mixpo.study.schema import load_study

STUDY = """
recipe = "mixpo:demo"
title = "<b>Steps</b> & more"
seeds = [0, 1]
[compare]
baseline = "one"
[[variants]]
name = "one"
[[variants]]
name = "two"
title = "<script>50% | $x_1$"
[[variants]]
name = "three"
[[validation]]
name = "validation"
source = { kind = "digits", pool = "validation", count = 4 }
"""
QUESTIONS, DOMAINS = "abcd", {"a": "sum", "b": "sum", "c": "count", "d": "count"}
# By variant and seed, whether each question is right.
RIGHT = {
    "base": ("1000", "1000"),
    "one": ("1100", "1010"),
    "two": ("1110", "1111"),
    "three": ("1100", "1010"),
}


def rows(text: str, mode: str) -> list[Prediction]:
    return [
        Prediction(
            question=question, mode=mode, index=0, text="", extracted=None, domain=DOMAINS[question], tokens=10, finish="stop", reason="",
            outcome="correct" if right == "1" else "malformed" if question == "d" else "wrong",
        )
        for question, right in zip(QUESTIONS, text, strict=True)
    ]  # fmt: skip


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    study = load_study(path)

    def answered(run: Any) -> Callable[[str, str, str], list[Prediction] | None]:
        def predictions(name: str, model: str, mode: str) -> list[Prediction] | None:
            own = "base" if model == "base" else run.variant.name
            # The last run of the last variant has not finished.
            return rows(RIGHT[own][run.seed], mode) if mode == "cot" and (own, run.seed) != ("three", 1) else None

        return predictions

    stages = {("round-1/sample", ("00000-x",)): (2.0, 100)}
    runs = [SimpleNamespace(run=run, plan=None, stages=stages, predictions=answered(run), cost=lambda: (2.0, 100)) for run in study.runs]
    monkeypatch.setattr(module, "finished_runs", lambda *_: runs)
    assert module.ranking(study, tmp_path) == [("one", 0.5), ("two", 0.875)]
    return results(study, tmp_path, {"three-seed-1": "out of <memory>"})


def test_numbers_by_hand(report: dict[str, Any]) -> None:
    (scored,) = report["sets"]
    assert (scored["n"], scored["role"], [*scored["variants"]]) == (4, "validation", ["base", "one", "two"])
    two = scored["variants"]["two"]
    assert two["by_seed"] == [0.75, 1.0]
    assert two["no_answer"] == 1 / 8
    # Gains over "one": seed 0: 0 0 1 0, seed 1: 0 1 0 1; mean 3/8.
    # Questions: means 0 1/2 1/2 1/2, deviations -3/8 1/8 1/8 1/8: V = (9 + 3)/64 / (4 * 3) = 1/64.
    # Seeds: means 1/4 1/2, deviations -1/8 1/8: V = (2/64) / (2 * 1) = 1/64.
    # Residuals: seed 0: 1/8 -3/8 5/8 -3/8, seed 1 their opposite; V = 2 * (1 + 9 + 25 + 9)/64 / (3 * 1 * 4 * 2) = 88/1536.
    # The residual is larger than either part, so V is the larger part alone; of equal ones that of the questions, 3 degrees of freedom.
    difference = two["difference"]
    assert difference["mean"] == pytest.approx(3 / 8)
    assert difference["error"] == pytest.approx(1 / 8)
    assert difference["freedom"] == pytest.approx(3)
    p = 2 * stats.t.sf(3, 3)
    assert difference["p"] == pytest.approx(p)
    base = scored["variants"]["base"]["difference"]
    assert base["mean"] == pytest.approx(-1 / 4)
    # Holm over two comparisons.
    small, large = sorted((p, base["p"]))
    assert sorted((difference["p_adjusted"], base["p_adjusted"])) == pytest.approx([2 * small, max(2 * small, large)])
    assert two["domains"]["count"]["accuracy"]["mean"] == pytest.approx(3 / 4)
    assert two["domains"]["sum"]["difference"]["mean"] == pytest.approx(1 / 4)
    assert scored["variants"]["one"]["difference"] is None


def test_what_is_shared_counts_once(report: dict[str, Any]) -> None:
    assert report["sharing"] == {
        "stages": 6, "stages_made": 1, "tokens": 600, "tokens_made": 100, "seconds": 12.0, "seconds_made": 2.0,
    }  # fmt: skip


def test_the_page_escapes_and_names_what_failed(report: dict[str, Any]) -> None:
    page = render(report)
    assert "<script" not in page
    assert "&lt;script&gt;50% | $x_1$" in page
    assert "&lt;b&gt;Steps&lt;/b&gt; &amp; more" in page
    assert "1 run failed" in page
    assert "out of &lt;memory&gt;" in page
    assert "This study has no test set." in page
    assert "default-src 'none'" in page


def test_markdown_and_latex(report: dict[str, Any]) -> None:
    text = tables.markdown(report)
    assert "| &lt;script>50% \\| $x_1$ | 87.5 % |" in text
    tex = tables.latex(report)
    assert r"$<$script$>$50\% | \$x\_1\$ & 87.5~\% &" in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 2
    rows_of = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len({line.count("&") for line in rows_of[:4]}) == 1


def test_one_seed_is_said(report: dict[str, Any]) -> None:
    assert "cover other seeds and other questions" in tables.statistics_text(report)
    assert "another seed may differ by more" in tables.statistics_text({**report, "seeds": [0]})


def test_what_the_page_says_of_the_test_sets(report: dict[str, Any]) -> None:
    tested = {**report, "tests": ["test"]}
    assert "are closed" in tables.opening_text(tested)
    opened = {"opened": "2026-11-30T10:00:00Z", "tested": ["one", "three"], "ranking": [["one", 0.5], ["three", 0.6]]}
    variants = [{**row, "added_after_opening": row["name"] == "two", "missing_at_opening": False} for row in report["variants"]]
    text = tables.opening_text({**tested, "opened": opened, "variants": variants})
    assert "opened once, on 2026-11-30, 10:00 UTC, after the validation results of 2 variants" in text
    assert "one, three. No model of this study had answered them before" in text
    assert "Added to the study afterwards: <script>50% | $x_1$." in text
