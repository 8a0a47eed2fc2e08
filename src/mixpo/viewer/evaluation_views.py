"""The content of the pages about evaluation: the sets, the questions of one set, and one question side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixpo.evaluate.benchmarks import benchmark_of
from mixpo.report import sections
from mixpo.viewer.evaluations import CHANGES, Evaluations
from mixpo.viewer.images import Images
from mixpo.viewer.listing import whole_number
from mixpo.viewer.pages import UnknownPage

Values = dict[str, Any]
EVALUATED = 50
"""Questions on a page of an evaluation."""


class EvaluationViews:
    """The evaluation pages of one run."""

    def __init__(self, evaluations: Evaluations, images: Images) -> None:
        self.evaluations = evaluations
        self.images = images

    def sets(self) -> Values:
        """Accuracy of every model on every set."""
        results = {name: self.evaluations.scores(name) for name in self.evaluations.sets()}
        return {
            "sets": [
                (name, scores, sections.accuracy_chart(scores), len(self.evaluations.questions(name)), self._benchmark(name))
                for name, scores in results.items()
            ]
        }

    def _benchmark(self, name: str) -> str:
        """The title of the benchmark that a set is, "" for other sets."""
        first = next(iter(self.evaluations.questions(name).values()), None)
        benchmark = benchmark_of(first) if first is not None else None
        return benchmark.title if benchmark is not None else ""

    def questions(self, name: str, asked: Mapping[str, str]) -> Values:
        """The questions of a set with the verdict on every model."""
        self.check_set(name)
        modes = list(dict.fromkeys(mode for _, mode in self.evaluations.columns(name)))
        mode = asked["mode"] if asked.get("mode") in modes else next(iter(modes), "")
        change = asked["change"] if asked.get("change") in CHANGES else ""
        domain = asked.get("domain", "")
        models, rows = self.evaluations.asked(name, mode, domain, change)
        last = max(1, -(-len(rows) // EVALUATED))
        number = min(max(1, whole_number(asked.get("page")) or 1), last)
        known = {question.domain for question in self.evaluations.questions(name).values()}
        return {
            "set": name,
            "models": models,
            "rows": rows[(number - 1) * EVALUATED : number * EVALUATED],
            "total": len(rows),
            "number": number,
            "last": last,
            "modes": modes,
            "query": {"mode": mode, "change": change, "domain": domain},
            "domains": sorted(known - {""}),
        }

    def question(self, name: str, id_: str, asked: Mapping[str, str]) -> Values:
        """What every model said to one question of a set."""
        listed = self.questions(name, asked)
        known = self.evaluations.questions(name)
        if id_ not in known:
            raise UnknownPage(f"no question {id_} in evaluation set {name}", code="page-not-found", key=id_)
        _, rows = self.evaluations.asked(name, listed["query"]["mode"], listed["query"]["domain"], listed["query"]["change"])
        ids = [row.question.id for row in rows]
        at = ids.index(id_) if id_ in ids else -1
        return {
            **listed,
            "question": known[id_],
            "sizes": self.images.sizes(known[id_]),
            "by_mode": self._by_mode(name, id_),
            "at": at,
            "before": ids[at - 1] if at > 0 else None,
            "after": ids[at + 1] if 0 <= at < len(ids) - 1 else None,
            "page_of": at // EVALUATED + 1 if at >= 0 else 1,
        }

    def _by_mode(self, name: str, id_: str) -> list[tuple[str, list[tuple[str, Any]]]]:
        """The answers to one question, those in the same mode together."""
        grouped: dict[str, list[tuple[str, Any]]] = {}
        for model, mode, answers in self.evaluations.side_by_side(name, id_):
            grouped.setdefault(mode, []).append((model, answers))
        return list(grouped.items())

    def check_set(self, name: str) -> None:
        """Raise UnknownPage for a set that is not in the run."""
        if name not in self.evaluations.sets():
            raise UnknownPage(f"no evaluation set {name} in this run", code="page-not-found", key=name)
