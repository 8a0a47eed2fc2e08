"""POPE: F1 by hand, the official reading with its faults beside ours, labels joined by number."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_run
from bench_files import b64, figures, load, outcomes, png, questions, save_png, value
from table_files import jsonl, parquet, tsv

from mixpo.errors import SourceError
from mixpo.evaluate.benchmarks import prompt_of
from mixpo.pipeline import open_context
from mixpo.progress import Silent
from mixpo.recipe import load as load_recipe
from mixpo.stages.questions import read_sources
from mixpo.types import Question, Skipped

CATEGORIES = ("adversarial", "popular", "random")
ASK = "Is there a dog in the image?"


def rows(category: str) -> list[dict[str, object]]:
    """Two yes and two no."""
    return [
        {"id": str(n), "question_id": str(n), "question": f"Is there a {thing} in the image?", "answer": answer, "image_source": "COCO_1",
         "image": {"bytes": png(n), "path": None}, "category": category}
        for n, (thing, answer) in enumerate((("dog", "yes"), ("cat", "yes"), ("bus", "no"), ("cup", "no")), start=1)
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [row for name in CATEGORIES for row in rows(name)])
    return tmp_path


def test_equal_questions_of_several_categories_all_count(folder: Path) -> None:
    found = questions("pope", folder)
    assert len(found) == len({q.id for q in found}) == 12
    assert prompt_of(found[0], "direct") == f"<image>\n{ASK}\nAnswer the question using a single word or phrase."
    assert found[0].text == f"<image>\n{ASK}"


def test_the_full_configuration_has_a_file_for_each_category(tmp_path: Path) -> None:
    for name in CATEGORIES:
        parquet(tmp_path / "Full" / f"{name}-00000-of-00001.parquet", rows(name))
    assert len(questions("pope", tmp_path)) == 12
    assert len(questions("pope", tmp_path, split="popular")) == 4


def test_figures_by_hand(folder: Path) -> None:
    # adversarial: yes yes yes no -> TP 2, FP 1, FN 0: P 2/3, R 1, F1 0.8.  popular: no no no no -> F1 0.
    # random: yes no no yes -> TP 1, FP 1, FN 1: P = R = F1 = 0.5.
    said = ["yes", "Yes.", "yes", "no", "no", "No", "no", "no", "yes", "no", "no", "yes"]
    for extractor in ("robust", "paper"):
        found = figures("pope", questions("pope", folder), said, extractor)
        assert [value(found, "F1", name) for name in CATEGORIES] == pytest.approx([80.0, 0.0, 50.0])
        assert found[0].name == "F1 (mean of categories)"
        assert found[0].value == pytest.approx(130 / 3)
        # pooled: TP 3, FP 2, FN 3: P 3/5, R 1/2, F1 6/11.
        assert value(found, "F1 (pooled)") == pytest.approx(600 / 11)
        assert value(found, "precision", "adversarial") == pytest.approx(200 / 3)
        assert value(found, "recall", "random") == 50.0
        assert [value(found, "yes ratio", name) for name in CATEGORIES] == [75.0, 0.0, 50.0]
        assert value(found, "accuracy", "adversarial") == 75.0
        assert value(found, "accuracy") == pytest.approx(100 * 7 / 12)


@pytest.mark.parametrize(
    ("answer", "robust", "paper"),
    [
        ("no", "c", "c"), ("No, there is no bus.", "c", "c"), ("**No**", "c", "w"), ("NO", "c", "w"), ("no\nbecause I looked", "c", "w"),
        ("I cannot tell", "u", "w"), ("", "m", "w"), ("yes", "w", "w"), ("There is not a bus.", "c", "c"), ("Yes. No.", "u", "w"),
        ("two of them", "u", "w"), ("7", "u", "w"),
    ],
)  # fmt: skip
def test_what_means_no(folder: Path, answer: str, robust: str, paper: str) -> None:
    bus = questions("pope", folder)[2:3]
    assert outcomes("pope", bus, [answer], "robust") == robust
    assert outcomes("pope", bus, [answer], "paper") == paper


def test_an_undecided_answer_is_no_yes(folder: Path) -> None:
    found = figures("pope", questions("pope", folder)[:4], ["yes", "I cannot tell", "I cannot tell", "a cup"])
    assert (value(found, "precision", "adversarial"), value(found, "recall", "adversarial")) == (100.0, 50.0)
    assert value(found, "yes ratio", "adversarial") == 25.0


def test_chain_of_thought(folder: Path) -> None:
    found = questions("pope", folder)[:3]
    assert prompt_of(found[0], "cot") is None
    said = ["I see a dog. Final answer: Yes", "Final answer: **Yes**", "No bus here, not at all.\nFinal answer: no"]
    assert outcomes("pope", found, said, "robust", "cot") == "ccc"
    assert outcomes("pope", found, said, "paper", "cot") == "ccc"


def test_the_vlmevalkit_table_names_several_categories(tmp_path: Path) -> None:
    made = [
        {"index": 1, "image": b64(1), "question": ASK, "answer": "Yes", "category": "adversarial,popular,random"},
        {"index": 2, "image": "1", "question": "Is there a bus in the image?", "answer": "No", "category": "random"},
    ]
    found = figures("pope", questions("pope", tmp_path, tsv(tmp_path / "POPE.tsv", made)), ["yes", "yes"])
    assert [value(found, "F1", name) for name in CATEGORIES] == pytest.approx([100.0, 100.0, 200 / 3])
    assert found[0].n == 4


def test_a_repeated_row_counts_twice_and_is_logged(tmp_path: Path, tiny_folder: Path) -> None:
    """Positives of POPE stand in all three categories, and a copied file doubles every row: nothing of it is left out or asked for one."""
    (tmp_path / "pope").mkdir()
    parquet(tmp_path / "pope" / "data" / "test-0.parquet", [row for name in CATEGORIES for row in rows(name)] + rows("random"))
    found = questions("pope", tmp_path, "pope")
    assert len(found) == len({q.id for q in found}) == 16
    said = ["yes", "yes", "no", "no"] * 3 + ["no", "yes", "no", "no"]
    # random: 8 rows, TP 3, FN 1, FP 0: F1 6/7.
    assert value(figures("pope", found, said), "F1", "random") == pytest.approx(600 / 7)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[source]\nkind = "digits"\ncount = 4\n[model]\npath = "{tiny_folder}"\ndevice = "cpu"\n'
        '[[evaluate.sets]]\nname = "pope"\nsource = { kind = "benchmark", name = "pope", path = "pope" }\n'
    )
    context = open_context(load_recipe(recipe), tmp_path, tmp_path / "run", Silent())
    read_sources(context)
    counts = small_run.manifest_of(context.run, "evaluate/pope/source").counts
    assert (counts["questions"], counts["repeated rows"], counts["repeated questions"]) == (16, 4, 8)
    assert "rows in several categories" not in counts
    lines = small_run.said(context)
    assert any(line.startswith("evaluate/pope/source: 4 rows occur more than once in the files") for line in lines)
    assert any("8 rows repeat the question of an earlier row" in line for line in lines)


def intern(tmp_path: Path, swap: bool = False) -> Path:
    """InternVL's questions, labels in files that are JSONL, and COCO images."""
    suffix = "\nAnswer the question using a single word or phrase."
    asked, labels = [], []
    for n, answer in ((1, "yes"), (2, "no")):
        name = f"COCO_val2014_{n}.jpg"
        save_png(tmp_path / "val2014" / name, n)
        asked.append({"question_id": n, "image": name, "text": f"Is there a thing {n} in the image?{suffix}", "category": "popular"})
        labels.append({"question_id": n, "image": name, "text": f"Is there a thing {n} in the image?", "label": answer})
    jsonl(tmp_path / "llava_pope_test.jsonl", asked)
    jsonl(tmp_path / "coco" / "coco_pope_popular.json", labels[::-1] if swap else labels)
    return tmp_path


@pytest.mark.parametrize("swap", [False, True])
def test_labels_are_joined_by_number_not_by_order(tmp_path: Path, swap: bool) -> None:
    found = questions("pope", intern(tmp_path, swap), root="val2014")
    assert [q.answer for q in found] == ["yes", "no"]
    assert found[0].text == "<image>\nIs there a thing 1 in the image?"


def test_a_missing_coco_image_and_a_missing_label_are_said(tmp_path: Path) -> None:
    intern(tmp_path)
    (tmp_path / "val2014" / "COCO_val2014_2.jpg").unlink()
    _, bad = load("pope", tmp_path, root="val2014")
    assert isinstance(bad, Skipped)
    assert "COCO_val2014_2.jpg" in bad.reason
    (tmp_path / "coco" / "coco_pope_popular.json").write_text("")
    with pytest.raises(SourceError, match="holds no rows"):
        load("pope", tmp_path, root="val2014")
    (tmp_path / "coco" / "coco_pope_popular.json").unlink()
    with pytest.raises(SourceError, match=r"no label for question 1 of 'popular'; set source\.answers"):
        load("pope", tmp_path, root="val2014")


def test_a_row_without_an_answer_says_where_it_stands(tmp_path: Path) -> None:
    """It is no row of InternVL's questions, whose labels are elsewhere."""
    row = {"image": b64(1), "question": "Is there a dog?", "category": "random"}
    tsv(tmp_path / "POPE.tsv", [{"index": 1, **row, "answer": "Yes"}, {"index": 2, **row, "answer": ""}])
    first, second = load("pope", tmp_path)
    assert isinstance(first, Question)
    assert isinstance(second, Skipped)
    assert second.where == f"{tmp_path}/POPE.tsv:2"
    assert second.reason == "no field 'answer' or 'label'; the row has 'index', 'image', 'question', 'category'"
    tsv(tmp_path / "POPE.tsv", [{"id": 1, "img": b64(1)}])
    (only,) = load("pope", tmp_path)
    assert isinstance(only, Skipped)


def test_a_label_without_its_fields_says_where_it_stands(tmp_path: Path) -> None:
    save_png(tmp_path / "1.jpg")
    jsonl(tmp_path / "llava_pope_test.jsonl", [{"question_id": 1, "image": "1.jpg", "text": "Is it?", "category": "random"}])
    jsonl(tmp_path / "coco_pope_random.json", [{"image": "1.jpg", "text": "Is it?", "label": "yes"}])
    with pytest.raises(SourceError, match=r"coco_pope_random\.json:1: no field 'question_id'"):
        load("pope", tmp_path)


TABLES = {
    "pope": "POPE.tsv",
    "mmvet": "MMVet.tsv",
    "llava_bench": "LLaVABench.tsv",
    "crpe": "CRPE_RELATION.tsv",
    "mathvista": "MathVista_MINI.tsv",
    "mathvision": "MathVision_MINI.tsv",
}


@pytest.mark.parametrize("name", TABLES)
def test_the_table_among_those_of_other_benchmarks(tmp_path: Path, name: str) -> None:
    """VLMEvalKit keeps all of them in one folder, and rows of one can look like those of another."""
    row = {"index": 1, "image": b64(1), "answer": "Yes", "category": "random", "caption": "c", "gpt4_ans": "g"}
    for file in (*TABLES.values(), "MathVision.tsv", "MathVerse_MINI.tsv", "CRPE_EXIST.tsv", "MMBench.tsv"):
        options = {"A": "No", "B": "Yes"} if "CRPE" in file else {}
        tsv(tmp_path / file, [{**row, **options, "question": f"Is there a {file}?"}])
    (found,) = questions(name, tmp_path)
    assert f"Is there a {TABLES[name]}?" in found.text


def test_several_data_sets_in_one_folder_are_not_mixed(tmp_path: Path) -> None:
    for clone in ("POPE", "MMVet"):
        parquet(tmp_path / clone / "data" / "test-0.parquet", rows("random"))
    with pytest.raises(SourceError, match=r"holds several data sets \(MMVet/data, POPE/data\); set source\.path to one of them"):
        load("pope", tmp_path)
    assert len(questions("pope", tmp_path, "POPE")) == 4
    for table in ("a_test.tsv", "b_test.tsv"):
        tsv(tmp_path / "tables" / table, [{"index": 1}])
    with pytest.raises(SourceError, match=r"several data sets \(a_test\.tsv, b_test\.tsv\)"):
        load("pope", tmp_path, "tables")
    # Each category of a saved data set has a folder of its own.
    for name in CATEGORIES:
        parquet(tmp_path / "saved" / name / "data-0.parquet", rows(name))
    assert len(questions("pope", tmp_path, "saved")) == 12


def test_a_clone_without_the_content_is_named(tmp_path: Path) -> None:
    (tmp_path / "test.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(SourceError, match=r"test\.parquet: a Git LFS pointer without the content; fetch it with `git lfs pull`"):
        load("pope", tmp_path)
