"""Shards that another run has are linked, whole ones only, and each run stays complete by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from spying import replace_in

from mixpo.commands.verify_run import verify_run
from mixpo.pipeline import open_context
from mixpo.progress import Silent
from mixpo.recipe import parse
from mixpo.records import Sampled, write_text
from mixpo.run import Stage
from mixpo.stages import store
from mixpo.stages.job import Context, Job, Make, Planned
from mixpo.stages.perform import perform
from mixpo.stages.store import StageStore

NAME = "round-1/sample"


def context_of(runs: Path, name: str) -> Context:
    recipe = parse({"source": {"kind": "digits"}}, "r.toml")
    context = open_context(recipe, runs, runs / name, Silent())
    context.run.root.mkdir(parents=True, exist_ok=True)
    for file in ("recipe.json", "command.json"):
        write_text(context.run.root / file, "{}")
    return replace(context, sharing=StageStore(runs=runs, locks=runs.parent / "locks"))


def planned_of(context: Context, made: list[int], inputs: Sequence[str] = ("a", "b"), model: bool = False) -> Planned:
    """A stage whose shards hold one row each; with a folder of files too, as a training has."""
    stage = context.run.stage(NAME)

    def folder(shard: str) -> tuple[Path, ...]:
        return (stage.folder / f"model-{shard}",)

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        def make(number: int) -> list[Sampled]:
            made.append(number)
            shard = stage.names({"seed": 1}, inputs)[number]
            for path in folder(shard) if model else ():
                path.mkdir(parents=True)
                (path / "weights").write_bytes(bytes(100))
            return [Sampled(question=f"q{number}")]

        yield make

    kind: dict[str, Any] = {"artifacts": folder} if model else {}
    sizes = (1,) * len(inputs)
    job = Job(
        kind="sample",
        name=NAME,
        title="sample",
        row=Sampled,
        settings={"seed": 1},
        inputs=tuple(inputs),
        sizes=sizes,
        session=session,
        **kind,
    )
    return Planned(job=job, stage=stage)


def do(runs: Path, name: str, inputs: Sequence[str] = ("a", "b"), model: bool = False) -> tuple[list[int], Context]:
    """The shards that a run makes itself, by number."""
    context, made = context_of(runs, name), list[int]()
    planned = planned_of(context, made, inputs, model)
    assert context.sharing is not None
    with context.sharing(context, planned):
        perform(context, planned)
    assert planned.finished()
    assert not [damage for part in verify_run(context.run.root, Silent()) for damage in part.damaged if damage.path.endswith(".parquet")]
    return made, context


def shards(runs: Path, name: str) -> list[Path]:
    return sorted((runs / name / NAME).glob("*.parquet"))


@pytest.mark.parametrize("model", [False, True])
def test_a_whole_stage_is_linked_with_its_manifest(tmp_path: Path, model: bool) -> None:
    runs = tmp_path / "runs"
    assert do(runs, "one", model=model)[0] == [0, 1]
    made, context = do(runs, "two", model=model)
    assert made == []
    assert [path.stat().st_ino for path in shards(runs, "two")] == [path.stat().st_ino for path in shards(runs, "one")]
    one, two = (Stage(runs / name / NAME, NAME).manifest for name in ("one", "two"))
    assert one == two
    assert isinstance(context.progress, Silent)
    assert context.progress.lines == ["sample: 2 of 2 shards are shared with one"]
    assert len([*(runs / "two" / NAME).rglob("weights")]) == 2 * model
    # A run that goes away takes nothing from the other.
    (shards(runs, "one")[0]).unlink()
    assert do(runs, "two", model=model)[0] == []


def test_a_part_is_linked(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    do(runs, "one")
    assert do(runs, "two", ("a", "b", "c"))[0] == [2]
    assert do(runs, "three", ("a", "b", "c", "d"))[0] == [3]  # from both
    manifest = Stage(runs / "three" / NAME, NAME).manifest
    assert manifest is not None
    assert (manifest.finished, manifest.counts, len(manifest.files)) == (True, {"rows": 4}, 4)


@pytest.mark.parametrize("what", ["shard", "model", "manifest"])
def test_what_is_damaged_is_made_again(tmp_path: Path, what: str) -> None:
    runs = tmp_path / "runs"
    do(runs, "one", model=True)
    folder = runs / "one" / NAME
    path = {"shard": shards(runs, "one")[0], "model": next(iter(sorted(folder.rglob("weights")))), "manifest": folder / "manifest.json"}[
        what
    ]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    made, _ = do(runs, "two", model=True)
    assert len(made) == {"shard": 1, "model": 1, "manifest": 2}[what]


def test_an_interrupted_link_is_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    do(runs, "one", model=True)
    link, calls = os.link, list[str]()

    def killed(source: Path, target: Path) -> None:
        if len(calls) == 1:  # the model is there, its shard is not
            raise KeyboardInterrupt
        calls.append(str(target))
        link(source, target)

    with monkeypatch.context() as patch:
        replace_in(patch, store, "os", link=killed)
        with pytest.raises(KeyboardInterrupt):
            do(runs, "two", model=True)
    assert shards(runs, "two") == []
    assert do(runs, "two", model=True)[0] == []


def test_without_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(1, "not permitted")

    runs = tmp_path / "runs"
    do(runs, "one", model=True)
    replace_in(monkeypatch, store, "os", link=refuse)
    assert do(runs, "two", model=True)[0] == []
    assert shards(runs, "two")[0].stat().st_ino != shards(runs, "one")[0].stat().st_ino


def test_only_one_makes_a_stage(tmp_path: Path) -> None:
    """Whoever comes second waits, and finds the stage made."""
    import threading

    runs = tmp_path / "runs"
    first, second = context_of(runs, "one"), context_of(runs, "two")
    made: list[int] = []
    one, two = planned_of(first, made), planned_of(second, made)
    assert first.sharing is not None
    assert second.sharing is not None

    def other() -> None:
        assert second.sharing is not None
        with second.sharing(second, two):
            perform(second, two)

    with first.sharing(first, one):
        thread = threading.Thread(target=other)
        thread.start()
        while not (isinstance(second.progress, Silent) and second.progress.lines):
            thread.join(0.01)
        perform(first, one)
    thread.join(600)
    assert made == [0, 1]
    assert isinstance(second.progress, Silent)
    assert second.progress.lines == ["sample: waiting for another run that makes this stage", "sample: 2 of 2 shards are shared with one"]
