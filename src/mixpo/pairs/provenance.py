"""Identity and provenance of a pair, how to rebuild it, and the reasons for which something is dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mixpo.errors import RecordError
from mixpo.records import Judged, Paired, Sampled, Valued
from mixpo.types import Origin, Pair, Question, Response, Verdict, content_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """What a drop counts, and why it happened, for people."""

    unit: Literal["questions", "answers", "pairs"]
    text: str


RATIONALE = -1
"""The index of a chosen side that no model wrote: the question's rationale."""

REASONS: dict[str, Reason] = {
    "failed": Reason(unit="questions", text="sampling failed"),
    "correctness_off": Reason(
        unit="questions", text="has an answer, and pairs.correctness is off, or off for its source (pairs.correctness_except)"
    ),
    "dropout_ntp_off": Reason(unit="questions", text="has no answer, and pairs.dropout_ntp is off"),
    "error": Reason(unit="answers", text="the engine reported an error"),
    "empty": Reason(unit="answers", text="no text and no tokens"),
    "undecided": Reason(unit="answers", text="the verifier could not tell right from wrong"),
    "length_capped": Reason(unit="answers", text="truncated, so never chosen"),
    "malformed": Reason(unit="answers", text="no clear final answer, and pairs.format_negatives is off"),
    "duplicate": Reason(unit="answers", text="the same text as another answer to the question"),
    "near_duplicate": Reason(unit="answers", text="nearly the same text as another answer on its side (pairs.max_similarity)"),
    "same_text": Reason(unit="pairs", text="chosen and rejected have the same text"),
    "entailment": Reason(unit="pairs", text="the correct final answer is contained in the wrong one"),
    "other_prompt": Reason(unit="pairs", text="the two sides were sampled with different prompts (pairs.across_prompts)"),
    "margin": Reason(unit="pairs", text="the scores differ by less than pairs.min_margin"),
    "same_pair": Reason(unit="pairs", text="the same two texts as another pair of the question"),
    "length_ratio": Reason(unit="pairs", text="one side is longer than pairs.max_length_ratio allows"),
    "similar_sides": Reason(unit="pairs", text="the two sides are more similar than pairs.max_side_similarity allows"),
    "balance": Reason(unit="pairs", text="its class is larger than its share (pairs.balance)"),
    "over_cap": Reason(unit="pairs", text="more than the cap per question"),
    "no_continuation": Reason(unit="pairs", text="too short to cut, or nothing was generated without the image"),
    "continuation_error": Reason(unit="pairs", text="the engine reported an error for the continuation"),
    "wrong_prefix": Reason(unit="pairs", text="the continuation does not start with the kept part"),
    "identical": Reason(unit="pairs", text="generated identically without the image"),
    "blind": Reason(unit="pairs", text="the continuation mentions a missing image"),
}
"""Every reason that `build` counts."""


def make_pair(
    question: str,
    chosen: Response,
    rejected: Response,
    origin: Origin,
    chosen_answer: str | None = None,
    rejected_answer: str | None = None,
) -> Pair:
    """A pair with its provenance; its id is a digest of origin, question, both texts, both indices and the cut."""
    return Pair(
        id=content_id(origin, question, chosen.text, rejected.text, chosen.index, rejected.index, rejected.prefix_len),
        question=question,
        chosen=chosen.text,
        rejected=rejected.text,
        origin=origin,
        chosen_ids=chosen.token_ids,
        rejected_ids=rejected.token_ids,
        chosen_index=chosen.index,
        rejected_index=rejected.index,
        chosen_answer=chosen_answer,
        rejected_answer=rejected_answer,
        cut=rejected.prefix_len,
    )


def rationale_of(question: Question) -> tuple[Response, Verdict]:
    """The question's own rationale, as a right answer to it."""
    response = Response(question=question.id, index=RATIONALE, text=question.rationale)
    return response, Verdict(question=question.id, index=RATIONALE, outcome="correct", extracted=question.answer, reason="rationale")


def rebuild(
    pair: Pair,
    sampled: Sampled,
    judged: Judged | None = None,
    continued: Sampled | None = None,
    question: Question | None = None,
    branches: tuple[Sampled, Valued] | None = None,
) -> Pair:
    """Make a pair again from its question, origin and indices alone; equal to `pair` when the records are those it came from.

    question: needed where the chosen side is its rationale. branches: needed for a "branch" pair. Raises RecordError when a
    record does not hold an answer that the pair names.
    """
    if pair.origin == "branch" and branches is not None:
        sampled, judged = branches
    if pair.chosen_index == RATIONALE and question is not None:
        response, verdict = rationale_of(question)
        rejected = _find(pair, pair.rejected_index, sampled.responses, "sampled")
        return make_pair(pair.question, response, rejected, pair.origin, verdict.extracted, pair.rejected_answer)
    chosen = _find(pair, pair.chosen_index, sampled.responses, "sampled")
    if pair.origin == "dropout_ntp":
        rejected = _find(pair, pair.rejected_index, continued.responses if continued else (), "continued")
        return make_pair(pair.question, chosen, rejected, pair.origin)
    rejected = _find(pair, pair.rejected_index, sampled.responses, "sampled")
    answers = {verdict.index: verdict.extracted for verdict in judged.verdicts} if judged else {}
    if not {chosen.index, rejected.index} <= answers.keys():
        raise RecordError(
            f"pair {pair.id}: the verdicts of question {pair.question} are not in the judged records; verify it again",
            code="verdicts-missing",
            key=pair.id,
        )
    return make_pair(pair.question, chosen, rejected, pair.origin, answers[chosen.index], answers[rejected.index])


def same_question(question: str, *records: Sampled | Judged | Paired | None) -> None:
    """Guard against records that were matched up wrongly (a bug of the caller)."""
    for record in records:
        if record is not None and record.question != question:
            raise ValueError(f"records of question {record.question} were given for question {question}")


def judged_responses(sampled: Sampled, judged: Judged) -> tuple[Response, ...]:
    """The responses that have a verdict, in the order of the verdicts: all but those for DropoutNTP."""
    indices = {verdict.index for verdict in judged.verdicts}
    return tuple(response for response in sampled.responses if response.index in indices)


def token_count(response: Response) -> int:
    """Length in tokens; in characters where an engine gives no token ids."""
    return len(response.token_ids) or len(response.text)


def length_ratio(chosen: Response, rejected: Response) -> float:
    """How many times longer the longer side is, at least 1. Characters are compared unless both sides have token ids."""
    sizes = [len(side) for side in _compared(chosen, rejected)]
    return max(sizes) / max(1, min(sizes))


def side_similarity(chosen: Response, rejected: Response) -> float:
    """Edit similarity of two sides, between 0 and 1: 1 - edit distance / longer side. In characters unless both sides have token ids."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_similarity(*_compared(chosen, rejected))


def _compared(chosen: Response, rejected: Response) -> tuple[Sequence[int] | str, Sequence[int] | str]:
    """The token ids of both sides, or their texts unless both have some."""
    if chosen.token_ids and rejected.token_ids:
        return chosen.token_ids, rejected.token_ids
    return chosen.text, rejected.text


def _find(pair: Pair, index: int, responses: Iterable[Response], where: str) -> Response:
    for response in responses:
        if response.index == index and response.question == pair.question:
            return response
    raise RecordError(
        f"pair {pair.id}: answer {index} to question {pair.question} is not in the {where} records; run the pair stage again with --force",
        code="response-missing",
        key=pair.id,
    )
