"""Model folders on disk: locate, check, digest. Imports neither torch nor transformers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mixpo.errors import ModelError, first_line
from mixpo.recipe import ModelTable
from mixpo.vlm.hashes import sha256

BUNDLED = "mixpo:tiny"

PROCESSOR_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Files that decide how text and pixels become model inputs."""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""Files of an adapter saved by `peft`."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py"]


@dataclass(frozen=True, slots=True)
class Digests:
    """weights: of configuration and weights. template: of chat template, tokenizer and processor. SHA-256, first 16 digits."""

    weights: str
    template: str


def find_model(table: ModelTable, recipe_folder: Path) -> Path:
    """The folder of `table.path`: bundled, local (relative to `base`), or downloaded from the hub.

    Raises ModelError when there is no such folder and no such model on the hub.
    """
    if table.path == BUNDLED:
        folder = Path(str(resources.files("mixpo"))) / "assets" / "tiny"
        if not folder.is_dir():
            raise ModelError(f"{folder}: the bundled model is missing; install mixpo again", code="bundled-model-missing", path=folder)
        return folder
    return _locate("model.path", table.path, table.revision, recipe_folder)


def find_adapter(table: ModelTable, recipe_folder: Path) -> Path | None:
    """The folder of `table.adapter`, or None without one. Raises ModelError when it is missing or not an adapter."""
    if table.adapter is None:
        return None
    folder = _locate("model.adapter", table.adapter, None, recipe_folder)
    if not (folder / ADAPTER_FILES[0]).exists():
        raise ModelError(
            f"{folder}: no {ADAPTER_FILES[0]}; model.adapter is a folder that PeftModel.save_pretrained wrote",
            code="adapter-config-missing",
            path=folder,
        )
    if not (folder / ADAPTER_FILES[1]).exists():
        raise ModelError(
            f"{folder}: no {ADAPTER_FILES[1]}; save the adapter with safe_serialization, other formats can run code",
            code="adapter-weights-missing",
            path=folder,
        )
    return folder


def _locate(key: str, path: str, revision: str | None, recipe_folder: Path) -> Path:
    folder = recipe_folder / path
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{folder}: {key} must be a folder, not a file", code="model-not-a-folder", path=folder, key=key)
    if Path(path).is_absolute() or not _HUB_ID.fullmatch(path) or path.startswith("."):
        raise ModelError(
            f"{folder}: no such model folder; {key} is a folder (relative to the recipe) or a hub id such as org/name",
            code="model-missing",
            path=folder,
            key=key,
        )
    return _download(key, path, revision, folder)


def digests(folder: Path, adapter: Path | None = None) -> Digests:
    """Digests of the files of a model folder. Raises ModelError when a required file is missing.

    adapter: folder of an adapter, included in the digest of the weights.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model folder", code="model-missing", path=folder)
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder}: no config.json; this is not a model folder of transformers", code="model-config-missing", path=folder)
    if not any((folder / name).exists() for name in ("processor_config.json", "preprocessor_config.json")):
        raise ModelError(
            f"{folder}: no processor (processor_config.json or preprocessor_config.json); copy it from the original model",
            code="processor-missing",
            path=folder,
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{folder}: no *.safetensors weights; convert the model with save_pretrained, other formats can run code",
            code="weights-missing",
            path=folder,
        )
    settings = [folder / name for name in ("config.json", "generation_config.json")]
    adapted = [adapter / name for name in ADAPTER_FILES] if adapter else []
    return Digests(weights=_hash([*settings, *weights, *adapted]), template=_hash(folder / name for name in PROCESSOR_FILES))


def is_complete(folder: Path) -> bool:
    """Whether configuration and all weight files exist."""
    index = folder / "model.safetensors.index.json"
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.exists() else {"model.safetensors"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((folder / name).is_file() for name in ("config.json", *named))


def _hash(paths: Iterable[Path]) -> str:
    there = [path.absolute() for path in paths if path.exists()]
    try:
        hashed = zip(there, sha256(there), strict=True)
    except OSError as error:
        raise ModelError(
            f"{error.filename}: cannot be read ({error.strerror}); download or copy the model again",
            code="model-file-unreadable",
            path=error.filename,
        ) from None
    return hashlib.sha256("".join(f"{path.name}\0{digest}\n" for path, digest in hashed).encode()).hexdigest()[:16]


def _download(key: str, path: str, revision: str | None, folder: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=_WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ModelError(
            f"{key} = {path!r}: no folder {folder}, and the hub does not give it ({reason})", code="model-download-failed", key=key
        ) from None
