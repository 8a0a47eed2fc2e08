"""What a model folder from a stranger could do to this process, found before it happens.

Chat template and tokenizer are tried in a process that can be killed (`vetting_worker`): a template may loop, or double a text until the
memory is full, and a pattern of a tokenizer may take exponential time. Sizes in JSON files are bounded by the weights or by what any model
has. What passed is remembered in the user's cache folder. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixpo.cache import Cache, user_cache
from mixpo.errors import ModelError

PROGRAM = Path(__file__).with_name("vetting_worker.py")
WALL_S = 600.0
"""Far behind the worker's own limit of processor time, which a busy machine does not shorten."""
PACKED = 8
"""Weights may be stored in tensors that are so many times smaller than the sizes in config.json."""

SIDE, PIXELS, COUNT = 16_384, 1 << 26, 1 << 16
LARGEST = {
    **dict.fromkeys(("height", "width", "patch_size", "temporal_patch_size", "merge_size", "max_image_size"), SIDE),
    **dict.fromkeys(("longest_edge", "shortest_edge", "min_pixels", "max_pixels"), PIXELS),
    **dict.fromkeys(("image_seq_length", "image_seq_len", "max_patches", "min_patches", "max_image_tiles", "downsample_factor"), COUNT),
}
"""Sizes in processor files by name. `longest_edge` and `shortest_edge` are pixels of a whole image in some families."""
SPREADS = ("image_std", "rescale_factor")
"""Numbers by which pixels are divided or multiplied."""
WIDTHS = ("hidden_size", "intermediate_size", "vocab_size")
LAYERS = ("num_hidden_layers", "num_layers", "depth")


def vet_sizes(folder: Path) -> None:
    """Raise ModelError for a JSON file of a model folder that is broken or holds an impossible size. Reads no weights but their headers."""
    for name in ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        if not path.exists():
            continue
        settings = _json(path)
        if name == "config.json":
            _vet_config(path, settings)
        elif name.endswith("processor_config.json"):
            _vet_processor(path, settings)


def vet_text(folder: Path, template: str | Mapping[str, str], tokens: Mapping[str, str]) -> None:
    """Try a chat template (or several by name) and the folder's tokenizer. Raises ModelError for one that fails or reaches a limit.

    tokens: special tokens that the template gets.
    """
    tokenizer = folder / "tokenizer.json"
    content = tokenizer.read_bytes() if tokenizer.exists() else b""
    for one in template.values() if isinstance(template, Mapping) else (template,):
        request = {"template": one, "tokens": dict(tokens), "tokenizer": str(tokenizer) if content else ""}
        key = _key(one, tokens, content)
        if _passed(key):
            continue
        if problem := _try(request):
            what, _, rest = problem.partition(": ")
            path = template_file(folder) if what == "chat template" else tokenizer
            raise ModelError(f"{path}: the {what} {_sentence(rest)}", code="model-text-unusable", path=path)
        _passed(key, put=True)


def stored_parameters(folder: Path) -> int:
    """Numbers in all weights of a folder, from their headers. Raises ModelError for a file that is not complete."""
    return sum(math.prod(shape) for file in sorted(folder.glob("*.safetensors")) for shape in _shapes(file))


def template_file(folder: Path) -> Path:
    """The file of a model folder that holds its chat template."""
    for name in ("chat_template.jinja", "chat_template.json"):
        if (folder / name).exists():
            return folder / name
    return folder / "tokenizer_config.json"


# --- the worker -------------------------------------------------------------------------------------------------------------


def _try(request: Mapping[str, Any]) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(PROGRAM)],
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment,
            timeout=WALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "chat template: does not end"
    lines = done.stdout.splitlines()
    if lines and lines[-1].startswith('"'):
        return str(json.loads(lines[-1]))
    return f"{lines[-1] if lines else 'chat template'}: does not end, or needs too much memory"


def _sentence(problem: str) -> str:
    return f"{problem}; use that of the model's family, or download the model again"


def _key(template: str, tokens: Mapping[str, str], tokenizer: bytes) -> str:
    parts = (PROGRAM.read_text(encoding="utf-8"), template, json.dumps(dict(tokens), sort_keys=True), hashlib.sha256(tokenizer).hexdigest())
    versions = (version("transformers"), version("tokenizers"), version("jinja2"))
    return hashlib.sha256("\0".join((*parts, *versions)).encode(errors="replace")).hexdigest()


_PASSED: set[str] = set()
"""Digests of what passed in this process, for users without a home."""


def _passed(key: str, put: bool = False) -> bool:
    """Whether this passed before; `put` remembers that it did."""
    if key in _PASSED:
        return True
    folder = user_cache()
    if folder is not None:
        cache = Cache(folder / "vetted.sqlite")
        try:
            if put:
                cache.put(key, "passed")
            elif cache.get(key) is not None:
                _PASSED.add(key)
        finally:
            cache.close()
    if put:
        _PASSED.add(key)
    return key in _PASSED


# --- sizes ------------------------------------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else error
        raise ModelError(f"{path}: not readable JSON ({reason}); download the model again", code="model-file-broken", path=path) from None
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: holds no JSON object; download the model again", code="model-file-broken", path=path)
    return settings


def _numbers(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number below, with the name of its field; those of a list have the list's name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value


def _vet_processor(path: Path, settings: Mapping[str, Any]) -> None:
    for name, value in _numbers(settings):
        limit = LARGEST.get(name)
        if limit is not None and not 0 < value <= limit and not (value == 0 and name in ("min_pixels", "shortest_edge")):
            raise ModelError(
                f"{path}: {name} = {value:g} is no size that a model has (1 to {limit:,}); copy the file from the original model",
                code="model-size-impossible",
                path=path,
                key=name,
            )
        if name in SPREADS and not 1e-6 < abs(value) < 1e6:
            raise ModelError(
                f"{path}: {name} = {value:g} makes pixels NaN or infinite; copy the file from the original model",
                code="model-number-impossible",
                path=path,
                key=name,
            )


def _vet_config(path: Path, settings: Mapping[str, Any]) -> None:
    """Layers and widths against the tensors: a size that they do not have would be allocated before anything is compared."""
    shapes = [shape for file in sorted(path.parent.glob("*.safetensors")) for shape in _shapes(file)]
    if not shapes:
        return
    widest = max((side for shape in shapes for side in shape), default=0)
    for name, value in _numbers(settings):
        limit = PACKED * widest if name in WIDTHS else len(shapes) if name in LAYERS else None
        if limit is not None and not 0 <= value <= limit:
            raise ModelError(
                f"{path}: {name} = {value:g} does not fit the weights, whose {len(shapes):,} tensors are at most {widest:,} wide; "
                "config.json and weights do not belong together",
                code="weights-mismatch",
                path=path,
                key=name,
            )


def _shapes(path: Path) -> list[list[int]]:
    """The shapes of the tensors of a safetensors file. Raises ModelError for another file."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            ends = [entry["data_offsets"][1] for entry in tensors.values()]
            if 8 + length + max(ends, default=0) != path.stat().st_size:
                raise ValueError("its size is not that of its tensors")
            return [[int(side) for side in entry["shape"]] for entry in tensors.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise ModelError(
            f"{path}: not a complete safetensors file ({error}); download or copy it again", code="weights-broken", path=path
        ) from None
