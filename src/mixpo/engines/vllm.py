"""Sampling with vLLM in this process (`vllm.LLM`). Turns requests into prompts and outputs into records; vLLM schedules.

Written against vLLM 0.32. It brings its own torch, so it is no extra of mixpo; docs/engines.md says how to install it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.responses import Choice, response_of
from mixpo.engines.tokens import Words
from mixpo.errors import EngineError, SourceError
from mixpo.images import open_image
from mixpo.plural import amount
from mixpo.recipe import ImageTable
from mixpo.records import Sampled

MOST_BIASED = 1024
"""Tokens that vLLM keeps out of an answer; image tokens come first."""
MOST_IMAGES = 16
"""Images of one prompt that vLLM prepares for; a question with more fails by itself."""


def load_llm(folder: Path, dtype: str) -> Any:
    """The model in vLLM. Raises EngineError where vLLM is not installed or cannot load it."""
    try:
        import vllm
    except ImportError:
        raise EngineError('sample.engine = "vllm" needs vLLM, which brings its own torch; docs/engines.md says how to install it') from None
    settings: dict[str, Any] = {"enable_prefix_caching": True, "limit_mm_per_prompt": {"image": MOST_IMAGES}}
    if _on_cpu():
        # The CPU build breaks off when the prompt of a request with a seed is read in two parts.
        settings["enable_chunked_prefill"] = False
    try:
        return vllm.LLM(model=str(folder), dtype=dtype, seed=0, **settings)
    except faults(vllm) as error:
        raise EngineError(f"vLLM cannot load {folder}: {_short(error)}; its own messages stand above") from None


def _on_cpu() -> bool:
    try:
        from vllm.platforms import current_platform
    except ImportError:
        return False
    return bool(current_platform.is_cpu())


def faults(vllm: Any) -> tuple[type[Exception], ...]:
    """What vLLM raises: since 0.32 errors of its own, plain ones before."""
    own = getattr(getattr(vllm, "exceptions", None), "VLLMError", None)
    return (ValueError, RuntimeError, OSError, *([own] if own is not None else []))


class VllmEngine:
    """Samples all questions that it is given together, n answers in one request, so that prompt and images are computed once."""

    name = "vllm"

    def __init__(self, llm: Any, words: Words, image: ImageTable) -> None:
        """llm: as `load_llm` gives it, and not closed here. words: the model's tokens."""
        self._llm, self._words, self._image = llm, words, image
        self._limit = int(llm.llm_engine.model_config.max_model_len)

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        """See `Engine.sample`. Raises EngineError when vLLM refuses the settings, or sees another number of image tokens than training."""
        # vLLM raises for the whole batch when one prompt is unusable, so each is checked before.
        prompts: list[dict[str, Any]] = []
        settings: list[dict[str, Any]] = []
        lengths: list[int] = []
        places: dict[str, range] = {}
        errors: dict[str, str] = {}
        for request in requests:
            try:
                made, expected = self._prompts(request, params)
            except SourceError as error:
                errors[request.key] = str(error)
                continue
            places[request.key] = range(len(prompts), len(prompts) + len(made))
            prompts += made
            lengths += expected
            settings += self._settings(request, params)
        outputs = self._outputs(prompts, settings) if prompts else []
        for output, expected_length in zip(outputs, lengths, strict=True):
            self._check_length(output, expected_length)
        for request in requests:
            if request.key in errors:
                yield Sampled(question=request.key, error=errors[request.key])
            else:
                yield self._sampled(request, [outputs[place] for place in places[request.key]])

    def _outputs(self, prompts: Sequence[dict[str, Any]], settings: Sequence[Mapping[str, Any]]) -> list[Any]:
        import vllm

        try:
            made = [vllm.SamplingParams(**each) for each in settings]
            return list(self._llm.generate(prompts, sampling_params=made, use_tqdm=False))
        except faults(vllm) as error:
            raise EngineError(f"vLLM refuses or fails: {_short(error)}") from None

    def close(self) -> None:
        """Nothing: the model is whoever's who loaded it."""

    def _prompts(self, request: Request, params: SamplingParams) -> tuple[list[dict[str, Any]], list[int]]:
        """vLLM's prompts of one question (one for each beginning of a continuation) and their lengths in training.

        Raises SourceError for what is wrong with this question alone.
        """
        if len(request.images) > MOST_IMAGES:
            raise SourceError(f"{len(request.images)} images in one question, at most {MOST_IMAGES} with vLLM")
        images = [open_image(image, self._image) for image in request.images]
        ids = self._words.prompt_ids(request.prompt, images)
        if request.prefixes:
            if not all(self._words.control.isdisjoint(prefix) for prefix in request.prefixes):
                raise SourceError(
                    "the beginning to continue holds an image token or another control token of the model; cut it before that"
                )
            made: list[dict[str, Any]] = [{"prompt_token_ids": [*ids, *prefix]} for prefix in request.prefixes]
            lengths = [len(ids) + len(prefix) for prefix in request.prefixes]
        elif images:
            made = [{"prompt": self._words.prompt_text(request.prompt), "multi_modal_data": {"image": images}}]
            lengths = [len(ids)]
        else:
            made, lengths = [{"prompt_token_ids": list(ids)}], [len(ids)]
        if max(lengths) + params.max_new_tokens > self._limit:
            raise SourceError(
                f"a prompt of {max(lengths)} tokens and up to {params.max_new_tokens} new ones do not fit into the model's {self._limit}; "
                "shorten the question, lower image.max_pixels or lower max_new_tokens"
            )
        return made, lengths

    def _settings(self, request: Request, params: SamplingParams) -> list[dict[str, Any]]:
        """One for each of vLLM's prompts; nothing is left to the model's generation_config."""
        every = {
            "n": 1 if request.prefixes else len(request.seeds),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": params.max_new_tokens,
            "stop": list(params.stop) or None,
            "logprobs": 0,
            # An image token in an answer would ask for an image in training.
            "logit_bias": dict.fromkeys(self._words.banned[:MOST_BIASED], -100.0),
        }
        return [{**every, "seed": seed % 2**31} for seed in (request.seeds if request.prefixes else request.seeds[:1])]

    def _check_length(self, output: Any, expected: int) -> None:
        if len(output.prompt_token_ids) != expected:
            raise EngineError(
                f"vLLM makes a prompt of {len(output.prompt_token_ids)} tokens where training sees {expected}; the processor of this vLLM "
                "cuts images otherwise, use versions of vLLM and transformers that agree"
            )

    def _sampled(self, request: Request, outputs: Sequence[Any]) -> Sampled:
        written = [one for output in outputs for one in output.outputs]
        if len(written) != len(request.seeds) or any(one.finish_reason not in ("stop", "length") for one in written):
            return Sampled(
                question=request.key, error=f"vLLM gave {len(written)} of {amount(len(request.seeds), 'answer')}, or broke one off"
            )
        choices = [_choice(one) for one in written]
        slots = range(len(choices))
        return Sampled(
            question=request.key, responses=tuple(response_of(request, slot, choices[slot], self._words, self.name) for slot in slots)
        )


def _choice(one: Any) -> Choice:
    ids = tuple(one.token_ids)
    logprobs = tuple(float(entry[token].logprob) for entry, token in zip(one.logprobs or (), ids, strict=False))
    return Choice(text=one.text, stopped=one.finish_reason == "stop", ids=ids, logprobs=logprobs)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
