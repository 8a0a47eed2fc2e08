"""Holds a run that was killed against one that was not: every answer once and the same, and everything that was made of the answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixpo.pipeline import build_plan, open_run
from mixpo.stages.job import Plan

ROUNDING = 1e-4
"""Log-probs of one answer may differ by this much: what is computed beside it is not the same after a kill."""
CLOCKS = {"seconds", "tokens_per_second", "pairs_per_second", "memory", "seconds_left"}
"""Figures of training that differ from run to run."""


def plan_of(root: Path) -> Plan:
    """The plan of a run as it is."""
    return build_plan(open_run(root))


def rows_of(plan: Plan, name: str) -> list[dict[str, Any]]:
    """All records of a stage, without the time that was measured."""
    rows = [asdict(row) for number in range(len(plan.shards(name))) for row in plan.rows(name, number)]
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]


def compare(root: Path, undisturbed: Path) -> Counter[str]:
    """A run against the undisturbed one: answers that are missing, there twice or different; other stages and models that differ."""
    plan, expected, found = plan_of(root), plan_of(undisturbed), Counter[str]()
    for name, planned in expected.planned.items():
        if not planned.finished() or planned.job.kind == "report":
            continue
        if not plan.planned[name].finished():
            found["unfinished stages"] += 1
            continue
        rows, others = rows_of(plan, name), rows_of(expected, name)
        if planned.job.kind in ("sample", "continue"):
            found["failed questions"] += sum(bool(row["error"]) for row in rows)
            keys = Counter((row["question"], answer["index"]) for row in rows for answer in row["responses"])
            wanted = {(row["question"], answer["index"]): answer for row in others for answer in row["responses"]}
            found["answers"] += sum(keys.values())
            found["missing"] += len(wanted.keys() - keys.keys())
            found["duplicates"] += sum(keys.values()) - len(keys) + len(rows) - len({row["question"] for row in rows})
            answers = {(row["question"], answer["index"]): answer for row in rows for answer in row["responses"]}
            found["differing"] += sum(not alike(answers.get(key, answer), answer) for key, answer in wanted.items())
        else:
            found["other records that differ"] += rows != others
    for model in undisturbed.rglob("*.safetensors"):
        found["models that differ"] += (root / model.relative_to(undisturbed)).read_bytes() != model.read_bytes()
    found["temporary files in the end"] += sum(1 for path in root.rglob(".*") if path.suffix in (".tmp", ".old"))
    return found


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two answers are the same to the letter; log-probs may differ by the rounding of other batches."""
    if any(one[name] != other[name] for name in one if name != "logprobs") or len(one["logprobs"]) != len(other["logprobs"]):
        return False
    return all(abs(a - b) < ROUNDING for a, b in zip(one["logprobs"], other["logprobs"], strict=True))


MUST_BE_0 = (
    "missing", "duplicates", "differing", "failed questions", "unfinished stages", "other records that differ", "models that differ",
    "temporary files in the end", "shards written twice", "shards that went", "shards that are torn", "servers that outlived mixpo",
)  # fmt: skip
"""Counts of `compare` and of chaos.py that must be 0."""
