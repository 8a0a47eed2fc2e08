"""Questions in. Reads a source block by block; a shard is named by the content of its questions, so that the same rows found
again cost nothing downstream and changed bytes of one image touch one shard only."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from mixpo import sealed
from mixpo.errors import RecordError, SourceError
from mixpo.integrity import records_of
from mixpo.plural import amount, are
from mixpo.recipe import AnySource
from mixpo.records import write_text
from mixpo.run import Manifest, Stage, changed_settings, now, versions
from mixpo.stages.job import Context
from mixpo.stages.question_index import INDEX, QuestionIndex, index_of, load_index, shard_name
from mixpo.stages.reading import SourceReading
from mixpo.types import Question, Skipped

if TYPE_CHECKING:
    from mixpo.sources.decontaminate import ContaminationFilter

SKIPPED = "skipped.jsonl"
"""Next to the shards: the rows that cannot be used, and why."""

SHOWN = 3
"""Reasons that are logged for skipped rows."""


def refresh(context: Context, name: str, reading: SourceReading, imported: Iterable[list[Question]] = ()) -> QuestionIndex:
    """Read a source into RUN/<name>, writing only what is new.

    imported: blocks of questions of ready-made pairs; they come after those of the source, or alone. Raises SourceError when no row is
    usable.
    """
    from mixpo.evaluate.benchmarks import duplicates

    stage, settings, table = context.run.stage(name), _settings(context, reading), reading.table
    last, counts, begun = stage.manifest, Counter[str](), time.monotonic()
    if last is not None and last.finished:
        if reading.fixed and not imported and last.settings == settings and (known := _known(stage, last)) is not None:
            return known
        if changes := changed_settings(last.settings, settings):
            context.progress.say(f"{name}: stale, read again ({'; '.join(changes)})")
    blocks = _nonempty(name, reading.blocks(), reading.skipped) if table is not None else ()
    if table is not None and table.kind == "benchmark":
        blocks = duplicates.count_duplicates(blocks, counts)
    files = dict(last.files) if last is not None else {}
    index = _write(context, stage, chain(blocks, imported), _expected(context, table), counts, files)
    counts["skipped"] = len(reading.skipped)
    if table is not None and table.kind == "benchmark" and not table.partial:
        _refuse_part(name, reading.skipped)
    if last is not None and (fresh := len(set(index.shards) - set(last.shards))):
        context.progress.say(f"{name}: {fresh} of {amount(len(index.shards), 'question shard')} {are(fresh)} new or changed")
    say_skipped(context, stage, reading.skipped)
    for text in (*reading.notices, *duplicates.messages(counts)):
        context.progress.say(f"{name}: {text}")
    save_skipped(stage, reading.skipped)
    write_text(stage.folder / INDEX, sealed.dumps(asdict(index)))
    if context.limit is None:
        stage.prune(index.shards)
    facts = {"notices": reading.notices} if reading.notices else {}
    stage.save_manifest(
        Manifest(
            stage=name, settings=settings, inputs=[], shards=list(index.shards), finished=True, counts=dict(counts),
            seconds=time.monotonic() - begun, started=now(), versions=versions(), facts=facts,
            files=stage.kept(files, index.shards) | records_of(stage.folder, stage.lists()),
        )
    )  # fmt: skip
    return index


def _known(stage: Stage, last: Manifest) -> QuestionIndex | None:
    """The index of what is there, if all of it is."""
    index = load_index(stage)
    return index if index is not None and all(stage.has(shard, last.files) for shard in index.shards) else None


def _refuse_part(name: str, skipped: Sequence[Skipped]) -> None:
    """Raise SourceError for a benchmark of which rows were skipped."""
    if skipped:
        raise SourceError(
            f"{name}: {amount(len(skipped), 'row')} of the benchmark cannot be used, so its score would not be the published one: "
            f"{skip_reasons(skipped)}; correct them (`mixpo check` lists all), or set source.partial = true",
            code="benchmark-incomplete",
            key="source.partial",
        )


def contamination_filter(context: Context, sets: Mapping[str, tuple[str, QuestionIndex]]) -> ContaminationFilter | None:
    """What the evaluation sets keep out of training. sets: by name, the stage that holds the questions, and its index."""
    from mixpo.sources.decontaminate import open_filter

    made = open_filter(context.recipe.evaluate, context.run.fingerprints)
    if made is None:
        return None
    for name, (stage, index) in sets.items():
        for _ in made.watch(name, (context.run.stage(stage).read(shard, Question) for shard in index.shards)):
            pass
    return made


def save_skipped(stage: Stage, skipped: Sequence[Skipped]) -> None:
    """Write the list of the rows that cannot be used."""
    write_text(stage.folder / SKIPPED, "".join(sealed.dumps(asdict(item)) for item in skipped))


def say_skipped(context: Context, stage: Stage, skipped: Sequence[Skipped]) -> None:
    """Log how many rows were skipped, the first reasons, and where all are listed."""
    if skipped:
        rest = f", and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
        listed = f"(all are in {stage.folder / SKIPPED})"
        context.progress.say(f"{stage.name}: {amount(len(skipped), 'row')} skipped: {skip_reasons(skipped)}{rest} {listed}")


def load_skipped(stage: Stage) -> list[Skipped]:
    """The skipped rows, and why."""
    path = stage.folder / SKIPPED
    if not path.exists():
        return []
    try:
        return [Skipped(**sealed.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (ValueError, TypeError) as error:
        raise RecordError(f"{path}: not readable ({error}); delete it and run again", code="record-broken", path=path) from None


def _nonempty(name: str, blocks: Iterable[list[Question]], skipped: Sequence[Skipped]) -> Iterator[list[Question]]:
    """The blocks. Raises SourceError at the end if there was none."""
    block = None
    for block in blocks:
        yield block
    if block is None:
        raise SourceError(_nothing(name, skipped), code="no-usable-rows")


def _write(
    context: Context, stage: Stage, blocks: Iterable[list[Question]], expected: int, counts: Counter[str], files: dict[str, str]
) -> QuestionIndex:
    """Write every block that is not there yet, and index all. files: records of the shards, brought up to date."""

    def written() -> Iterator[list[Question]]:
        for number, block in enumerate(blocks):
            shard = shard_name(number, block)
            # Equal questions may lie elsewhere now (a moved folder): the name stays, the record is written again.
            files.update(stage.rewrite(shard, Question, block, files, context.progress.say))
            counts.update(images=sum(len(question.images) for question in block))
            context.progress.advance(len(block))
            yield block

    context.progress.start(stage.name, expected, "questions")
    index = index_of(written())
    context.progress.finish()
    counts.update(questions=index.questions, open=sum(index.open))
    return index


def _settings(context: Context, reading: SourceReading) -> dict[str, Any]:
    settings = {
        **{name: value for name, value in context.recipe.deciding("source").items() if name != "train"},  # another source
        "source": reading.table.deciding("source") if reading.table is not None else {},
        "limit": context.limit,
        "contamination": reading.contamination.digest() if reading.contamination is not None else "",
    }
    return dict(json.loads(json.dumps(settings)))


def _expected(context: Context, table: AnySource | None) -> int:
    count = getattr(table, "count", 0)
    return min(count or context.limit or 0, context.limit or count)


def skip_reasons(skipped: Sequence[Skipped]) -> str:
    """The first skipped rows with their reasons."""
    return "; ".join(f"{item.where}: {item.reason}" for item in skipped[:SHOWN])


def _nothing(name: str, skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return f"{name}: the source holds no rows; point it at a file with at least one question"
    one_cause = len(skipped) > 1 and len({item.reason for item in skipped}) == 1
    reasons = f"{skip_reasons(skipped[:1])} (the same in every row)" if one_cause else skip_reasons(skipped)
    return f"{name}: none of the rows ({len(skipped)}) is usable: {reasons}; correct them, or run `mixpo check` for the whole list"
