"""Tokenizer, processor and configuration of a model without its weights, for prompts and responses of other engines, and for plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mixpo.recipe import ModelTable
from mixpo.vlm.folder import digests, find_adapter, find_model
from mixpo.vlm.load import DTYPES, Vlm, end_ids, load_config, load_processor
from mixpo.vlm.transformers_fixes import apply_fixes, loading_errors, quiet


@dataclass(frozen=True)
class TokenizerOnlyModel:
    """Placeholder for the model in a `Vlm`; anything that needs weights fails."""

    config: Any
    generation_config: Any


def load_tokenizer_only(table: ModelTable, recipe_folder: Path, folder: Path | None = None) -> Vlm:
    """Like `mixpo.vlm.load.load` without the weights, so fast and small for any model.

    The Vlm can encode and decode, but not sample or train. Raises ModelError as `load` does.
    """
    from transformers import GenerationConfig

    source = folder or find_model(table, recipe_folder)
    known = digests(source, None if folder else find_adapter(table, recipe_folder))
    config = load_config(source, table.trust_remote_code)
    processor = load_processor(source, table.trust_remote_code)
    with loading_errors(source, "configuration"), quiet():
        settings: Any = GenerationConfig()  # type: ignore[no-untyped-call]
        if (source / "generation_config.json").exists():
            settings = GenerationConfig.from_pretrained(source, local_files_only=True)
        model = TokenizerOnlyModel(config, settings)
        ends = end_ids(model, processor.tokenizer)
    return Vlm(model, processor, torch.device("cpu"), known.weights, known.template, ends, source)


def load_shapes(table: ModelTable, recipe_folder: Path) -> Vlm:
    """Like `load_tokenizer_only`, with a model on the meta device: it has shapes and dtypes, but no values. Raises ModelError."""
    from transformers import AutoModelForImageTextToText

    vlm, loader = load_tokenizer_only(table, recipe_folder), AutoModelForImageTextToText
    with loading_errors(vlm.folder or recipe_folder, "model"), quiet(), torch.device("meta"):
        made: Any = loader.from_config(vlm.model.config, trust_remote_code=table.trust_remote_code, dtype=DTYPES[table.dtype])  # type: ignore[no-untyped-call]
    apply_fixes(made)
    return replace(vlm, model=made.eval(), device=torch.device("meta"))
