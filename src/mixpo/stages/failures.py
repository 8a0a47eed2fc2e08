"""Stages of the evaluation may fail without stopping a run: only the report needs them, and it says what is missing."""

from __future__ import annotations

from collections.abc import Callable

from mixpo.errors import EngineError, EvaluateError, UnfinishedError
from mixpo.stages.job import Planned

KINDS = ("answer", "evaluate", "text")
"""Kinds of stages that only the report needs."""


class DeferredFailures:
    """Does stages one by one, and keeps what failed in the evaluation until the rest is done.

    blocked: why a stage cannot be done, or "". say: receives what the user should know.
    """

    def __init__(self, *, perform: Callable[[Planned], None], blocked: Callable[[Planned], str], say: Callable[[str], None]) -> None:
        self._perform, self._blocked, self._say = perform, blocked, say
        self._failed: list[str] = []
        self._gone: set[tuple[str, ...]] = set()

    def do(self, planned: Planned) -> None:
        """Perform a stage, unless what it relies on failed before."""
        if planned.job.kind not in KINDS:
            self._perform(planned)
            return
        if self._failed and (_relies_on(planned) in self._gone or self._blocked(planned)):
            self._say(f"{planned.job.title}: skipped, what it needs failed")
            return
        try:
            self._perform(planned)
        except (EngineError, EvaluateError) as error:
            self._failed.append(f"{planned.job.title}: {error}")
            self._say(f"{planned.job.title}: failed; continuing with the rest")
            if not planned.finished():
                self._gone.add(_relies_on(planned))

    def close(self) -> None:
        """Raise UnfinishedError when anything failed, naming the first of it."""
        if self._failed:
            others = f" (and {len(self._failed) - 1} more)" if len(self._failed) > 1 else ""
            raise UnfinishedError(
                f"{self._failed[0]}{others}; everything else is done, the same command makes only what is missing",
                code="evaluation-unfinished",
            )


def _relies_on(planned: Planned) -> tuple[str, ...]:
    """What another stage would miss as well that this one missed: the model that answers, or the judge."""
    kind, *names = planned.job.name.split("/")
    if kind == "answer":
        return "model", names[1]
    return ("judge",) if "judge" in planned.job.settings else (planned.job.name,)
