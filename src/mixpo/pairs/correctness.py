"""Pairs for questions with a known answer: a correct answer is chosen, a wrong or malformed one is rejected.

Uses verdicts only; never compares with the ground truth itself.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product

from mixpo.pairs.provenance import length_ratio, make_pair, rationale_of, side_similarity
from mixpo.recipe import PairsTable
from mixpo.types import Origin, Outcome, Pair, Question, Response, Verdict


@dataclass(frozen=True, slots=True)
class _Answer:
    """A response with its verdict. text: without spaces around. plain: the extracted answer as the entailment rule compares it, or "".

    prompt: the number of its prompt, None for one that goes with any.
    """

    response: Response
    verdict: Verdict
    text: str
    plain: str
    prompt: int | None


def one_prompt(index: int) -> int:
    """Every response was sampled with the same prompt."""
    return 0


def correctness_pairs(
    question: Question,
    responses: Sequence[Response],
    verdicts: Sequence[Verdict],
    table: PairsTable,
    seed: int | str,
    asked: Callable[[int], int] = one_prompt,
    origin: Origin | None = None,
) -> tuple[list[Pair], Counter[str]]:
    """At most `table.max_per_question` pairs of one question, and what was dropped, by reason (see `provenance.REASONS`).

    Which combinations are taken is random, keyed by seed and question, and uses every answer as evenly as possible; the
    order of the inputs does not matter. An answer whose verdict is undecided or whose sampling failed is on neither side,
    one that hit the length limit is never chosen. Wrong and malformed answers share the cap. Only responses to the same prompt
    (`asked`: from their index to its number) make a pair, unless `table.across_prompts`. origin: of all pairs; None for "format" where the
    rejected answer is malformed and "correctness" elsewhere.
    Raises ValueError when responses and verdicts do not belong together.
    """
    drops: Counter[str] = Counter()
    chosen, rejected = _sides(_scored(_matched(question, responses, verdicts, one_prompt if table.across_prompts else asked)), table, drops)
    if table.rationales and question.rationale and not any(verdict.outcome == "correct" for verdict in verdicts):
        chosen = [_beside(*rationale_of(question), None)]
    rng = random.Random(f"{seed}/pairs/{question.id}")
    rng.shuffle(chosen)
    rng.shuffle(rejected)
    objections, order = _objections(chosen, rejected, table), diagonals(len(chosen), len(rejected))
    objections.update(_too_close(chosen, rejected, table.min_margin))
    drops.update(filter(None, objections.values()))
    if objections:
        taken = sample_balanced([edge for edge in order if edge not in objections], table.max_per_question)
    else:
        taken = [*islice(order, table.max_per_question)]
    left_out = len(chosen) * len(rejected) - len(objections) - len(taken)
    if left_out:
        drops["over_cap"] += left_out
    pairs = [_pair(question, chosen[row], rejected[column], origin) for row, column in taken]
    return sorted(pairs, key=lambda pair: (pair.chosen_index, pair.rejected_index)), drops


def entails(correct: str, wrong: str) -> bool:
    """Whether the correct final answer stands inside the wrong one: containment of what `plain` gives, as in the paper.

    So "1" counts as standing inside "10"; such a pair is skipped to be on the safe side. `pairs.entailment = false` keeps them.
    """
    return bool(correct) and correct in wrong


def plain(answer: str) -> str:
    """An answer without case and superfluous spacing."""
    return " ".join(answer.casefold().split())


def _matched(question: Question, responses: Sequence[Response], verdicts: Sequence[Verdict], asked: Callable[[int], int]) -> list[_Answer]:
    """Responses with their verdicts, by index."""
    by_index = {verdict.index: verdict for verdict in verdicts}
    indices = {response.index for response in responses}
    if not len(responses) == len(verdicts) == len(indices) or indices != by_index.keys():
        raise ValueError(f"question {question.id}: responses {sorted(indices)} and verdicts {sorted(by_index)} do not match one to one")
    pairs = ((response, by_index[response.index]) for response in sorted(responses, key=lambda r: r.index))
    return [_beside(response, verdict, asked(response.index)) for response, verdict in pairs]


def _beside(response: Response, verdict: Verdict, prompt: int | None) -> _Answer:
    return _Answer(response, verdict, response.text.strip(), plain(verdict.extracted or ""), prompt)


def _scored(answers: Sequence[_Answer]) -> list[_Answer]:
    """An answer with a score may be on either side: `_too_close` decides against which others."""
    both: tuple[Outcome, Outcome] = ("correct", "wrong")
    return [
        replace(answer, verdict=replace(answer.verdict, outcome=outcome))
        for answer in answers
        for outcome in (both if answer.verdict.score is not None else (answer.verdict.outcome,))
    ]


def _too_close(chosen: Sequence[_Answer], rejected: Sequence[_Answer], margin: float) -> dict[tuple[int, int], str]:
    """Pairs of scored answers whose chosen one does not score higher by the margin, by their places; "" where it does not score higher."""
    scores = [answer.verdict.score for answer in chosen], [answer.verdict.score for answer in rejected]
    return {
        (row, column): "margin" if high > low else ""
        for (row, high), (column, low) in product(enumerate(scores[0]), enumerate(scores[1]))
        if high is not None and low is not None and (high <= low or high - low < margin - 1e-9)
    }


def _sides(answers: Sequence[_Answer], table: PairsTable, drops: Counter[str]) -> tuple[list[_Answer], list[_Answer]]:
    """The answers that may be chosen and those that may be rejected, each text once per side and prompt, by index."""
    sides: tuple[dict[tuple[str, int | None], _Answer], dict[tuple[str, int | None], _Answer]] = ({}, {})
    seen: dict[tuple[bool, int | None], NearDuplicates] = {}
    for answer in answers:
        reason = _unfit(answer, table)
        if reason:
            drops[reason] += 1
            continue
        which = answer.verdict.outcome != "correct"
        key = (answer.text, answer.prompt)
        if key in sides[which]:
            drops["duplicate"] += 1
        elif seen.setdefault((which, answer.prompt), NearDuplicates(table.max_similarity)).admit(answer.text):
            sides[which][key] = answer
        else:
            drops["near_duplicate"] += 1
    return list(sides[0].values()), list(sides[1].values())


def _unfit(answer: _Answer, table: PairsTable) -> str:
    """Why an answer is on neither side, or ""."""
    response, outcome = answer.response, answer.verdict.outcome
    if response.finish == "error":
        return "error"
    if outcome == "undecided":
        return "undecided"
    if outcome == "correct" and response.finish != "stop":
        return "length_capped"
    if outcome == "malformed" and not table.format_negatives:
        return "malformed"
    if not response.token_ids and not answer.text:
        return "empty"
    return ""


def _objections(chosen: Sequence[_Answer], rejected: Sequence[_Answer], table: PairsTable) -> dict[tuple[int, int], str]:
    """Why two answers make no pair, by their places; combinations without an objection are missing. The last reason found counts."""
    objections: dict[tuple[int, int], str] = {}
    limited = table.max_length_ratio or table.max_side_similarity < 1
    for (row, answer), (column, other) in product(enumerate(chosen), enumerate(rejected)) if limited else ():
        if table.max_length_ratio and length_ratio(answer.response, other.response) > table.max_length_ratio:
            objections[row, column] = "length_ratio"
        if table.max_side_similarity < 1 and side_similarity(answer.response, other.response) > table.max_side_similarity:
            objections[row, column] = "similar_sides"
    if table.entailment:
        rows, columns = _places(answer.plain for answer in chosen), _places(answer.plain for answer in rejected)
        for right, wrong in product(rows, columns):
            if entails(right, wrong):
                objections.update(dict.fromkeys(product(rows[right], columns[wrong]), "entailment"))
    places = _places(answer.text for answer in rejected)
    objections.update({(row, column): "same_text" for row, answer in enumerate(chosen) for column in places.get(answer.text, ())})
    several = len({answer.prompt for answer in (*chosen, *rejected)} - {None}) > 1
    for (row, answer), (column, other) in product(enumerate(chosen), enumerate(rejected)) if several else ():
        if answer.prompt is not None and answer.prompt != other.prompt:
            objections[row, column] = "other_prompt"
    return objections


def _places(answers: Iterable[str]) -> dict[str, list[int]]:
    """Where each answer stands; most are given several times."""
    places: dict[str, list[int]] = {}
    for place, answer in enumerate(answers):
        places.setdefault(answer, []).append(place)
    return places


def _pair(question: Question, chosen: _Answer, rejected: _Answer, origin: Origin | None) -> Pair:
    origin = origin or ("format" if rejected.verdict.outcome == "malformed" else "correctness")
    return make_pair(
        question.id, chosen.response, rejected.response, origin, chosen.verdict.extracted, rejected.verdict.extracted
    )  # fmt: skip


# --- balanced sampling --------------------------------------------------------------------------------------------------


def diagonals(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """All rows x columns combinations once, in an order of which every beginning uses each row (and each column) evenly.

    Within one least common multiple of the sizes both numbers run round; after it the columns shift by one, or the same
    combinations would come again.
    """
    period = math.lcm(rows, columns) if rows and columns else 1
    return ((step % rows, (step + step // period) % columns) for step in range(rows * columns))


def sample_balanced(edges: Sequence[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """At most `limit` of the edges. Each step takes the first edge that touches the least used member, then the least used partner.

    Of all edges in the order of `diagonals` it takes the beginning.
    """
    if len(edges) <= limit:
        return list(edges)
    left = list(edges)
    used_rows = dict.fromkeys((row for row, _ in edges), 0)
    used_columns = dict.fromkeys((column for _, column in edges), 0)
    taken = []
    least = (0, 0)
    for _ in range(limit):
        position, least = _least_used(left, used_rows, used_columns, least)
        row, column = left.pop(position)
        used_rows[row] += 1
        used_columns[column] += 1
        taken.append((row, column))
    return taken


def _least_used(
    edges: Sequence[tuple[int, int]], used_rows: dict[int, int], used_columns: dict[int, int], least: tuple[int, int]
) -> tuple[int, tuple[int, int]]:
    """Position and use of the first edge that is used least. least: what the step before found; uses only grow, so none is below it."""
    position, best = 0, (len(edges) + 1, 0)
    for number, (row, column) in enumerate(edges):
        one, other = used_rows[row], used_columns[column]
        use = (one, other) if one < other else (other, one)
        if use < best:
            position, best = number, use
            if use <= least:
                break
    return position, best


# --- near duplicates ----------------------------------------------------------------------------------------------------

RUN = 3
"""Words in a run; an answer of fewer words is one run."""


class NearDuplicates:
    """The answers seen so far, each by its runs of words."""

    def __init__(self, limit: float) -> None:
        """limit: an overlap above it is too much; 1 lets everything pass."""
        self.limit = limit
        self._runs: list[frozenset[tuple[str, ...]]] = []

    def admit(self, text: str) -> bool:
        """Whether a text is different enough from all that were admitted; then it is remembered."""
        if self.limit >= 1:
            return True
        runs = word_runs(text)
        if any(overlap(runs, other) > self.limit for other in self._runs):
            return False
        self._runs.append(runs)
        return True


def word_runs(text: str) -> frozenset[tuple[str, ...]]:
    """Every run of three neighbouring words, without case. Chinese characters count as words."""
    words = list(_words(text.casefold()))
    if len(words) <= RUN:
        return frozenset({tuple(words)})
    return frozenset(zip(*(islice(words, start, None) for start in range(RUN)), strict=False))


def overlap(left: frozenset[tuple[str, ...]], right: frozenset[tuple[str, ...]]) -> float:
    """Runs in common by runs in either (Jaccard), between 0 and 1."""
    return len(left & right) / len(left | right)


def _words(text: str) -> Iterable[str]:
    for word in text.split():
        if word.isascii():
            yield word
        else:
            yield from word
