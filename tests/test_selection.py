"""Selection in whole runs: evaluation sets kept out of training, marks of a person, balance, and the list of all-wrong questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_run
from small_run import open_small, plan_of, said, unfinished

from mixpo.cli import main
from mixpo.commands.check import check
from mixpo.errors import RecordError
from mixpo.pipeline import run_stage
from mixpo.progress import Silent
from mixpo.recipe import JsonlSource
from mixpo.sources.decontaminate import ContaminationFilter
from mixpo.stages.questions import read_sources
from mixpo.types import ImageRef, Question


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    made = small_run.make(tmp_path, tiny_folder)
    made.write_text(made.read_text().replace("[sample]", "[sample]\nbatch_size = 8"))
    return made


def left_out(run: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (run / "source" / "skipped.jsonl").read_text().splitlines()]
    return [(Path(row["where"]).name, row["reason"]) for row in rows]


# --- decontamination -----------------------------------------------------------------------------------------------------------


def question(text: str, *images: str) -> Question:
    return Question(id=text, text=text, images=tuple(ImageRef(path=name, digest=name * 64) for name in images))


@pytest.mark.parametrize(
    ("asked", "by_image", "by_question"),
    [
        (question("How many?", "a"), True, True),
        (question("<image>\nhow MANY", "a"), True, True),
        (question("Another one?", "a"), True, False),
        (question("Another one?", "c", "b"), True, False),
        (question("How many?", "c"), False, False),  # the same words about another picture
        (question("How many?"), False, False),
        (question("1 + 1?"), True, True),
        (question("1 + 2?"), False, False),
    ],
)
def test_what_is_barred(asked: Question, by_image: bool, by_question: bool) -> None:
    for mode, is_barred in (("image", by_image), ("question", by_question)):
        contamination = ContaminationFilter(mode=mode)
        for held_out in (question("<image> How many?", "a"), question("Which?", "b"), question("1 + 1")):
            contamination.add("test", held_out)
        reason = contamination.reason(asked)
        assert (reason is not None) == is_barred
        assert reason is None or reason.endswith("is in the evaluation set 'test'")


def test_training_keeps_off_the_evaluation_sets(recipe: Path) -> None:
    run, folder = recipe.parent / "run", recipe.parent
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    rows[2]["image"] = "images/501.png"
    small_run.write_jsonl(folder / "questions.jsonl", rows)
    context = open_small(recipe, run)
    assert read_sources(context).train.questions == 9
    assert left_out(run) == [("questions.jsonl:3", "its image is in the evaluation set 'held-out'")]
    assert any("1 row skipped" in line for line in said(context))
    checked = check(context.recipe, folder, Silent())
    assert [(Path(row.where).name, row.problem) for row in checked.left_out] == left_out(run)
    assert not checked.findings
    assert checked.counts["source: questions"] == 9
    assert read_sources(open_small(recipe, run, "evaluate.decontaminate=question")).train.questions == 10
    assert read_sources(open_small(recipe, run, "evaluate.decontaminate=off")).train.questions == 10


def test_the_check_says_where_duplicates_stand(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe.parent / "questions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[1], *lines[3:], *[lines[0]] * 21]))
    assert main(["check", str(recipe)]) == 0
    out = capsys.readouterr().out
    (fourth,) = [line for line in out.splitlines() if "questions.jsonl:4: duplicate of an earlier row" in line]
    assert fourth.endswith("questions.jsonl:2")
    assert out.count("duplicate of an earlier row") == 20
    assert "2 further duplicates; --json lists all" in out
    assert main(["check", str(recipe), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["duplicates"]) == 22


def test_the_check_says_where_a_question_has_another_answer(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe.parent / "questions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    small_run.write_jsonl(path, [*rows, {**rows[1], "answer": "another"}, {**rows[2], "image": rows[1]["image"]}])
    assert main(["check", str(recipe)]) == 3
    (found,) = [line for line in capsys.readouterr().out.splitlines() if "another answer" in line]
    assert f"questions.jsonl:{len(rows) + 1}: the same question, with the same images, has another answer" in found
    assert found.endswith("questions.jsonl:2")


def test_the_check_lists_what_is_kept_out(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recipe.parent
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    rows[2]["image"] = "images/501.png"
    small_run.write_jsonl(folder / "questions.jsonl", rows)
    assert main(["check", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert "questions.jsonl:3: filtered from training: its image is in the evaluation set 'held-out'" in out
    assert "no problems found" in out
    small_run.write_jsonl(folder / "questions.jsonl", rows[2:3])
    assert main(["check", str(recipe)]) == 3
    assert "source: no row is usable" in capsys.readouterr().out


def test_sources_that_need_no_second_look_are_read_again_for_other_sets(recipe: Path) -> None:
    run = recipe.parent / "run"
    sets = '[{name="held-out", source={kind="digits", count=3}}]'
    text = recipe.read_text().replace('kind = "jsonl"\npath = "questions.jsonl"', 'kind = "digits"\ncount = 6')
    recipe.write_text(text)
    assert read_sources(open_small(recipe, run)).train.questions == 6
    assert read_sources(open_small(recipe, run, f"evaluate.sets={sets}")).train.questions == 3
    assert isinstance(open_small(recipe, run).recipe.evaluate.sets[0].source, JsonlSource)


# --- marks ---------------------------------------------------------------------------------------------------------------------


def mark(run: Path, *rows: object) -> None:
    path = run / "audit" / "labels.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def pairs_stage(recipe: Path, *settings: str) -> None:
    for kinds in (["sample", "continue"], ["verify"], ["pair", "select"]):
        run_stage(open_small(recipe, recipe.parent / "run", *settings), kinds)


def test_a_mark_changes_the_pairs_of_its_shard_only(recipe: Path) -> None:
    run = recipe.parent / "run"
    pairs_stage(recipe)
    first = plan_of(open_small(recipe, run))
    asked = first.rows("source", 1)[1]
    assert {pair.chosen_index for pair in first.rows("round-1/pair", 1)[1].pairs} == {0, 2}
    rows = [{"question": asked.id, "index": 2, "outcome": outcome, "by": "Ada", "time": "now"} for outcome in ("correct", "wrong")]
    mark(run, *rows, {"question": asked.id, "index": 0, "outcome": "undecided", "round": 2})
    second = plan_of(open_small(recipe, run))
    names = first.shards("round-1/pair"), second.shards("round-1/pair")
    assert [old == new for old, new in zip(*names, strict=True)] == [True, False, True]
    assert "round-1/verify" not in unfinished(second)
    pairs_stage(recipe)
    third = plan_of(open_small(recipe, run))
    row = third.rows("round-1/pair", 1)[1]
    assert {(pair.chosen_index, pair.rejected_index) for pair in row.pairs} == {(0, 1), (0, 3)}
    # Answer 2 is on the other side now, but its final answer still is the right one.
    assert [(drop.reason, drop.count) for drop in row.dropped] == [("entailment", 1)]
    assert row.marked == 1
    manifest = third.planned["round-1/pair"].stage.manifest
    assert manifest is not None
    assert manifest.counts["marked"] == 1
    # A line that is still being written does not count.
    with (run / "audit" / "labels.jsonl").open("a") as stream:
        stream.write('{"question": "')
    assert plan_of(open_small(recipe, run)).shards("round-1/pair") == third.shards("round-1/pair")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "labels.jsonl:1: not valid JSON"),
        ("[]", "labels.jsonl:1: a label has question"),
        ('{"question": "a", "index": 0, "outcome": "right"}', "correct, wrong, malformed, undecided"),
        ('{"question": "a", "index": "0", "outcome": "wrong"}', "index must be a whole number"),
        ('{"question": "a", "index": true, "outcome": "wrong"}', "index must be a whole number"),
    ],
)
def test_lines_that_are_no_marks(recipe: Path, row: str, message: str) -> None:
    context = open_small(recipe, recipe.parent / "run")
    path = context.run.root / "audit" / "labels.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(row + "\n")
    with pytest.raises(RecordError, match=message):
        plan_of(context)


# --- balance and lists ---------------------------------------------------------------------------------------------------------


def test_balance_is_a_stage_of_its_own(recipe: Path) -> None:
    run, settings = recipe.parent / "run", ('pairs.balance=["origin"]', "pairs.balance_to=0.5")
    pairs_stage(recipe)
    assert not (run / "round-1" / "select").exists()
    pairs_stage(recipe, *settings)
    plan = plan_of(open_small(recipe, run, *settings))
    before, after = (plan.planned[f"round-1/{kind}"].stage.manifest for kind in ("pair", "select"))
    assert before is not None
    assert after is not None
    assert after.counts["dropped: balance"] == before.counts["pairs"] - after.counts["pairs"] > 0
    assert plan.planned["round-1/reference"].job.inputs == plan.shards("round-1/select")
    # Another balance makes no pair anew.
    assert "round-1/pair" not in unfinished(plan_of(open_small(recipe, run, 'pairs.balance=["domain"]')))


def test_all_wrong_questions_are_listed_as_a_source_reads_them(recipe: Path) -> None:
    folder, run = recipe.parent, recipe.parent / "run"
    rows = [json.loads(line) for line in (folder / "script.jsonl").read_text().splitlines()]
    rows[0]["responses"] = ["Final answer: 88", "no idea"]
    small_run.write_jsonl(folder / "script.jsonl", rows)
    pairs_stage(recipe)
    path = run / "round-1" / "verify" / "all_wrong.jsonl"
    [listed] = [json.loads(line) for line in path.read_text().splitlines()]
    assert (listed["question"], listed["answer"]) == ("<image>\nWhat is number 11?", "11")
    told = {**listed, "image": "images/11.png", "rationale": "Eleven. Final answer: 11"}
    questions = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    small_run.write_jsonl(folder / "questions.jsonl", [told, *questions[1:]])
    pairs_stage(recipe, "pairs.rationales=true")
    plan = plan_of(open_small(recipe, run, "pairs.rationales=true"))
    assert plan.rows("source", 0)[0].id == plan.rows("round-1/pair", 0)[0].question
    assert [pair.chosen for pair in plan.rows("round-1/pair", 0)[0].pairs] == ["Eleven. Final answer: 11"] * 2
    manifest = plan.planned["round-1/pair"].stage.manifest
    assert manifest is not None
    assert manifest.counts["with_rationale"] == 2
