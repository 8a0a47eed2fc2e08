"""Small training data for the tiny models: questions with no, one and two images, and responses of different lengths."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mixpo.images import reference
from mixpo.progress import Silent
from mixpo.recipe import ImageTable, TrainTable
from mixpo.train import loop
from mixpo.train.group_data import in_memory
from mixpo.train.hold import with_forks
from mixpo.train.metrics import StepMetrics
from mixpo.train.reference import ReferenceScorer
from mixpo.train.session import Session, TrainJob
from mixpo.types import IMAGE_TOKEN, Group, ImageRef, Question, content_id
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import tokenize_response

WORDS = ("sum", "digits", "even", "larger", "top", "left", "answer", "final", "step", "reason", "picture", "12", "7", "19", "3", "1")


def picture(folder: Path, number: int, size: tuple[int, int] = (28, 28)) -> ImageRef:
    """An image of noise, different for each number."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}.png"
    if not path.exists():
        Image.frombytes("RGB", size, random.Random(number).randbytes(size[0] * size[1] * 3)).save(path)
    return reference(path)


def question(folder: Path, number: int, images: int) -> Question:
    text = f"{IMAGE_TOKEN}\n" * images + f"Question {number}: what is the sum?"
    refs = tuple(picture(folder, 10 * number + place, (56, 28) if place else (28, 28)) for place in range(images))
    return Question(id=content_id(text, [ref.digest for ref in refs]), text=text, images=refs)


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))


def group(vlm: Vlm, folder: Path, number: int, images: int = 1, responses: int = 3) -> Group:
    """A group with one pair for each response but the first, which is always the chosen one."""
    rng, asked = random.Random(number), question(folder, number, images)
    ids: list[tuple[int, ...]] = []
    while len(ids) < responses:
        candidate = tokenize_response(vlm, sentence(rng))
        if candidate not in ids:
            ids.append(candidate)
    return Group(question=asked, prompt=asked.text, responses=tuple(ids), pairs=tuple((0, other) for other in range(1, responses)))


def groups(vlm: Vlm, folder: Path, count: int = 6) -> list[Group]:
    """Groups with 1, 0, 2, 1, 0, 2 ... images and 2, 3, 4, 2, 3, 4 ... responses, without reference."""
    return [group(vlm, folder, number, (1, 0, 2)[number % 3], 2 + number % 3) for number in range(count)]


def scored(vlm: Vlm, found: list[Group], hold: float = 0.0, **table: object) -> list[Group]:
    """The same groups with reference log-probs, and with what `train.loss.hold` needs if that is not 0."""
    logps = ReferenceScorer(vlm, ImageTable(), TrainTable.model_validate({"loss": {"hold": hold}, **table})).score(found)
    groups = [replace(g, reference=of.sums, token_reference=of.tokens or None) for g, of in zip(found, logps, strict=True)]
    return [with_forks(g) for g in groups] if hold else groups


def fresh(vlm: Vlm) -> Vlm:
    """A copy whose weights may change."""
    return replace(vlm, model=copy.deepcopy(vlm.model), cache={})


def timeless(row: StepMetrics) -> StepMetrics:
    """A row without what depends on the clock and the machine."""
    return replace(row, seconds=0, tokens_per_second=0, pairs_per_second=0, memory=0, seconds_left=0)


def job(vlm: Vlm, found: list[Group], folder: Path, objective: str = "mpo", /, **table: Any) -> TrainJob:
    settings = {"batch_size": 4, "learning_rate": 1e-3, "tokens_per_batch": 400, "warmup": 0.0, **table}
    return TrainJob(
        vlm=vlm,
        groups=in_memory(found),
        table=TrainTable.model_validate(settings),
        objective=objective,
        images=ImageTable(),
        folder=folder / "work",
        output=folder / "model",
        logs=folder / "logs",
    )


class StopError(Exception):
    pass


def train_until(step: int, monkeypatch: pytest.MonkeyPatch, a_job: TrainJob, said: Silent | None = None) -> None:
    """Train, and fail after this step."""
    real = loop._advance

    def advance(session: Session, row: StepMetrics) -> None:
        if row.step > step:
            raise StopError
        real(session, row)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_advance", advance)
        with pytest.raises(StopError):
            loop.train(a_job, said or Silent())
