"""Every recipe that is committed or packaged can be read, and what is wrong in one is said with the remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import mixpo
from mixpo.errors import RecipeError
from mixpo.recipe import Recipe, load, parse
from mixpo.study.schema import load_study

ROOT = Path(__file__).parent.parent
ASSETS = Path(mixpo.__file__).parent / "assets"
COMMITTED = sorted([*ROOT.glob("recipes/*.toml"), *ASSETS.glob("*.toml")])
DIGITS = {"kind": "digits"}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_committed_recipes_are_valid(path: Path) -> None:
    assert isinstance(load(path), Recipe)


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/studies/*.toml")), ids=lambda path: path.name)
def test_committed_studies_are_valid(path: Path) -> None:
    assert load_study(path).runs


def test_the_demo_recipe_is_the_packaged_one() -> None:
    assert (ASSETS / "demo.toml").read_bytes() == (ROOT / "recipes" / "demo.toml").read_bytes()


def test_a_dumped_recipe_reads_back() -> None:
    recipe = parse({"source": DIGITS, "evaluate": {"sets": [{"name": "test", "source": {"kind": "digits", "pool": "test"}}]}}, "r")
    assert parse(recipe.model_dump(mode="json"), "again") == recipe


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": {"bta": 1}}, "r.toml: train: unknown key 'bta', did you mean 'loss.beta'?"),
        ({"train": {"loss": {"bta": 1}}}, "r.toml: train.loss: unknown key 'bta', did you mean 'beta'?"),
        ({"temperature": 1}, "r.toml: unknown key 'temperature', did you mean 'sample.temperature'?"),
        ({"pairs": {"learnin_rate": 1}}, "r.toml: pairs: unknown key 'learnin_rate', did you mean 'train.learning_rate'?"),
        ({"trian": {}}, "r.toml: unknown key 'trian', did you mean 'train'?"),
        ({"xyzzy": 1}, "r.toml: unknown key 'xyzzy'; known: "),
        (
            {"source": {**DIGITS, "questions": 4}},
            "source.digits: unknown key 'questions'; known: kind, pool, count, open_share, families, seed",
        ),
        ({"train": {"objective": "mop"}}, "did you mean 'mpo'?"),
        ({"source": {"kind": "digit"}}, "unknown kind 'digit', did you mean 'digits'?"),
        ({"source": {"kind": "digits", "pol": 1}}, "source.digits: unknown key 'pol', did you mean 'pool'?"),
        ({"source": {"kind": "jsonl"}}, "source.jsonl: missing key 'path'"),
        ({"sample": {"n": 0}}, "sample: n: must be at least 1 (got 0)"),
        ({"sample": {"n": True}}, "sample: n: must be a whole number (got 'true')"),
        ({"sample": {"n": 2.5}}, "sample: n: must be a whole number (got 2.5)"),
        ({"sample": {"n": "two"}}, "sample: n: must be a whole number (got 'two')"),
        ({"sample": {"temperature": False}}, "sample: temperature: must be a number (got 'false')"),
        ({"sample": {"temperature": 0}}, "sample: temperature: must be above 0 (got 0)"),
        ({"source": {"kind": "jsonl", "path": 5}}, "source.jsonl: path: must be text (got 5)"),
        ({"source": {"kidn": "jsonl", "path": "x"}}, "source: unknown key 'kidn', did you mean 'kind'?"),
        ({"source": {"path": "x"}}, "source: missing key 'kind'"),
        ({"source": "q.jsonl"}, "source: must be a table (got 'q.jsonl')"),
        ({"source": [DIGITS]}, "in [[source]] the source is a table of its own: name = "),
        ({"source": [{"name": "a", "source": {"kind": "jsonl"}}]}, "source.0.source.jsonl: missing key 'path'"),
        ({"source": [{"name": "a", "source": DIGITS, "wieght": 1}]}, "source.0: unknown key 'wieght', did you mean 'weight'?"),
        (
            {"source": [{"name": "a", "source": DIGITS}] * 2},
            "r.toml: source: two sources have the name 'a'; reports and rules count by name",
        ),
        (
            {"verify": {"custom": "checks.check"}},
            'verify: custom: must be "module:function", such as "my_checks:check" (got \'checks.check\')',
        ),
        ({"verify": {"custom": {"a": "x"}}}, 'verify.custom: a: must be "module:function", such as "my_checks:check" (got \'x\')'),
        ({"source": [{"name": "a", "source": DIGITS, "weight": 2}]}, "weight: must be at most 1"),
        ({"evaluate": {"sets": {"name": "a"}}}, "evaluate: sets: is a list of tables; write [[evaluate.sets]], not [evaluate.sets]"),
        ({"train": {"baselines": "sft"}}, "train: baselines: must be a list, in [brackets] (got 'sft')"),
        ({"train": {"lora": True}}, "train: lora: must be a table (got true)"),
        ({"train": {"watch": {"every": True}}}, "train.watch: every: must be a whole number (got 'true')"),
        ({"train": {"seed": 1}}, "train: unknown key 'seed', did you mean 'seed' at the top, above the first [table]?"),
        (
            {"source": {"kind": "jsonl", "path": "x", "seed": 1}},
            "unknown key 'seed', did you mean 'seed' at the top, above the first [table]?",
        ),
        (
            {"prompt": {"by_domain": {"chart": {"template": "{question}"}}}},
            "prompt.by_domain: chart: say how the final answer is marked with one of style, marker and pattern",
        ),
        ({"source": None}, "r.toml: there is nothing to do: add a table [source]"),
        ({"prompt": {"cot": {"template": "?", "style": "final"}}}, "prompt: cot: template must contain {question} exactly once"),
        ({"model": {"trust_remote_code": "maybe"}}, "model: trust_remote_code: must be true or false (got 'maybe')"),
        ({"train": {"freeze": ["llm", "vision", "projector"]}}, "train: freeze names every part, so there is nothing to train"),
        (
            {"train": {"loss": {"preference": 0, "quality": 0, "generation": 0.0}}},
            "objective 'mpo': all its weights in train.loss are 0 (preference, quality, generation)",
        ),
        (
            {"train": {"objective": "dpo", "baselines": ["dpo+sft"], "loss": {"preference": 0, "generation": 0.0}}},
            "objective 'dpo+sft': all its weights in train.loss are 0 (preference, generation)",
        ),
        (
            {"train": {"objective": "sft", "loss": {"hold": 0.1}}},
            "objective 'sft' has no preference or quality term for train.loss.hold to restrain; set train.loss.hold = 0",
        ),
        ({"model": {"dtype": "fp16"}}, "model: dtype: must be 'float32', 'bfloat16' or 'float16' (got 'fp16')"),
    ],
)
def test_what_is_wrong_is_said(data: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse({"source": DIGITS, **data}, "r.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[source]\nkind = "digits"\n[train]\nbta = 0.1\n')
    with pytest.raises(RecipeError, match=r"r\.toml:4: train: unknown key 'bta'"):
        load(path)


def test_the_line_of_an_inline_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    sets = '[[evaluate.sets]]\nname = "%s"\nsource = { kind = "digits", %s = 4 }\n'
    path.write_text("\n" + sets % ("a", "count") + sets % ("b", "cuont") + '[source]\nkind = "jsonl"\n')
    with pytest.raises(RecipeError) as caught:
        load(path)
    said = str(caught.value).replace(str(tmp_path), "").splitlines()
    assert sorted(said) == [
        "/r.toml:7: evaluate.sets.1.source.digits: unknown key 'cuont', did you mean 'count'?",
        "/r.toml:8: source.jsonl: missing key 'path'",
    ]


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder; give the recipe"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [("train.learning_rate=1e-5", 1e-5), ("train.loss.beta=0.2", 0.2), ('model.path="x"', "x"), ("model.path=x", "x")],
)
def test_overrides(tmp_path: Path, override: str, expected: object) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[source]\nkind = "digits"\n')
    value = load(path, (override,)).model_dump()
    for part in override.split("=")[0].split("."):
        value = value[part]
    assert value == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.loss.beta=-1", r"^--set train\.loss\.beta=-1: train\.loss: beta: must be above 0 "),
        ("train.loss={bta = 1}", r"^--set train\.loss=\{bta = 1\}: train\.loss: unknown key 'bta', did you mean 'beta'"),
        ("source.count=x", r"^--set source\.count=x: "),
        ("train.epochs=2", r"^.*r\.toml:6: train\.loss: beta: "),
    ],
)
def test_an_error_names_the_override_that_made_it(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[source]\nkind = "digits"\ncount = 5\n\n[train.loss]\nbeta = %s\n' % ("-2" if "epochs" in override else "0.1"))
    with pytest.raises(RecipeError, match=message):
        load(path, (override,))


@pytest.mark.parametrize("override", ["train", "=1", "train..x=1", "seed.x=1"])
def test_bad_overrides(tmp_path: Path, override: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text('seed = 1\n[source]\nkind = "digits"\n')
    with pytest.raises(RecipeError, match="--set"):
        load(path, (override,))


@pytest.mark.parametrize("content", ["a = ", b"\xff\xfe"])
def test_not_toml(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError, match=r"r\.toml"):
        load(path)
    with pytest.raises(RecipeError, match="no such recipe"):
        load(tmp_path / "missing.toml")
    with pytest.raises(RecipeError, match="is a folder; give the recipe, a TOML file, and name a run directory with --dir"):
        load(tmp_path)


def test_toml_of_committed_recipes_sets_no_default_twice() -> None:
    """A recipe that repeats a table would not parse at all; this keeps the glob above honest."""
    assert all(tomllib.loads(path.read_text(encoding="utf-8")) for path in COMMITTED)


def test_the_line_is_that_of_the_key_in_its_own_table(tmp_path: Path) -> None:
    """Several tables have a `batch_size` or a `path`; an error must not point at another one's."""
    path = tmp_path / "r.toml"
    text = """
[sample]
batch_size = 4
[evaluate]
batch_size = 8
[[evaluate.sets]]
name = "one"
source = { kind = "digits" }
[[evaluate.sets]]
name = "Two"
source.kind = "digits"
source.poool = "test"
[source]
kind = "jsnl"
[train]
batch_size = 2.5
freeze = ["visoin"]
loss.bta = 1
"""
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(path)
    lines = dict.fromkeys(line.split(": ", 1)[0].rpartition(":")[2] for line in str(caught.value).splitlines())
    assert sorted(map(int, lines)) == [10, 12, 13, 16, 17, 18]


@pytest.mark.parametrize(
    ("text", "line"), [('[model]\n[[source]]\nkind = "digits"\n', 2), ('[source]\nkind = "digits"\n[evaluate.sets]\nname = "a"\n', 3)]
)
def test_the_line_of_a_table_with_the_wrong_brackets(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=rf"r\.toml:{line}: .*; write \["):
        load(path)


def test_a_single_term_needs_no_weight() -> None:
    loss = {"preference": 0, "quality": 0, "generation": 0}
    assert parse({"source": DIGITS, "train": {"objective": "dpo", "baselines": ["sft"], "loss": loss}}, "r").train.objective == "dpo"
