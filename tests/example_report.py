"""A made-up run with real digit scenes, large enough to look at. `python tests/example_report.py OUT.html` writes its page."""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from mixpo.pairs.statistics import Statistics
from mixpo.recipe import DigitsSource, Recipe
from mixpo.records import Drop, Judged, Paired, Prediction, Sampled
from mixpo.report.build import build
from mixpo.report.data import ReportData
from mixpo.report.render import render
from mixpo.run import Manifest
from mixpo.sources.digits import WORLD
from mixpo.types import Finish, Origin, Outcome, Pair, Question, Response, Skipped, Verdict

RIGHT = {"base": (0.63, 0.55), "sft": (0.66, 0.56), "dpo": (0.60, 0.52), "mpo": (0.75, 0.58)}
FAMILY = {"sum": -0.25, "product": -0.2, "difference": 0.0, "largest": 0.15, "count": 0.0, "compare": 0.2, "choice": 0.1, "position": 0.0}


def predictions(questions: list[Question]) -> dict[tuple[str, str, str], list[Prediction]]:
    """Answers of four models whose chance of being right depends on the model, the mode and the family."""
    found: dict[tuple[str, str, str], list[Prediction]] = {}
    for model, shares in RIGHT.items():
        for mode, share in zip(("cot", "direct"), shares, strict=True):
            found["test", model, mode] = [answer(q, model, mode, share) for q in questions]
        found["test", model, "sampled"] = [answer(q, model, "sampled", shares[0] - 0.06, i) for q in questions for i in range(4)]
    return found


def answer(question: Question, model: str, mode: str, share: float, index: int = 0) -> Prediction:
    """One answer; models share most of their luck on a question, as real ones do."""
    luck = (
        random.Random(f"{question.id}/{mode}/{index}").random() * 0.8
        + random.Random(f"{question.id}/{model}/{mode}/{index}").random() * 0.2
    )
    outcome: Outcome = "correct" if luck < share + FAMILY[question.domain] else "malformed" if luck > 0.95 else "wrong"
    gold = question.answer or ""
    said = gold if outcome == "correct" else {"yes": "no", "no": "yes"}.get(gold, "7" if gold != "7" else "3")
    text = (
        said
        if mode == "direct"
        else f"top left 7, top right 3, bottom left {said if len(said) < 3 else 1}, bottom right 0.\nFinal answer: {said}"
    )
    finish: Finish = "stop"
    if outcome == "malformed":
        text, finish = "top left 7, top right 3, bottom left 1, bottom right 0. 7 + 3 = 10, 10 + 1 = 1", "length"
    return Prediction(
        question=question.id,
        mode=mode,
        index=index,
        text=text,
        tokens=2 if mode == "direct" else 34 + int(20 * luck),
        finish=finish,
        outcome=outcome,
        extracted=None if outcome == "malformed" else said,
        reason="no final answer" if outcome == "malformed" else "",
        domain=question.domain,
    )


def pairs(questions: list[Question]) -> list[tuple[Question, Pair]]:
    """One pair of each origin and more, with the answers that such pairs have."""
    sides: list[tuple[str, str, Origin, str | None, str | None]] = [
        (
            "top left 7, top right 3, bottom left 2, bottom right 0. 7 + 3 = 10, 10 + 2 = 12, 12 + 0 = 12.\nFinal answer: 12",
            "top left 7, top right 3, bottom left 8, bottom right 0. 7 + 3 = 10, 10 + 8 = 18, 18 + 0 = 18.\nFinal answer: 18",
            "correctness",
            "12",
            "18",
        ),
        (
            "The largest is 9, it is at the top left.\nFinal answer: top left",
            "The largest is 9, it is at the top left. The smallest",
            "format",
            "top left",
            None,
        ),
        (
            "The picture shows four handwritten digits: 3 and 8 above, 1 and 4 below.",
            "The picture shows four handwritten digits: 5 and 5 above, 7 and 2 below them.",
            "dropout_ntp",
            None,
            None,
        ),
        (
            "图中左上角是 7，右上角是 3，所以和是 10。\n答案: 10",
            "图中左上角是 1，右上角是 3，所以和是 4。\n答案: 4",
            "correctness",
            "10",
            "4",
        ),
    ]
    return [
        (
            q,
            Pair(
                id=f"pair{n}",
                question=q.id,
                chosen=a,
                rejected=b,
                origin=o,
                chosen_ids=tuple(range(40)),
                rejected_ids=tuple(range(43)),
                chosen_index=n,
                rejected_index=n + 1,
                chosen_answer=x,
                rejected_answer=y,
                cut=12 if o == "dropout_ntp" else 0,
            ),
        )
        for n, (q, (a, b, o, x, y)) in enumerate(zip(questions, sides, strict=False))
    ]


def training() -> dict[str, list[dict[str, float]]]:
    """Curves as a healthy small run has them, with the names that training logs."""
    rng, runs = random.Random(0), {}
    for arm, (w_p, w_q, w_g) in {"sft": (0, 0, 1), "dpo": (1, 0, 0), "mpo": (0.8, 0.2, 1)}.items():
        rows = []
        for step in range(1, 121):
            t = 1 - math.exp(-step / 40)
            p, q, g = (start - drop * t + rng.gauss(0, 0.02) for start, drop in ((0.69, 0.2), (1.38, 0.2), (0.6, 0.2)))
            chosen, rejected = (0.15 * t + rng.gauss(0, 0.02), -0.4 * t + rng.gauss(0, 0.02)) if w_p else (0.0, 0.0)
            row = {"step": step, "epoch": step / 60, "loss": w_p * p + w_q * q + w_g * g, "grad_norm": 1.2 + rng.gauss(0, 0.1)}
            row |= {"preference": p * (w_p > 0), "quality": q * (w_q > 0), "generation": g * (w_g > 0)}
            row |= {"weighted_preference": w_p * p, "weighted_quality": w_q * q, "weighted_generation": w_g * g}
            row |= {"reward_chosen": chosen, "reward_rejected": rejected, "margin": chosen - rejected, "delta": -0.12 * t * (w_q > 0)}
            row |= {
                "accuracy": (0.5 + 0.3 * t + rng.gauss(0, 0.03)) * (w_p > 0),
                "learning_rate": 1.5e-5 * (1 + math.cos(math.pi * step / 120)),
            }
            rows.append(row)
        runs[arm] = rows
    return runs


def statistics(asked: list[Question]) -> dict[str, Any]:
    """What the real statistics say of made-up answers and pairs."""
    statistics, rng = Statistics(), random.Random(1)
    for question in asked:
        skill = min(0.97, max(0.03, 0.55 + FAMILY[question.domain] + rng.gauss(0, 0.3)))
        outcomes: list[Outcome] = ["correct" if rng.random() < skill else "malformed" if rng.random() < 0.1 else "wrong" for _ in range(8)]
        answers = tuple(
            Response(
                question=question.id,
                index=i,
                text=f"{rng.randrange(40)}",
                token_ids=tuple(rng.choices(range(9), k=max(5, round(rng.gauss(44, 12))))),
            )
            for i in range(8)
        )
        verdicts = tuple(Verdict(question=question.id, index=i, outcome=outcome) for i, outcome in enumerate(outcomes))
        right, wrong = ([a for a, o in zip(answers, outcomes, strict=True) if (o == "correct") is side] for side in (True, False))
        made = tuple(
            Pair(
                id=f"{n}",
                question=question.id,
                chosen=a.text,
                rejected=b.text,
                origin="format" if outcomes[b.index] == "malformed" else "correctness",
                chosen_ids=a.token_ids,
                rejected_ids=a.token_ids[: rng.randrange(5)] + b.token_ids,
                chosen_index=a.index,
                rejected_index=b.index,
            )
            for n, (a, b) in enumerate(zip(right, wrong, strict=False))
        )
        drops = (Drop(reason="duplicate", count=rng.randrange(3)), Drop(reason="entailment", count=rng.randrange(2)))
        statistics.add(
            question,
            Sampled(question=question.id, responses=answers),
            Judged(question=question.id, verdicts=verdicts),
            Paired(question=question.id, pairs=made, dropped=drops),
        )
    return statistics.as_dict()


def manifest(stage: str, seconds: float, **counts: int) -> Manifest:
    """A finished stage."""
    return Manifest(stage=stage, settings={}, inputs=[], shards=[], finished=True, counts=counts, seconds=seconds)


def example(folder: Path, count: int = 400) -> ReportData:
    """The whole run; images are written under `folder`."""
    asked = list(WORLD.read(DigitsSource(kind="digits", pool="test", count=count), folder))
    shown = list(WORLD.read(DigitsSource(kind="digits", count=4), folder))
    recipe = Recipe.model_validate(
        {"source": {"kind": "digits"}, "evaluate": {"sets": [{"name": "test", "source": {"kind": "digits", "pool": "test"}}]}}
    )
    return ReportData(
        title="Digits demo",
        created="2025-11-24T15:00:00Z",
        seed=0,
        recipe=recipe.model_dump(mode="json"),
        versions={"python": "3.13.1", "mixpo": "0.1.0", "torch": "2.14.1"},
        predictions=predictions(asked),
        questions={q.id: q for q in asked},
        main="mpo",
        manifests={
            "source": manifest("source", 1.3, questions=800, skipped=3),
            "round-1/sample": manifest("sample", 61.8, questions=800, responses=6400, cut=211),
            "round-1/verify": manifest("verify", 4.1, correct=3811, wrong=2311, malformed=278),
            "round-1/pair": manifest("pair", 12.0, **{"pairs": 2481, "dropped: duplicate": 388, "dropped: entailment": 17}),
            "round-1/train/mpo": manifest("train", 173.4, steps=360),
            "evaluate/test/base/cot": manifest("evaluate", 30.2, predictions=400),
            "evaluate/test/mpo/cot": manifest("evaluate", 50.0, predictions=400),
        },
        statistics=statistics(list(WORLD.read(DigitsSource(kind="digits", count=count), folder))),
        training=training(),
        examples=pairs(shown),
        skipped=[
            Skipped(where="data.jsonl:17", reason="image missing"),
            Skipped(where="data.jsonl:90", reason="image missing"),
            Skipped(where="data.jsonl:31", reason="answer is empty"),
        ],
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        report = build(example(Path(temporary)))
        Path(sys.argv[1]).write_text(render(report), encoding="utf-8")
        Path(sys.argv[1]).with_suffix(".json").write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
