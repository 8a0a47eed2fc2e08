"""Log-probs of every response in a pair under the model that the round starts from. Computed once, whatever is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpo.errors import TrainError
from mixpo.integrity import FileRecord
from mixpo.plural import amount
from mixpo.recipe import Recipe
from mixpo.records import PROMPT_REFUSED, Scored
from mixpo.run import Manifest, Stage
from mixpo.stages import prompting
from mixpo.stages.job import Context, Job, Make, Plan, title
from mixpo.stages.models import ModelRef, settings_of
from mixpo.stages.pair import pairs_of
from mixpo.stages.prompting import with_system
from mixpo.stages.question_index import QuestionIndex
from mixpo.types import Pair, Question, content_id

if TYPE_CHECKING:
    from mixpo.train.group_data import GroupRow
    from mixpo.train.reference import ReferenceScorer, Row

GROUPS = "groups.rows"
"""The training groups of a round, in the folder of its stage."""
CHECKED_SHARDS = 16
"""Shards from which the questions of the layout check are taken."""


def reference_job(context: Context, plan: Plan, index: QuestionIndex, number: int, model: ModelRef) -> Job:
    """Round `number`: the pairs as token ids with their log-probs under `model`."""
    recipe, upstream, facts = context.recipe, pairs_of(context.recipe, number), dict[str, Any]()

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        opened: list[ReferenceScorer] = []

        def reference() -> ReferenceScorer:
            if not opened:
                from mixpo.train.compiled import require_compiler
                from mixpo.train.reference import ReferenceScorer
                from mixpo.vlm.load import pick_device

                if recipe.train.compile and recipe.train.reference == "stage":
                    require_compiler(pick_device(recipe.model.device))
                opened.append(ReferenceScorer(context.models.load(model), recipe.image, recipe.train))
                shards = spread(len(plan.shards("source")), CHECKED_SHARDS)
                opened[0].choose(row for shard in shards for part in rows_of(shard) for row in part.values())
            return opened[0]

        def rows_of(shard: int) -> Iterator[dict[int, Row]]:
            """The rows of each question by the number of its prompt."""
            for question, row in zip(plan.rows("source", shard), plan.rows(upstream, shard), strict=True):
                prompts = prompting.prompts_of(recipe, question)
                parts = pairs_by_prompt(recipe, question, row.pairs)
                asked = with_system(recipe.prompt, question)
                yield {number: (asked, prompts[number].render(question.text), pairs) for number, pairs in parts.items()}

        def make(shard: int) -> Iterator[Scored]:
            from mixpo.train.groups import join_records

            if not any(row.pairs for row in plan.rows(upstream, shard)):
                return (Scored(question=question.id) for question in plan.rows("source", shard))
            parts = list(rows_of(shard))
            scored = reference().records([row for part in parts for row in part.values()])
            return (join_records(dict(zip(part, islice(scored, len(part)), strict=True))) for part in parts)

        yield make
        if opened and opened[0].layout:
            context.progress.say(opened[0].note)
            if compiled := opened[0].scorer.compiled:
                context.progress.say(f"round-{number}/reference: {compiled.news()}")
            facts["layout"] = opened[0].layout

    def finished(manifest: Manifest) -> None:
        check_scored(context, manifest)
        update_groups(context, plan, number, manifest)

    return Job(
        kind="reference",
        name=f"round-{number}/reference",
        title=title(context, number, "reference"),
        row=Scored,
        settings={
            **settings_of(recipe, "reference", model),
            "prompt": prompting.settings(recipe.prompt),
        },
        inputs=prompting.chosen_by(recipe, plan.shards(upstream), index),
        sizes=index.sizes,
        needs=("source", upstream, *filter(None, [model.job])),
        session=session,
        ranks="each",
        facts=facts,
        count=count_scored,
        check=finished,
    )


# --- training groups ---------------------------------------------------------------------------------------------------


def groups_file(context: Context, number: int) -> Path:
    """The training groups of round `number`, next to the records that they are made from. Rebuilt when missing, damaged or stale."""
    return context.run.stage(f"round-{number}/reference").folder / GROUPS


def file_digest(stage: Stage, shards: Sequence[str], manifest: Manifest | None) -> str:
    """Digest of the records of a stage, from the digests of their files in its manifest."""
    known = manifest.files if manifest is not None else {}
    paths = map(stage.path, shards)
    return content_id([(path.name, known.get(path.name) or str(FileRecord.of(path))) for path in paths])


def update_groups(context: Context, plan: Plan, number: int, manifest: Manifest) -> None:
    """Write the training groups of a round, unless the file is of these records."""
    from mixpo.train.group_data import stored_digest, write_groups

    path, source, reference = groups_file(context, number), context.run.stage("source"), context.run.stage(manifest.stage)
    digest = content_id(
        file_digest(source, plan.shards("source"), source.manifest),
        file_digest(reference, manifest.shards, manifest),
        prompting.settings(context.recipe.prompt),
        *(("forks",) if context.recipe.train.loss.hold else ()),
    )
    if stored_digest(path) != digest:
        write_groups(path, group_rows(context, plan, number), digest)
        manifest.files.pop(path.name, None)  # recorded again after the check


def group_rows(context: Context, plan: Plan, number: int) -> Iterator[GroupRow]:
    """Everything that round `number` trains on: a group for each question and prompt with pairs, in order."""
    from mixpo.train.group_data import GroupRow
    from mixpo.train.groups import from_record, split_record
    from mixpo.train.hold import with_forks

    for shard in range(len(plan.shards("source"))):
        for question, scored in zip(plan.rows("source", shard), plan.rows(f"round-{number}/reference", shard), strict=True):
            for prompt, part in split_record(scored).items():
                text = prompting.prompts_of(context.recipe, question)[prompt].render(question.text)
                asked = prompting.with_system(context.recipe.prompt, question)
                group = from_record(asked, text, part)
                yield GroupRow(with_forks(group) if context.recipe.train.loss.hold else group, part.repeats)


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of `count` numbers, evenly spaced, the first and the last included."""
    return list(range(count)) if count <= most else sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def pairs_by_prompt(recipe: Recipe, question: Question, pairs: Sequence[Pair]) -> dict[int, list[Pair]]:
    """The pairs of a question by the number of their prompt, each a training group of its own; the first one without any."""
    parts: dict[int, list[Pair]] = {}
    for pair in pairs:
        parts.setdefault(prompting.number_of_pair(recipe, question, pair), []).append(pair)
    return dict(sorted(parts.items())) or {0: []}


def count_scored(rows: Sequence[Scored]) -> Mapping[str, int]:
    """Questions that can be trained on or whose prompt is refused, pairs, unique responses, their tokens, and drops by reason."""
    counts: Counter[str] = Counter(questions=sum(bool(row.chosen) for row in rows), pairs=0, responses=0, tokens=0)
    for row in rows:
        counts.update(pairs=len(row.chosen), responses=len(row.responses), tokens=sum(map(len, row.responses)))
        for drop in row.dropped:
            counts[f"dropped: {drop.reason.partition(': ')[0]}"] += drop.count
        if any(refused(row)):
            counts["refused"] += 1
    return counts


def refused(row: Scored) -> Iterator[str]:
    """Location and reason of each prompt of a question that the model's processor refuses."""
    start = f"{PROMPT_REFUSED}: "
    return (drop.reason.removeprefix(start) for drop in row.dropped if drop.reason.startswith(start))


def check_scored(context: Context, manifest: Manifest) -> None:
    """Log which questions were dropped because their prompt is refused.

    Raises TrainError when they are a larger share than `max_error_rate`, or when no pair can be trained on.
    """
    failed, max_length = manifest.counts.get("refused", 0), context.recipe.train.max_length
    if failed:
        rows = context.run.stage(manifest.stage).read_all(Scored)
        reasons = "; ".join(islice((reason for row in rows for reason in refused(row)), 3))
        total, allowed = failed + manifest.counts["questions"], context.recipe.max_error_rate
        if failed > allowed * total:
            raise TrainError(
                f"{manifest.stage}: the prompts of {failed} of {amount(total, 'question')} cannot be used, more than max_error_rate = "
                f"{allowed:g} allows ({reasons}); correct them, or drop them with --set max_error_rate=1",
                code="too-many-refused",
                key="max_error_rate",
            )
        context.progress.say(f"{manifest.stage}: dropped {amount(failed, 'question')} whose prompt cannot be used ({reasons})")
    if manifest.counts.get("pairs"):
        return
    dropped = [f"{count} {name.removeprefix('dropped: ')}" for name, count in manifest.counts.items() if name.startswith("dropped: ")]
    raise TrainError(
        f"{manifest.stage}: no pair can be trained on ({', '.join(dropped) or 'there are none'}); "
        f"train.max_length is {max_length}, raise it if pairs are too long",
        code="no-trainable-pairs",
        key="train.max_length",
    )
