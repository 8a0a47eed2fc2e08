"""Which shards a run has: blocks of questions with what each round made of them, read from the manifests. No record is opened here.

Shard number i of every stage of a round belongs to question shard i, so a block is named by round and number alone. What is
listed but not there yet is None: a half-finished run is shown like a whole one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixpo.run import Manifest, Run

KINDS = ("sample", "continue", "verify", "branch", "value", "pair")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardGroup:
    """One shard of questions, and the shards that a round made of it."""

    round: int
    number: int
    source: Path
    made: Mapping[str, Path]

    @property
    def key(self) -> str:
        """Changes when any of its files does."""
        return " ".join(_stamp(path) for path in (self.source, *self.made.values()))


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return "gone"
    return f"{path.stem}:{stat.st_size}:{stat.st_mtime_ns}"


class RunLayout:
    """The stages of a run that have a manifest, in the order of the flow."""

    def __init__(self, run: Run, *, balanced: bool = False) -> None:
        """balanced: the pairs that are trained on are those that the stage `select` kept."""
        self.run = run
        self.made = {kind: "select" if kind == "pair" and balanced else kind for kind in KINDS}
        """The stage that makes each kind of record."""

    def stages(self) -> dict[str, Manifest]:
        """Every manifest of the run, by the name of its stage."""
        manifests = ((name, self.run.stage(name).manifest) for name in self._names())
        return {name: manifest for name, manifest in manifests if manifest is not None}

    def _names(self) -> Iterator[str]:
        root = self.run.root
        yield "source"
        for number in self.rounds():
            yield from (f"round-{number}/{kind}" for kind in dict.fromkeys((*KINDS, *self.made.values(), "reference")))
            trainings = [f"round-{number}/train/{path.name}" for path in _folders(root / f"round-{number}" / "train")]
            yield from sorted(trainings, key=self._started)
        for name in self.sets():
            yield f"evaluate/{name}/source"
            for model in self.models(name):
                for mode in _folders(root / "evaluate" / name / model):
                    yield from (f"{kind}/{name}/{model}/{mode.name}" for kind in ("answer", "evaluate"))
        yield "report"

    def _started(self, stage: str) -> str:
        manifest = self.run.stage(stage).manifest
        return manifest.started if manifest is not None else ""

    def rounds(self) -> list[int]:
        """The numbers of the rounds that have begun."""
        names = (path.name.removeprefix("round-") for path in _folders(self.run.root) if path.name.startswith("round-"))
        return sorted(int(name) for name in names if name.isdigit())

    def sets(self) -> list[str]:
        """The evaluation sets that have begun."""
        return [path.name for path in _folders(self.run.root / "evaluate")]

    def models(self, name: str) -> list[str]:
        """The models that answered an evaluation set: the base model first, then by the time of their first answer."""
        folders = [path for path in _folders(self.run.root / "evaluate" / name) if path.name != "source"]
        return [path.name for path in sorted(folders, key=lambda path: (path.name != "base", path.stat().st_mtime_ns))]

    def shards(self, name: str) -> list[Path | None]:
        """The files of a stage in order; None where one is not there."""
        stage = self.run.stage(name)
        manifest = stage.manifest
        if manifest is None:
            return []
        there = set(os.listdir(stage.folder))
        return [stage.path(shard) if f"{shard}.parquet" in there else None for shard in manifest.shards]

    def blocks(self, number: int) -> Iterator[ShardGroup]:
        """The blocks of a round; round 0 has the questions alone."""
        made = {kind: self.shards(f"round-{number}/{stage}") for kind, stage in self.made.items()} if number else {}
        for place, source in enumerate(self.shards("source")):
            if source is not None:
                files = {kind: path for kind, paths in made.items() if place < len(paths) and (path := paths[place]) is not None}
                yield ShardGroup(round=number, number=place, source=source, made=files)

    def stamp(self) -> tuple[str, ...]:
        """Changes when any stage has made something: cheap enough to ask for every page."""
        root = self.run.root
        folders = (
            root / name for name in ("source", *(f"round-{number}/{kind}" for number in self.rounds() for kind in self.made.values()))
        )
        return tuple(_stamp(path) for folder in folders for path in (folder, folder / "manifest.json"))


def _folders(root: Path) -> list[Path]:
    """The folders in a folder, by name; none where it is not there."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")) if root.is_dir() else []
