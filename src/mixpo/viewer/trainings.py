"""The trainings of a run as curves, those that still run too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from mixpo.records import read_rows
from mixpo.report.build import metric_curves
from mixpo.report.charts import curves
from mixpo.report.sections import Chart, colour, training_charts
from mixpo.report.words import model_name
from mixpo.run import Run
from mixpo.train.metrics import StepMetrics, read_metrics
from mixpo.viewer.layout import RunLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCurves:
    """One training: its round and objective, its logged steps, its charts, and whether it has ended."""

    round: int
    objective: str
    rows: Sequence[StepMetrics]
    charts: Sequence[Chart]
    finished: bool

    @property
    def last(self) -> StepMetrics:
        """The figures of the last logged step."""
        return self.rows[-1]


METRICS = tuple(field.name for field in fields(StepMetrics))
TOGETHER = {"accuracy": "Reward accuracy", "margin": "Reward margin", "logp_chosen": "Log-prob of the chosen response"}
"""Metrics that mean the same in every training, with the title of their chart."""


class Trainings:
    """The trainings of a run. The curves of one are drawn again only when its log has changed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.layout = RunLayout(run)
        self._kept: dict[str, tuple[tuple[int, int], TrainingCurves]] = {}

    def arms(self) -> list[TrainingCurves]:
        """Every training that has begun; of one that still runs, the steps that it has logged."""
        return [self._arm(name, shard) for name, manifest in self.layout.stages().items() if "/train/" in name for shard in manifest.shards]

    def _arm(self, name: str, shard: str) -> TrainingCurves:
        stage = self.run.stage(name)
        finished = stage.path(shard).exists()
        log = stage.path(shard) if finished else stage.folder / f"work-{shard}" / "metrics.jsonl"
        stamp = (stat.st_size, stat.st_mtime_ns) if log.exists() and (stat := log.stat()) else (0, 0)
        if name not in self._kept or self._kept[name][0] != stamp:
            rows = read_rows(log, StepMetrics) if finished else read_metrics(log)
            round_, _, objective = name.partition("/train/")
            charts = training_charts(metric_curves([{metric: getattr(row, metric) for metric in METRICS} for row in rows]))
            number = int(round_.removeprefix("round-"))
            self._kept[name] = (stamp, TrainingCurves(round=number, objective=objective, rows=rows, charts=charts, finished=finished))
        return self._kept[name][1]


def together(arms: Sequence[TrainingCurves]) -> list[Chart]:
    """The trainings of a run in one chart for each metric; none when there is but one training."""
    logged = [arm for arm in arms if arm.rows]
    if len(logged) < 2:
        return []
    steps = sorted({row.step for arm in logged for row in arm.rows})
    objectives = list(dict.fromkeys(arm.objective for arm in logged))
    charts = []
    for metric, title in TOGETHER.items():
        series = {}
        for arm in logged:
            known = {row.step: getattr(row, metric) for row in arm.rows}
            series[model_name(arm.objective) + f", round {arm.round}" * (arm.round > 1)] = [known.get(step) for step in steps]
        colours = [colour(arm.objective, objectives) for arm in logged]
        charts.append(Chart(title, curves(steps, series, f"{title} of all trainings", colours)))
    return charts
