"""Checks that a prompt has as many image tokens as the model computes image features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixpo.errors import ModelError
from mixpo.plural import amount
from mixpo.vlm.families import MODEL_ERRORS
from mixpo.vlm.load import Vlm


def check_image_tokens(vlm: Vlm, ids: Tensor, features: dict[str, Tensor], images: int) -> None:
    """Raise ModelError when the image tokens of a prompt are not as many as its image features, or the model names no image token.

    ids: (T,). features: inputs of the vision tower.
    """
    placeholder = getattr(vlm.model.config, "image_token_id", None) or getattr(vlm.model.config, "image_token_index", None)
    if placeholder is None:
        raise ModelError(
            f"{vlm.folder}: config.json names no image_token_id; this family is not supported",
            code="image-token-id-missing",
            path=vlm.folder,
        )
    actual = int((ids == placeholder).sum())
    expected = _expected(vlm, features, actual) if images else 0
    if actual != expected if expected is not None else actual == 0:
        wanted = "at least one" if expected is None else str(expected)
        raise ModelError(
            f"{vlm.folder}: {amount(images, 'image')} became {amount(actual, 'image token')} where the model computes {wanted} features; "
            "the processor or chat template does not belong to this model",
            code="image-token-count-mismatch",
            path=vlm.folder,
        )


def _expected(vlm: Vlm, features: dict[str, Tensor], actual: int) -> int | None:
    """Number of image features, or None where only the model could tell and has told that its family counts otherwise.

    By the model's configuration, which is quick. Where that differs, the processor may be of another model, or the family may add
    tokens for rows and borders (HunYuan-VL): the model decides, once.
    """
    by_settings = _by_settings(vlm.model.config, features)
    if by_settings in (None, actual) or vlm.cache.get("counts_otherwise"):
        return None if vlm.cache.get("counts_otherwise") else by_settings
    if not isinstance(vlm.model, nn.Module):
        return None if _counts_otherwise(vlm.processor, features, actual) else by_settings
    computed = count_features(vlm.model, features)
    vlm.cache["counts_otherwise"] = computed == actual
    return by_settings if computed is None else computed


def _by_settings(config: Any, features: dict[str, Tensor]) -> int | None:
    """From the sizes in the configuration; None where they do not tell."""
    if "image_grid_thw" in features and hasattr(config.vision_config, "spatial_merge_size"):
        return int(features["image_grid_thw"].prod(-1).sum()) // int(config.vision_config.spatial_merge_size) ** 2
    if config.model_type == "internvl":
        tiles, _, height, width = features["pixel_values"].shape
        down, across = config.vision_config.patch_size
        return int(tiles * (height // down * config.downsample_ratio) * (width // across * config.downsample_ratio))
    return None


def _counts_otherwise(processor: Any, features: dict[str, Tensor], actual: int) -> bool:
    """Without weights: whether the processor itself does not simply merge the grid."""
    merge = getattr(processor.image_processor, "merge_size", None)
    return merge is not None and "image_grid_thw" in features and actual != int(features["image_grid_thw"].prod(-1).sum()) // merge**2


@torch.inference_mode()
def count_features(model: Any, features: dict[str, Tensor]) -> int | None:
    """Image features that the model computes from these inputs; None if it cannot compute them alone."""
    weight = next(model.parameters())
    inputs = {name: value.to(weight.device, weight.dtype if value.is_floating_point() else None) for name, value in features.items()}
    try:
        output = model.base_model.get_image_features(**inputs, return_dict=True).pooler_output
    except MODEL_ERRORS:
        return None
    parts: Sequence[Tensor] = output if isinstance(output, (list, tuple)) else [output]
    return sum(part.numel() // part.shape[-1] for part in parts)
