"""Checks every file of a run against the sizes and digests that were recorded when it was written."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mixpo import sealed
from mixpo.cache import damaged_rows
from mixpo.errors import MixpoError, RunError
from mixpo.human_labels import LABELS, read_labels
from mixpo.integrity import damages, files_below
from mixpo.progress import Progress
from mixpo.run import ATTEMPTS, Manifest, Run, Stage
from mixpo.stages.question_index import INDEX
from mixpo.train.metrics import read_metrics

REBUILD = "`mixpo run` rebuilds it"
COMPUTED_AGAIN = "what it held is recomputed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A damaged file. remedy: what to do. removable: `mixpo run` rebuilds it once it is removed."""

    path: str
    problem: str
    remedy: str
    removable: bool


@dataclass(slots=True, kw_only=True)
class RunPart:
    """The files of a stage, or of another part of a run. bytes: of those that are there."""

    part: str
    files: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)

    def add(self, path: Path, problem: str, remedy: str = REBUILD, *, removable: bool = True) -> None:
        """Count a file, and note it where it has a problem."""
        self.files += 1
        with suppress(OSError):
            self.bytes += path.stat().st_size
        if problem:
            self.damaged.append(Damage(path=str(path), problem=problem, remedy=remedy, removable=removable))


def verify_run(root: Path, progress: Progress) -> list[RunPart]:
    """All parts of a run that have files, damaged ones named. Changes nothing; reads every byte. Raises RunError where there is no run."""
    if not any((root / name).is_file() for name in ("recipe.json", "command.json")):
        raise RunError(f"{root}: no run directory; give the folder that was --dir of `mixpo run`", code="not-a-run", path=root)
    run = Run(root)
    manifests = list(run.manifests())
    progress.start("verify-run", len(manifests) + 1, "parts")
    parts = []
    for path in manifests:
        parts.append(_stage(run.stage(path.parent.relative_to(root).as_posix())))
        progress.advance(1)
    parts += [_records(root), _checkpoints(root), _images(run), _caches(root)]
    progress.advance(1)
    progress.finish()
    return [part for part in parts if part.files]


def repair(parts: list[RunPart], root: Path) -> list[Damage]:
    """Remove what `mixpo run` rebuilds; returns the damages that remain. Raises RunError while another process works in the run."""
    run = Run(root)
    with run.lock():
        for path in (Path(damage.path) for part in parts for damage in part.damaged if damage.removable):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            if run.images in path.parents:  # sources write images again only when they are read
                for manifest in run.manifests():
                    manifest.with_name(INDEX).unlink(missing_ok=True)
    return [damage for part in parts for damage in part.damaged if not damage.removable]


def _problem(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except (MixpoError, OSError, ValueError) as error:
        return str(error).removeprefix(f"{path}: ").partition(";")[0]
    return ""


def _stage(stage: Stage) -> RunPart:
    part, path = RunPart(part=stage.name), stage.folder / "manifest.json"
    part.add(path, problem := _problem(lambda _: stage.manifest, path), "`mixpo run` rebuilds it from the shards")
    manifest = stage.manifest if not problem else None
    if manifest is not None:
        broken = damages(stage.folder, manifest.files)
        for name in sorted(manifest.files):
            path = Path(os.path.normpath(stage.folder / name))
            # A shard that was damaged before its stage had finished is recorded as it was then.
            part.add(path, broken.get(name) or (sealed.damage(path) if path.suffix == ".parquet" else ""))
    for file in _unrecorded(stage, manifest):
        part.add(file, sealed.damage(file))
    if (stage.folder / ATTEMPTS).exists():
        remedy = "delete it, and failed questions count as tried once"
        part.add(stage.folder / ATTEMPTS, _problem(sealed.load, stage.folder / ATTEMPTS), remedy, removable=False)
    return part


def _unrecorded(stage: Stage, manifest: Manifest | None) -> Iterator[Path]:
    """Shards that were written just before a kill, or whose manifest is damaged."""
    known = manifest.files if manifest is not None else {}
    yield from (path for path in sorted(stage.folder.glob("*.parquet")) if path.name not in known)


def _records(root: Path) -> RunPart:
    part = RunPart(part="settings and labels")
    for path in (root / "recipe.json", root / "command.json"):
        part.add(path, _problem(sealed.load, path), "run the recipe again", removable=False)
    if (root / LABELS).exists():
        part.add(root / LABELS, _problem(lambda _: read_labels(root), root / LABELS), "correct or remove the line", removable=False)
    return part


def _checkpoints(root: Path) -> RunPart:
    """The state of trainings that have not finished."""
    part = RunPart(part="checkpoints")
    for work in sorted(root.glob("round-*/train/*/work-*")):
        for metrics in work.glob("metrics*.jsonl"):
            part.add(metrics, _problem(read_metrics, metrics), "delete it, or use --force train", removable=False)
        for folder in sorted(work.glob("checkpoints/step-*")):
            state = folder / "state.json"
            if problem := _problem(sealed.load, state):
                part.add(folder, f"state.json: {problem}", "training resumes from the one before")
                continue
            broken = [f"{name} {damage}" for name, damage in damages(folder, sealed.load(state)["files"]).items()]
            for file in files_below(folder):
                part.add(file, "")
            if broken:
                part.add(folder, broken[0], "training resumes from the one before")
    return part


def _images(run: Run) -> RunPart:
    """Images that have no file of their own; each is named by its digest."""
    part = RunPart(part="images")
    for path in run.images.glob("??/*") if run.images.is_dir() else ():
        same = hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
        part.add(path, "" if same else "fails its checksum")
    return part


def _caches(root: Path) -> RunPart:
    part = RunPart(part="caches")
    for path in sorted((root / "cache").glob("*.sqlite")):
        part.add(path, damaged_rows(path), COMPUTED_AGAIN)
    for path in sorted((root / "judged").glob("??/*.json")):
        part.add(path, _problem(sealed.load, path), "the judge is queried when needed")
    return part
