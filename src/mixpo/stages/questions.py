"""The questions of a run: of the source, of imported pairs, and of each evaluation set."""

from __future__ import annotations

from dataclasses import dataclass

from mixpo.recipe import Recipe
from mixpo.run import Run
from mixpo.stages import answer, source
from mixpo.stages.imported import PairImport, imported_shards
from mixpo.stages.job import Context
from mixpo.stages.question_index import NOTHING, REPLAY, QuestionIndex, load_index
from mixpo.stages.reading import reading_of


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The questions of a run: those to learn from, and those of each evaluation set.

    pairs: shards of imported pairs; the last so many shards of `train` are their questions. replay: SFT rows.
    """

    train: QuestionIndex
    sets: dict[str, QuestionIndex]
    pairs: tuple[str, ...] = ()
    replay: QuestionIndex = NOTHING


def read_sources(context: Context) -> Sources:
    """Read the questions of all sources that this recipe names."""
    recipe = context.recipe
    sets = {
        s.name: source.refresh(context, answer.source_name(s.name), reading_of(context, s.source, evaluated=True))
        for s in recipe.evaluate.sets
    }
    stages = {name: (answer.source_name(name), index) for name, index in sets.items()}
    if not recipe.trains:
        return Sources(train=NOTHING, sets=sets)
    contamination = source.contamination_filter(context, stages)
    pairs = PairImport(context, contamination)
    blocks = pairs.blocks() if recipe.preferences else ()
    train = source.refresh(context, "source", reading_of(context, recipe.source, contamination=contamination), blocks)
    table = recipe.train.replay
    rows = reading_of(context, table.source, replayed=True, contamination=contamination) if table else None
    replay = source.refresh(context, REPLAY, rows) if rows else NOTHING
    return Sources(train=train, sets=sets, pairs=tuple(pairs.shards), replay=replay)


def known_sources(run: Run, recipe: Recipe) -> Sources:
    """The questions as they were when last read; none where a source was never read."""

    def index(name: str) -> QuestionIndex:
        return load_index(run.stage(name)) or NOTHING

    return Sources(
        train=index("source") if recipe.trains else NOTHING,
        sets={s.name: index(answer.source_name(s.name)) for s in recipe.evaluate.sets},
        pairs=imported_shards(run, recipe),
        replay=index(REPLAY) if recipe.train.replay else NOTHING,
    )
