"""Tiny random models of real architectures with prompts made by hand: token ids and pixels, no processor.

Weights are drawn wide, so that attention is far from uniform and a wrong mask, position or image would show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import transformers as tf
from packaging.version import Version
from torch import Tensor

from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt
from mixpo.vlm.transformers_fixes import apply_fixes

IMAGE, VIDEO, START, END, WORDS = 1, 2, 3, 4, 10
VOCABULARY = 128
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
VIT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}


@dataclass(frozen=True)
class Picture:
    """What an image is for the model: its tokens in the text, and its features."""

    tokens: list[int]
    features: dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """model: makes the model. picture: makes an image from a generator and its number.

    kinds: per-token inputs that mark images, or (whole_prompt) that are 0 for the prompt; such a model takes no prompt without an image.
    axes: along which the images of a prompt are joined, where it is not the first.
    """

    model: Callable[[], Any]
    picture: Callable[[torch.Generator, int], Picture] | None
    kinds: tuple[str, ...] = ()
    whole_prompt: bool = False
    axes: dict[str, int] = field(default_factory=dict)


def prompt(family: Family, rng: torch.Generator, images: int) -> EncodedPrompt:
    """Some words, with images between them."""
    ids, features = _words(rng, 3), list[dict[str, Tensor]]()
    for number in range(images):
        assert family.picture is not None
        made = family.picture(rng, number)
        ids += [*made.tokens, *_words(rng, 2)]
        features.append(made.features)
    tokens = torch.tensor(ids + _words(rng, 4))
    axis = 1 if features and "pixel_attention_mask" in features[0] and features[0]["pixel_attention_mask"].ndim > 2 else 0
    joined = {name: _cat([one[name] for one in features], family.axes.get(name, axis)) for name in (features[0] if features else {})}
    kinds = {name: torch.zeros_like(tokens) if family.whole_prompt else (tokens == IMAGE).long() for name in family.kinds}
    return EncodedPrompt(tokens, joined, kinds)


def vlm(family: Family, seed: int = 0) -> Vlm:
    """The model as a Vlm whose processor knows a padding token and nothing else."""
    torch.manual_seed(seed)
    model = family.model()
    apply_fixes(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 or "class_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    processor = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    return Vlm(model.eval(), processor, torch.device("cpu"), "", "", (5,))


def _words(rng: torch.Generator, count: int) -> list[int]:
    return torch.randint(WORDS, VOCABULARY, (count,), generator=rng).tolist()


def _cat(values: list[Tensor], axis: int) -> Tensor:
    sizes = [max(value.shape[d] for value in values) for d in range(values[0].ndim)]
    padded = []
    for value in values:
        room = value.new_zeros([value.shape[d] if d == axis else size for d, size in enumerate(sizes)])
        room[tuple(slice(size) for size in value.shape)] = value
        padded.append(room)
    return torch.cat(padded, axis)


def _noise(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng)


# --- images ------------------------------------------------------------------------------------------------------------


def _square(count: int) -> Callable[[torch.Generator, int], Picture]:
    """One 28 x 28 image that becomes `count` tokens."""
    return lambda rng, _: Picture([IMAGE] * count, {"pixel_values": _noise(rng, 1, 3, 28, 28)})


def _tiles(rng: torch.Generator, number: int) -> Picture:
    """One to three tiles, one token each."""
    return Picture([START, *[IMAGE] * (number + 1), END], {"pixel_values": _noise(rng, number + 1, 3, 28, 28)})


def _grid(rng: torch.Generator, number: int) -> Picture:
    """Patches of an image of its own size, 2 x 2 of them to a token."""
    height, width = 2 * (1 + number % 2), 4
    patches = _noise(rng, height * width, 3 * 2 * 7 * 7)
    features = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, height, width]])}
    return Picture([START, *[IMAGE] * (height * width // 4), END], features)


def _pixtral(rng: torch.Generator, number: int) -> Picture:
    """An image of its own size, 2 x 2 patches to a token."""
    height, width = (28, 56) if number % 2 else (56, 56)
    features = {"pixel_values": _noise(rng, 1, 3, height, width), "image_sizes": torch.tensor([[height, width]])}
    return Picture([IMAGE] * (height * width // 28**2), features)


def _idefics(rng: torch.Generator, number: int) -> Picture:
    """Images on axis 1, of different sizes behind a pixel mask."""
    mask = torch.ones(1, 1, 28, 28, dtype=torch.long)
    if number % 2:
        mask[..., 14:] = 0
    pixels = _noise(rng, 1, 1, 3, 28, 28) * mask[:, :, None]
    return Picture([START, IMAGE, END], {"pixel_values": pixels, "pixel_attention_mask": mask})


def _anyres(rng: torch.Generator, number: int) -> Picture:
    """The whole image and its tiles: 2 x 2 patches of the base, then 2 x 4 of two tiles with a newline token in each row."""
    features = {"pixel_values": _noise(rng, 1, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56]])}
    return Picture([IMAGE] * (4 + 2 * (4 + 1)), features)


# --- models ------------------------------------------------------------------------------------------------------------


def _internvl() -> Any:
    vision = {**VIT, "image_size": [28, 28], "patch_size": [14, 14]}
    return tf.InternVLForConditionalGeneration(
        tf.InternVLConfig(text_config={"model_type": "qwen2", **TEXT}, vision_config=vision, image_token_id=IMAGE)
    )


def _qwen2(config: Any, model: Any, **more: Any) -> Callable[[], Any]:
    vision = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": 7,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        **more,
    }
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    return lambda: model(config(text_config={**TEXT, "rope_parameters": MROPE}, vision_config=vision, **ids))


def _sliding_qwen() -> Any:
    """Every second layer sees 5 tokens back, fewer than a prompt has."""
    model = _qwen2(tf.Qwen2_5_VLConfig, tf.Qwen2_5_VLForConditionalGeneration, **_QWEN_2_5)
    config = model().config
    text = config.text_config
    text.use_sliding_window, text.sliding_window, text.layer_types = True, 5, ["full_attention", "sliding_attention", "full_attention"]
    return tf.Qwen2_5_VLForConditionalGeneration(config)


_QWEN_2_5 = {"out_hidden_size": 48, "window_size": 28, "fullatt_block_indexes": [1]}


def _llava() -> Any:
    vision = {"model_type": "clip_vision_model", **VIT}
    config = tf.LlavaConfig(text_config={"model_type": "llama", **TEXT}, vision_config=vision, image_token_index=IMAGE)
    return tf.LlavaForConditionalGeneration(config)


def _onevision() -> Any:
    vision = {"model_type": "siglip_vision_model", **VIT, "vision_use_head": False}
    config = tf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config=vision,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[28, 56], [56, 28]],
    )
    return tf.LlavaOnevisionForConditionalGeneration(config)


def _smol() -> Any:
    config = tf.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config=VIT, image_token_id=IMAGE, scale_factor=2, pad_token_id=0
    )
    return tf.SmolVLMForConditionalGeneration(config)


def _idefics3() -> Any:
    config = tf.Idefics3Config(
        text_config={"model_type": "llama", **TEXT}, vision_config=VIT, image_token_id=IMAGE, scale_factor=2, pad_token_id=0
    )
    return tf.Idefics3ForConditionalGeneration(config)


def _gemma3() -> Any:
    """Images of 4 tokens see themselves both ways; most layers see 6 tokens back."""
    text = {
        **TEXT,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 12,
    }
    config = tf.Gemma3Config(text_config=text, vision_config=VIT, mm_tokens_per_image=4, image_token_index=IMAGE)
    return tf.Gemma3ForConditionalGeneration(config)


def _paligemma() -> Any:
    vision = {"model_type": "siglip_vision_model", **VIT, "vision_use_head": False}
    text = {"model_type": "gemma", **TEXT}
    config = tf.PaliGemmaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE, projection_dim=48, hidden_size=48)
    return tf.PaliGemmaForConditionalGeneration(config)


_GEMMA2 = {
    "model_type": "gemma2",
    **TEXT,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 12,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
"""Scores and logits are capped where they bend already."""


def _paligemma2() -> Any:
    vision = {"model_type": "siglip_vision_model", **VIT, "vision_use_head": False}
    config = tf.PaliGemmaConfig(text_config=_GEMMA2, vision_config=vision, image_token_index=IMAGE, projection_dim=48, hidden_size=48)
    return tf.PaliGemmaForConditionalGeneration(config)


def _cohere2_vision() -> Any:
    """Its text model scales logits, it does not."""
    vision = {"model_type": "siglip_vision_model", **VIT, "vision_use_head": False}
    text = {"model_type": "cohere2", **TEXT, "sliding_window": 6, "logit_scale": 0.3, "layer_types": _GEMMA2["layer_types"]}
    config = tf.Cohere2VisionConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, downsample_factor=2, alignment_intermediate_size=64
    )
    return tf.Cohere2VisionForConditionalGeneration(config)


def _mistral3() -> Any:
    vision = {"model_type": "pixtral", **VIT, "head_dim": 16, "image_size": 56}
    text = {"model_type": "mistral", **TEXT, "sliding_window": None}
    config = tf.Mistral3Config(text_config=text, vision_config=vision, image_token_index=IMAGE, spatial_merge_size=2)
    return tf.Mistral3ForConditionalGeneration(config)


def _pixtral_llava() -> Any:
    vision = {"model_type": "pixtral", **VIT, "head_dim": 16, "image_size": 56}
    text = {"model_type": "mistral", **TEXT, "sliding_window": 5}
    config = tf.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return tf.LlavaForConditionalGeneration(config)


def _text(config: str, model: str, **more: Any) -> Callable[[], Any]:
    """A model without images. Classes by name, because older releases of transformers lack some."""
    return lambda: getattr(tf, model)(getattr(tf, config)(**{**TEXT, **more}))


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}


def _pixtral_patches(rng: torch.Generator, number: int) -> Picture:
    made = _pixtral(rng, number)
    return Picture([IMAGE] * (4 * len(made.tokens)), made.features)


_DEEP = {"out_hidden_size": 48, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}

FAMILIES = {
    "internvl": Family(_internvl, _tiles),
    "qwen2_vl": Family(
        _qwen2(tf.Qwen2VLConfig, tf.Qwen2VLForConditionalGeneration, embed_dim=32, hidden_size=48), _grid, ("mm_token_type_ids",)
    ),
    "qwen2_5_vl": Family(_qwen2(tf.Qwen2_5_VLConfig, tf.Qwen2_5_VLForConditionalGeneration, **_QWEN_2_5), _grid, ("mm_token_type_ids",)),
    "qwen2_5_vl_sliding": Family(_sliding_qwen, _grid, ("mm_token_type_ids",)),
    "qwen3_vl": Family(_qwen2(tf.Qwen3VLConfig, tf.Qwen3VLForConditionalGeneration, **_DEEP), _grid, ("mm_token_type_ids",)),
    "llava": Family(_llava, _square(4)),
    "llava_onevision": Family(_onevision, _anyres),
    "smolvlm": Family(_smol, _idefics),
    "idefics3": Family(_idefics3, _idefics),
    "gemma3": Family(_gemma3, _square(4), ("token_type_ids",)),
    "paligemma": Family(_paligemma, _square(4), ("token_type_ids",), whole_prompt=True),
    "mistral3": Family(_mistral3, _pixtral),
    "pixtral": Family(_pixtral_llava, _pixtral_patches),
    "paligemma2": Family(_paligemma2, _square(4), ("token_type_ids",), whole_prompt=True),
    "cohere2_vision": Family(_cohere2_vision, _square(1)),
    "text": Family(_text("Qwen3Config", "Qwen3ForCausalLM"), None),
    "gemma2": Family(_text("Gemma2Config", "Gemma2ForCausalLM", **_GEMMA2), None),
    "granite": Family(_text("GraniteConfig", "GraniteForCausalLM", logits_scaling=3.0), None),
    "cohere": Family(_text("CohereConfig", "CohereForCausalLM", logit_scale=0.3), None),
    "hyperclovax": Family(_text("HyperCLOVAXConfig", "HyperCLOVAXForCausalLM", logits_scaling=0.3), None),
    "qwen3_moe": Family(_text("Qwen3MoeConfig", "Qwen3MoeForCausalLM", **_EXPERTS), None),
}


# --- a model whose images index into the whole batch ---------------------------------------------------------------------


def _molmo2() -> Any:
    return tf.Molmo2ForConditionalGeneration(
        tf.Molmo2Config(
            text_config={**TEXT, "additional_vocab_size": 8},
            vision_config={**VIT, "num_key_value_heads": 2, "head_dim": 16, "image_size": [28, 28]},
            adapter_config={
                "vision_feature_layer": [-1],
                "hidden_size": 32,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "intermediate_size": 48,
                "text_hidden_size": 48,
            },
            image_patch_id=IMAGE,
            **dict.fromkeys(("image_start_token_id", "low_res_image_start_token_id", "frame_start_token_id"), START),
            **dict.fromkeys(("image_end_token_id", "frame_end_token_id"), END),
        )
    )


def _pooled(rng: torch.Generator, number: int) -> Picture:
    """One crop of 2 x 2 patches, pooled into two tokens; the indices count the patches of all crops of a prompt."""
    features = {
        "pixel_values": _noise(rng, 1, 4, 3 * 14 * 14),
        "image_token_pooling": torch.tensor([[0, 1], [2, 3]]) + 4 * number,
        "image_grids": torch.tensor([[1, 2, 0, 0]]),
        "image_num_crops": torch.tensor([1]),
    }
    return Picture([START, IMAGE, IMAGE, END], features)


POOLED = Family(_molmo2, _pooled, ("mm_token_type_ids",)) if hasattr(tf, "Molmo2Config") else None


# --- models whose state runs through the row -----------------------------------------------------------------------------


def _lfm2() -> Any:
    return tf.Lfm2ForCausalLM(tf.Lfm2Config(**TEXT, layer_types=["conv", "full_attention", "conv"], conv_L_cache=3))


def _qwen3_5() -> Any:
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    return tf.Qwen3_5ForCausalLM(tf.Qwen3_5TextConfig(**TEXT, **linear, layer_types=kinds))


CANNOT = {"hyperclovax": not hasattr(tf, "HyperCLOVAXConfig"), "paligemma2": Version(tf.__version__) < Version("5.23")}
"""What the installed transformers lacks, or refuses (see `mixpo.vlm.transformers_fixes`)."""
FAMILIES = {name: family for name, family in FAMILIES.items() if not CANNOT.get(name)}

TYPICAL = tuple(FAMILIES.keys() & {"internvl", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma2", "smolvlm"})
"""Tiles, axes of positions, features at several depths, masks that look ahead, caps, pixel masks; the others are slow rows."""

HYBRIDS = {"lfm2": Family(_lfm2, None), "qwen3_5": Family(_qwen3_5, None)}
