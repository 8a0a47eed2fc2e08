"""Statistics of sampled answers and preference pairs, for both report and viewer, in memory that does not grow with the data.

They show whether pairs teach correctness rather than length or format: how many questions are mixed, how long both sides are, how long
their shared prefix is, how much is duplicate or truncated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mixpo.pairs.histograms import BINS, RATIO_EDGES, SHARE_EDGES, Fixed, Lengths, Summary, share
from mixpo.pairs.provenance import REASONS, same_question, token_count
from mixpo.records import Judged, Paired, Sampled
from mixpo.types import Origin, Question

RARE = ("branch", "imported")
"""Origins that are counted only where there are any."""
ORIGINS: tuple[str, ...] = tuple(origin for origin in get_args(Origin) if origin not in RARE)
MAX_NAMES = 500
"""Domains, and sources, listed by name; further ones are summed as OTHER."""
OTHER = "(other)"


Balance = Literal["all_right", "mixed", "all_wrong", "all_undecided"]


def balance(correct: int, decided: int) -> Balance:
    """How a question is answered, by its verdicts: `correct` of the `decided` ones. Undecided verdicts are neither right nor wrong."""
    if not decided:
        return "all_undecided"
    if correct in (0, decided):
        return "all_right" if correct else "all_wrong"
    return "mixed"


def balance_of(judged: Judged) -> Balance | None:
    """The balance of a question, None without verdicts."""
    outcomes = Counter(verdict.outcome for verdict in judged.verdicts)
    return balance(outcomes["correct"], outcomes.total() - outcomes["undecided"]) if outcomes else None


@dataclass
class SourceStatistics:
    """Statistics of one source of questions. chosen / rejected: lengths in tokens."""

    counts: Counter[str] = field(default_factory=Counter)
    chosen: Summary = field(default_factory=Summary)
    rejected: Summary = field(default_factory=Summary)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; shares and means are null where nothing was counted."""
        return {
            **_named(self.counts, ("questions", "with_pairs", "correct", "decided")),
            "accuracy": share(self.counts["correct"], self.counts["decided"]),
            **_by_origin(self.counts, ("pairs", *ORIGINS)),
            "chosen_mean": self.chosen.mean,
            "rejected_mean": self.rejected.mean,
        }


@dataclass
class Statistics:
    """Counts and histograms. Give every question to `add`, or groups of equal ones to the `count_...` methods; then read `as_dict`."""

    questions: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    domains: dict[str, Counter[str]] = field(default_factory=dict)
    sources: dict[str, SourceStatistics] = field(default_factory=dict)
    origins: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    answer_tokens: Summary = field(default_factory=Summary)
    chosen: Lengths = field(default_factory=Lengths)
    rejected: Lengths = field(default_factory=Lengths)
    ratio: Fixed = field(default_factory=lambda: Fixed(RATIO_EDGES))
    shared: Fixed = field(default_factory=lambda: Fixed(SHARE_EDGES))
    generated: Counter[str] = field(default_factory=Counter)

    def add(
        self,
        question: Question,
        sampled: Sampled,
        judged: Judged | None,
        paired: Paired,
        continued: Sampled | None = None,
        branched: Sampled | None = None,
    ) -> None:
        """Count one question with its records. continued, branched: tell which rejected continuations hit the length limit."""
        from rapidfuzz.distance import Prefix

        same_question(question.id, sampled, judged, continued, branched, paired)
        self.count_questions(question.source, with_answer=question.answer is not None, with_pairs=bool(paired.pairs))
        self.questions["failed"] += bool(sampled.error)
        self._add_answers(sampled)
        if judged is not None and question.answer is not None:
            self.count_verdicts(question.source, question.domain, Counter(verdict.outcome for verdict in judged.verdicts))
        self._add_generated(sampled, judged, continued, branched)
        of_origin = {"dropout_ntp": _truncated(continued), "branch": _truncated(branched)}
        truncated = _truncated(sampled)
        for pair in paired.pairs:
            self.count_pairs(question.source, pair.origin)
            self.pairs["length_capped"] += pair.rejected_index in of_origin.get(pair.origin, truncated)
            chosen, rejected = len(pair.chosen_ids), len(pair.rejected_ids)
            self.count_lengths(question.source, chosen, rejected)
            if chosen and rejected:
                self.shared.add(Prefix.similarity(pair.chosen_ids, pair.rejected_ids) / min(chosen, rejected))
        for drop in paired.dropped:
            self.drops[drop.reason] += drop.count

    def _add_generated(self, sampled: Sampled, judged: Judged | None, continued: Sampled | None, branched: Sampled | None) -> None:
        """Count the generated tokens by the kind of pairs that they are for."""
        verified = {verdict.index for verdict in judged.verdicts} if judged is not None else set()
        for response in sampled.responses:
            self.generated["correctness" if response.index in verified else "dropout_ntp"] += len(response.token_ids)
        for kind, record in (("dropout_ntp", continued), ("branch", branched)):
            self.generated[kind] += sum(len(response.token_ids) - response.prefix_len for response in record.responses) if record else 0

    def count_questions(self, source: str, *, with_answer: bool, with_pairs: bool, number: int = 1) -> None:
        """Count `number` questions of a source."""
        self.questions.update(
            {"total": number, "with_answer" if with_answer else "without_answer": number, "with_pairs": number * with_pairs}
        )
        self._source(source).counts.update(questions=number, with_pairs=number * with_pairs)

    def count_verdicts(self, source: str, domain: str, outcomes: Mapping[str, int], number: int = 1) -> None:
        """Count `number` questions with an answer key whose verdicts have these outcomes. outcomes: how many verdicts by outcome."""
        total = sum(outcomes.values())
        correct, decided = outcomes.get("correct", 0), total - outcomes.get("undecided", 0)
        self.verdicts.update({outcome: number * count for outcome, count in outcomes.items()})
        if total:
            self.questions[balance(correct, decided)] += number
        sums = {"correct": number * correct, "decided": number * decided}
        self._source(source).counts.update(sums)
        self.domains.setdefault(_listed(domain, self.domains), Counter()).update(questions=number, **sums)

    def count_pairs(self, source: str, origin: str, number: int = 1) -> None:
        """Count `number` pairs of one origin."""
        self.origins[origin] += number
        self._source(source).counts.update({"pairs": number, origin: number})

    def count_lengths(self, source: str, chosen: int, rejected: int, number: int = 1) -> None:
        """Count the lengths of `number` pairs, in tokens; 0 where a side has text only."""
        if not chosen or not rejected:
            self.pairs["without_tokens"] += number
            return
        self.pairs["longer"] += number * (rejected > chosen)
        of_source = self._source(source)
        for lengths, length in (
            (self.chosen, chosen), (of_source.chosen, chosen), (self.rejected, rejected), (of_source.rejected, rejected)
        ):  # fmt: skip
            lengths.add(length, number)
        self.ratio.add(chosen / rejected, number)

    def _source(self, name: str) -> SourceStatistics:
        return self.sources.setdefault(_listed(name, self.sources), SourceStatistics())

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready statistics; shares and means are null where nothing was counted.

        questions, with_answer, without_answer, failed (sampling), with_pairs: counts of questions.
        all_right, mixed, all_wrong, all_undecided: the questions with verdicts, by `balance`.
        answers: total; finish counts stop, length, error; length_share; duplicates (answers whose text stands earlier for the same
            question) and duplicate_share; tokens_mean and tokens_max.
        verdicts: correct, wrong, malformed, undecided; accuracy = correct / decided, the mean accuracy of the sampled answers.
        domains: by name questions, correct, decided, accuracy ("" where a question has no domain).
        sources: by name questions, with_pairs, correct, decided, accuracy, pairs, their number by origin (correctness, format,
            dropout_ntp, branch), chosen_mean and rejected_mean in tokens ("" where a question names no source).
        pairs: their number. origins: counts by name. tokens_per_pair: generated tokens for one pair, by origin (format with correctness);
            of branches those of the continuations, without the sampled responses that they begin with.
        pairs_per_question: mean over the questions with pairs.
        rejected: length_capped (hit the length limit) and its share, longer (than the chosen side) and its share.
        without_tokens: pairs of text alone, which are in none of the following figures.
        lengths: edges, and for both sides counts, mean and max (chosen, chosen_mean, chosen_max, rejected, ...), in tokens.
        length_ratio: edges, counts, mean, max of tokens chosen / tokens rejected.
        shared_prefix: the same of the length of the shared prefix as a share of the shorter side.
        drops: counts by the text of their reason (`mixpo.pairs.provenance.REASONS`) with the unit.
        Bin i of a histogram is [edges[i], edges[i + 1]); the last also counts everything above.
        """
        named = ("with_answer", "without_answer", "failed", "with_pairs", "all_right", "mixed", "all_wrong", "all_undecided")
        return {
            "questions": self.questions["total"],
            **_named(self.questions, named),
            "answers": self._answers(),
            "verdicts": {
                **_named(self.verdicts, ("correct", "wrong", "malformed", "undecided")),
                "accuracy": share(self.verdicts["correct"], self.verdicts.total() - self.verdicts["undecided"]),
            },
            "domains": {
                name: {**_named(counts, ("questions", "correct", "decided")), "accuracy": share(counts["correct"], counts["decided"])}
                for name, counts in sorted(self.domains.items())
            },
            "sources": {name: figures.as_dict() for name, figures in sorted(self.sources.items())},
            **self._pairs(),
            "lengths": self._lengths(),
            "length_ratio": self.ratio.as_dict(),
            "shared_prefix": self.shared.as_dict(),
            "drops": {_reason_text(reason): count for reason, count in sorted(self.drops.items())},
        }

    def _answers(self) -> dict[str, Any]:
        return {
            **_named(self.answers, ("total", "stop", "length", "error", "duplicates")),
            "length_share": share(self.answers["length"], self.answers["total"]),
            "duplicate_share": share(self.answers["duplicates"], self.answers["total"]),
            "tokens_mean": self.answer_tokens.mean,
            "tokens_max": self.answer_tokens.largest,
        }

    def _pairs(self) -> dict[str, Any]:
        total = self.origins.total()
        return {
            "pairs": total,
            "origins": _by_origin(self.origins, ORIGINS),
            "tokens_per_pair": {
                kind: share(self.generated[kind], sum(self.origins[origin] for origin in origins))
                for kind, origins in (
                    ("correctness", ("correctness", "format")),
                    ("dropout_ntp", ("dropout_ntp",)),
                    ("branch", ("branch",)),
                )
                if self.generated[kind]
            },
            "pairs_per_question": share(total, self.questions["with_pairs"]),
            "rejected": {
                **_named(self.pairs, ("length_capped", "longer")),
                "length_capped_share": share(self.pairs["length_capped"], total),
                "longer_share": share(self.pairs["longer"], self.ratio.summary.count),
            },
            "without_tokens": self.pairs["without_tokens"],
        }

    def _lengths(self) -> dict[str, Any]:
        sides = {"chosen": self.chosen, "rejected": self.rejected}
        width = max(side.width for side in sides.values())
        for side in sides.values():
            while side.width < width:
                side.widen()
        return {
            "edges": [width * number for number in range(BINS + 1)],
            **{name: list(side.counts) for name, side in sides.items()},
            **{f"{name}_mean": side.summary.mean for name, side in sides.items()},
            **{f"{name}_max": side.summary.largest for name, side in sides.items()},
        }

    def _add_answers(self, sampled: Sampled) -> None:
        texts = set()
        for response in sampled.responses:
            self.answers["total"] += 1
            self.answers[response.finish] += 1
            if response.finish == "error":
                continue
            self.answer_tokens.add(token_count(response))
            text = response.text.strip()
            self.answers["duplicates"] += text in texts
            texts.add(text)


def _listed(name: str, known: Mapping[str, object]) -> str:
    """The name under which something is counted: its own, or OTHER when there are too many."""
    return name if name in known or len(known) < MAX_NAMES else OTHER


def _truncated(sampled: Sampled | None) -> set[int]:
    return {response.index for response in sampled.responses if response.finish == "length"} if sampled else set()


def _reason_text(reason: str) -> str:
    known = REASONS.get(reason)
    return f"{known.text} ({known.unit})" if known else reason


def _by_origin(counts: Counter[str], names: Sequence[str]) -> dict[str, int]:
    return _named(counts, (*names, *(name for name in RARE if counts[name])))


def _named(counts: Counter[str], names: Sequence[str]) -> dict[str, int]:
    return {name: counts[name] for name in names}
