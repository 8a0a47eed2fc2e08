"""A run made by hand for the viewer: two rounds' worth of shapes are not needed, every odd thing that a page must bear is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from mixpo import sealed
from mixpo.images import reference
from mixpo.pairs.provenance import make_pair
from mixpo.recipe import parse
from mixpo.records import Drop, Judged, Paired, Prediction, Sampled
from mixpo.run import Manifest, Run, now
from mixpo.train.metrics import StepMetrics
from mixpo.types import AnswerKind, ImageRef, Outcome, Question, Response, Verdict, content_id

ATTACK = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">[link](javascript:window.hacked=1)'
FORMULA = "So \\(x^2 + y^2 = z^2\\) and $$\\frac{1}{2} + \\frac{1}{3} = \\frac{5}{6}$$ which costs $5 and $6."
WIDE = r"$\begin{pmatrix}" + "&".join(f"x_{{{n}}}" for n in range(40)) + r"\end{pmatrix}$"
"""A formula that no line can be broken in."""
CHINESE = "图中有三个红色的方块，所以答案是三。"


def write(root: Path, questions: int = 60) -> Path:
    """Write the run; returns its folder. Questions 0 to 5 are the special ones."""
    run = Run(root / "run")
    pictures = [_picture(root / "pictures" / f"{number}.png", number) for number in range(4)]
    asked = [_question(number, pictures) for number in range(questions)]
    sampled = [_sampled(question, number) for number, question in enumerate(asked)]
    judged = [_judged(question, row) for question, row in zip(asked, sampled, strict=True)]
    continued = [_continued(question, row) for question, row in zip(asked, sampled, strict=True)]
    paired = [_paired(*rows) for rows in zip(asked, sampled, judged, continued, strict=True)]
    stage(run, "source", Question, asked)
    for kind, row, rows in (
        ("sample", Sampled, sampled),
        ("continue", Sampled, continued),
        ("verify", Judged, judged),
        ("pair", Paired, paired),
    ):
        counts = {
            "questions": questions,
            **({"pairs": sum(len(r.pairs) for r in paired), "dropped: duplicate": 3} if kind == "pair" else {}),
        }
        stage(run, f"round-1/{kind}", row, rows, counts)
    for objective, better in (("sft", 0.0), ("mpo", 0.4)):
        stage(run, f"round-1/train/{objective}", StepMetrics, [step(number, better) for number in range(1, 41)], {"steps": 40}, size=100)
    held_out = [_question(number, pictures) for number in range(500, 530)]
    stage(run, "evaluate/held-out/source", Question, held_out)
    for model, skill in (("base", 2), ("mpo", 3)):
        stage(
            run, f"evaluate/held-out/{model}/cot", Prediction, [_prediction(q, n, skill) for n, q in enumerate(held_out)], {"answers": 30}
        )
    recipe = {"source": {"kind": "jsonl", "path": "q.jsonl", "root": "pictures"}, "report": {"title": "Made by hand"}}
    (run.root / "recipe.json").write_text(sealed.dumps(parse(recipe, "made").model_dump(mode="json")))
    (run.root / "command.json").write_text(sealed.dumps({"recipe_folder": str(root), "limit": None}))
    return run.root


def stage(run: Run, name: str, row: type, rows: Sequence[object], counts: dict[str, int] | None = None, size: int = 16) -> None:
    """Write records as a finished stage."""
    blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
    shards = [f"{number:05d}-{content_id(name, number)}" for number in range(len(blocks))]
    for shard, block in zip(shards, blocks, strict=True):
        run.stage(name).write(shard, row, block)
    run.stage(name).save_manifest(
        Manifest(
            stage=name,
            settings={},
            inputs=[],
            shards=shards,
            finished=True,
            counts=counts or {"questions": len(rows)},
            started=now(),
            seconds=2.5,
        )
    )


def _picture(path: Path, number: int) -> ImageRef:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (480, 320), (244, 246, 249))
    draw = ImageDraw.Draw(image)
    for place, colour in zip(range(3), ((204, 68, 60), (54, 118, 189), (64, 150, 98)), strict=True):
        box = (40 + 140 * place, 90, 150 + 140 * place, 200)
        (draw.ellipse if (number + place) % 2 else draw.rectangle)(box, fill=colour)
    draw.line((30, 250, 450, 250), fill=(120, 130, 145), width=3)
    image.save(path)
    return reference(path)


def _question(number: int, pictures: Sequence[ImageRef]) -> Question:
    text = {
        0: "<image>\nLook at both:\n<image>\nHow many shapes do the two pictures have in all?",
        1: f"<image>\nWhat does {ATTACK} say?",
        2: "<image>\n图中有多少个红色的方块？",
        3: "<image>\nSolve $\\int_0^1 x^2\\,dx + \\sqrt{\\frac{a}{b}}$ for the triangle.",
        4: "<image>\nWhich shape stands on the left?",
        5: "<image>\nDescribe the picture.",
        9: f"<image>\nHow many shapes are red in puzzle 9? Let {WIDE} be.",
    }.get(number, f"<image>\nHow many shapes are red in puzzle {number}?")
    images = tuple(pictures[:2]) if number == 0 else (pictures[number % len(pictures)],)
    choices = ("a circle", "a square", "a triangle") if number == 4 else ()
    kind: AnswerKind = "choice" if number == 4 else "none" if number == 5 else "number"
    return Question(
        id=content_id("viewer", number), text=text, images=images, choices=choices, kind=kind,
        answer={4: "B", 5: None}.get(number, str(number % 7)), domain=("count", "read", "solve")[number % 3], source="by hand",
    )  # fmt: skip


def _sampled(question: Question, number: int) -> Sampled:
    right, wrong = question.answer or "", "9"
    said = {
        1: [ATTACK, f"{ATTACK} {ATTACK}"],
        2: [CHINESE, "图中有两个红色的方块，所以答案是二。"],
        3: [FORMULA, FORMULA.replace("5}{6}", "2}{5}")],
        5: ["A square, a circle and a square stand on a line.", "Three shapes stand on a line."],
    }.get(number, ["I look closely at the left and then at the right.", "I guess from the colours of the shapes."])
    texts = [f"{said[i % 2]}" + (f"\nFinal answer: {right if i % 2 == 0 else wrong}" if question.answer else "") for i in range(4)]
    if number == 6:  # the verifier is made to be wrong here
        texts[1] = f"I count {right} of them.\nFinal answer: {right}"
    return Sampled(
        question=question.id,
        responses=tuple(
            Response(question=question.id, index=i, text=text, token_ids=tuple(range(len(text.split()) + 2)), engine="hand", seed=i)
            for i, text in enumerate(texts)
        ),
    )


def _judged(question: Question, sampled: Sampled) -> Judged:
    if question.answer is None:
        return Judged(question=question.id)
    number = int(question.answer) if question.answer.isdigit() else 1
    outcomes: list[Outcome] = ["correct", "wrong", "correct", "malformed" if number % 2 else "wrong"]
    if question.text.endswith("puzzle 7?"):
        outcomes = ["correct"] * 4
    if question.text.endswith("puzzle 8?"):
        outcomes = ["wrong"] * 4
    verdicts = (
        Verdict(
            question=question.id,
            index=i,
            outcome=o,
            extracted=None if o == "malformed" else question.answer if o == "correct" else "9",
            reason="numbers compared",
        )
        for i, o in enumerate(outcomes)
    )
    return Judged(question=question.id, verdicts=tuple(verdicts))


def _continued(question: Question, sampled: Sampled) -> Sampled:
    if question.answer is not None:
        return Sampled(question=question.id)
    first = sampled.responses[0]
    text = "A square, a circle and nothing else that can be seen."
    return Sampled(
        question=question.id, responses=(Response(question=question.id, index=0, text=text, token_ids=first.token_ids[:9], prefix_len=5),)
    )


def _paired(question: Question, sampled: Sampled, judged: Judged, continued: Sampled) -> Paired:
    if continued.responses:
        return Paired(question=question.id, pairs=(make_pair(question.id, sampled.responses[0], continued.responses[0], "dropout_ntp"),))
    by = {outcome: [v for v in judged.verdicts if v.outcome == outcome] for outcome in ("correct", "wrong", "malformed")}
    pairs = tuple(
        make_pair(
            question.id,
            sampled.responses[good.index],
            sampled.responses[bad.index],
            "format" if bad.outcome == "malformed" else "correctness",
            good.extracted,
            bad.extracted,
        )
        for good in by["correct"][:1]
        for bad in [*by["wrong"], *by["malformed"]]
    )
    return Paired(question=question.id, pairs=pairs, dropped=(Drop(reason="duplicate", count=1),))


def step(number: int, better: float) -> StepMetrics:
    part = 1 / (1 + number / 12)
    numbers = dict.fromkeys(StepMetrics.__dataclass_fields__, 0.5) | {
        "loss": 0.9 * part + 0.1, "preference": 0.7 * part, "quality": 1.3 * part, "generation": 0.4 * part,
        "weighted_preference": 0.56 * part, "weighted_quality": 0.26 * part, "weighted_generation": 0.4 * part,
        "reward_chosen": (1 - part) * (0.6 + better), "reward_rejected": part - 1, "margin": (1 - part) * (1.6 + better),
        "accuracy": min(1.0, 0.5 + better * (1 - part) + number / 120), "delta": -0.1 * (1 - part), "learning_rate": 1e-4 * part,
    }  # fmt: skip
    return StepMetrics(**{**numbers, "step": number, "pairs": 8, "tokens": 900})  # type: ignore[arg-type]


def _prediction(question: Question, number: int, skill: int) -> Prediction:
    right = number % 4 < skill
    return Prediction(
        question=question.id, mode="cot", text=f"I see it. Final answer: {question.answer if right else 9}", tokens=9,
        finish="stop",
        outcome="correct" if right else "wrong", extracted=question.answer if right else "9", reason="numbers compared",
        domain=question.domain,
    )  # fmt: skip
