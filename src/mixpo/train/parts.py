"""Which part of a model each parameter belongs to: decided by what the image features flow through, not by names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixpo.errors import TrainError
from mixpo.recipe import Part
from mixpo.vlm.families import MODEL_ERRORS
from mixpo.vlm.inputs import single_inputs
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt
from mixpo.vlm.shapes import shapes_only

PARTS: tuple[Part, ...] = ("vision", "projector", "llm")
Owner = Literal["vision", "projector", "llm", "other"]
"""A part, or "other": what neither images nor text flow through, such as an audio tower or an image generator. Never trained."""
OWNERS: tuple[Owner, ...] = (*PARTS, "other")

_VISION = re.compile(r"vision|visual|image|video", re.IGNORECASE)
_AUDIO = re.compile(r"audio|speech|sound", re.IGNORECASE)
_TEXT = re.compile(r"text|language", re.IGNORECASE)
_PROJECTOR = ("projector", "connector", "merger", "aligner", "resampler", "embed_vision", "image_newline")
"""Modules inside a vision tower that map its features to the text model."""
_ADAPTER = re.compile(r"\.base_layer(?=\.|$)|\.lora_[AB]\.\w+(?=\.|$)")


@dataclass(frozen=True)
class ModelParts:
    """Owners of all parameters, by name without an adapter; more than one where it cannot be decided."""

    owners: Mapping[str, frozenset[Owner]]

    def of(self, name: str) -> frozenset[Owner]:
        """The possible owners of a parameter or of a module with a weight."""
        plain = _ADAPTER.sub("", name)
        return self.owners.get(plain) or self.owners[f"{plain}.weight"]

    def among(self, name: str, parts: Collection[str], key: str) -> bool:
        """Whether a parameter belongs to one of `parts`. key: of the recipe, for the error.

        Raises TrainError where that depends on an owner that cannot be decided.
        """
        owners = self.of(name)
        answers = {owner in parts for owner in owners}
        if len(answers) > 1:
            raise TrainError(
                f"{key}: mixpo cannot tell whether {name} belongs to the {' or the '.join(sorted(owners))} of this model; "
                "list all of these there, or none of them",
                code="part-uncertain",
                key=key,
            )
        return answers.pop()


def find_parts(model: Any, flow: ImageFlow | None = None) -> ModelParts:
    """The parts of a model. flow: from `image_flow`; without it only structure decides.

    The text model (decoder, embeddings, output head) is the LLM. What image features flow through outside of it is the vision tower,
    a model of its own, or else the projector. A vision tower may contain a projector (a merger).
    """
    towers = _towers(model)
    embeddings, decoder = _text_parameters(model, towers)
    owners: dict[str, frozenset[Owner]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = _ADAPTER.sub("", name)
        tower = next((tower for tower in towers if plain.startswith(f"{tower}.")), None)
        if tower is not None:
            inner = towers[tower] == "vision" and _is_projector(plain.removeprefix(tower))
            owners[plain] = frozenset({"projector"} if inner else {towers[tower]})
        elif id(parameter) in embeddings or (id(parameter) in decoder and not (flow and plain in flow.image)):
            owners[plain] = frozenset({"llm"})
        elif flow is not None:
            owners[plain] = _by_flow(plain, flow, "vision" in towers.values())
        else:
            owners[plain] = _by_words(plain)
    return ModelParts(_unused_together(owners))


# --- structure -------------------------------------------------------------------------------------------------------


def _text_parameters(model: Any, towers: Mapping[str, Owner]) -> tuple[set[int], set[int]]:
    """Parameters of embeddings and output head, and of the decoder where it holds nothing else."""
    ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else None
    whole = decoder is model.base_model or decoder is model
    mixed = decoder is None or (whole and any(_VISION.search(key) for key in vars(model.config)))
    mixed = mixed or any(model.get_submodule(tower) is module for tower in towers for module in decoder.modules())
    held = [] if mixed else list(decoder.parameters())
    return {id(parameter) for module in ends for parameter in module.parameters()}, {id(parameter) for parameter in held}


def _towers(model: Any) -> dict[str, Owner]:
    """Names of the outermost modules that are vision or audio models with a configuration of their own."""
    keys = {type(getattr(model.config, key, None)): key for key in getattr(model.config, "sub_configs", {})}
    towers: dict[str, Owner] = {}
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        if not name or config is None or not hasattr(module, "get_input_embeddings") or any(name.startswith(f"{t}.") for t in towers):
            continue
        # Classes of a family with "Video" in its name all have it, so the name of the setting counts where there is one.
        described = f"{name.rpartition('.')[2]} {keys.get(type(config), type(config).__name__)}"
        if type(config) is type(model.config) or _TEXT.search(described):
            continue
        if _VISION.search(described) or _AUDIO.search(described):
            towers[name] = "vision" if _VISION.search(described) else "other"
    return towers


def _is_projector(name: str) -> bool:
    return any(word in name for word in _PROJECTOR)


def _by_words(name: str) -> frozenset[Owner]:
    """Outside of text model and towers, without a forward pass that tells."""
    if _is_projector(name):
        return frozenset({"projector"})
    return frozenset(PARTS)


# --- flow ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageFlow:
    """Names of the parameters that the image features, and the logits, depend on."""

    image: frozenset[str]
    logits: frozenset[str]


def _by_flow(name: str, flow: ImageFlow, has_tower: bool) -> frozenset[Owner]:
    if name in flow.image:
        # Without a tower of its own, an encoder cannot be told from a projection.
        return frozenset({"projector"}) if has_tower or _is_projector(name) else frozenset({"vision", "projector"})
    return frozenset({"llm"}) if name in flow.logits else frozenset({"other"})


def _unused_together(owners: Mapping[str, frozenset[Owner]]) -> dict[str, frozenset[Owner]]:
    """What nothing flows through belongs to its neighbours: a layer that is skipped is still part of its module."""
    top: dict[str, set[frozenset[Owner]]] = {}
    for name, owner in owners.items():
        if owner != {"other"}:
            top.setdefault(_module(name), set()).add(owner)
    return {
        name: next(iter(top[_module(name)])) if owner == {"other"} and len(top.get(_module(name), ())) == 1 else owner
        for name, owner in owners.items()
    }


def _module(name: str) -> str:
    """The outermost module of a parameter below the base model; the parameter itself where there is none."""
    parts = name.removeprefix("model.").split(".")
    return parts[0] if len(parts) > 1 else name


def image_flow(vlm: Vlm, prompt: EncodedPrompt) -> ImageFlow | None:
    """Passes a prompt with an image through the model; None for a model whose image features cannot be computed alone.

    A model on the meta device shows the same, because the flow does not depend on values; None where it cannot run there.
    """
    model = vlm.model
    asked = [parameter for parameter in model.parameters() if parameter.is_floating_point() and not parameter.requires_grad]
    inputs, unread = single_inputs(vlm, prompt), vlm.unread is not None
    if unread:
        inputs = {name: value.to("meta" if value.is_floating_point() else "cpu") for name, value in inputs.items()}
    features = {name: inputs[name] for name in prompt.features}
    was_training = model.training
    model.eval()
    for parameter in asked:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad(), shapes_only() if unread else nullcontext():
            images = _reached(model, _tensors(model.base_model.get_image_features(**features, return_dict=True)))
            return ImageFlow(images, _reached(model, [model(**inputs, use_cache=False).logits]))
    except MODEL_ERRORS:
        return None  # the check of the layout says why
    finally:
        for parameter in asked:
            parameter.requires_grad_(False)
        model.train(was_training)


def _reached(model: nn.Module, outputs: Sequence[Tensor]) -> frozenset[str]:
    """Names of the parameters in the autograd graph of some outputs. No gradient is computed."""
    names = {id(parameter): _ADAPTER.sub("", name) for name, parameter in model.named_parameters(remove_duplicate=False)}
    open_nodes: list[Any] = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    seen, reached = set(open_nodes), set[str]()
    while open_nodes:
        node = open_nodes.pop()
        if hasattr(node, "variable"):
            reached.add(names.get(id(node.variable), ""))
        following = [next_node for next_node, _ in node.next_functions if next_node is not None and next_node not in seen]
        seen.update(following)
        open_nodes += following
    return frozenset(reached)


def _tensors(value: Any) -> list[Tensor]:
    """The features that enter the text model, of an output of `get_image_features`."""
    return list(_leaves([value.get(name) for name in ("pooler_output", "deepstack_features")]))


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
