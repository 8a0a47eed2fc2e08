"""Makes what is missing of a stage, shard by shard, and brings its manifest up to date."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mixpo.integrity import recorded_below, records_of
from mixpo.plural import amount, are
from mixpo.run import Manifest, Stage, Work, now, versions
from mixpo.stages.job import DISTRIBUTED, Context, Job, Made, Planned, no_artifacts

SAVE_SECONDS = 2.0
"""A manifest is rewritten at most this often while a stage works."""


def perform(context: Context, planned: Planned, dependents: Sequence[Planned] = ()) -> Manifest:
    """Make the shards that are missing, say why, and bring the manifest up to date. Does nothing where all is done.

    dependents: the jobs that read this one's output; what they made of a shard is removed when it was damaged and comes out different.
    Raises RecordError for a damaged shard of an earlier command.
    """
    job, stage, work, last = planned.job, planned.stage, planned.work(), planned.stage.manifest
    if not work.missing and last is not None and last.finished and last.shards == list(work.shards):
        return _checked(planned, last)
    manifest = _open(planned, work, last)
    counted: dict[str, Mapping[str, int]] = {}
    if work.missing:
        explain(context, job, work, last)
        for shard in work.missing:
            stage.path(shard).unlink(missing_ok=True)  # one of another size
        stage.save_manifest(manifest)
        counted = _make(context, planned, work, manifest)
        manifest.facts |= job.facts
    manifest.counts = _total(job, stage, work.shards, counted)
    _record_files(planned, manifest)
    _forget_dependents(context, planned, manifest, dependents)
    manifest.finished, manifest.replaced = True, {}
    stage.save_manifest(manifest)
    if context.limit is None:
        _prune(planned, work.shards)
    return _checked(planned, manifest)


def restore_manifest(planned: Planned) -> None:
    """Write the manifest of a stage that has none although all its shards are there: it was damaged or deleted. Nothing is made."""
    if planned.stage.manifest is not None:
        return
    work = planned.work()
    if work.missing or not work.shards:
        return
    manifest = _open(planned, work, None)
    manifest.counts = _total(planned.job, planned.stage, work.shards, {})
    _record_files(planned, manifest)
    manifest.finished = True
    planned.stage.save_manifest(manifest)


def _record_files(planned: Planned, manifest: Manifest) -> None:
    """Add the files of shards that another rank made, or that were made just before a kill."""
    for shard in manifest.shards:
        if planned.stage.path(shard).name not in manifest.files:
            manifest.files |= records_of(planned.stage.folder, planned.files(shard))


def _checked(planned: Planned, last: Manifest) -> Manifest:
    """The manifest of a finished stage, after its check. What the stage wrote next to its shards is added to it."""
    manifest = replace(last, files=dict(last.files))
    planned.job.check(manifest)
    manifest.files |= records_of(planned.stage.folder, [path for path in planned.stage.lists() if path.name not in manifest.files])
    if manifest.files != last.files:
        planned.stage.save_manifest(manifest)
    return manifest


def _forget_dependents(context: Context, planned: Planned, manifest: Manifest, dependents: Sequence[Planned]) -> None:
    """Remove what was made of files that were damaged and are other ones now: answers of a server, a model trained on a GPU."""
    shards = []
    for number, shard in enumerate(manifest.shards):
        # Rows of a training hold times; what others use of it is the model.
        read = planned.job.artifacts(shard) if planned.job.kind == "train" else planned.files(shard)
        damaged = recorded_below(planned.stage.folder, manifest.replaced, *read)
        if any(manifest.files.get(name) != manifest.replaced[name] for name in damaged):
            shards.append(number)
    for dependent in dependents if shards else ():
        names = dependent.names()
        same = len(names) == len(manifest.shards)
        stale = [shard for number, shard in enumerate(names) if not same or number in shards]
        if there := [path for shard in stale if (path := dependent.stage.path(shard)).exists()]:
            for path in there:
                path.unlink()
            context.progress.say(
                f"{dependent.job.title}: {amount(len(there), 'shard')} removed, {planned.job.name} came out different from what was damaged"
            )


def explain(context: Context, job: Job, work: Work, last: Manifest | None) -> None:
    """Say why there is work in a stage that has run before."""
    done = len(work.shards) - len(work.missing)
    if last is None:
        return
    why, shards = "; ".join(work.reasons), amount(len(work.shards), "shard")
    if last.finished or (done == 0 and last.shards != list(work.shards)):
        context.progress.say(f"{job.title}: stale, {len(work.missing)} of {shards} {are(len(work.missing))} redone ({why})")
    else:
        context.progress.say(f"{job.title}: resuming, {done} of {shards} {are(len(work.shards))} done ({why})")


def _open(planned: Planned, work: Work, last: Manifest | None) -> Manifest:
    job, same = planned.job, last is not None and last.shards == list(work.shards)
    kept, missing = last.files if last is not None else {}, {*work.missing}
    recorded = {shard: planned.recorded(shard, kept) for shard in work.shards}
    replaced = {name: record for shard in work.missing for name, record in recorded[shard].items()}
    return Manifest(
        stage=job.name,
        settings=dict(job.settings),
        inputs=list(job.inputs),
        shards=list(work.shards),
        # A resumed stage adds to the seconds it has used; a changed one starts at zero.
        seconds=last.seconds if same and last is not None else 0.0,
        started=last.started if same and last is not None else now(),
        versions=versions(),
        facts=dict(last.facts) if same and last is not None else {},
        files={name: record for shard in work.shards if shard not in missing for name, record in recorded[shard].items()},
        replaced={**replaced, **(last.replaced if same and last is not None else {})},
    )


def _make(context: Context, planned: Planned, work: Work, manifest: Manifest) -> dict[str, Mapping[str, int]]:
    job, missing = planned.job, set(work.missing)
    counted: dict[str, Mapping[str, int]] = {}
    used, begun, saved = manifest.seconds, time.monotonic(), time.monotonic()
    if not job.own_bar:
        done = sum(size for shard, size in zip(work.shards, job.sizes, strict=True) if shard not in missing)
        context.progress.start(job.title, sum(job.sizes), job.unit, done)
    numbers = [number for number, shard in enumerate(work.shards) if shard in missing]
    others: list[int] = []
    if job.ranks != "main":
        context.ranks.broadcast([job.name, numbers])
    if job.ranks == "each":
        mine = context.ranks.shard(numbers)
        others, numbers = sorted({*numbers} - {*mine}), mine
    make = context.executor if context.executor is not None and job.kind in DISTRIBUTED else make_here
    for number, counts in make(context, planned, numbers):
        counted[work.shards[number]] = counts
        manifest.files |= records_of(planned.stage.folder, planned.files(work.shards[number]))
        manifest.seconds = used + time.monotonic() - begun
        if time.monotonic() - saved > SAVE_SECONDS:
            planned.stage.save_manifest(manifest)
            saved = time.monotonic()
    if job.ranks != "main":
        context.ranks.barrier()
        if not job.own_bar:
            context.progress.advance(sum(job.sizes[number] for number in others))
    manifest.seconds = used + time.monotonic() - begun
    if not job.own_bar:
        context.progress.finish()
    return counted


def make_here(context: Context, planned: Planned, numbers: Sequence[int]) -> Iterator[Made]:
    """Make and write these shards in this process, one after another."""
    job, shards = planned.job, planned.names()
    with job.session(numbers) as make:
        for number in numbers:
            rows = []
            for row in make(number):
                rows.append(row)
                if not job.own_bar:
                    context.progress.advance(1)
            planned.stage.write(shards[number], job.row, rows)
            yield number, job.count(rows)


def assist(context: Context, planned: Planned, numbers: list[int]) -> None:
    """What `perform` is on every rank but the main one: work on these shards with the others."""
    if planned.job.ranks == "each":
        for _ in make_here(context, planned, context.ranks.shard(numbers)):
            pass
    else:
        with planned.job.session(numbers) as make:
            for number in numbers:
                list(make(number))
    context.ranks.barrier()


def _total(job: Job, stage: Stage, shards: Sequence[str], counted: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for shard in shards:
        total.update(counted[shard] if shard in counted else job.count(stage.read(shard, job.row)))
    return dict(total)


def _prune(planned: Planned, shards: Sequence[str]) -> None:
    """Delete what stale shards left behind, and the working folders of finished ones."""
    planned.stage.prune(shards)
    if planned.job.artifacts is no_artifacts:
        return
    wanted = {path for shard in shards for path in planned.job.artifacts(shard)}
    for path in planned.stage.folder.iterdir():
        if path.is_dir() and path not in wanted:
            shutil.rmtree(path)
