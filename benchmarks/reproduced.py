"""Published accuracy next to mixpo's, for responses that others published.

    python benchmarks/reproduced.py --data DIR [--only NAME] [--markdown]

DIR holds any of these folders, each file as its authors published it:

- mathvision: `test.jsonl` and `outputs/*.jsonl` with `*_result.json`;
- mathvista: `outputs/output_*.json` with `scores_*.json`;
- m3cot: `outputs/*.jsonl`.

Each row: the published accuracy, ours by the authors' rule on the short answers in the file ("given") and on the whole responses
("official"), and by "robust". M3CoT's files have no verdicts, so there only the rule is applied. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mixpo.evaluate.benchmarks import BENCHMARKS, read
from mixpo.evaluate.grading import by_extraction, read_rule
from mixpo.evaluate.predictions import PredictedRow, match, read_predictions
from mixpo.recipe import BenchmarkSource
from mixpo.types import Question, Response, Skipped
from mixpo.verify import Verifier

DIRECT = {"LLaVA-v1.5-7B", "Qwen-VL-Plus"}
"""Settings whose responses are direct answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One file of responses. published: accuracy in percent, None where the authors published none. data: the file with the questions."""

    benchmark: str
    name: str
    path: Path
    data: Path
    published: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table, in percent. agreeing: responses on which the authors' verdict and ours by the short answer are the same."""

    benchmark: str
    name: str
    n: int
    published: float | None
    given: float | None
    official: float | None
    robust: float
    agreeing: int | None


def settings(folder: Path) -> Iterator[Setting]:
    """Every file below the folder, in order."""
    for path in sorted((folder / "mathvision" / "outputs").glob("*.jsonl")):
        scores = json.loads(path.with_name(f"{path.stem}_result.json").read_text(encoding="utf-8"))
        share = scores["-all"].partition("=")[0].split("/")
        data = folder / "mathvision" / "test.jsonl"
        yield Setting(benchmark="mathvision", name=path.stem, path=path, data=data, published=100 * int(share[0]) / int(share[1]))
    for path in sorted((folder / "mathvista" / "outputs").glob("output_*.json")):
        name = path.stem.removeprefix("output_")
        scores = json.loads(path.with_name(f"scores_{name}.json").read_text(encoding="utf-8"))
        yield Setting(benchmark="mathvista", name=name, path=path, data=path, published=float(scores["average"]["accuracy"]))
    for path in sorted((folder / "m3cot" / "outputs").glob("*.jsonl")):
        yield Setting(benchmark="m3cot", name=path.stem, path=path, data=path, published=None)


def measure(setting: Setting, verifier: Verifier, store: Path) -> Row:
    """Grade one file."""
    benchmark = BENCHMARKS[setting.benchmark]
    source = BenchmarkSource(kind="benchmark", name=setting.benchmark, path=str(setting.data), images="optional")
    questions = [item.question for item in read(source, Path("/"), store) if not isinstance(item, Skipped)]
    rows = list(read_predictions(setting.path))
    matched = match(rows, questions)
    assert len(matched.rows) == len(rows) == len(questions), f"{setting.path}: {matched.counts}"
    wording = "direct" if setting.name in DIRECT else "cot"
    verdicts: dict[str, list[bool]] = {"given": [], "official": [], "robust": []}
    for question in questions:
        row = matched.rows[question.id]
        for name, right in grade(benchmark.name, question, row, wording, verifier).items():
            verdicts[name].append(right)
    shares = {name: 100 * sum(rights) / len(rights) if rights else None for name, rights in verdicts.items()}
    labels = published_verdicts(setting)
    agreeing = sum(a == b for a, b in zip(verdicts["given"], labels, strict=True)) if labels else None
    return Row(
        benchmark=setting.benchmark, name=setting.name, n=len(questions), published=setting.published, given=shares["given"],
        official=shares["official"], robust=shares["robust"] or 0.0, agreeing=agreeing,
    )  # fmt: skip


def grade(name: str, question: Question, row: PredictedRow, wording: str, verifier: Verifier) -> Mapping[str, bool]:
    """Whether a response is correct, by each rule that applies."""
    benchmark, options = BENCHMARKS[name], verifier.options(question.choices)
    response = Response(question=question.id, index=0, text=row.response)
    rights = {}
    if row.given is not None and name != "m3cot":
        rights["given"] = by_extraction(benchmark, question, response, "cot", wording, row.given, options, "given").outcome == "correct"
    for rule in {"official", "robust"} & set(benchmark.checks):
        rights[rule] = read_rule(benchmark, question, response, wording, rule, options).outcome == "correct"
    return rights


def published_verdicts(setting: Setting) -> Sequence[bool]:
    """The authors' verdicts in the order of the questions; empty where they published none."""
    if setting.benchmark == "mathvista":
        return [bool(row["true_false"]) for row in json.loads(setting.path.read_text(encoding="utf-8")).values()]
    if setting.benchmark == "mathvision":
        labels = {row["id"]: bool(row["correct"]) for row in map(json.loads, setting.path.open(encoding="utf-8"))}
        return [labels[row["id"]] for row in map(json.loads, setting.data.open(encoding="utf-8"))]
    return ()


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/reproduced.md."""
    lines = ["| benchmark | setting | n | published | given | official | robust | verdicts that agree |", "| --- |" + " --- |" * 7]
    for row in rows:
        cells = [percent(row.published), percent(row.given), percent(row.official), percent(row.robust)]
        agreeing = f"{row.agreeing:,} of {row.n:,}" if row.agreeing is not None else ""
        lines.append(f"| {row.benchmark} | {row.name} | {row.n:,} | {' | '.join(cells)} | {agreeing} |")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def measured(folder: Path, only: str = "") -> list[Row]:
    """All rows, or those of files whose name contains `only`."""
    with TemporaryDirectory() as store, Verifier() as verifier:
        return [measure(setting, verifier, Path(store)) for setting in settings(folder) if only in f"{setting.benchmark}/{setting.name}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the published files")
    parser.add_argument("--only", default="", help="part of BENCHMARK/SETTING")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/reproduced.md only")
    args = parser.parse_args()
    rows = measured(args.data.absolute(), args.only)
    print(markdown(rows))
    if not args.markdown:
        print(json.dumps([asdict(row) for row in rows], ensure_ascii=False))


if __name__ == "__main__":
    main()
