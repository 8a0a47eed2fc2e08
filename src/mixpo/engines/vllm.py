"""Sampling with vLLM in this process (`vllm.LLM`). Turns requests into prompts and outputs into records; vLLM schedules.

Written against vLLM 0.32. It brings its own torch, so it is no extra of mixpo; docs/engines.md says how to install it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.responses import Choice, response_of
from mixpo.engines.tokens import TokenCodec, continues_control_token, prompt_too_long
from mixpo.errors import EngineError, SourceError
from mixpo.images import open_image
from mixpo.plural import amount
from mixpo.recipe import ImageTable, VllmTable
from mixpo.records import Sampled

MAX_BIASED = 1024
"""Tokens that vLLM can ban; image tokens come first."""
MAX_IMAGES = 16
"""Images per prompt that vLLM reserves memory for; a question with more fails alone."""


def load_llm(folder: Path, dtype: str, table: VllmTable) -> Any:
    """The model in vLLM, on as many GPUs as `table` says. Raises EngineError where vLLM is not installed or cannot load it."""
    try:
        import vllm
    except ImportError:
        raise EngineError(
            'sample.engine = "vllm" needs vLLM, which brings its own torch; see docs/engines.md for its installation', code="vllm-missing"
        ) from None
    settings: dict[str, Any] = {"enable_prefix_caching": True, "limit_mm_per_prompt": {"image": MAX_IMAGES}}
    settings |= {name: value for name, value in table.model_dump().items() if value is not None}
    if _on_cpu():
        # The CPU build fails when the prompt of a seeded request is processed in chunks.
        settings["enable_chunked_prefill"] = False
    try:
        return vllm.LLM(model=str(folder), dtype=dtype, seed=0, **settings)
    except vllm_errors(vllm) as error:
        raise EngineError(f"vLLM cannot load {folder}: {_short(error)}; see its messages above", code="vllm-load", path=folder) from None


def _on_cpu() -> bool:
    try:
        from vllm.platforms import current_platform
    except ImportError:
        return False
    return bool(current_platform.is_cpu())


def vllm_errors(vllm: Any) -> tuple[type[Exception], ...]:
    """The exceptions of vLLM: its own since 0.32, built-in ones before."""
    own = getattr(getattr(vllm, "exceptions", None), "VLLMError", None)
    return (ValueError, RuntimeError, OSError, *([own] if own is not None else []))


class VllmEngine:
    """Samples all given questions together; the n responses of a question are one request, so its prompt and images are computed once."""

    name = "vllm"

    def __init__(self, llm: Any, codec: TokenCodec, image: ImageTable) -> None:
        """llm: from `load_llm`; not closed here."""
        self._llm, self._codec, self._image = llm, codec, image
        self._limit = int(llm.llm_engine.model_config.max_model_len)

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        """See `Engine.sample`. Raises EngineError when vLLM refuses the settings, or sees another number of image tokens than training."""
        # vLLM fails the whole batch for one unusable prompt, so each is checked first.
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
        except vllm_errors(vllm) as error:
            raise EngineError(f"vLLM refuses or fails: {_short(error)}", code="vllm-failed") from None

    def close(self) -> None:
        """Nothing; whoever loaded the model closes it."""

    def _prompts(self, request: Request, params: SamplingParams) -> tuple[list[dict[str, Any]], list[int]]:
        """vLLM's prompts for one question (one per prefix of a continuation) and their lengths in training.

        Raises SourceError for a problem with this question alone.
        """
        if len(request.images) > MAX_IMAGES:
            raise SourceError(f"{len(request.images)} images in one question, at most {MAX_IMAGES} with vLLM", code="too-many-images")
        limits = self._image.of(request)
        images = [open_image(image, limits) for image in request.images]
        ids = self._codec.prompt_ids(request.prompt, images, limits.tiles, request.history)
        shown: dict[str, Any] = {"multi_modal_data": {"image": images}} if images else {}
        if images and (tiles := self._codec.tile_arguments(limits.tiles)):
            shown["mm_processor_kwargs"] = tiles
        if request.prefixes:
            if not all(self._codec.control.isdisjoint(prefix) for prefix in request.prefixes):
                raise continues_control_token()
            # With images vLLM itself puts as many image tokens as they take into the prompt.
            begun = self._codec.encode_raw(self._codec.prompt_text(request.prompt, request.history)) if images else ids
            made: list[dict[str, Any]] = [{"prompt_token_ids": [*begun, *prefix]} | shown for prefix in request.prefixes]
            lengths = [len(ids) + len(prefix) for prefix in request.prefixes]
        elif images:
            made = [{"prompt": self._codec.prompt_text(request.prompt, request.history)} | shown]
            lengths = [len(ids)]
        else:
            made, lengths = [{"prompt_token_ids": list(ids)}], [len(ids)]
        if max(lengths) + params.max_new_tokens > self._limit:
            raise prompt_too_long(max(lengths), params.max_new_tokens, self._limit)
        return made, lengths

    def _settings(self, request: Request, params: SamplingParams) -> list[dict[str, Any]]:
        """One per prompt; no default of the model's generation_config applies."""
        common = {
            "n": 1 if request.prefixes else len(request.seeds),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": params.max_new_tokens,
            "stop": list(params.stop) or None,
            "logprobs": 0,
            # An image token in a response would need an image in training.
            "logit_bias": dict.fromkeys(self._codec.banned[:MAX_BIASED], -100.0),
        }
        return [{**common, "seed": seed % 2**31} for seed in (request.seeds if request.prefixes else request.seeds[:1])]

    def _check_length(self, output: Any, expected: int) -> None:
        if len(output.prompt_token_ids) != expected:
            raise EngineError(
                f"vLLM makes a prompt of {len(output.prompt_token_ids)} tokens where training sees {expected}; the processor of this vLLM "
                "tiles images differently, use versions of vLLM and transformers that agree",
                code="vllm-image-tokens",
            )

    def _sampled(self, request: Request, outputs: Sequence[Any]) -> Sampled:
        written = [one for output in outputs for one in output.outputs]
        if len(written) != len(request.seeds) or any(one.finish_reason not in ("stop", "length") for one in written):
            return Sampled(
                question=request.key, error=f"vLLM gave {len(written)} of {amount(len(request.seeds), 'answer')}, or aborted one"
            )
        choices = [_choice(one) for one in written]
        slots = range(len(choices))
        return Sampled(
            question=request.key, responses=tuple(response_of(request, slot, choices[slot], self._codec, self.name) for slot in slots)
        )


def _choice(one: Any) -> Choice:
    ids = tuple(one.token_ids)
    logprobs = tuple(float(entry[token].logprob) for entry, token in zip(one.logprobs or (), ids, strict=False))
    return Choice(text=one.text, stopped=one.finish_reason == "stop", ids=ids, logprobs=logprobs)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
