"""Save a vision-language model with its processor; what was saved is loaded again and compared before it takes its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mixpo.errors import ModelError
from mixpo.recipe import ModelTable
from mixpo.vlm.folder import PROCESSOR_FILES
from mixpo.vlm.load import Vlm, check_weights, load_config, load_model, load_processor
from mixpo.vlm.transformers_fixes import quiet

MORE_TEMPLATES = "additional_chat_templates"
"""Folder of named chat templates next to the default one, as `transformers` saves them."""


def save(vlm: Vlm, folder: Path, check: Mapping[str, Tensor] | None = None, extra: Callable[[Path], None] | None = None) -> Path:
    """Write model, processor and chat template to `folder` atomically; returns `folder`.

    Processor files are copied from the source folder, which preserves the template digest. The saved model is reloaded and must be
    finite and reproduce the logits of the model inputs `check`. extra: writes further files into the folder. Raises ModelError if a
    check fails, the folder cannot be written, or `folder` exists and is not a model.
    """
    if folder.exists() and not (folder / "config.json").exists() and any(folder.iterdir()):
        raise ModelError(
            f"{folder}: exists and is not a model folder; remove it or choose another folder", code="output-not-a-model", path=folder
        )
    from safetensors import SafetensorError

    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
        temporary.mkdir(parents=True)
        with quiet():
            vlm.model.save_pretrained(temporary)
            _write_processor(vlm, temporary)
        if extra is not None:
            extra(temporary)
        _reload_check(vlm, temporary, check)
        _replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"{folder}: the model cannot be written ({reason}); free some space and run again", code="model-not-writable", path=folder
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_processor(vlm: Vlm, target: Path) -> None:
    if vlm.folder is None:
        vlm.processor.save_pretrained(target)
        return
    for name in PROCESSOR_FILES:
        if (vlm.folder / name).exists():
            shutil.copyfile(vlm.folder / name, target / name)
    if (vlm.folder / MORE_TEMPLATES).is_dir():
        shutil.copytree(vlm.folder / MORE_TEMPLATES, target / MORE_TEMPLATES)
    if vlm.trust_remote_code:
        for path in vlm.folder.glob("*.py"):
            shutil.copyfile(path, target / path.name)


def _reload_check(vlm: Vlm, saved: Path, check: Mapping[str, Tensor] | None) -> None:
    dtype = str(next(vlm.model.parameters()).dtype).removeprefix("torch.")
    table = ModelTable.model_validate({"dtype": dtype, "device": vlm.device.type, "trust_remote_code": vlm.trust_remote_code})
    config = load_config(saved, vlm.trust_remote_code)
    load_processor(saved, vlm.trust_remote_code)
    again = load_model(saved, config, table, vlm.device)
    check_weights(again, saved)
    if check is None:
        return
    was_training = vlm.model.training
    with torch.inference_mode():
        before = vlm.model.eval()(**check).logits
        after = again(**check).logits
    vlm.model.train(was_training)
    if not torch.allclose(before, after, rtol=1e-4, atol=1e-4):
        gap = float((before - after).abs().max())
        raise ModelError(
            f"{saved}: the saved model gives other logits than the one in memory (up to {gap:.3g}); it was discarded",
            code="saved-model-differs",
            path=saved,
        )


def _replace(temporary: Path, folder: Path) -> None:
    """Rename the finished folder into place; an existing model is moved away first, so files never mix."""
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)
