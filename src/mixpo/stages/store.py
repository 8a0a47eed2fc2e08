"""Stages that several runs share: a shard with the same name is the same shard, so a run links it from another run instead of making it.

The runs are sub-folders of one folder. Shards and models are hard links (copies where the file system has none): every run stays whole by
itself, and rewriting a file in one run leaves those of the others as they are. A file is linked only if its digest is the
recorded one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mixpo.errors import RunError
from mixpo.integrity import damages, recorded_below
from mixpo.plural import amount, are
from mixpo.run import Manifest, Stage, now, versions
from mixpo.stages.job import Context, Planned, no_artifacts
from mixpo.types import content_id


@dataclass(frozen=True, kw_only=True)
class StageStore:
    """The stages of all runs in a folder. An instance is the `sharing` of their contexts. locks: folder of lock files."""

    runs: Path
    locks: Path

    @contextmanager
    def __call__(self, context: Context, planned: Planned) -> Iterator[None]:
        """Link what other runs have of a stage; until the end, no other process makes a stage with these settings."""
        if not planned.work().missing:
            yield
            return
        with self._lock(context, planned):
            _link(context, planned, [folder for folder in sorted(self.runs.iterdir()) if folder != context.run.root])
            yield

    @contextmanager
    def _lock(self, context: Context, planned: Planned) -> Iterator[None]:
        """A process holds one such lock at a time, so two never wait for each other; it ends with the process."""
        self.locks.mkdir(parents=True, exist_ok=True)
        key = content_id(planned.job.name, dict(planned.job.settings))
        with (self.locks / key).open("wb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                context.progress.say(f"{planned.job.title}: waiting for another run that makes this stage")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _link(context: Context, planned: Planned, runs: list[Path]) -> None:
    """Link every missing shard that one of the runs has whole, and record it in the manifest."""
    stage, work = planned.stage, planned.work()
    last, records, missing = stage.manifest, dict[str, str](), [*work.missing]
    for run in runs:
        donor = Stage(run / planned.job.name, planned.job.name)
        manifest = _manifest(donor)
        if manifest is None:
            continue
        linked = [shard for shard in missing if _link_shard(planned, donor, manifest, shard, records)]
        if not linked:
            continue
        missing = [shard for shard in missing if shard not in linked]
        of = f"{len(linked)} of {amount(len(work.shards), 'shard')}"
        context.progress.say(f"{planned.job.title}: {of} {are(len(linked))} shared with {run.name}")
        if len(linked) == len(work.shards) and manifest.finished and manifest.shards == list(work.shards):
            # All of it is the other's work: also its counts, times and what it wrote next to its shards.
            lists = {path.name: manifest.files[path.name] for path in donor.lists() if path.name in manifest.files}
            if not damages(donor.folder, lists):
                _link_files(donor.folder, stage.folder, lists)
                stage.save_manifest(replace(manifest, files={**records, **lists}, replaced={}))
                return
        if not missing:
            break
    if records:
        kept = {name: record for shard in work.shards for name, record in planned.recorded(shard, last.files).items()} if last else {}
        stage.save_manifest(
            Manifest(
                stage=planned.job.name,
                settings=dict(planned.job.settings),
                inputs=list(planned.job.inputs),
                shards=list(work.shards),
                started=last.started if last is not None else now(),
                versions=versions(),
                facts=dict(last.facts) if last is not None else {},
                files={**kept, **records},
            )
        )


def _manifest(stage: Stage) -> Manifest | None:
    try:
        return stage.manifest
    except (RunError, OSError):
        return None  # damaged, or just being replaced: it has nothing to give


def _link_shard(planned: Planned, donor: Stage, manifest: Manifest, shard: str, records: dict[str, str]) -> bool:
    """Link a shard with its artifacts; False where the donor does not have all of it as it was written. Adds to `records`."""
    name = planned.stage.path(shard).name
    of_artifacts = [recorded_below(planned.stage.folder, manifest.files, path) for path in planned.job.artifacts(shard)]
    if name not in manifest.files or not all(of_artifacts):
        return False
    files = {file: record for part in of_artifacts for file, record in part.items()}
    # The shard itself comes last: where it is, the rest is.
    files[name] = manifest.files[name]
    if damages(donor.folder, files):
        return False
    if planned.job.artifacts is not no_artifacts:
        for path in planned.job.artifacts(shard):
            shutil.rmtree(path, ignore_errors=True)
    try:
        _link_files(donor.folder, planned.stage.folder, files)
    except FileNotFoundError:
        return False  # the other run has just removed it
    records.update(files)
    return True


def _link_files(source: Path, target: Path, records: Mapping[str, str]) -> None:
    for name in records:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            os.link(source / name, path)
        except FileNotFoundError:
            raise
        except OSError:  # another disk, or a file system without links
            temporary = path.with_name(f".{path.name}.tmp")
            shutil.copyfile(source / name, temporary)
            temporary.replace(path)
