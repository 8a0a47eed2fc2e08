"""Preference pairs from judged answers and continuations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from mixpo.errors import TrainError
from mixpo.pairs.build import build
from mixpo.pairs.provenance import RATIONALE
from mixpo.plural import amount
from mixpo.records import Paired
from mixpo.run import Manifest
from mixpo.stages.job import Context, Job, Make, Plan, title
from mixpo.stages.marks import corrected, digests, marks_of
from mixpo.stages.source import Index
from mixpo.types import content_id


def pair_job(context: Context, plan: Plan, index: Index, number: int) -> Job:
    """Round `number`: the pairs of every question, and what was left out."""
    recipe = context.recipe
    sampled, verified, continued = (f"round-{number}/{kind}" for kind in ("sample", "verify", "continue"))
    marks = marks_of(context.run.root, number)

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        def make(shard: int) -> Iterator[Paired]:
            rows = zip(*(plan.rows(name, shard) for name in ("source", sampled, verified, continued)), strict=True)
            for question, answers, judged, cut in rows:
                verdicts, marked = corrected(judged, marks)
                yield replace(build(question, answers, verdicts, cut, recipe.pairs, recipe.seed), marked=marked)

        yield make

    return Job(
        kind="pair",
        name=f"round-{number}/pair",
        title=title(context, number, "pair"),
        row=Paired,
        settings=recipe.deciding("pair"),
        inputs=tuple(content_id(row) for row in zip(plan.shards(verified), plan.shards(continued), digests(plan, marks), strict=True)),
        sizes=index.sizes,
        needs=("source", sampled, verified, continued),
        session=session,
        count=count_paired,
        check=lambda manifest: check_pairs(context, manifest, number),
    )


def count_paired(rows: Sequence[Paired]) -> Mapping[str, int]:
    """Pairs by origin, with rationales and from marked verdicts; questions that gave any; and what was dropped by reason."""
    counts: Counter[str] = Counter(questions=len(rows), pairs=0, with_pairs=sum(bool(row.pairs) for row in rows))
    for row in rows:
        counts["pairs"] += len(row.pairs)
        counts["marked"] += row.marked
        counts["with_rationale"] += sum(pair.chosen_index == RATIONALE for pair in row.pairs)
        counts.update(f"origin: {pair.origin}" for pair in row.pairs)
        for drop in row.dropped:
            counts[f"dropped: {drop.reason}"] += drop.count
    return counts


def check_pairs(context: Context, manifest: Manifest, number: int) -> None:
    """Raise TrainError when there is not one pair, with what is known of why."""
    if manifest.counts.get("pairs", 0):
        return
    judged = context.run.stage(f"round-{number}/verify").manifest
    counts = judged.counts if judged is not None else {}
    right, wrong, total = counts.get("all_right", 0), counts.get("all_wrong", 0), manifest.counts.get("questions", 0)
    dropped = [f"{name.removeprefix('dropped: ')} {count}" for name, count in manifest.counts.items() if name.startswith("dropped: ")]
    where = f"round {number}: " if context.recipe.train.rounds > 1 else ""
    raise TrainError(
        f"{where}no pairs: of {amount(total, 'question')} {right} {'has' if right == 1 else 'have'} all answers right and {wrong} all wrong"
        + (f"; left out: {', '.join(dropped)}" if dropped else "")
        + f"; {_remedy(right, wrong)}"
        + ("; `mixpo evaluate` still measures the base model" if context.recipe.evaluate.sets else "")
    )


def _remedy(right: int, wrong: int) -> str:
    if right > wrong:
        return "take harder questions, or raise sample.temperature or sample.n"
    if wrong > right:
        return "take easier questions or a stronger model, and look at the answers with `mixpo view`: do they end as the prompt asks?"
    return "take more questions, or raise sample.n"
