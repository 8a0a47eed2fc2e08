"""Checks of your own (`verify.custom`): a function of (answer, response, ground truth, question), run in processes that can be killed.

The function returns an outcome, True or False, or a score between 0 and 1, of which 0.5 and more count as correct.
"""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path
from queue import LifoQueue

from mixpo.errors import RecipeError
from mixpo.recipe import VerifyTable
from mixpo.types import Question, Response, Verdict
from mixpo.verify.pool import START_LIMIT_S, Worker

PROGRAM = Path(__file__).with_name("custom_worker.py")
OUTCOMES = {"correct": "correct", "wrong": "wrong", "malformed": "malformed", "undecided": "undecided"}


class CustomChecks:
    """The custom checks of a recipe. Starts processes when first asked; thread-safe; close it.

    folder: of the recipe, where modules are looked for first.
    """

    def __init__(self, table: VerifyTable, folder: Path) -> None:
        self._table, self._folder = table, folder
        self._idle: dict[str, LifoQueue[Worker | None]] = {}
        for target in targets_of(table).values():
            self._idle[target] = LifoQueue()
            for _ in range(table.workers):
                self._idle[target].put(None)

    def start(self) -> None:
        """Start one process for each check. Raises RecipeError for a function that cannot be imported or called."""
        for target, idle in self._idle.items():
            idle.put(self._started(idle.get(), target))

    def target(self, question: Question) -> str:
        """The check of a question, by its source, then by its domain; "" where the built-in checks decide."""
        named = targets_of(self._table)
        return next((named[p] for name in (question.source, question.domain) for p in named if fnmatchcase(name, p)), "")

    def verdict(self, target: str, question: Question, response: Response, extracted: str | None) -> Verdict:
        """What the check says; undecided where it raises, hangs, dies or returns something else. Never raises for what the check does."""
        request = {
            "answer": extracted,
            "response": response.text,
            "ground_truth": question.answer,
            "question": {
                "text": question.text,
                "images": [image.path for image in question.images],
                "answers": list(question.answers),
                "choices": list(question.choices),
                "domain": question.domain,
                "source": question.source,
            },
        }
        idle = self._idle[target]
        worker = idle.get()
        try:
            worker = self._started(worker, target)
            reply = worker.ask(request, self._table.custom_timeout_s)
            if reply is None and worker.timed_out:  # once more before it counts: the machine may have been busy
                worker = self._started(worker, target)
                reply = worker.ask(request, self._table.custom_timeout_s)
            if reply is None:
                reason = (
                    f"custom check exceeded {self._table.custom_timeout_s:g} s" if worker.timed_out else "custom check ended its process"
                )
                worker.end()
                worker, reply = None, {"outcome": "undecided", "reason": reason}
        finally:
            idle.put(worker)
        return Verdict(
            question=question.id,
            index=response.index,
            outcome=OUTCOMES[reply["outcome"]],  # type: ignore[arg-type]
            extracted=extracted,
            reason=reply["reason"],
            score=reply.get("score"),  # type: ignore[arg-type]
        )

    def close(self) -> None:
        """End all processes."""
        for idle in self._idle.values():
            for _ in range(idle.qsize()):
                if (worker := idle.get()) is not None:
                    worker.end()

    def _started(self, worker: Worker | None, target: str) -> Worker:
        if worker is not None and worker.is_usable():
            return worker
        if worker is not None:
            worker.end()
        worker = Worker(PROGRAM, str(self._folder.absolute()), target)
        ready = worker.read(START_LIMIT_S)
        if ready is None or ready["outcome"] != "ready":
            worker.end()
            reason = "the process ended" if ready is None else ready["reason"]
            raise RecipeError(f"verify.custom = {target!r} cannot be used: {reason}", code="custom-check-not-usable", key="verify.custom")
        return worker


def targets_of(table: VerifyTable) -> dict[str, str]:
    """Custom checks by pattern of a source or domain name."""
    return {"*": table.custom} if isinstance(table.custom, str) and table.custom else dict(table.custom or {})


def code_digest(table: VerifyTable, folder: Path) -> dict[str, str]:
    """Digest of each check's file below the recipe's folder, so that a changed function makes its verdicts stale; no entry without one."""
    digests = {}
    for target in sorted({*targets_of(table).values()}):
        path = folder / f"{target.partition(':')[0].replace('.', '/')}.py"
        if path.is_file():
            digests[target] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return digests
