"""Gradient agreement of the pairs of a run, before it trains on them. See `mixpo.train.gradients`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixpo.pipeline import finished_stage
from mixpo.stages.job import Context
from mixpo.stages.models import ModelRef
from mixpo.stages.reference import groups_file, spread
from mixpo.stages.train import model_of, table_of

if TYPE_CHECKING:
    from mixpo.train.gradients import GradientAgreement


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured. of: questions with pairs in the round, of which `questions` were used. kinds: all pairs first."""

    objective: str
    batch_size: int
    questions: int
    of: int
    kinds: tuple[GradientAgreement, ...]


def gradients(context: Context, questions: int, number: int = 1) -> Measured:
    """Measure up to `questions` questions of a round, evenly spaced, under the model that the round starts from.

    Raises RunError when the round's reference stage is not finished.
    """
    from mixpo.train.gradients import gradient_agreement
    from mixpo.train.group_data import open_groups

    plan, _ = finished_stage(context, number, "reference")
    groups = open_groups(groups_file(context, number))
    paired = groups.sizes["pairs"].nonzero()[0]
    chosen = [groups[int(paired[place])] for place in spread(len(paired), questions)]
    recipe, objective = context.recipe, context.recipe.train.objective
    model: ModelRef = context.models.base_model() if number == 1 else model_of(context, plan, number - 1, objective)
    table = table_of(recipe.train, objective)
    kinds = gradient_agreement(context.models.fresh(model), chosen, table, recipe.image, objective, recipe.seed, context.progress)
    return Measured(objective=objective, batch_size=table.batch_size, questions=len(chosen), of=len(paired), kinds=tuple(kinds))
