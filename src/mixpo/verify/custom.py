"""Checks of your own (`verify.custom`): a function of (answer, response, ground truth, question), run in processes that can be killed.

The function returns an outcome, True or False, or a score between 0 and 1, of which 0.5 and more count as correct.
"""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path

from mixpo.errors import RecipeError
from mixpo.recipe import VerifyTable
from mixpo.types import Question, Response, Verdict
from mixpo.verify.processes import TIMED_OUT, UnavailableError, Workers

PROGRAM = Path(__file__).with_name("custom_worker.py")


class CustomChecks:
    """The custom checks of a recipe. Starts processes when first asked; thread-safe; close it.

    folder: of the recipe, where modules are looked for first.
    """

    def __init__(self, table: VerifyTable, folder: Path) -> None:
        self._table = table
        self._workers = {
            target: Workers(PROGRAM, str(folder.absolute()), target, count=table.workers) for target in targets_of(table).values()
        }

    def start(self) -> None:
        """Start one process for each check. Raises RecipeError for a function that cannot be imported or called."""
        for target, workers in self._workers.items():
            try:
                workers.start()
            except UnavailableError as error:
                raise _not_usable(target, error) from None

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
        try:
            reply = self._workers[target].ask(request, self._table.custom_timeout_s)
        except UnavailableError as error:
            raise _not_usable(target, error) from None
        if isinstance(reply, str):
            exceeded = f"custom check exceeded {self._table.custom_timeout_s:g} s"
            reply = {"outcome": "undecided", "reason": exceeded if reply == TIMED_OUT else "custom check ended its process"}
        return Verdict(question=question.id, index=response.index, extracted=extracted, **reply)

    def close(self) -> None:
        """End all processes."""
        for workers in self._workers.values():
            workers.close()


def _not_usable(target: str, error: UnavailableError) -> RecipeError:
    return RecipeError(f"verify.custom = {target!r} cannot be used: {error}", code="custom-check-not-usable", key="verify.custom")


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
