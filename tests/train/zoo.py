"""A tiny random model of any image-text architecture of `transformers`, shrunk from its default configuration, and images for it.

Names of settings are much the same in all families, so one table of sizes fits most; what one needs beyond it is in `MORE`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import Tensor
from train.architectures import END, IMAGE, START, VIDEO, Family, Picture
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

NAMES: dict[str, str] = dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
SIZES: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 48, "intermediate_size": 64, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": None, "depth": 2, "num_heads": 4, "embed_dim": 48, "image_size": 28, "patch_size": 14, "out_hidden_size": 48,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "projection_dim": 48,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_k": 2,
    "moe_intermediate_size": 32,
    "shared_intermediate_size": 32, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 12, "num_query_tokens": 4, "num_mm_tokens": 4, "mm_tokens_per_image": 4, "d_model": 48,
    "sliding_window": 8, "window_size": 28, "num_position_embeddings": 16, "shared_expert_intermediate_size": 32, "hidden_dim": 48,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_layers": 2,
    "cross_attention_frequency": 1, "encoder_hidden_size": 48, "downsample_factor": 2, "alignment_intermediate_size": 64,
    "text_hidden_size": 48, "d_kv": 12, "d_ff": 64, "vision_feature_layer": -1, "spatial_patch_size": 14, "projector_hidden_size": 48,
    "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8, "dropout": 0.0, "attention_dropout": 0.0, "hidden_dropout": 0.0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "activation_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
}  # fmt: skip
"""Sizes by the name of a setting, wherever a default configuration has it."""
LARGEST = 30_000_000
"""Parameters of a model that is built at all."""
TOKENS = {"image": IMAGE, "video": VIDEO, "vision_start": START, "vision_end": END, "start": START, "end": END, "audio": 6}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def family(name: str) -> Family:
    """The tiny family of an architecture. Raises whatever its classes raise where it cannot be built."""
    default = tf.CONFIG_MAPPING[name]()
    if any(getattr(one, "is_encoder_decoder", False) for one in (default, getattr(default, "text_config", None))):
        raise ValueError("it is an encoder-decoder model")
    config, model_class = shrunk(default), getattr(tf, NAMES[name])
    if all(getattr(config, key, None) is None for key in ("image_token_id", "image_token_index")):
        raise ValueError("config.json names no image_token_id")
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > LARGEST:
        raise ValueError(f"its tiny model has {size:,} parameters")
    built = model_class(config).eval()
    forward = {key: value for part in (built, built.base_model) for key, value in inspect.signature(type(part).forward).parameters.items()}
    kinds = tuple(kind for kind in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids") if kind in forward)
    whole = config.model_type == "paligemma"
    axes = {"pixel_values": 3} if "target_sizes" in forward else {}
    return Family(lambda: model_class(shrunk(tf.CONFIG_MAPPING[name]())), picture_of(built, forward), kinds, whole, axes)


def shrunk(config: Any) -> Any:
    """The configuration with everything small; its class is made anew, so that derived settings follow."""
    values = config.to_dict()
    return type(config)(**_shrink(values, config.model_type))


def _shrink(values: dict[str, Any], kind: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    layers, full = _SPECIAL.get(kind, {}).get("num_hidden_layers", SIZES["num_hidden_layers"]), values.get("num_hidden_layers")
    for name, value in values.items():
        if name in ("transformers_version", "architectures", "dtype", "torch_dtype", "per_layer_config"):
            continue
        if isinstance(value, dict) and name.endswith("_config"):
            made[name] = _shrink(value, value.get("model_type", ""))
        elif name == "rope_parameters" and isinstance(value, dict):
            made[name] = _rope(value)
        elif isinstance(value, list) and name in ("layer_types", "mlp_layer_types") and value:
            made[name] = (list(dict.fromkeys(value)) * layers)[:layers]
        elif isinstance(value, list) and len(value) == full:
            made[name] = [SIZES.get(name, one) for one in value[:layers]]
        elif "token" in name and (name.endswith(("_id", "_index", "patch_id")) and isinstance(value, int)):
            made[name] = next((token for word, token in TOKENS.items() if word in name), 7)
        elif name in SIZES and value is not None:
            made[name] = [SIZES[name]] * len(value) if isinstance(value, (list, tuple)) else SIZES[name]
        else:
            made[name] = value
    return made | copy.deepcopy(_SPECIAL.get(kind, {}))  # configurations change what they are given


def _rope(rope: dict[str, Any]) -> dict[str, Any]:
    if rope.get("mrope_section"):
        kept = {name: rope[name] for name in ("mrope_interleaved", "partial_rotary_factor") if name in rope}
        return {**ROPE, **kept, "mrope_section": [1, 1, 1] if kept.get("partial_rotary_factor", 1) < 1 else [2, 2, 2]}
    if any(isinstance(value, dict) for value in rope.values()):
        return {name: _rope(value) if isinstance(value, dict) else value for name, value in rope.items()}
    return dict(ROPE)


_PINPOINTS = {"image_grid_pinpoints": [[28, 56], [56, 28]]}
_SECTIONS = {"rope_parameters": {**ROPE, "mrope_section": [2, 2, 2]}}
_SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision", "granite4_vision"), _PINPOINTS),
    **dict.fromkeys(("glm4v_text", "glm4v_moe_text", "glm_ocr_text", "qwen2_5_omni_text", "qwen3_omni_moe_text"), _SECTIONS),
    **dict.fromkeys(("ernie4_5_vl_moe_text", "paddleocr_vl_text"), _SECTIONS),
    **{kind: {"scale_factor": 2} for kind in ("idefics3", "smolvlm", "granite_docling")},
    "aria": {"projector_patch_to_query_dict": {4: 2}},
    "blip-2": {"image_token_index": IMAGE},
    "hunyuan_vl_text": {"head_dim": 12, "rope_parameters": {**ROPE, "mrope_section": [1, 2, 2, 1]}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "llama4_vision_model": {
        "intermediate_size": 192, "projector_input_dim": 48, "projector_output_dim": 48, "vision_output_dim": 48
    },
    **{kind: {"image_token_id": IMAGE, "video_token_id": VIDEO} for kind in ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")},
    "step3p5": {"sliding_window": 8},
}  # fmt: skip
"""Settings by model type, of a part or of the whole."""


# --- images ------------------------------------------------------------------------------------------------------------


def picture_of(model: Any, forward: Any) -> Callable[[torch.Generator, int], Picture]:
    """Makes images as the family's inputs ask for them, with as many tokens as the model computes features."""
    makers = _gridded(model, forward) if "image_grid_thw" in forward else _tiled(model, forward)
    failures: list[Exception] = []
    for maker in makers:
        try:
            if count_features(model, maker(torch.Generator(), 0)):
                return lambda rng, number: _picture(model, maker(rng, number))
        except Exception as error:  # whatever the family raises on pixels of another form
            failures.append(error)
    raise failures[0]


Maker = Callable[[torch.Generator, int], dict[str, Tensor]]


def _picture(model: Any, features: dict[str, Tensor]) -> Picture:
    tokens = [IMAGE] * count_features(model, features)
    return Picture([START, *tokens, END] if "image_grid_thw" in features else tokens, features)


def _gridded(model: Any, forward: Any) -> list[Maker]:
    """Patches of an image of its own size, flat or not, of one frame or two."""
    vision = getattr(model.config, "vision_config", None) or model.config
    merge, side = getattr(vision, "spatial_merge_size", None) or 2, getattr(vision, "patch_size", 14)
    depth = getattr(vision, "temporal_patch_size", 1) or 1

    def maker(*shape: int) -> Maker:
        def make(rng: torch.Generator, number: int) -> dict[str, Tensor]:
            height, width = merge * (1 + number % 2), 2 * merge
            features = {
                "pixel_values": torch.randn(height * width, *shape, generator=rng),
                "image_grid_thw": torch.tensor([[1, height, width]]),
            }
            return features | ({"image_merge_sizes": torch.tensor([merge])} if "image_merge_sizes" in forward else {})

        return make

    return [maker(3 * depth * side * side), maker(3, side, side), maker(3 * 2 * side * side)]


def _tiled(model: Any, forward: Any) -> list[Maker]:
    """Squares, in the form that the names of the family's inputs tell."""
    config = model.config
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", 28)
    size = size[0] if isinstance(size, (list, tuple)) else size
    tall = config.model_type in ("llava_next", "llava_next_video", "llava_onevision", "granite4_vision")

    def make(rng: torch.Generator, number: int) -> dict[str, Tensor]:
        if "spatial_shapes" in forward:
            height, width = 2 * (1 + number % 2), 4
            patches = torch.randn(1, height * width, 3 * 14 * 14, generator=rng)
            mask = torch.ones(1, height * width, dtype=torch.long)
            return {"pixel_values": patches, "spatial_shapes": torch.tensor([[height, width]]), "pixel_attention_mask": mask}
        if "target_sizes" in forward:
            height, width = 4 * (1 + number % 2), 4
            pixels = torch.randn(1, 3, 14, 14 * height * width, generator=rng)
            return {"pixel_values": pixels, "target_sizes": torch.tensor([[height, width]])}
        pixels = torch.randn(1, 3, size, size, generator=rng)
        if tall:
            pixels = torch.randn(1, 3, 3, size, size, generator=rng)  # the whole image and two tiles
        elif "pixel_attention_mask" in forward:
            pixels = pixels[None]
        features = {"pixel_values": pixels}
        if "pixel_attention_mask" in forward:
            features["pixel_attention_mask"] = torch.ones(1, 1, size, size, dtype=torch.bool)
        if "image_sizes" in forward:
            features["image_sizes"] = torch.tensor([[size, size * (2 if tall else 1)]])
        if "high_res_pixel_values" in forward:
            side = config.high_res_vision_config.image_size
            features["high_res_pixel_values"] = torch.randn(1, 3, side, side, generator=rng)
        return features

    return [make]


def count_features(model: Any, features: dict[str, Tensor]) -> int:
    """Image tokens that the model computes from these inputs."""
    with torch.no_grad():
        output = model.base_model.get_image_features(**features, return_dict=True).pooler_output
    parts = output if isinstance(output, (list, tuple)) else [output]
    return sum(part.numel() // part.shape[-1] for part in parts)
