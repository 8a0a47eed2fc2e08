"""Which prompt a question gets in which mode. Pure lookups in the recipe."""

from __future__ import annotations

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
    """mode: "direct", or "cot" (also for sampling), where open questions and domains have prompts of their own."""
    if mode == "direct":
        return resolve(table.direct)
    if question.answer is None:
        return resolve(table.open)
    return resolve(table.by_domain.get(question.domain, table.cot))


def settings(table: PromptTable, mode: str = "cot") -> dict[str, Any]:
    """The resolved templates and styles that decide what a model is asked in this mode."""
    if mode == "direct":
        return {"direct": _plain(table.direct)}
    named = {"cot": table.cot, "open": table.open, **{f"domain {name}": value for name, value in table.by_domain.items()}}
    return {name: _plain(value) for name, value in named.items()}


def styles(table: PromptTable) -> dict[str, str]:
    """How the final answer is marked for each kind of question; all that verification needs of the prompts."""
    named = {"cot": table.cot, **{f"domain {name}": value for name, value in table.by_domain.items()}}
    return {name: resolve(value).style for name, value in named.items()}


def _plain(name: PromptName) -> list[str]:
    prompt = resolve(name)
    return [prompt.template, prompt.style]
