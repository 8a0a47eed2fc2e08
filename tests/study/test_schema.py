"""study.toml is checked whole before anything runs, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from failures import fails

from mixpo.errors import RecipeError
from mixpo.study.execute import named
from mixpo.study.schema import load_study

STUDY = """
recipe = "mixpo:demo"
seeds = [0, 1]
[compare]
baseline = "mpo"
[[variants]]
name = "mpo"
[[variants]]
name = "slow"
set = ["train.learning_rate=3e-5"]
[[validation]]
name = "validation"
source = { kind = "digits", pool = "validation", count = 8, seed = 3 }
[[test]]
name = "test"
"""


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    """The study with parts of its text replaced."""
    text = STUDY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_runs_have_the_recipe_with_seed_settings_and_sets(tmp_path: Path) -> None:
    study = load_study(write(tmp_path), ("sample.n=2",), limit=3)
    assert [run.name for run in study.runs] == ["mpo-seed-0", "mpo-seed-1", "slow-seed-0", "slow-seed-1"]
    run = study.runs[3]
    assert (run.recipe.seed, run.recipe.sample.n, run.recipe.train.learning_rate, run.model) == (1, 2, 3e-5, "mpo")
    # The test set is that of the recipe; validation comes first, because it is what watches a training.
    assert [(s.name, s.source.count) for s in run.recipe.evaluate.sets] == [("validation", 8), ("test", 1000)]  # type: ignore[union-attr]


def test_settings_of_a_variant_win(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, ("seeds = [0, 1]", 'set = ["train.learning_rate=1e-3"]')))
    assert [run.recipe.train.learning_rate for run in study.runs] == [1e-3, 3e-5]


@pytest.mark.parametrize(
    ("old", "new", "code", "key", "message"),
    [
        ('baseline = "mpo"', 'basline = "mpo"', "study-invalid", "compare.basline", "unknown key 'basline', did you mean 'baseline'?"),
        ('name = "slow"', 'nam = "slow"', "study-invalid", "variants.1.name", "variants.1: unknown key 'nam', did you mean 'name'?"),
        ('baseline = "mpo"', 'baseline = "mop"', "study-invalid", None, "no variant 'mop', did you mean 'mpo'?; known: base, mpo, slow"),
        ('name = "slow"', 'name = "mpo"', "study-invalid", None, "two variants are 'mpo'"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "study-invalid", None, "two seeds are '1'"),
        ("learning_rate", "learnin_rate", "unknown", None, "variant 'slow': --set train.learnin_rate=3e-5: train: unknown key"),
        ("train.learning_rate=3e-5", "seed=3", "study-key-reserved", "seed", "seed is decided by seeds of the study"),
        ("train.learning_rate=3e-5", "evaluate.own_models=false", "unknown", None, "variant 'slow'"),
        ("train.learning_rate=3e-5", "evaluate.modes=[\\\"direct\\\"]", "study-mode-missing", "evaluate.modes", "set evaluate.modes"),
        ("train.learning_rate=3e-5", "train.guard.set=test", "study-test-watched", "train.guard.set", "read the test set 'test' while"),
        ('name = "test"', 'name = "tset"', "study-set-unknown", "tset", "did you mean 'test'?"),
        ('"mixpo:demo"', '"none.toml"', "toml-missing", None, "none.toml: no such recipe"),
        ("[compare]", "[compare", "toml-syntax", None, "not valid TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, code: str, key: str | None, message: str) -> None:
    path = write(tmp_path, (old, new))
    with pytest.raises(RecipeError) as caught:
        load_study(path)
    assert message in str(caught.value)
    if code != "unknown":
        assert caught.value.code == code
    if code.startswith("study-"):
        assert str(caught.value).startswith(str(path))
    if key is not None:
        assert caught.value.key == key


def test_a_missing_study(tmp_path: Path) -> None:
    with fails("toml-missing", RecipeError, path=tmp_path / "study.toml"):
        load_study(tmp_path / "study.toml")


def test_runs_by_name(tmp_path: Path) -> None:
    study = load_study(write(tmp_path))
    assert [run.name for run in named(study, ["slow", "mpo-seed-1"])] == ["slow-seed-0", "slow-seed-1", "mpo-seed-1"]
    with fails("study-run-unknown", RecipeError, key="slo"):
        named(study, ["slo"])


def test_the_digest_is_of_what_decides(tmp_path: Path) -> None:
    one = load_study(write(tmp_path))
    assert load_study(write(tmp_path, ('name = "slow"', 'name = "slow"\ntitle = "slower"'))).digest("slow") == one.digest("slow")
    assert load_study(write(tmp_path), ("evaluate.batch_size=3",)).digest("slow") == one.digest("slow")  # speed alone
    assert load_study(write(tmp_path), ("train.loss.beta=0.3",)).digest("slow") != one.digest("slow")
    assert load_study(write(tmp_path, ("seed = 3", "seed = 4"))).digest("slow") != one.digest("slow")
    assert load_study(write(tmp_path), limit=3).digest("slow") != one.digest("slow")
