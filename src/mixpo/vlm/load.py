"""Load a vision-language model with its processor; an unusable folder is an error before any work starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixpo.errors import ModelError
from mixpo.recipe import ModelTable
from mixpo.vlm.adapter import FOLDER, attach
from mixpo.vlm.folder import Digests, digests, find_adapter, find_model
from mixpo.vlm.quantization import loading_options, prepare, values_of
from mixpo.vlm.transformers_fixes import apply_fixes, loading_errors, quiet
from mixpo.vlm.vetting import PACKED, stored_parameters, vet_sizes, vet_text

VERY_LONG = 10**30
"""`model_max_length` of tokenizers without a limit in `transformers`."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(eq=False)
class Vlm:
    """A model in evaluation mode on its device, with its processor.

    digest: of configuration and weights. template_digest: of chat template, tokenizer and processor. end_ids: all end-of-turn tokens.
    folder: where it was loaded from. cache: derived values, computed once (see `mixpo.vlm.prompt`).
    trust_remote_code: the folder's own Python code may run, also when the saved model is loaded again.
    unread: `UnreadWeights` of a model on the meta device; None once they are in the model. quantization: as in the recipe.
    """

    model: Any
    processor: Any
    device: torch.device
    digest: str
    template_digest: str
    end_ids: tuple[int, ...]
    folder: Path | None = None
    cache: dict[str, Any] = field(default_factory=dict, repr=False)
    trust_remote_code: bool = False
    unread: Any = None
    quantization: str | None = None


def load(table: ModelTable, recipe_folder: Path, folder: Path | None = None) -> Vlm:
    """Load the model of `table` with its adapter, or the one in `folder` (a trained one) with the settings of `table`.

    With `table.quantization` a trained model is the quantized model of `table` with the adapter in `folder`: what was trained.
    recipe_folder: what paths in `table` are relative to. Raises ModelError when folder, processor, chat template or weights are missing
    or incomplete, or weights are NaN, infinite or all zero; MissingExtra without the library of `table.quantization`.
    """
    if folder is None:
        source, adapter = find_model(table, recipe_folder), find_adapter(table, recipe_folder)
    elif table.quantization is None:
        source, adapter = folder, None
    else:
        source, adapter = find_model(table, recipe_folder), folder / FOLDER
    known = digests(source, adapter)
    config = load_config(source, table.trust_remote_code)
    processor = load_processor(source, table.trust_remote_code)
    device = pick_device(table.device)
    model = load_model(source, config, table, device)
    with loading_errors(source, "model"):
        check_weights(model, source)
        check_vocabulary(model, processor.tokenizer, source)
        if adapter is not None:
            attach(model, adapter)
        made = assemble(model, processor, device, known, source)
        return replace(made, trust_remote_code=table.trust_remote_code, quantization=table.quantization)


def assemble(model: Any, processor: Any, device: torch.device, known: Digests | None = None, folder: Path | None = None) -> Vlm:
    """A Vlm from parts in memory; without `known` its digests are empty, which no stage accepts."""
    known = known or Digests(weights="", template="")
    ends = end_ids(model, processor.tokenizer)
    return Vlm(model.eval(), processor, device, known.weights, known.template, ends, folder)


def pick_device(wanted: str) -> torch.device:
    """ "auto": CUDA, else MPS, else CPU. Raises ModelError for a device that is not available."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in present.items() if there))
    if not present[wanted]:
        raise ModelError(f'model.device = "{wanted}": this device is not available; use "auto"', code="device-missing", key="model.device")
    return torch.device(wanted)


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """All end-of-turn ids: of the generation config, the tokenizer's eos token, and `<|im_end|>` if present."""
    listed = getattr(model.generation_config, "eos_token_id", None)
    candidates = set(listed if isinstance(listed, (list, tuple)) else [listed])
    candidates |= {tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>")}
    ids = tuple(sorted(int(token) for token in candidates if token is not None and token < len(tokenizer)))
    if not ids:
        raise ModelError("the model has no end-of-turn token; set eos_token_id in its generation_config.json", code="end-token-missing")
    return ids


def check_weights(model: nn.Module, source: object) -> None:
    """Raise ModelError for NaN or infinite values, and for all-zero weight matrices."""
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0:
            continue
        low, high = torch.aminmax(values_of(parameter))
        refuse_weight(name, parameter, source, finite=bool(torch.isfinite(low) and torch.isfinite(high)), zero=bool(low == 0 and high == 0))


def refuse_weight(name: str, parameter: Tensor, source: object, *, finite: bool, zero: bool) -> None:
    """Raise ModelError for a weight with values that are not finite, and for a matrix that holds only zeros."""
    if not finite:
        raise ModelError(
            f"{source}: {name} holds NaN or infinite values; take an earlier checkpoint or download the model again",
            code="weights-not-finite",
            path=str(source),
        )
    if parameter.ndim == 2 and name.endswith(".weight") and zero:
        raise ModelError(
            f"{source}: {name} holds only zeros; the weights are incomplete, download or copy the model again",
            code="weights-all-zero",
            path=str(source),
        )


def check_vocabulary(model: Any, tokenizer: Any, source: object) -> None:
    """Raise ModelError when the tokenizer has ids without an embedding in the model."""
    rows, last = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values())
    if last >= rows:
        raise ModelError(
            f"{source}: the tokenizer gives ids up to {last} ({tokenizer.convert_ids_to_tokens(last)!r}), but the model has embeddings for "
            f"{rows} ids only; take the tokenizer that belongs to these weights, or call resize_token_embeddings and train the new rows",
            code="vocabulary-mismatch",
            path=str(source),
        )


TILE_SETTINGS = ("max_patches", "max_image_tiles")
"""Names of the tile limit in image processors."""


def limit_tiles(processor: Any, tiles: int) -> None:
    """Limit an image to `tiles` tiles; 0 changes nothing. Raises ModelError for a processor without a tile limit."""
    if tiles:
        setattr(processor.image_processor, tile_setting(processor), tiles)


@contextmanager
def tiles_limited(processor: Any, tiles: int) -> Iterator[None]:
    """Limit images to `tiles` tiles inside the block; 0 changes nothing. Raises as `limit_tiles`."""
    if not tiles:
        yield
        return
    name = tile_setting(processor)
    before = getattr(processor.image_processor, name)
    setattr(processor.image_processor, name, tiles)
    try:
        yield
    finally:
        setattr(processor.image_processor, name, before)


def tile_setting(processor: Any) -> str:
    """The name of the processor's tile limit. Raises ModelError for a processor without one."""
    name = next((name for name in TILE_SETTINGS if getattr(processor.image_processor, name, None) is not None), None)
    if name is None:
        raise ModelError(
            f"image.tiles: {type(processor.image_processor).__name__} has no tile limit; remove image.tiles and set image.max_pixels",
            code="tiles-not-supported",
            key="image.tiles",
        )
    return name


# --- parts -----------------------------------------------------------------------------------------------------------


def load_config(source: Path, trust: bool) -> Any:
    """The configuration of the model in a folder. Raises ModelError for an encoder-decoder model."""
    from transformers import AutoConfig

    loader: Any = AutoConfig
    try:
        with loading_errors(source, "configuration"), quiet():
            config = loader.from_pretrained(source, trust_remote_code=trust, local_files_only=True)
    except ModelError:
        vet_sizes(source)  # names the key, where it is one of sizes
        raise
    if any(getattr(one, "is_encoder_decoder", False) for one in (config, getattr(config, "text_config", None))):
        raise ModelError(
            f"{source}: {config.model_type} is an encoder-decoder model, whose prompt and response are not one sequence; "
            "choose a decoder-only family of docs/families.md",
            code="encoder-decoder",
            path=source,
        )
    return config


def load_processor(source: Path, trust: bool) -> Any:
    from transformers import AutoProcessor

    loader: Any = AutoProcessor
    vet_sizes(source)
    with loading_errors(source, "processor"), quiet():
        processor = loader.from_pretrained(source, trust_remote_code=trust, local_files_only=True)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ModelError(
            f"{source}: {type(processor).__name__} does not support images; mixpo needs an image-text-to-text model",
            code="processor-without-images",
            path=source,
        )
    # Lengths are checked by `mixpo`; the tokenizer would print a warning of its own.
    processor.tokenizer.model_max_length = VERY_LONG
    processor.chat_template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if not processor.chat_template:
        raise ModelError(
            f"{source}: no chat template; put the one of the model's family into chat_template.jinja (use an instruct model)",
            code="chat-template-missing",
            path=source,
        )
    with loading_errors(source, "tokenizer"):
        tokens = {name: token for name, token in processor.tokenizer.special_tokens_map.items() if isinstance(token, str)}
    vet_text(source, processor.chat_template, tokens)
    return processor


def check_size(model: nn.Module, source: Path) -> None:
    """Refuse the configuration of a far larger model (on the meta device) than the weights, before what they lack is allocated."""
    wanted = sum(parameter.numel() for parameter in model.parameters())
    if wanted > PACKED * (stored := stored_parameters(source)) + 1_000_000:
        message = f"{source / 'config.json'}: describes {wanted:,} parameters, and the weights hold {stored:,}; they do not belong together"
        raise ModelError(message, code="weights-mismatch", path=source / "config.json")


def load_model(source: Path, config: Any, table: ModelTable, device: torch.device) -> Any:
    """The model of a folder, its adapter not attached. Raises ModelError for weights of another model."""
    from transformers import AutoModelForImageTextToText

    loader: Any = AutoModelForImageTextToText
    with loading_errors(source, "model"), quiet():
        with torch.device("meta"):
            shapes = loader.from_config(config, trust_remote_code=table.trust_remote_code)
        check_size(shapes, source)
        options = loading_options(shapes, DTYPES[table.dtype], device) if table.quantization else {}
        model = read_model(loader, source, table, trust_remote_code=table.trust_remote_code, **options)
    prepare(model)
    apply_fixes(model)
    return model.to(device).eval()


def read_model(loader: Any, source: Path, table: ModelTable, **options: Any) -> Any:
    """The model that `loader.from_pretrained` makes of the weights in a folder. Raises ModelError unless they are all that it has."""
    model, report = loader.from_pretrained(
        source, dtype=DTYPES[table.dtype], use_safetensors=True, output_loading_info=True, local_files_only=True, **options
    )
    for kind, problem in (("missing_keys", "lack"), ("mismatched_keys", "have another shape for"), ("unexpected_keys", "hold unknown")):
        keys = sorted(str(key) for key in report.get(kind, ()))
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ModelError(
                f"{source}: the weights {problem} {keys[0]}{more}; config.json and weights do not belong together",
                code="weights-mismatch",
                path=source,
            )
    return model
