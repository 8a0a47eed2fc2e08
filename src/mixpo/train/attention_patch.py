"""Replaces the attention of a model's text layers by a plan of `mixpo.train.tree_attention`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor

from mixpo.train.compute_weights import same_weights
from mixpo.train.tree_attention import AttentionOptions, AttentionPlan
from mixpo.vlm.families import configs_of, window_of

NAME, REPLACED = "mixpo_tree", "mixpo_replaced"

IGNORED = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states", "return_dict", "is_causal"}
_KNOWN = {"scaling", "dropout", "sliding_window", "softcap"} | IGNORED


Attention = Callable[..., tuple[Tensor, None]]
"""An attention function of `transformers`."""


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention_plan: AttentionPlan | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function of the patched layers: query, key, value (1, H, T, D) -> (1, T, H, D).

    Raises NotImplementedError for any option that is not supported; none is ignored.
    """
    layer_options = _options_of(module, options)
    if attention_mask is not None:
        raise NotImplementedError("attention with a mask of the model's own")
    if attention_plan is None or query.shape[0] != 1 or query.shape[2] != len(attention_plan) or key.shape[2] != len(attention_plan):
        raise NotImplementedError("a forward pass that is not over one row of groups")
    query_thd, key_thd, value_thd = (part[0].transpose(0, 1) for part in (query, key, value))
    return attention_plan.attend(query_thd, key_thd, value_thd, layer_options)[None], None


def _options_of(module: Any, options: dict[str, Any]) -> AttentionOptions:
    """Raises NotImplementedError for unknown options."""
    for name, value in options.items():
        if name not in _KNOWN and value is not None:
            raise NotImplementedError(f"attention with {name}")
    if options.get("dropout") or options.get("is_causal") is False:
        raise NotImplementedError("attention with dropout, or without direction")
    window = window_of(module.config, module.layer_idx)
    if options.get("sliding_window") != window:
        raise NotImplementedError(f"a window of {options.get('sliding_window')} in a layer that the configuration gives {window}")
    return AttentionOptions(window=window, scale=options.get("scaling"), softcap=float(options.get("softcap") or 0.0))


@contextmanager
def implementations(named: Sequence[tuple[Any, str]]) -> Iterator[None]:
    """Context in which each configuration names another attention."""
    before = [(config, config._attn_implementation) for config, _ in named]
    try:
        for config, name in named:
            config._attn_implementation = name
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def tree_attention_enabled(model: Any, attention: Attention = tree_attention) -> AbstractContextManager[None]:
    """Context in which the text layers use `tree_attention`; the vision tower is not affected. attention: it, or what calls it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    return implementations([(model.config.get_text_config(), NAME)])


def attention_replaced(model: Any, attention: Attention) -> AbstractContextManager[None]:
    """Context in which all layers that call an attention of `transformers`, the vision tower's too, call `attention`."""
    from transformers import AttentionInterface

    AttentionInterface.register(REPLACED, attention)
    return implementations([(config, REPLACED) for config in configs_of(model)])


@contextmanager
def _again(named: Sequence[tuple[Any, str]], weights: AbstractContextManager[None]) -> Iterator[None]:
    with implementations(named), weights:
        yield


def checkpoint_contexts(model: Any) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """`context_fn` of activation checkpointing: recompute with the attention and the weights of the first forward pass."""
    configs = configs_of(model)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _again([(config, config._attn_implementation) for config in configs], same_weights(model))

    return contexts
