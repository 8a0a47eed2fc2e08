"""The content of each page: from the filter of a request to the values of a template, without HTTP and HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from mixpo.errors import RecordError, RunError
from mixpo.human_labels import HumanLabel, read_labels
from mixpo.plural import amount
from mixpo.progress import Progress
from mixpo.report import sections
from mixpo.report.text_diff import difference
from mixpo.run import Manifest
from mixpo.stages.job import Context
from mixpo.stages.report import PAGE, load_report, title_of
from mixpo.types import ImageRef, Question
from mixpo.viewer.audit import AuditItem, AuditSamples
from mixpo.viewer.details import pair_at, question_at
from mixpo.viewer.evaluation_views import EvaluationViews, Values
from mixpo.viewer.evaluations import Evaluations
from mixpo.viewer.images import Images
from mixpo.viewer.index import OUTCOME, RunIndex
from mixpo.viewer.listing import ListFilter, Lists, Table, whole_number
from mixpo.viewer.pages import UnknownPage, with_query
from mixpo.viewer.statistics import filtered, statistics
from mixpo.viewer.trainings import Trainings, together

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """How far a stage is."""

    name: str
    state: str
    done: int
    total: int
    counts: Mapping[str, str]
    seconds: float


class Views:
    """The pages of one run."""

    def __init__(self, context: Context, progress: Progress | None = None) -> None:
        self.run = context.run
        self.title = title_of(context)
        self.index = RunIndex(context.run, progress, balanced=bool(context.recipe.pairs.balance))
        self.lists = Lists(self.index)
        self.images = Images(context)
        self.audits = AuditSamples(self.index, context.recipe.verify)
        self.trainings = Trainings(context.run)
        self.evaluations = Evaluations(context.run)
        self.evaluation = EvaluationViews(self.evaluations, self.images)
        self._kept: dict[str, tuple[int, Any]] = {}

    def _once(self, name: str, make: Callable[[], Value]) -> Value:
        """A value that is recomputed only when the run has changed."""
        if name not in self._kept or self._kept[name][0] != self.index.edition:
            self._kept[name] = (self.index.edition, make())
        value: Value = self._kept[name][1]
        return value

    def common(self) -> Values:
        """What every page needs."""
        return {
            "run_name": self.run.root.name,
            "rounds": self.index.layout.rounds(),
            "stale": self._once("stale", self._stale),
            "no_labels": self._labels()[1],
            "gone": "" if self.run.root.is_dir() else str(self.run.root),
        }

    def _labels(self) -> tuple[Mapping[tuple[int, str, int], HumanLabel], str]:
        """The human labels, or none and what is wrong with their file, which must not break the other pages."""
        try:
            return read_labels(self.run.root), ""
        except RecordError as error:
            return {}, str(error)

    def _stale(self) -> list[tuple[int, int]]:
        return self.index.rows("SELECT round, count(*) FROM block WHERE stale GROUP BY round ORDER BY round")

    # --- overview ----------------------------------------------------------------------------------------------------------

    def overview(self) -> Values:
        """The headline result, links to everything, and the stages of the run."""
        stages = self.index.layout.stages()
        count = self.index.one
        return {
            "title": self.title,
            "states": [self._state(name, manifest) for name, manifest in stages.items()],
            "questions": count("SELECT count(*) FROM question"),
            "pairs": count("SELECT count(*) FROM pair"),
            "verdicts": count("SELECT coalesce(sum(len(outcomes)), 0) FROM judged"),
            "headline": self._headline(),
            "labels": len(self._labels()[0]),
            "trainings": [name.rpartition("/")[2] for name in stages if "/train/" in name],
            "sets": self.evaluations.sets(),
            "filtered": sum(row["count"] for row in filtered(self.index)),
            "has_report": (self.run.root / PAGE).exists(),
        }

    def _headline(self) -> Values | None:
        """The report's headline with its alarms by cause and its time; None without a readable report that has one."""
        try:
            report = load_report(self.run.root)
        except RunError:
            return None
        if report is None or not report.get("headline"):
            return None
        causes = list(dict.fromkeys(alarm["cause"] for alarm in report.get("alarms", ())))
        return {**report["headline"], "set": report["set"], "created": report["created"], "causes": causes}

    def _state(self, name: str, manifest: Manifest) -> StageState:
        shards = self.index.layout.shards(name)
        done = sum(path is not None for path in shards)
        state = "done" if manifest.finished and done == len(shards) else "part" if done else "begun"
        shown = {key: value for key, value in manifest.counts.items() if "/train/" not in name or key == "steps"}
        counts = sections.shown_counts({name.removeprefix("evaluate/"): shown}).get(name.removeprefix("evaluate/"), [])
        return StageState(name=name, state=state, done=done, total=len(shards), counts=dict(counts), seconds=manifest.seconds)

    # --- pairs -------------------------------------------------------------------------------------------------------------

    def pairs(self, asked: Mapping[str, str]) -> Values:
        """A page of the list of pairs."""
        return self._list("pair", asked)

    def _list(self, table: Table, asked: Mapping[str, str]) -> Values:
        wanted = ListFilter.read(table, asked)
        after = asked.get("after", "")
        rows = self.lists.page(wanted, int(after) if after.isascii() and after.isdigit() and len(after) < 19 else -1)
        return {
            "filter": wanted,
            "page": rows,
            "domains": self._once(table, lambda: self.lists.domains(table)),
            "reasons": self._once("reasons", self.lists.dropped),
        }

    def pair(self, id_: str, asked: Mapping[str, str]) -> Values:
        """One pair with its place in the list."""
        wanted = ListFilter.read("pair", asked)
        n = self.lists.find("pair", id_, wanted.round)
        if n is None:
            raise UnknownPage(f"no pair {id_} in round {wanted.round} of this run", code="page-not-found", key=id_)
        detail = pair_at(self.index, n, id_, wanted.round)
        pair = detail.pair
        chosen, rejected = difference(pair.chosen, pair.rejected, kept=bool(pair.cut))
        labels = self._labels()[0] if pair.origin != "branch" else {}  # labels are about sampled responses
        return {
            "filter": wanted,
            "neighbours": self.lists.neighbours(wanted, n),
            "domains": self._once("pair", lambda: self.lists.domains("pair")),
            "detail": detail,
            "question": detail.of.question,
            "sizes": self.images.sizes(detail.of.question),
            "pieces": {"chosen": chosen, "rejected": rejected},
            "verdicts": {side: asdict(verdict) if verdict else None for side, verdict in detail.verdicts.items()},
            "labels": {index: labels.get((wanted.round, pair.question, index)) for index in (pair.chosen_index, pair.rejected_index)},
        }

    # --- questions -----------------------------------------------------------------------------------------------------------

    def questions(self, asked: Mapping[str, str]) -> Values:
        """A page of the list of questions, with accuracy by domain."""
        values = self._list("question", asked)
        figures = self._statistics(values["filter"].round)
        return {**values, "balance": sections.balance_chart(figures), "domain_chart": sections.sampled_domain_chart(figures)}

    def _statistics(self, round_: int) -> Values:
        return self._once(f"statistics {round_}", lambda: statistics(self.index, round_))

    def question(self, id_: str, asked: Mapping[str, str]) -> Values:
        """One question with all its responses."""
        wanted = ListFilter.read("question", asked)
        n = self.lists.find("question", id_, 0)
        if n is None:
            raise UnknownPage(f"no question {id_} in this run", code="page-not-found", key=id_)
        detail = question_at(self.index, n, wanted.round)
        labels, _ = self._labels()
        return {
            "filter": wanted,
            "neighbours": self.lists.neighbours(wanted, n),
            "domains": self._once("question", lambda: self.lists.domains("question")),
            "reasons": self._once("reasons", self.lists.dropped),
            "detail": detail,
            "question": detail.question,
            "sizes": self.images.sizes(detail.question),
            "labels": {index: labels.get((wanted.round, id_, index)) for index in detail.responses},
        }

    # --- statistics ----------------------------------------------------------------------------------------------------------

    def statistics(self, asked: Mapping[str, str]) -> Values:
        """The figures of a round's pairs."""
        round_ = ListFilter.read("pair", asked).round
        figures = self._statistics(round_)
        columns, rows = sections.source_table(figures)
        return {
            "round": round_,
            "facts": sections.pair_facts(figures),
            "charts": [*sections.share_charts(figures), *sections.histograms(figures)],
            "columns": columns,
            "rows": rows,
        }

    # --- audit -----------------------------------------------------------------------------------------------------------------

    def audit(self, asked: Mapping[str, str]) -> Values:
        """Agreement of verifier and human labels, and the sample to label."""
        kind, round_ = _kind(asked), ListFilter.read("pair", asked).round
        labels, _ = self._labels()
        items = self.audits.sample(kind, round_)
        rows = [(number, item, labels.get((round_, item.question, item.index))) for number, item in enumerate(items)]
        return {
            "kind": kind,
            "round": round_,
            "rows": rows,
            "done": sum(label is not None for *_, label in rows),
            "open": next((number for number, _, label in rows if label is None), None),
            "seen": self.audits.seen(round_) if kind == "suspicious" else 1.0,
            "random": self.audits.agreement(round_, labels, "random"),
            "labels": len(labels),
        }

    def audit_item(self, at: str, asked: Mapping[str, str]) -> Values:
        """One response to label, and how the previous label compares with its verdict. at: its number in the sample."""
        number, kind, round_ = _number(at), _kind(asked), ListFilter.read("pair", asked).round
        items = self.audits.sample(kind, round_)
        if not 0 <= number < len(items):
            raise UnknownPage(
                f"the sample has {amount(len(items), 'response')}; there is no number {number + 1}", code="page-not-found", key=at
            )
        item = items[number]
        detail = question_at(self.index, item.n, round_)
        labels, _ = self._labels()
        return {
            "kind": kind,
            "round": round_,
            "number": number,
            "total": len(items),
            "item": item,
            "question": detail.question,
            "sizes": self.images.sizes(detail.question),
            "response": detail.responses.get(item.index),
            "verdict": detail.verdicts.get(item.index),
            "label": labels.get((round_, item.question, item.index)),
            "previous": self._labelled(items[number - 1], labels, round_) if number else None,
            "done": sum((round_, other.question, other.index) in labels for other in items),
        }

    def _labelled(
        self, item: AuditItem, labels: Mapping[tuple[int, str, int], HumanLabel], round_: int
    ) -> tuple[AuditItem, HumanLabel] | None:
        label = labels.get((round_, item.question, item.index))
        return (item, label) if label is not None else None

    def label(self, form: Mapping[str, str], time: str, by: str) -> HumanLabel:
        """The label in a form. Raises UnknownPage when it is not about a verified response of this run."""
        question, outcome = form.get("question", ""), form.get("outcome", "")
        index, round_ = _number(form.get("index")), _number(form.get("round"))
        n = self.lists.find("question", question, 0)
        letters = self.index.one("SELECT outcomes FROM judged WHERE round = ? AND n = ?", round_, n) if n is not None else None
        if letters is None or not 0 <= index < len(letters) or outcome not in OUTCOME.values():
            raise UnknownPage("the label is not about a verified response of this run; reload the page", code="label-unknown", key=question)
        known = next(name for name in OUTCOME.values() if name == outcome)
        return HumanLabel(question=question, round=round_, index=index, outcome=known, by=by, time=time)

    # --- training and filtered items -------------------------------------------------------------------------------------------------

    def training(self) -> Values:
        """The curves of every training."""
        arms = self.trainings.arms()
        return {"arms": arms, "together": together(arms)}

    def filtered(self) -> Values:
        """What each stage filtered and why, with links to the questions concerned."""
        return {"rows": [(row, *self._links(row)) for row in filtered(self.index)]}

    def _links(self, row: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
        """The list of all that a row counts, and its places with their pages; "" where there is none."""
        stage, (first, *parts) = row["stage"], row["stage"].split("/")
        places = [place for place in row["where"].split(", ") if place]
        round_ = first.removeprefix("round-")
        if first.startswith("round-"):
            known = row.get("name") in self._once("reasons", self.lists.dropped)
            listed = with_query("/questions", round=round_ if round_ != "1" else "", dropped=row["name"]) if known else ""
            return listed, [(place, with_query(f"/questions/{quote(place, safe='')}", round=round_)) for place in places]
        if first == "answer" and not stage.endswith("/source"):
            return "", [(place, f"/evaluation/{quote(parts[0], safe='')}/{quote(place, safe='')}") for place in places]
        return "", [(place, "") for place in places]

    # --- pictures -------------------------------------------------------------------------------------------------------------------

    def image(self, question: str, number: int, size: str, set_: str = "") -> tuple[bytes, str]:
        """An image of a question. Raises UnknownPage when there is none, ImageError when it may not or cannot be shown."""
        if set_:
            self.evaluation.check_set(set_)
            item = self.evaluations.questions(set_).get(question)
        else:
            n = self.lists.find("question", question, 0)
            item = question_at(self.index, n, 0).question if n is not None else None
        return self.images.encoded(_image(item, number), size)


def _image(question: Question | None, number: int) -> ImageRef:
    if question is None or not 0 <= number < len(question.images):
        raise UnknownPage("no such image", code="page-not-found")
    return question.images[number]


def _kind(asked: Mapping[str, str]) -> str:
    return "suspicious" if asked.get("kind") == "suspicious" else "random"


def _number(text: str | None) -> int:
    return -1 if (number := whole_number(text)) is None else number
