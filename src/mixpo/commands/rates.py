"""The figures that `mixpo plan` estimates with: measured by stages that have run in the directory, given by the user, or assumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mixpo.recipe import BranchesTable
from mixpo.stages.imported import STAGE
from mixpo.stages.job import Context
from mixpo.stages.prompting import open_requests
from mixpo.stages.question_index import QuestionIndex
from mixpo.stages.verify import JUDGED_BY
from mixpo.vlm.folder import find_model

PROMPT_TOKENS = 400
"""Tokens of a question with its picture and instruction, where none was measured."""
ANSWER_SHARE = 0.5
"""Length of an answer as a share of max_new_tokens, where none was measured."""
MULTIPLY_ADDS = 2e10
"""Floating-point operations each second that two CPU cores reach in practice; a GPU reaches some hundred times that."""
READ_FASTER = 5
"""So many times faster than it writes tokens a model reads them; training reads forward once and backward for twice the work."""
PAIRS_SHARE = 0.5
"""Share of questions that give pairs, where none was measured."""
ASSUMED = "assumed: 2 CPU cores"
UNDECIDED_SHARE = 0.1
"""Share of verdicts that rules leave undecided, where none was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What the user says instead of what was measured. questions: of the source, all of them still to do.

    rate, train_rate: tokens each second of one device, written while sampling and read in training.
    """

    questions: int | None = None
    rate: float | None = None
    train_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the estimates are made with.

    answer: tokens of one answer. generated: tokens each second while sampling. trained: tokens each second forward and backward.
    pairs: preference pairs of one round, of `groups` questions with at most `each` answers, whose prompt is computed once. given: what
    the user says. per_request: answers that one request to a server gives; 0 where the engine gives all. undecided: share of the
    verdicts that rules leave undecided; judged: those that verify.judge decided in this run are among them. branches: continuations of
    branches for each question with an answer.
    """

    answer: float
    generated: float
    trained: float
    parameters: float
    model_bytes: int
    pairs: float
    groups: float
    each: int
    per_request: int
    undecided: float
    judged: bool
    branches: float
    basis: str
    given: Assumed

    @property
    def round_tokens(self) -> float:
        """Tokens that one pass over the pairs of a round reads."""
        return self.groups * PROMPT_TOKENS + min(2 * self.pairs, self.groups * self.each) * self.answer


def rates_of(context: Context, sampled_index: QuestionIndex, assumed: Assumed, imported: Mapping[str, int]) -> Rates:
    """The figures of stages that have run in this directory, else assumed ones. imported: counts of the imported pairs."""
    recipe = context.recipe
    weights = sum(path.stat().st_size for path in find_model(recipe.model, context.recipe_folder).glob("*.safetensors"))
    parameters = weights / (4 if recipe.model.dtype == "float32" else 2)
    sampled, paired = context.run.stage("round-1/sample").manifest, counts_of(context, "pair")
    generated, basis = MULTIPLY_ADDS / (2 * max(parameters, 1)), ASSUMED
    answer = recipe.sample.max_new_tokens * ANSWER_SHARE
    if sampled is not None and sampled.counts.get("tokens") and sampled.seconds:
        generated, basis = sampled.counts["tokens"] / sampled.seconds, "measured in this run"
        answer = sampled.counts["tokens"] / sampled.counts["answers"]
    if assumed.rate is not None:
        generated, basis = assumed.rate, "--rate"
    questions = assumed.questions or sampled_index.questions
    groups = questions * PAIRS_SHARE
    pairs = groups * min(recipe.pairs.max_per_question, (recipe.sample.n / 2) ** 2)
    branches = branches_of(recipe.pairs.branches)
    if recipe.pairs.branches is not None:
        pairs += questions * branches / 2  # each of half the places has as many pairs as continuations, at most
    more = open_requests(recipe.pairs, recipe.sample.n)
    if more:
        pairs, groups = pairs + questions * more, questions
    before = context.run.stage(STAGE).manifest
    given = before.counts if before is not None else {}
    if paired.get("pairs") and (own := paired["questions"] - given.get("questions", 0)) > 0:
        pairs, groups = ((paired[name] - given.get(of, 0)) / own * questions for name, of in _MEASURED)
    pairs, groups = pairs + imported.get("pairs", 0), groups + imported.get("questions", 0)
    verdicts = counts_of(context, "verify")
    judged = sum(count for name, count in verdicts.items() if name.startswith(f"decided by {JUDGED_BY}"))
    undecided = (verdicts.get("undecided", 0) + judged) / verdicts["verdicts"] if verdicts.get("verdicts") else UNDECIDED_SHARE
    served = (sampled.facts.get("server") or {}).get("n", recipe.sample.n) if sampled is not None else recipe.sample.n
    return Rates(
        answer=answer, generated=generated, trained=assumed.train_rate or generated * READ_FASTER / 3, parameters=parameters,
        model_bytes=weights, pairs=pairs, groups=groups, each=recipe.sample.n + 2 * more + math.ceil(branches), basis=basis, given=assumed,
        per_request=served if recipe.sample.engine == "openai" else 0,
        undecided=undecided, judged=judged > 0, branches=branches,
    )  # fmt: skip


def branches_of(table: BranchesTable | None) -> float:
    """Continuations of branches for each question with an answer: as many as the recipe allows, for the share of questions that is cut."""
    if table is None:
        return 0.0
    share = PAIRS_SHARE if table.only_mixed else 1.0
    return share * table.max_responses * table.max_places * table.continuations


_MEASURED = (("pairs", "pairs"), ("with_pairs", "questions"))
"""Counts of the pair stage, and those of the imported pairs among them."""


def counts_of(context: Context, kind: str) -> dict[str, int]:
    """What a stage of the first round counted, if it has run."""
    manifest = context.run.stage(f"round-1/{kind}").manifest
    return {} if manifest is None else manifest.counts
