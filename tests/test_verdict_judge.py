"""`verify.judge` in a run: what it decides, what it is asked, unreadable replies, an endpoint that is down, resume and retry."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_run
from failures import fails
from judges import asked, serving

from mixpo.commands.plan import dry_run
from mixpo.commands.retry import retry
from mixpo.errors import EvaluateError, RecipeError
from mixpo.evaluate.grading import UNREAD
from mixpo.pipeline import run_recipe, run_until
from mixpo.records import Judged, Prediction
from mixpo.stages.job import Context
from mixpo.stages.verdict_judge import UNCLEAR, read_verdict

pytest.importorskip("aiohttp")
VERIFY = "round-1/verify"
COUNT = 4


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    """Each question has a right, a wrong and two undecided answers by rules."""
    made = small_run.make(tmp_path, tiny_folder, COUNT)
    script = []
    for number in (*range(11, 11 + COUNT), *range(501, 507)):
        last = "perhaps 5, mumble" if number in (12, 502) else "perhaps 5 or 6"
        texts = [f"Final answer: {number}", "Final answer: 88", f"Final answer: 77 or rather {number}", f"Final answer: {last}"]
        script.append({"question": f"What is number {number}?", "responses": texts})
    small_run.write_jsonl(tmp_path / "script.jsonl", script)
    return made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a judge, and the folder of what it is asked."""
    with serving("verdicts", tmp_path / "server") as url:
        yield url, tmp_path / "server"


def opened(recipe: Path, url: str, *more: str, attempts: int = 1) -> Context:
    judge = f'verify.judge={{model="judge-7b", urls=["{url}"], retries=0, patience_s=60, attempts={attempts}, agreement=1.0}}'
    return small_run.open_small(recipe, recipe.parent / "run", judge, *more)


def verdicts(context: Context) -> list[Judged]:
    return list(context.run.stage(VERIFY).read_all(Judged))


def texts(folder: Path) -> list[str]:
    return [str(request["messages"][-1]["content"]) for request in asked(folder)]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("correct", "correct"),
        ("**Correct.**", "correct"),
        ("Verdict: wrong", "wrong"),
        ("Both say blue.\nCorrect", "correct"),
        ("Incorrect.", "wrong"),
        ("unclear", "undecided"),
        ("not correct", None),
        ("correct or wrong", None),
        ("correct\nThat is all.", None),
        ("", None),
    ],
)
def test_a_reply_is_one_word(reply: str, expected: str | None) -> None:
    assert read_verdict(reply) == expected


def test_it_decides_what_the_rules_leave_undecided(recipe: Path, server: tuple[str, Path]) -> None:
    url, folder = server
    context = opened(recipe, url)
    run_until(context, "verify")
    rows = verdicts(context)
    assert [[verdict.outcome for verdict in row.verdicts] for row in rows] == [["correct", "wrong", "correct", "undecided"]] * COUNT
    assert {row.verdicts[2].reason.partition(" #")[0] for row in rows} == {"judge judge-7b-2026-01-01"}
    assert [row.verdicts[3].reason for row in rows] == [UNCLEAR, UNREAD, UNCLEAR, UNCLEAR]
    assert ([row.unread for row in rows], rows[0].judge_checked, rows[0].judge_agreed) == ([0, 1, 0, 0], 2, 2)
    counts = small_run.manifest_of(context.run, VERIFY).counts
    assert (counts["verdicts compared with the judge"], counts["verdicts that the judge shares"]) == (2 * COUNT, 2 * COUNT)
    assert counts[f"undecided: {UNREAD}"] == 1
    example = f"{VERIFY}: 1 reply of the judge names no verdict, such as 'Well, it depends.'; `mixpo retry` retries them"
    assert example in small_run.said(context)
    assert sum(count for name, count in counts.items() if name.startswith("decided by judge judge-7b")) == COUNT
    assert f"{VERIFY}: the judge agrees with the rules on 8 of 8 sampled verdicts (100%)" in small_run.said(context)
    assert len(asked(folder)) == 4 * COUNT
    assert "Question:\nWhat is number 11?\n\nReference answer:\n11\n\nAnswer of the model" in "".join(texts(folder))

    # Nothing is asked again, whether the stage is done or has to be done again.
    run_until(opened(recipe, url), "verify")
    again = opened(recipe, "http://127.0.0.1:9/v1")
    run_until(again, "verify", force=("verify",))
    assert (verdicts(again), len(asked(folder))) == (rows, 4 * COUNT)


def test_a_plan_counts_its_requests(recipe: Path, server: tuple[str, Path]) -> None:
    """Assumed before the run, then the measured share: two of four undecided, and the others for the agreement."""
    url, folder = server
    more = ("verify.judge.agreement=0", "evaluate.modes=['cot']")

    def requests(*settings: str) -> dict[str, int]:
        rows = dry_run(opened(recipe, url, *more, *settings), force=("verify",))
        return {row.stage: row.requests for row in rows if row.stage in (VERIFY, "evaluate/held-out/base/cot")}

    assert requests() == {VERIFY: math.ceil(0.1 * 4 * COUNT), "evaluate/held-out/base/cot": 1}
    assert requests('verify.judge.sources=["questions"]')[VERIFY] == 4 * COUNT
    assert requests("verify.judge.agreement=1")[VERIFY] == 4 * COUNT
    run_until(opened(recipe, url, *more), "verify")
    assert requests() == {VERIFY: len(asked(folder)), "evaluate/held-out/base/cot": 3}


def test_a_source_of_its_own(recipe: Path, server: tuple[str, Path]) -> None:
    url, folder = server
    context = opened(recipe, url, 'verify.judge.sources=["questions"]', "verify.judge.agreement=0")
    small_run.write_jsonl(
        recipe.parent / "script.jsonl",
        [
            {
                "question": f"What is number {number}?",
                "responses": [f"It is {number}.", "It is 88.", f"Final answer: {number}", "hm, mumble"],
            }
            for number in range(11, 11 + COUNT)
        ],
    )
    run_until(context, "verify")
    outcomes = [[verdict.outcome for verdict in row.verdicts] for row in verdicts(context)]
    assert outcomes == [["correct", "wrong", "correct", "undecided"]] * COUNT
    assert len(asked(folder)) == 4 * COUNT
    assert "It is 11." in "".join(texts(folder))
    assert not any("agrees" in line for line in small_run.said(context))


def test_an_endpoint_that_is_down_costs_nothing_that_is_done(recipe: Path, tmp_path: Path) -> None:
    with serving("down", tmp_path / "down") as url:
        context = opened(recipe, url)
        with fails("judge-refused", EvaluateError, key="verify.judge"):
            run_until(context, "verify")
    with serving("verdicts", tmp_path / "server") as url:
        context = opened(recipe, url)
        run_until(context, "verify")
    assert len(verdicts(context)) == COUNT
    assert small_run.manifest_of(context.run, "round-1/sample").finished


def test_unreadable_replies_are_retried(recipe: Path, server: tuple[str, Path]) -> None:
    url, folder = server
    run_until(opened(recipe, url), "verify")
    before = len(asked(folder))
    (folder / "awake").touch()
    (row,) = retry(opened(recipe, url))
    assert (row.stage, row.asked, row.failed) == (VERIFY, 1, 0)
    assert len(asked(folder)) == before + 1
    context = opened(recipe, url)
    assert sum(row.unread for row in verdicts(context)) == 0
    assert retry(context) == []


@pytest.mark.slow
def test_pairs_and_evaluation_use_its_verdicts(recipe: Path, server: tuple[str, Path]) -> None:
    url, _ = server
    context = opened(recipe, url, "train.baselines=[]", "evaluate.samples=4", 'evaluate.modes=["cot"]')
    run_recipe(context)
    rows = list(context.run.stage("evaluate/held-out/base/sampled").read_all(Prediction))
    assert Counter(row.outcome for row in rows) == Counter(correct=12, wrong=6, undecided=6)
    assert sum(row.unread for row in rows) == 1
    assert {row.judge.partition(" ")[0] for row in rows if row.index == 2} == {"judge-7b-2026-01-01"}
    pairs = small_run.manifest_of(context.run, "round-1/pair").counts["pairs"]
    assert pairs == 2 * COUNT


def test_a_prompt_of_your_own(recipe: Path, server: tuple[str, Path]) -> None:
    url, folder = server
    (recipe.parent / "own.txt").write_text("{question} Reference answer:\n{reference}\ninstruction to you):\n{answer}\n\nReply")
    own = 'verify.judge.prompt="own.txt"'
    run_until(opened(recipe, url, own), "verify")
    assert texts(folder)[0].startswith("What is number 11? Reference answer:\n11\n")
    (recipe.parent / "own.txt").write_text("{question} {answer} again")
    assert VERIFY in small_run.unfinished(small_run.plan_of(opened(recipe, url, own)))
    (recipe.parent / "own.txt").write_text("{question}")
    with fails("judge-prompt-slot-missing", RecipeError, key="answer"):
        small_run.plan_of(opened(recipe, url, own))


def test_a_missing_key_is_named_before_anything_is_sampled(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with fails("api-key-missing", RecipeError, key="verify.judge.api_key_env"):
        run_recipe(opened(recipe, "https://judge.example/v1"))
    assert not (recipe.parent / "run" / "round-1").exists()
