"""What this installation and machine offer: versions, devices, optional libraries, memory, disk. Changes nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from mixpo.run import versions

EXTRAS = {
    "served": ("aiohttp", 'sample.engine = "openai", [evaluate.judge]'),
    "easy-vqa": ("easy_vqa", 'source.kind = "easy_vqa"'),
    "hub": ("datasets", 'source.kind = "hub"'),
    "similar": ("imagehash", 'evaluate.decontaminate = "similar"'),
    "lora": ("peft", "train.lora and model.adapter"),
    "tensorboard": ("tensorboard", "train.trackers"),
    "wandb": ("wandb", "train.trackers"),
    "trackio": ("trackio", "train.trackers"),
    "bitsandbytes": ("bitsandbytes", 'model.quantization, and train.optimizer = "adamw_8bit"'),
    "liger": ("liger_kernel", "train.liger"),
    "deepspeed": ("deepspeed", "DeepSpeed launches"),
    "text": ("lm_eval", "evaluate.text_tasks"),
    "ray": ("ray", 'cluster.kind = "ray"'),
    "xlsx": ("openpyxl", "predictions in .xlsx"),
    "viewer": ("duckdb", "mixpo view"),
}
"""Extra -> (module that shows it is installed, what needs it)."""

LOW_DISK = 5 * 2**30
"""Bytes below which free disk space is pointed out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One fact. problem: mixpo cannot work like this."""

    topic: str
    text: str
    problem: bool = False


def examine(folder: Path) -> list[Line]:
    """All facts, in order; `folder` is where runs would be written."""
    return [
        Line(topic="system", text=f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores"),
        *(_version(name, version) for name, version in versions().items()),
        *_devices(),
        *(_extra(name, module, use) for name, (module, use) in EXTRAS.items()),
        _vllm(),
        *_space(folder),
    ]


def _version(name: str, version: str) -> Line:
    missing = version == "not installed"
    return Line(topic=name, text=f"{version}; install mixpo again" if missing else version, problem=missing)


def _devices() -> list[Line]:
    if importlib.util.find_spec("torch") is None:
        return []
    from mixpo.vlm.memory import devices

    listed = [Line(topic="device", text=device) for device in devices()]
    return listed if len(listed) > 1 else [*listed, Line(topic="device", text="no GPU found (CUDA or MPS); models run on the CPU")]


def _extra(name: str, module: str, use: str) -> Line:
    if importlib.util.find_spec(module) is not None:
        return Line(topic=f"extra {name}", text=f"installed, for {use}")
    return Line(topic=f"extra {name}", text=f"missing, needed for {use}: pip install 'mixpo[{name}]'")


def _vllm() -> Line:
    """vLLM brings its own torch, so it is no extra of this package."""
    installed = importlib.util.find_spec("vllm") is not None
    return Line(topic="vllm", text=f'{"installed" if installed else "not installed"}, for sample.engine = "vllm" (docs/engines.md)')


def _space(folder: Path) -> list[Line]:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    lines = [Line(topic="disk", text=f"{free / 2**30:.1f} GiB free in {existing}{_low(free)}", problem=free < LOW_DISK // 50)]
    if not writable:
        lines.append(Line(topic="disk", text=f"{existing} is not writable; give another folder with --dir", problem=True))
    if "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        lines.append(Line(topic="memory", text=f"{memory / 2**30:.1f} GiB"))
    return lines


def _low(free: int) -> str:
    return ", little for models and checkpoints" if free < LOW_DISK else ""
