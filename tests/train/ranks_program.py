"""What each of two ranks does in test_ranks: whole trainings, one that is cut off and goes on, a step with text on one rank only."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from train.cases import group, groups, job, question, scored, train_until

from mixpo.errors import TrainError
from mixpo.progress import Progress, Silent
from mixpo.recipe import ModelTable
from mixpo.train import loop, session
from mixpo.train.group_data import in_memory
from mixpo.train.loop import train
from mixpo.train.metrics import PolicyMetrics
from mixpo.train.replay import replay_group
from mixpo.train.session import Session, TrainJob, open_session
from mixpo.train.sharding import local_shard
from mixpo.types import Group
from mixpo.vlm.load import Vlm, load

SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 3, "tokens_per_batch": 150, "learning_rate": 1e-4}
CUT = {**SETTINGS, "save_every": 3}
HOLD = 0.1
"""Weight of the hold term, with all weights trained and with an adapter."""
REPLAY = {**SETTINGS, "loss": {"hold": HOLD}, "replay": {"source": {"kind": "digits"}, "share": 0.5, "weight": 0.7}}
ADAPTER = {**SETTINGS, "loss": {"hold": HOLD}, "learning_rate": 1e-3, "lora": {"rank": 3}}
GUARDED = {**SETTINGS, "save_every": 1, "guard": {"max_loops": 0.02, "every": 50}}
STOP = 4
"""The cut-off training fails in its step after this one, so that it goes on from step 3."""


def mixed(vlm: Vlm, images: Path) -> list[Group]:
    """Two questions with an image and two without; with two of them in a step, the share of a rank may be text only."""
    return scored(vlm, [group(vlm, images, number, images=number % 2, responses=2) for number in range(4)])


def sft_rows(vlm: Vlm, images: Path) -> list[Group]:
    """Rows with an image, without one, and one that cannot be used, as many as `REPLAY` needs."""
    texts = ("the sum is 12", "left and right", "stop <|im_end|>", "7")
    return 4 * [replay_group(vlm, replace(question(images, 50 + n, n % 2), answer=text)) for n, text in enumerate(texts)]


def monitored(patch: pytest.MonkeyPatch, kind: str) -> None:
    """Stop where a model is sharded, or else wrapped, that was in float32 before."""
    name = "shard_model" if kind == "fsdp2" else "wrap_model"
    real = getattr(session, name)

    def checked(accelerator: Any, scorer: Any, *args: Any) -> Any:
        assert {value.dtype for value in scorer.parameters()} == {scorer.precision}
        return real(accelerator, scorer, *args)

    patch.setattr(session, name, checked)


def guarded(a_job: TrainJob, rank: int) -> None:
    """The responses of one rank degenerate in step 2: every rank stops there, with the checkpoint of step 1."""
    good = PolicyMetrics(accuracy=0.5, tokens=30.0, loops=0.0, cut=0.0, unparsable=0.0)
    figures = iter([good, good, replace(good, loops=0.5) if rank == 1 else good])
    with pytest.raises(TrainError) as stopped:
        train(replace(a_job, guard=lambda: next(figures)), Silent())
    assert stopped.value.code == "model-degenerates"
    message = "50.0% of responses with repetition" if rank == 1 else "too many broken responses on another rank"
    assert str(stopped.value).startswith("step 2: the model degenerates: " + message)
    assert next(figures, None) is None
    if rank == 0:
        assert "the checkpoint of step 1, which passed this check, is kept" in str(stopped.value)
        assert [path.name for path in (a_job.folder / "checkpoints").iterdir()] == ["step-000001"]


def main(model: Path, images: Path, work: Path, kind: str) -> None:
    def vlm(dtype: Literal["float32", "bfloat16"] = "float32") -> Vlm:
        return load(ModelTable(path=str(model), device="cpu", dtype=dtype), Path())

    data = scored(vlm(), groups(vlm(), images), HOLD)
    patch = pytest.MonkeyPatch()

    def checked(a_job: TrainJob, progress: Progress) -> Session:
        opened = open_session(a_job, progress)
        parameters = list(opened.job.vlm.model.parameters())
        held, whole = (sum(local_shard(value).numel() if of_rank else value.numel() for value in parameters) for of_rank in (True, False))
        assert held <= (0.55 if kind == "fsdp2" else 1) * whole, "a rank holds more than its share"
        assert {value.dtype for value in parameters} == {torch.float32}, "weights to train are not in float32"
        sharded = {isinstance(value, DTensor) for value in parameters}
        assert sharded == {kind == "fsdp2"}, "the model is not shared as it should be"
        return opened

    patch.setattr(loop, "open_session", checked)
    train(job(vlm(), data, work / "mpo", "mpo", **SETTINGS), Silent())
    patch.setattr("mixpo.vlm.save._reload_check", lambda *_: None)  # the first model was loaded again, which takes a third of the time
    train(job(vlm(), data, work / "aot", "aot", **SETTINGS), Silent())
    train(job(vlm(), data, work / "recomputed", gradient_checkpointing=True, **SETTINGS), Silent())
    train(replace(job(vlm(), data, work / "replay", **REPLAY), replay=in_memory(sft_rows(vlm(), images))), Silent())
    monitored(patch, kind)
    half, streams = vlm("bfloat16"), set[torch.dtype]()
    layers = half.model.model.language_model.layers
    layers[0].register_forward_hook(lambda *call: streams.add((call[-1] if isinstance(call[-1], Tensor) else call[-1][0]).dtype))
    train(job(half, scored(vlm("bfloat16"), groups(vlm(), images)), work / "half", **SETTINGS), Silent())
    assert streams == {torch.bfloat16}, "layers compute in another type"
    if find_spec("peft"):
        train(job(vlm(), data, work / "adapter", **ADAPTER), Silent())
    refused = ""
    try:
        train(job(vlm(), data, work / "online", reference="online", epochs=1), Silent())
    except TrainError as error:
        refused = str(error)
    assert ("needs a whole model on each rank" in refused) == (kind != "ddp"), refused
    train(job(vlm(), mixed(vlm(), images), work / "mixed", batch_size=2, epochs=4, learning_rate=1e-4), Silent())

    if kind == "ddp":  # the others need a whole model for it
        guarded(job(vlm(), data, work / "guarded", **GUARDED), int(os.environ["RANK"]))
    for folder in ("cut", "handed-on"):
        train_until(STOP, patch, job(vlm(), data, work / folder, **CUT))
    train(job(vlm(), data, work / "cut", **CUT), Silent())


def adapter(model: Path, images: Path, work: Path, settings: dict[str, Any]) -> None:
    """What each rank does in test_adapter_ranks."""
    vlm = load(ModelTable(path=str(model), device="cpu"), Path())
    train(job(vlm, groups(vlm, images), work, "tr_dpo+sft", **settings), Silent())
