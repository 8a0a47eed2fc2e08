"""Which prompts a question gets, and which of them a response was sampled with. Pure lookups in the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from mixpo.prompts import PROMPTS, OwnStyle, Prompt
from mixpo.recipe import PairsTable, PromptMix, PromptName, PromptTable, Recipe, names_in
from mixpo.stages.question_index import QuestionIndex
from mixpo.types import Message, Pair, Question, content_id


def resolve(name: PromptName) -> Prompt:
    """The prompt behind a recipe's entry: a built-in one by name, or the recipe's own text."""
    if isinstance(name, str):
        return PROMPTS[name]
    return Prompt(template=name.template, style=name.style or OwnStyle(marker=name.marker, pattern=name.pattern))


def prompt_for(table: PromptTable, question: Question, mode: str = "cot") -> Prompt:
    """The one prompt of a question in evaluation: mode is "direct" or "cot". Of several it is the one with the largest share.

    A verbatim question is the whole message: it gets no prompt around it.
    """
    if mode == "direct" and not question.verbatim:
        return resolve(table.direct)
    parts = _parts(table, question)
    return max(parts, key=lambda part: part[1])[0]


def prompts_of(recipe: Recipe, question: Question) -> tuple[Prompt, ...]:
    """All prompts that the responses to a question are sampled with; those of DropoutNTP for a question with an answer come last."""
    own = tuple(prompt for prompt, _ in _parts(recipe.prompt, question))
    return (*own, resolve(recipe.prompt.open)) if open_responses(recipe, question) else own


def number_of(recipe: Recipe, question: Question, index: int) -> int:
    """Which of `prompts_of` response `index` is sampled with.

    Each prompt gets its share of the n responses, rounded up or down; over many questions the shares are exact, because where the
    count begins is drawn for each question by the seed.
    """
    parts, n = _parts(recipe.prompt, question), recipe.sample.n
    if index >= n and open_responses(recipe, question):
        return len(parts)
    if len(parts) == 1:
        return 0
    start = int(content_id(recipe.seed, "prompt", question.id), 16) / 2.0**64
    place, total = ((index + start) / n) % 1.0, 0.0
    for number, (_, share) in enumerate(parts):
        total += share
        if place < total:
            return number
    return len(parts) - 1


def number_of_pair(recipe: Recipe, question: Question, pair: Pair) -> int:
    """Which of `prompts_of` a pair is trained on with: that of its chosen side, of the rejected one if the chosen is a rationale."""
    index = pair.chosen_index if pair.chosen_index >= 0 else pair.rejected_index
    if pair.origin == "branch" and recipe.pairs.branches is not None:
        index = recipe.pairs.branches.response_of(index)
    return number_of(recipe, question, max(index, 0))


def rendered(recipe: Recipe, question: Question, pair: Pair) -> str:
    """The user's message that a pair is trained on with."""
    return prompts_of(recipe, question)[number_of_pair(recipe, question, pair)].render(question.text)


def with_system(table: PromptTable, question: Question) -> Question:
    """The question with `prompt.system` in front of its conversation, unless that has a system message of its own."""
    if not table.system or any(message.role == "system" for message in question.history):
        return question
    return replace(question, history=(Message(role="system", text=table.system), *question.history))


def open_responses(recipe: Recipe, question: Question) -> int:
    """How many responses a question with an answer gets to `prompt.open` in addition to its others, for DropoutNTP."""
    return 0 if question.answer is None or question.verbatim else open_requests(recipe.pairs, recipe.sample.n)


def open_requests(table: PairsTable, n: int) -> int:
    """How many of them `pairs.dropout_from` asks for. n: of `sample.n`."""
    return min(n, table.max_dropout_per_question) if table.dropout_ntp and table.dropout_from == "all" else 0


def _parts(table: PromptTable, question: Question) -> list[tuple[Prompt, float]]:
    """The prompts for the responses to a question, with their shares."""
    if question.verbatim:
        return [(PROMPTS["plain"], 1.0)]
    if question.answer is None:
        return [(resolve(table.open), 1.0)]
    by_source = (entry for pattern, entry in table.by_source.items() if fnmatchcase(question.source, pattern))
    entry = next(by_source, None) or table.by_domain.get(question.domain, table.cot)
    return [(resolve(part.name), part.share) for part in entry] if isinstance(entry, tuple) else [(resolve(entry), 1.0)]


def settings(table: PromptTable, mode: str = "cot") -> dict[str, Any]:
    """The resolved templates and styles that decide what a model is asked in this mode."""
    system = {"system": table.system} if table.system else {}
    if mode == "direct":
        return {**system, "direct": _plain(table.direct)}
    return {**system, "open": _plain(table.open), **{name: _plain(value) for name, value in _reasoned(table).items()}}


def styles(table: PromptTable) -> dict[str, Any]:
    """How the final answer is marked for each kind of question; all that verification needs of the prompts."""
    by_name = {name: [resolve(one).style for one in names_in(value)] for name, value in _reasoned(table).items()}
    return {name: each[0] if len(each) == 1 else each for name, each in by_name.items()}


def chosen_by(recipe: Recipe, shards: Sequence[str], index: QuestionIndex) -> tuple[str, ...]:
    """The shards, with the digests of domains and sources where these have prompts or image limits of their own: only there do they
    matter."""
    table, limits = recipe.prompt, recipe.image.limits
    parts = [shards, *([index.domains] if table.by_domain or limits else []), *([index.sources] if table.by_source or limits else [])]
    return tuple(" ".join(row) for row in zip(*parts, strict=True))


def _reasoned(table: PromptTable) -> dict[str, PromptMix]:
    """Every chain-of-thought prompt, by what it is for. The order of sources decides which pattern comes first."""
    by_source = {f"source {number} {name}": value for number, (name, value) in enumerate(table.by_source.items())}
    return {"cot": table.cot, **{f"domain {name}": value for name, value in table.by_domain.items()}, **by_source}


def _plain(entry: PromptMix) -> list[Any]:
    if isinstance(entry, tuple):
        return [[*_plain(part.name), part.share] for part in entry]
    prompt = resolve(entry)
    return [prompt.template, prompt.style]
