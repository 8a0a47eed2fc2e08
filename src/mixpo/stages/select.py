"""Balance over the whole data set: large classes of pairs are thinned out. Only there where the recipe asks for it.

Two passes over the pairs, neither of which holds more than one shard and the size of each class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mixpo.pairs.balance import Class, class_of, rates, thin
from mixpo.recipe import Recipe
from mixpo.records import Paired
from mixpo.stages.job import Context, Job, Make, Plan, title
from mixpo.stages.pair import check_pairs, count_paired
from mixpo.stages.source import Index


def pairs_of(recipe: Recipe, number: int) -> str:
    """The stage whose pairs round `number` is trained on."""
    return f"round-{number}/{'select' if recipe.pairs.balance else 'pair'}"


def select_job(context: Context, plan: Plan, index: Index, number: int) -> Job:
    """Round `number`: the pairs that are kept of each class."""
    recipe, table = context.recipe, context.recipe.pairs
    names = ("source", f"round-{number}/verify", f"round-{number}/pair")

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        sizes: Counter[Class] = Counter()
        for shard in range(len(plan.shards(names[2]))):
            for question, judged, paired in zip(*(plan.rows(name, shard) for name in names), strict=True):
                sizes.update(class_of(question, judged, pair, table.balance) for pair in paired.pairs)
        kept = rates(sizes, table.balance_to)

        def make(shard: int) -> Iterator[Paired]:
            rows = zip(*(plan.rows(name, shard) for name in names), strict=True)
            return (thin(question, judged, paired, table.balance, kept, recipe.seed) for question, judged, paired in rows)

        yield make

    return Job(
        kind="select",
        name=f"round-{number}/select",
        title=title(context, number, "select"),
        row=Paired,
        settings={**recipe.deciding("select"), "from": plan.digest(names[2])},
        inputs=tuple(" ".join(row) for row in zip(plan.shards(names[2]), index.domains, index.sources, strict=True)),
        sizes=index.sizes,
        needs=names,
        session=session,
        count=count_paired,
        check=lambda manifest: check_pairs(context, manifest, number),
    )
