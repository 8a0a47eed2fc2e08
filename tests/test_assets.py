"""The bundled base model: small, loadable, and able to do what its card says."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from mixpo.engines import create
from mixpo.engines.base import Request, SamplingParams
from mixpo.prompts import PROMPTS
from mixpo.recipe import DigitsSource, ImageTable, ModelTable
from mixpo.sources.digits import WORLD
from mixpo.verify import check, extract
from mixpo.vlm.load import load

FOLDER = Path(str(resources.files("mixpo"))) / "assets" / "tiny"


def test_small_and_described() -> None:
    weights = FOLDER / "model.safetensors"
    assert weights.stat().st_size <= 10_000_000
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    vlm = load(ModelTable(path="mixpo:tiny"), Path("."))
    parameters = sum(parameter.numel() for parameter in vlm.model.parameters())
    assert 2_000_000 <= parameters <= 4_000_000
    assert re.search(r"with ([\d,]+) parameters", card)[1] == f"{parameters:,}"  # type: ignore[index]


def test_reads_and_reasons(tmp_path: Path) -> None:
    """Chance is below 20 % here; the card's model is near 65 %."""
    vlm = load(ModelTable(path="mixpo:tiny"), Path("."))
    engine = create("transformers", vlm=vlm, image=ImageTable(), batch_size=64, script=None)
    questions = list(WORLD.read(DigitsSource(kind="digits", pool="validation", count=64), tmp_path))
    requests = [Request(key=q.id, prompt=PROMPTS["brief"].render(q.text), images=q.images, seeds=(0,), indices=(0,)) for q in questions]
    answers = list(engine.sample(requests, SamplingParams(temperature=0.0, max_new_tokens=64)))
    right = 0
    for question, sampled in zip(questions, answers, strict=True):
        found = extract(sampled.responses[0].text, "final")
        right += found is not None and check(found, question.answer or "", question.kind, list(question.choices)).outcome == "correct"
    assert 0.45 <= right / len(questions) <= 0.9
