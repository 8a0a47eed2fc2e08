"""Tokenizer, processor and configuration of a model without the model, for prompts and responses of other engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mixpo.recipe import ModelTable
from mixpo.vlm.folder import digests, find_adapter, find_model
from mixpo.vlm.load import Vlm, end_ids, load_config, load_processor
from mixpo.vlm.transformers_fixes import loading_errors, quiet


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
