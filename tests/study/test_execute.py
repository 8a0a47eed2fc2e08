"""A whole study on the bundled model: stopped twice and resumed, sampled once, tests opened once; and what is refused or reported."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import pytest
from failures import fails

from mixpo.commands.verify_run import verify_run
from mixpo.errors import RecipeError, TrainError, UnfinishedError
from mixpo.progress import Silent
from mixpo.run import Run
from mixpo.stages import perform as stages
from mixpo.stages.job import Context, Made, Planned
from mixpo.study import execute
from mixpo.study.execute import read_choice, run_study, unfinished
from mixpo.study.plan import kind_table, plan_study, run_table
from mixpo.study.render import write
from mixpo.study.results import ranking, results
from mixpo.study.schema import LoadedStudy, load_study

SHIPPED = Path(__file__).parents[2] / "recipes" / "studies" / "demo_steps.toml"
TINY = ("shard_size=2", "sample.n=4", "sample.max_new_tokens=40", "evaluate.max_new_tokens=40", "evaluate.samples=0", "verify.workers=1")


def tiny_study(*names: str, settings: Sequence[str] = TINY, limit: int = 4) -> LoadedStudy:
    """The shipped study with the first seed and these variants alone."""
    study = load_study(SHIPPED, settings, limit=limit)
    table = study.table
    kept = table.model_copy(update={"seeds": table.seeds[:1], "variants": tuple(v for v in table.variants if v.name in names)})
    runs = tuple(run for run in study.runs if run.variant.name in names and run.seed == table.seeds[0])
    return replace(study, table=kept, runs=runs)


@dataclass(kw_only=True)
class Watch:
    """What was really made, by run and stage, and where the process is stopped next."""

    root: Path
    made: list[tuple[str, str, Mapping[str, int]]] = field(default_factory=list)
    stop_at: tuple[str, str, int] | None = None
    """Run, kind of stage, and the shard of it after which."""
    closed_at: list[str] = field(default_factory=list)
    """Stages on the test set that were made before the choice."""

    def make_here(self, context: Context, planned: Planned, numbers: Sequence[int]) -> Iterator[Made]:
        run, name = context.run.root.name, planned.job.name
        if name.startswith("answer/test") and not (self.root / "choice.json").exists():
            self.closed_at.append(name)
        for done, (number, counts) in enumerate(ORIGINAL(context, planned, numbers)):
            self.made.append((run, name, counts))  # it is written; whether the stage knows is another matter
            if self.stop_at == (run, planned.job.kind, done):
                raise KeyboardInterrupt
            yield number, counts


ORIGINAL = stages.make_here


def run(study: LoadedStudy, root: Path) -> dict[str, str]:
    return run_study(study, root, Silent(), lambda: ranking(study, root))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedStudy, Path, Watch]:
    """A study that was stopped while it sampled, and again while it trained."""
    root = tmp_path_factory.mktemp("study") / "steps"
    study = tiny_study("mpo", "small-batch", "small-steps")
    watch = Watch(root=root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "make_here", watch.make_here)
        for stop in (("mpo-seed-0", "sample", 0), ("small-batch-seed-0", "train", 0)):
            watch.stop_at = stop
            with pytest.raises(KeyboardInterrupt):
                run(study, root)
        watch.stop_at = None
        assert run(study, root) == {}
        whole = len(watch.made)
        assert run(study, root) == {}
        assert len(watch.made) == whole  # all is done
    return study, root, watch


@pytest.mark.slow
def test_equal_stages_are_made_once(finished: tuple[LoadedStudy, Path, Watch]) -> None:
    study, root, watch = finished
    sampled = [(run, counts["tokens"]) for run, name, counts in watch.made if name == "round-1/sample"]
    manifest = Run(root / "runs" / "small-steps-seed-0").stage("round-1/sample").manifest
    assert manifest is not None
    assert sum(tokens for _, tokens in sampled) == manifest.counts["tokens"] > 0  # of one run, for three
    assert [run for run, _ in sampled] == ["mpo-seed-0"] * 2  # one shard before the first stop, one after it
    base = [run for run, name, _ in watch.made if name == "answer/validation/base/cot"]
    assert set(base) == {"mpo-seed-0"}
    trained = Counter(run for run, name, _ in watch.made if name == "round-1/train/mpo")
    assert trained == {"mpo-seed-0": 1, "small-batch-seed-0": 1, "small-steps-seed-0": 1}
    report = results(study, root, {})
    assert report["sharing"]["tokens"] == 3 * report["sharing"]["tokens_made"] > 0


@pytest.mark.slow
def test_every_run_is_whole(finished: tuple[LoadedStudy, Path, Watch]) -> None:
    study, root, _ = finished
    for run in study.runs:
        parts = verify_run(root / "runs" / run.name, Silent())
        assert not [damage for part in parts for damage in part.damaged]
    shards = list(root.rglob("round-1/sample/*.parquet"))
    assert len(shards) == 6
    assert len({path.stat().st_ino for path in shards}) == 2


@pytest.mark.slow
def test_the_test_set_is_opened_once_for_the_chosen(finished: tuple[LoadedStudy, Path, Watch]) -> None:
    study, root, watch = finished
    assert watch.closed_at == []
    choice = read_choice(study, root)
    assert choice is not None
    assert len(choice.tested) == 2
    assert "mpo" in choice.tested
    (left,) = {"small-batch", "small-steps"} - {*choice.tested}
    assert not (root / "runs" / f"{left}-seed-0" / "answer" / "test").exists()
    report = results(study, root, {})
    assert [(s["set"], s["role"], [*s["variants"]]) for s in report["sets"]] == [
        ("validation", "validation", ["base", "mpo", "small-batch", "small-steps"]),
        ("test", "test", ["base", *choice.tested]),
    ]
    paths = write(root, report)
    assert [path.name for path in paths] == ["study.html", "study.json", "study.md", "study.tex"]
    page = paths[0].read_text(encoding="utf-8")
    assert "opened once" in page
    assert "no other variant is evaluated on them" in page


@pytest.mark.slow
def test_after_the_opening_what_was_tested_cannot_change(finished: tuple[LoadedStudy, Path, Watch]) -> None:
    _, root, _ = finished
    other = tiny_study("mpo", "small-batch", "small-steps", settings=(*TINY, "train.loss.beta=0.3"))
    with fails("test-opened", RecipeError, key="mpo"):
        run(other, root)
    with fails("test-opened", RecipeError):
        run(tiny_study("small-rate"), root)


@pytest.mark.slow
def test_a_variant_that_comes_later_is_not_tested(finished: tuple[LoadedStudy, Path, Watch], monkeypatch: pytest.MonkeyPatch) -> None:
    _, root, _ = finished
    monkeypatch.setattr(execute, "perform", lambda *_: None)
    later = tiny_study("mpo", "small-batch", "small-steps", "small-rate")
    assert run(later, root) == {}
    report = results(later, root, {})
    (row,) = [row for row in report["variants"] if row["added_after_opening"]]
    assert (row["name"], row["tested"]) == ("small-rate", False)


@pytest.mark.slow
def test_the_plan_names_what_is_shared(finished: tuple[LoadedStudy, Path, Watch]) -> None:
    study, root, _ = finished
    runs = plan_study(study, root, Silent())
    _, rows = run_table(runs)
    assert [(row[0], row[2] == row[1], row[5]) for row in rows] == [
        ("mpo-seed-0", True, ""), ("small-batch-seed-0", True, "mpo-seed-0"), ("small-steps-seed-0", True, "mpo-seed-0"),
    ]  # fmt: skip
    kinds = {row[0]: row[1:] for row in kind_table(runs)[1]}
    assert kinds["sample"] == ("3", "1", "2", "3")
    assert kinds["train"] == ("3", "3", "0", "3")


# --- without models ------------------------------------------------------------------------------------------------------


def stub(monkeypatch: pytest.MonkeyPatch, broken: Mapping[str, Exception]) -> list[tuple[str, bool]]:
    """Runs that do nothing, or fail; returns which were done, and whether the test sets were open."""
    done: list[tuple[str, bool]] = []

    def perform(study: LoadedStudy, run: Any, root: Path, progress: object) -> None:
        if run.name in broken:
            raise broken[run.name]
        done.append((run.name, (root / "choice.json").exists()))

    monkeypatch.setattr(execute, "perform", perform)
    return done


def test_a_failure_stops_no_other_run_and_keeps_the_tests_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny_study("mpo", "small-batch", "small-rate", "small-steps")
    broken = {"small-batch-seed-0": TrainError("loss is NaN", code="loss-nan"), "small-rate-seed-0": MemoryError("12 GB")}
    done = stub(monkeypatch, broken)
    order = [("mpo", 0.5), ("small-steps", 0.7)]
    failures = run_study(study, tmp_path, Silent(), lambda: order)
    assert done == [("mpo-seed-0", False), ("small-steps-seed-0", False)]
    assert failures["small-batch-seed-0"] == "loss is NaN"
    assert failures["small-rate-seed-0"].startswith("MemoryError: 12 GB (traceback in ")
    assert read_choice(study, tmp_path) is None
    error = unfinished(study, failures)
    assert isinstance(error, UnfinishedError)
    assert "2 runs of 4 failed, the first is small-batch-seed-0: loss is NaN; the test sets stay closed" in str(error)
    done.clear()
    run_study(study, tmp_path, Silent(), lambda: order, despite_failures=True)
    assert [name for name, opened in done if opened] == ["mpo-seed-0", "small-steps-seed-0"]
    choice = read_choice(study, tmp_path)
    assert choice is not None
    assert (choice.tested, choice.missing) == (("mpo", "small-steps"), ("small-batch", "small-rate"))


def test_nothing_is_opened_without_a_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, {})
    study = tiny_study("mpo", "small-batch")
    assert run_study(study, tmp_path, Silent(), lambda: [("mpo", 0.5)]) == {}
    assert read_choice(study, tmp_path) is None


def test_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run in a process of its own with a share of the machine; the reason of one that fails is its last line."""
    started: list[tuple[Sequence[str], Mapping[str, str]]] = []

    def popen(command: Sequence[str], output: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        started.append((command, environment))
        failing = "small-batch-seed-0" in command
        code = "import sys; print('working'); print('mpo: out of space', file=sys.stderr); sys.exit(1)" if failing else ""
        return subprocess.Popen([sys.executable, "-c", code.replace("mpo:", "mixpo:")], stdout=output, stderr=subprocess.STDOUT)

    monkeypatch.setattr(execute, "_popen", popen)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    study = tiny_study("mpo", "small-batch", "small-steps")
    failures = run_study(study, tmp_path, Silent(), lambda: [], jobs=2)
    assert list(failures) == ["small-batch-seed-0"]
    assert failures["small-batch-seed-0"].startswith("out of space (exit status 1, log in ")
    (command, environment), (_, second), _ = started
    words = command[1:]
    assert words[:3] == ["-m", "mixpo", "study"]
    assert words[words.index("--only") + 1] == "mpo-seed-0"
    assert words[words.index("--limit") + 1] == "4"
    assert words.count("--set") == len(TINY)
    assert (environment["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("4", "5")
