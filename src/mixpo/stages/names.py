"""Names of stages: as commands take them (`--until`, `--force`), and as a run directory has them.

A stage lies in RUN/round-1/pair, RUN/round-1/train/mpo or RUN/evaluate/SET/MODEL/MODE; its kind is one of `mixpo.recipe.STAGES`.
"""

from __future__ import annotations

from collections.abc import Sequence

from mixpo.errors import RecipeError
from mixpo.recipe import STAGES, StageKind, did_you_mean

LAST_OF: dict[str, StageKind] = {"sample": "continue", "branch": "value", "pair": "select", "evaluate": "text"}
"""The last kind of stage of a command that covers several."""


def kinds_until(until: str) -> tuple[StageKind, ...]:
    """The kinds of stages up to and with `until`. Raises RecipeError when there is no such stage."""
    _check(until, "--until", STAGES[1:])  # sources are read in any case
    return STAGES[1 : STAGES.index(LAST_OF.get(until, until)) + 1]


def first_forced(force: Sequence[str]) -> int:
    """Position in STAGES of the first stage to do again; beyond the last when there is none. Raises RecipeError for an unknown name."""
    for name in force:
        _check(name, "--force", STAGES)
    return min((STAGES.index(name) for name in force), default=len(STAGES))


def kind_of(name: str) -> str:
    """The kind of the stage that lives in this folder of a run."""
    parts = name.split("/")
    if parts[-1] in ("source", "preferences"):
        return "source"
    return parts[1] if parts[0].startswith("round-") else parts[0]


def _check(name: str, option: str, known: Sequence[str]) -> None:
    if name not in known:
        message = f"{option} {name}: no such stage{did_you_mean(name, known)}; known: {', '.join(known)}"
        raise RecipeError(message, code="unknown-stage", key=option)
