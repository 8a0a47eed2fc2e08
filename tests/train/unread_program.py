"""What each of two ranks does in test_unread: train models whose weights it reads in shards, and the same models read whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from memory import uncollected
from torch import nn
from torch.autograd.profiler import profile
from torch.distributed.tensor import DTensor
from train.cases import groups, job, scored

from mixpo.progress import Silent
from mixpo.recipe import ModelTable
from mixpo.train.logps import Scorer
from mixpo.train.loop import train
from mixpo.train.parallel import open_accelerator
from mixpo.train.sharding import shard_model
from mixpo.vlm.load import load
from mixpo.vlm.shapes import UnreadWeights, load_unread
from mixpo.vlm.transformers_fixes import quiet

STEPS: dict[str, Any] = {"epochs": 3, "batch_size": 3, "tokens_per_batch": 150, "learning_rate": 1e-4}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "internvl": ("internvl", {}, {}),
    "qwen, bfloat16": ("qwen", {"dtype": "bfloat16"}, {}),
    "qwen, adapter": ("qwen", {}, {"learning_rate": 1e-3, "lora": {"rank": 3, "parts": ["llm", "vision"]}}),
    "internvl, frozen vision": ("internvl", {"dtype": "bfloat16"}, {"freeze": ["vision"], "gradient_checkpointing": True}),
}
"""By name: the model, settings of [model] and of [train]."""


def most_held(work: Callable[[], Any], mapped: int) -> int:
    """The most bytes that are allocated at a time in the work, by PyTorch's profiler. mapped: size of the file that is mapped, not read."""
    with uncollected(), profile(use_kineto=True, profile_memory=True) as record:
        result = work()
    assert result is not None
    assert record.kineto_results is not None  # read as they are: torch's own tables of all operators take longer than the work
    events = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    held = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()) if abs(event.nbytes()) != mapped]
    return int(max(accumulate(held)))


def families(folder: Path) -> None:
    """Every tensor of models of other families, read in shards, is that of `from_pretrained`: of parameters and of buffers."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    loader: Any = AutoModelForImageTextToText
    for source in sorted(path for path in folder.iterdir() if path.is_dir()):
        for dtype in ("float32", "bfloat16"):
            accelerator = open_accelerator(torch.device("cpu"))
            table = ModelTable.model_validate({"path": str(source), "dtype": dtype, "device": "cpu"})
            with quiet():
                whole = loader.from_pretrained(source, dtype=getattr(torch, dtype))
                with torch.device("meta"):
                    model = loader.from_config(AutoConfig.from_pretrained(source), dtype=getattr(torch, dtype))
            unread = UnreadWeights(table=table, recipe_folder=folder, source=source, folder=source)
            model.requires_grad_(False)  # so that dtypes stay as they are
            shard_model(accelerator, Scorer(model, "single", getattr(torch, dtype)), unread)
            assert all(isinstance(value, DTensor) for value in model.parameters())
            compare(model, whole, source.name)


def compare(model: nn.Module, whole: nn.Module, name: str) -> None:
    tensors: list[Callable[[nn.Module], dict[str, Any]]] = [
        lambda one: dict(one.named_parameters(remove_duplicate=False)),
        lambda one: dict(one.named_buffers()),
    ]
    for of in tensors:
        ours, theirs = of(model), of(whole)
        assert ours.keys() == theirs.keys(), name
        for key, value in ours.items():
            full = value.full_tensor() if isinstance(value, DTensor) else value
            assert full.dtype == theirs[key].dtype, (name, key, full.dtype, theirs[key].dtype)
            assert torch.equal(full, theirs[key]), (name, key)
    tied = [len({id(value) for _, value in one.named_parameters(remove_duplicate=False)}) for one in (model, whole)]
    assert tied[0] == tied[1], name


def peaks(folder: Path) -> None:
    """A larger model: what a rank holds at most to read it in shards, and whole."""
    accelerator = open_accelerator(torch.device("cpu"))
    table = ModelTable(path=str(folder), device="cpu", dtype="bfloat16")  # of float32 files, so that no weight is a view of a mapped file

    def work(unread: bool) -> Any:
        vlm = (load_unread if unread else load)(table, Path())
        vlm.model.requires_grad_(False)  # the weights in the dtype of the recipe, without float32 masters
        shard_model(accelerator, Scorer(vlm.model, "single", torch.bfloat16), vlm.unread)
        return vlm

    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # the profiler sees this thread
    mapped = (folder / "model.safetensors").stat().st_size
    held = {unread: most_held(partial(work, unread), mapped) for unread in (True, False)}
    sizes = [2 * value.numel() for value in load_unread(table, Path()).model.parameters()]
    print(f"rank {accelerator.process_index}: in shards {held[True]}, whole {held[False]}; model {sum(sizes)}", flush=True)
    # One tensor is there twice while it is cast.
    assert held[True] < 0.5 * sum(sizes) + 3 * max(sizes) + 1e6, (held, sizes)
    assert held[False] >= sum(sizes), held


def main(models: Path, images: Path, work: Path) -> None:
    families(models / "families")
    peaks(models / "large")
    patch = pytest.MonkeyPatch()
    for name, (model, settings, table) in CASES.items():
        model_table = ModelTable.model_validate({"path": str(models / model), "device": "cpu", **settings})
        reference = load(model_table, Path())
        data = scored(reference, groups(reference, images))
        for kind, loader in (("whole", load), ("shards", load_unread)):
            lines = Silent()
            done = train(job(loader(model_table, Path()), data, work / name / kind, **{**STEPS, **table}), lines)
            assert done.steps[-1].step >= 10
            if torch.distributed.get_rank() == 0:
                (work / name / f"{kind}.txt").write_text("\n".join(lines.lines), encoding="utf-8")
        patch.setattr("mixpo.vlm.save._reload_check", lambda *_: None)  # the first two were loaded again; all files are compared
