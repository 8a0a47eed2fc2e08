"""Which prompt a question gets in which mode. Pure lookups in the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from mixpo.prompts import PROMPTS, Prompt
from mixpo.recipe import PromptName, PromptTable
from mixpo.types import Question


def resolve(name: PromptName) -> Prompt:
    """The prompt behind a recipe's entry: a built-in one by name, or the recipe's own text."""
    if isinstance(name, str):
        return PROMPTS[name]
    return Prompt(template=name.template, style=name.style)


def prompt_for(table: PromptTable, question: Question, mode: str = "cot") -> Prompt:
    """mode: "direct", or "cot" (also for sampling), where open questions and domains have prompts of their own.

    A verbatim question is the whole message: it gets no prompt around it.
    """
    if question.verbatim:
        return PROMPTS["plain"]
    if mode == "direct":
        return resolve(table.direct)
    if question.answer is None:
        return resolve(table.open)
    for pattern, name in table.by_source.items():
        if fnmatchcase(question.source, pattern):
            return resolve(name)
    return resolve(table.by_domain.get(question.domain, table.cot))


def settings(table: PromptTable, mode: str = "cot") -> dict[str, Any]:
    """The resolved templates and styles that decide what a model is asked in this mode."""
    if mode == "direct":
        return {"direct": _plain(table.direct)}
    return {"open": _plain(table.open), **{name: _plain(value) for name, value in _reasoned(table).items()}}


def styles(table: PromptTable) -> dict[str, str]:
    """How the final answer is marked for each kind of question; all that verification needs of the prompts."""
    return {name: resolve(value).style for name, value in _reasoned(table).items()}


def chosen_by(table: PromptTable, shards: Sequence[str], domains: Sequence[str], sources: Sequence[str]) -> tuple[str, ...]:
    """The shards, with the digests of domains and sources where these have prompts of their own: only there do they matter."""
    parts = [shards, *([domains] if table.by_domain else []), *([sources] if table.by_source else [])]
    return tuple(" ".join(row) for row in zip(*parts, strict=True))


def _reasoned(table: PromptTable) -> dict[str, PromptName]:
    """Every chain-of-thought prompt, by what it is for. The order of sources decides which pattern comes first."""
    by_source = {f"source {number} {name}": value for number, (name, value) in enumerate(table.by_source.items())}
    return {"cot": table.cot, **{f"domain {name}": value for name, value in table.by_domain.items()}, **by_source}


def _plain(name: PromptName) -> list[str]:
    prompt = resolve(name)
    return [prompt.template, prompt.style]
