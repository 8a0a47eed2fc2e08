"""The base model as `mixpo check` needs it: template, context length, and the tokens of each prompt, cached between commands.

Loading torch, transformers and a model takes most of the time of a check. A second check after rows were corrected needs none of them:
what is known of a model and a prompt stays true as long as files, settings and libraries are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mixpo.cache import Cache, user_cache
from mixpo.errors import MixpoError, ModelError
from mixpo.images import open_image, probe
from mixpo.recipe import Recipe
from mixpo.stages.models import Models
from mixpo.stages.prompting import with_system
from mixpo.types import Question

if TYPE_CHECKING:
    from mixpo.vlm.load import Vlm

LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "pillow")
"""Libraries that decide how a prompt becomes tokens."""

LARGEST = 256 << 20
"""Size in bytes above which the cache is deleted."""


class ResponseTokens(NamedTuple):
    """How a response is tokenized. length: with the end-of-turn token; digest: of the ids; empty: nothing but end-of-turn tokens."""

    length: int
    digest: str
    empty: bool


class CheckedModel:
    """The recipe's base model, loaded when something about it is not cached. Close it.

    problems: of its chat template. context: its context length in tokens. quantized: which of its weights are, "" for none.
    """

    def __init__(self, recipe: Recipe, recipe_folder: Path) -> None:
        """Raises ModelError when the model cannot be loaded."""
        self._models = Models(recipe.model, recipe_folder, recipe.image)
        self._ref = self._models.base_model()
        self._image = recipe.image
        self._key = json.dumps(
            [self._ref.identity, recipe.model.dtype, recipe.model.quantization, recipe.image.model_dump(mode="json"), _code(), _versions()]
        )
        # Code of the model's folder is in no digest, and a wanted device must be there.
        cached = not recipe.model.trust_remote_code and recipe.model.device in ("auto", "cpu")
        self._cache = _open_cache() if cached else None
        known = self._cached("model")
        if known is None:
            from mixpo.vlm.prompt import context_limit
            from mixpo.vlm.quantization import described
            from mixpo.vlm.transformers_fixes import loading_errors
            from mixpo.vlm.trial import PICTURED, TEXT, trial_problems

            with loading_errors(self.folder, "model"):
                known = {
                    "problems": [*template_problems(self._vlm), *trial_problems(self._vlm, PICTURED)],
                    "text_problem": next(trial_problems(self._vlm, TEXT), ""),
                    "context": context_limit(self._vlm),
                    "quantized": described(self._vlm.model),
                }
            self._keep("model", known)
        self.problems: list[str] = known["problems"]
        self._text_problem: str = known["text_problem"]
        self.context: int = known["context"]
        self.quantized: str = known["quantized"]

    @cached_property
    def folder(self) -> Path:
        """Where the model lies."""
        from mixpo.vlm.folder import find_model

        return find_model(self._models.table, self._models.recipe_folder)

    def tokens(self, prompt: str, question: Question) -> int:
        """Tokens of a prompt with the images and history of its question. Raises SourceError and ModelError as `encode` does."""
        if self._text_problem and not question.images:
            raise ModelError(self._text_problem, code="family-needs-image")
        limits = self._image.of(question)
        pixels = [limits.model_dump(mode="json"), *(image.digest for image in question.images)] if question.images else []
        entry = json.dumps([prompt, *((m.role, m.text) for m in question.history), *pixels])
        count = self._cached(entry)
        if count is None:
            from mixpo.vlm.prompt import encode

            images = [open_image(image, limits) for image in question.images]
            count = len(encode(self._vlm, prompt, images, question.history, tiles=limits.tiles))
            self._keep(entry, count)
        return int(count)

    def response(self, text: str) -> ResponseTokens:
        """The tokens of a response given as text. Raises SourceError for control tokens in it."""
        entry = json.dumps({"response": text})
        known = self._cached(entry)
        if known is None:
            from mixpo.vlm.prompt import tokenize_response

            ids = tokenize_response(self._vlm, text)
            known = [len(ids), hashlib.sha256(repr(ids).encode()).hexdigest(), set(ids) <= set(self._vlm.end_ids)]
            self._keep(entry, known)
        return ResponseTokens(*known)

    def close(self) -> None:
        """Close the cache."""
        if self._cache is not None:
            self._cache.close()

    @cached_property
    def _vlm(self) -> Vlm:
        return self._models.fresh(self._ref)

    def _digest(self, entry: str) -> str:
        return hashlib.sha256(f"{self._key}\0{entry}".encode()).hexdigest()

    def _cached(self, entry: str) -> Any:
        text = self._cache.get(self._digest(entry)) if self._cache is not None else None
        return None if text is None else json.loads(text)

    def _keep(self, entry: str, value: Any) -> None:
        if self._cache is not None:
            self._cache.put(self._digest(entry), json.dumps(value))


def template_problems(vlm: Vlm) -> Iterator[str]:
    """What would keep training from seeing an answer: a template that drops it, or that begins differently with it."""
    mark = "the answer of the check"
    user = {"role": "user", "content": [{"type": "text", "text": "a question"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": mark}]}
    from mixpo.vlm.prompt import render_turns

    prompt, whole = render_turns(vlm, [user], answer_follows=True), render_turns(vlm, [user, answer], answer_follows=False)
    if mark not in whole:
        yield "the chat template leaves the answer out, so that training would supervise no token; use the family's own template"
    elif not whole.startswith(prompt):
        yield "the chat template writes a conversation otherwise than the prompt that sampling uses; use the family's own template"
    elif "a question" not in prompt:
        yield "the chat template leaves the question out; use the family's own template"


def _versions() -> dict[str, str]:
    """Versions of the libraries, also of those that were installed under another name."""
    versions = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _code() -> str:
    """Digest of the modules that load models, encode prompts and read templates."""
    root = Path(__file__).parent.parent
    files = [Path(__file__), root / "images.py", *sorted((root / "vlm").glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def image_problems(recipe: Recipe, model: CheckedModel | None, question: Question) -> list[str]:
    """What is wrong with the images of a question. With a model each is decoded later and once, when its prompt is encoded."""
    limits = recipe.image.of(question)
    return [problem for image in question.images if (problem := probe(Path(image.path), limits, decode=model is None))]


def measured(recipe: Recipe, model: CheckedModel | None, question: Question, prompt: str) -> tuple[list[str], int]:
    """What is wrong with the images and the prompt of a question, and the prompt's tokens: 0 without a model or where it is wrong."""
    broken = image_problems(recipe, model, question)
    if broken or model is None:
        return broken, 0
    try:
        return [], model.tokens(prompt, with_system(recipe.prompt, question))
    except MixpoError as error:
        return [str(error)], 0


def _open_cache() -> Cache | None:
    folder = user_cache()
    if folder is None:
        return None
    path = folder / "check.sqlite"
    if path.exists() and path.stat().st_size > LARGEST:
        path.unlink()
    return Cache(path)
