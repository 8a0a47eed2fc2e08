"""Step-level pairs from branches: where sampled responses are cut, the value of each place, and the pairs of its continuations.

The value of a place is the share of its continuations that end right. Continuations of one beginning that end right and wrong make pairs
whose difference begins at the place. Knows nothing about engines.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from mixpo.pairs.correctness import correctness_pairs
from mixpo.pairs.dropout_ntp import content_length, select, whole_tokens
from mixpo.pairs.statistics import balance_of
from mixpo.recipe import BranchesTable, PairsTable
from mixpo.records import Judged, Sampled, Valued
from mixpo.types import Pair, Place, Question, Response, Verdict

Decode = Callable[[Sequence[int]], str]


class Cut(NamedTuple):
    """A place in a response. number: of the place in the response. kept: how many leading token ids come before it."""

    response: Response
    number: int
    kept: int


class Step(NamedTuple):
    """A stretch of a response up to the next place.

    value: of the place at its end, None if unknown; of the last step 1 or 0 by the verdict. n: the continuations
    behind the value, 0 for a verdict.
    """

    text: str
    value: float | None
    n: int


# --- where to cut -------------------------------------------------------------------------------------------------------


def cuts(sampled: Sampled, judged: Judged, table: BranchesTable, seed: int, decode: Decode, end_ids: Collection[int]) -> list[Cut]:
    """The places of one question, by response and position; none for a question whose responses are not cut.

    Depends on nothing but the arguments, and not on the order of the responses.
    """
    if table.only_mixed and balance_of(judged) != "mixed":
        return []
    wanted = {"any": {"correct", "wrong", "malformed"}, "correct": {"correct"}, "wrong": {"wrong", "malformed"}}[table.cut_responses]
    indices = {verdict.index for verdict in judged.verdicts if verdict.outcome in wanted}
    candidates = [response for response in sampled.responses if response.index in indices]
    chosen, _ = select(candidates, table.max_responses, f"{seed}/branch/{sampled.question}")
    return [Cut(response, number, kept) for response in chosen for number, kept in enumerate(places_of(response, table, decode, end_ids))]


def places_of(response: Response, table: BranchesTable, decode: Decode, end_ids: Collection[int]) -> list[int]:
    """At most `max_places` numbers of leading tokens, ascending, that leave a token on both sides and end with a whole character."""
    ids, length = response.token_ids, content_length(response.token_ids, end_ids)
    kept: set[int] = set()
    for rule in table.at:
        if rule == "sentences":
            kept.update(bisect_left(range(length), end, key=lambda n: len(decode(ids[:n]))) for end in sentence_ends(response.text))
        elif rule == "ratios":
            kept.update(int(ratio * length) for ratio in table.ratios)
        elif len(response.logprobs) == len(ids):
            # Of equal ones the first; the first token of all has nothing before it.
            kept.update(sorted(range(1, length), key=lambda n: (response.logprobs[n], n))[: table.max_places])
    whole = sorted({whole_tokens(ids, min(number, length - 1), decode) for number in kept} - {0})
    return _spaced(whole, table.max_places)


def _spaced(numbers: Sequence[int], limit: int) -> list[int]:
    """`limit` of the numbers, evenly spaced, or all if they are no more."""
    if len(numbers) <= limit:
        return list(numbers)
    return [numbers[(2 * step + 1) * len(numbers) // (2 * limit)] for step in range(limit)]


_END = re.compile(r"[.!?]+[\"')\]*]*(?=\s+\S)|[。！？]+[”’」』]*(?=\s*\S)|(?<=\S)(?=[^\S\n]*\n\s*\S)")
"""The end of a sentence or line with more text after it."""
_MARKER = re.compile(r"\W*(?:\d{1,3}|[A-Za-z])[.)]")
"""The number of a list item, which is no sentence."""


def sentence_ends(text: str) -> list[int]:
    """Where sentences and lines end, as numbers of characters before the place; not at the end of the text."""
    ends, begun = [], 0
    for match in _END.finditer(text):
        if match.end() > begun and not _MARKER.fullmatch(text, begun, match.end()):
            ends.append(match.end())
            begun = match.end()
    return ends


# --- values and pairs ---------------------------------------------------------------------------------------------------


def places(sampled: Sampled, continued: Sampled, judged: Judged, table: BranchesTable, decode: Decode) -> Iterator[Place]:
    """The value of each place, by response and tokens. continued: the continuations of all places; judged: their verdicts."""
    responses = {response.index: response for response in sampled.responses}
    outcomes = {verdict.index: verdict.outcome for verdict in judged.verdicts}
    for _, continuations in _by_place(continued, table):
        # A continuation whose ids were lost does not know where it begins; the others of the place do.
        kept = max(continuation.prefix_len for continuation in continuations)
        response = responses.get(table.response_of(continuations[0].index))
        if not kept or response is None:
            continue
        counts = Counter(outcomes[continuation.index] for continuation in continuations if continuation.index in outcomes)
        n = counts.total() - counts["undecided"]
        text = decode(response.token_ids[:kept])
        yield Place(
            response=response.index, tokens=kept, characters=len(text), value=counts["correct"] / n if n else None, n=n
        )  # fmt: skip


def _by_place(continued: Sampled, table: BranchesTable) -> Iterator[tuple[int, list[Response]]]:
    """The continuations from each place of a question, with the number of the place among all of the question."""
    ordered = sorted(continued.responses, key=lambda response: response.index)
    for place, group in groupby(ordered, key=lambda response: response.index // table.continuations):
        yield place, list(group)


def steps(response: Response, places: Sequence[Place], verdict: Verdict | None) -> list[Step]:
    """The whole text of a response, cut at its places that have a value. verdict: on the response itself."""
    made, begun = [], 0
    for place in sorted((place for place in places if place.value is not None), key=lambda place: place.characters):
        made.append(Step(response.text[begun : place.characters], place.value, place.n))
        begun = place.characters
    known = None if verdict is None or verdict.outcome == "undecided" else float(verdict.outcome == "correct")
    return [*made, Step(response.text[begun:], known, 0)]


def branch_pairs(question: Question, continued: Sampled, valued: Valued, table: PairsTable, seed: int) -> tuple[list[Pair], Counter[str]]:
    """The pairs of continuations of one beginning, and what was dropped, by reason (see `provenance.REASONS`).

    Chosen and rejected sides are found by the rules of correctness pairs, at most `max_per_place` of each place.
    """
    branches = table.branches
    assert branches is not None
    pairs, drops = list[Pair](), Counter[str]()
    update = {"max_per_question": branches.max_per_place, "across_prompts": True, "rationales": False, "max_side_similarity": 1.0}
    rules = table.model_copy(update=update)
    verdicts = {verdict.index: verdict for verdict in valued.verdicts}
    for place, of_place in _by_place(continued, branches):
        continuations = [response for response in of_place if response.index in verdicts]
        usable = [response for response in continuations if response.prefix_len]
        drops["wrong_prefix"] += len(continuations) - len(usable)
        judged = [verdicts[response.index] for response in usable]
        more, more_drops = correctness_pairs(question, usable, judged, rules, f"{seed}/{place}", origin="branch")
        pairs += more
        drops += more_drops
    # A continuation may repeat what came from an earlier place.
    different = {(pair.chosen, pair.rejected): pair for pair in reversed(pairs)}
    drops["same_pair"] += len(pairs) - len(different)
    return [pair for pair in pairs if different[pair.chosen, pair.rejected] is pair], +drops
