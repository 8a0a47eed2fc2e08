"""Sampling in this process with a model of `transformers`. Turns requests into batches; the decoding itself is `mixpo.vlm.generate`."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.tokens import TokenCodec, continues_control_token, prompt_too_long, stop_test, truncate_at_stop
from mixpo.errors import EngineError, SourceError
from mixpo.images import open_image
from mixpo.prefetch import Prefetch, workers
from mixpo.recipe import ImageTable
from mixpo.records import Sampled
from mixpo.types import Response
from mixpo.vlm.generate import Generation, TokenSampling, generate, uniforms
from mixpo.vlm.load import Vlm
from mixpo.vlm.memory import batch_bytes, free_bytes
from mixpo.vlm.prompt import EncodedPrompt, context_limit, control_ids, decode, encode
from mixpo.vlm.sampling_check import why_not_joined


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """Responses that share a prompt and a prefix. request: its number in the batch. slots: numbers of the responses."""

    request: int
    prompt: EncodedPrompt
    prefix: tuple[int, ...]
    slots: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.prefix)


class TransformersEngine:
    """Samples up to `batch_size` questions together, split to fit into memory. Equal seeds give equal responses in any batch."""

    name = "transformers"

    def __init__(self, vlm: Vlm, image: ImageTable, batch_size: int, memory: int | None = None) -> None:
        """memory: bytes that one batch may use; by default a share of the free memory."""
        self._vlm = vlm
        self._codec = TokenCodec(vlm)
        self._image = image
        self._batch_size = batch_size
        self._memory = memory
        self._checked: dict[int, list[EncodedPrompt]] = {}
        self._alone = False

    def sample(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[Sampled]:
        """See `Engine.sample`. logprobs are those of the generated tokens, without the prefix. The next batch is prepared meanwhile.

        Raises EngineError when a single response does not fit into memory or the model's output is not finite.
        """

        def prepare(item: tuple[int, Request]) -> list[_Job] | SourceError:
            try:
                return self._jobs(item[0] % self._batch_size, item[1], params)
            except SourceError as error:
                return error

        with Prefetch(enumerate(requests), prepare, self._batch_size, workers()) as prepared:
            for start in range(0, len(requests), self._batch_size):
                batch = requests[start : start + self._batch_size]
                yield from self._batch(batch, [*islice(prepared, len(batch))], params)

    def close(self) -> None:
        """Give the memory of past batches back; the model belongs to the caller."""
        if self._vlm.device.type == "cuda":
            torch.cuda.empty_cache()

    def _batch(
        self, requests: Sequence[Request], prepared: Sequence[list[_Job] | SourceError], params: SamplingParams
    ) -> Iterator[Sampled]:
        jobs = [job for one in prepared if not isinstance(one, SourceError) for job in one]
        errors = {number: str(one) for number, one in enumerate(prepared) if isinstance(one, SourceError)}
        self._check_joined(jobs)
        answers: dict[tuple[int, int], Response] = {}
        for part in self._parts(jobs, params):
            answers |= self._run(part, requests, params)
        for number, request in enumerate(requests):
            if number in errors:
                yield Sampled(question=request.key, error=errors[number])
            else:
                yield Sampled(question=request.key, responses=tuple(answers[number, slot] for slot in range(len(request.seeds))))

    def _check_joined(self, jobs: Sequence[_Job]) -> None:
        """Check sampling on two prompts each with no image, one and several, once; where a batch is inexact, sample one by one."""
        new: dict[int, list[EncodedPrompt]] = {}
        for job in jobs:
            known = new.setdefault(min(job.prompt.images, 2), [])
            if len(known) < 2 and all(job.prompt is not prompt for prompt in known):
                known.append(job.prompt)
        if any(len(prompts) > len(self._checked.get(images, [])) for images, prompts in new.items()):
            self._checked |= {images: prompts for images, prompts in new.items() if len(prompts) > len(self._checked.get(images, []))}
            self._alone |= bool(why_not_joined(self._vlm, [prompt for prompts in self._checked.values() for prompt in prompts]))

    def _jobs(self, number: int, request: Request, params: SamplingParams) -> list[_Job]:
        """Raises SourceError for a problem with this question alone."""
        limits = self._image.of(request)
        images = [open_image(image, limits) for image in request.images]
        prompt = encode(self._vlm, request.prompt, images, request.history, tiles=limits.tiles)
        jobs = [
            _Job(request=number, prompt=prompt, prefix=prefix, slots=tuple(slots)) for prefix, slots in request.slots_by_prefix().items()
        ]
        for job in jobs:
            self._check(job, params)
        return jobs

    def _check(self, job: _Job, params: SamplingParams) -> None:
        if control_ids(self._vlm).intersection(job.prefix):
            raise continues_control_token()
        limit = context_limit(self._vlm)
        if len(job) + params.max_new_tokens > limit:
            raise prompt_too_long(len(job), params.max_new_tokens, limit)

    def _parts(self, jobs: Sequence[_Job], params: SamplingParams) -> Iterator[list[_Job]]:
        """Jobs sorted by length, in parts whose padded tokens fit into memory; responses to one prompt stay together if they can."""
        memory = self._memory or free_bytes(self._vlm.device)
        part: list[_Job] = []
        for job in sorted(jobs, key=len):
            while not self._fits([*part, job], params, memory):
                if part:
                    yield part
                    part = []
                elif len(job.slots) > 1:
                    count = self._most(job, params, memory)
                    yield [replace(job, slots=job.slots[:count])]
                    job = replace(job, slots=job.slots[count:])
                else:  # a single response is tried in any case
                    break
            part.append(job)
        if part:
            yield part

    def _fits(self, part: Sequence[_Job], params: SamplingParams, memory: int) -> bool:
        rows = sum(len(job.slots) for job in part)
        prompts = [job.prompt for job in part]
        if self._alone and len(part) > 1:
            return False
        return batch_bytes(self._vlm, prompts, max(map(len, part)), rows, params.max_new_tokens) <= memory

    def _most(self, job: _Job, params: SamplingParams, memory: int) -> int:
        """How many responses to one prompt fit: at least one, fewer than all."""
        numbers = range(1, len(job.slots))
        return max(1, bisect(numbers, False, key=lambda n: not self._fits([replace(job, slots=job.slots[:n])], params, memory)))

    def _run(self, jobs: Sequence[_Job], requests: Sequence[Request], params: SamplingParams) -> dict[tuple[int, int], Response]:
        """Sample one part, or its halves when it runs out of memory."""
        try:
            return self._generate(jobs, requests, params)
        except torch.OutOfMemoryError:
            halves = _halves(jobs)
        if self._vlm.device.type == "cuda":
            torch.cuda.empty_cache()
        return {key: answer for half in halves for key, answer in self._run(half, requests, params).items()}

    def _generate(self, jobs: Sequence[_Job], requests: Sequence[Request], params: SamplingParams) -> dict[tuple[int, int], Response]:
        rows = [(owner, slot) for owner, job in enumerate(jobs) for slot in job.slots]
        seeds = [requests[jobs[owner].request].seeds[slot] for owner, slot in rows]
        sampled = generate(
            self._vlm,
            [job.prompt for job in jobs],
            [job.prefix for job in jobs],
            [owner for owner, _ in rows],
            torch.from_numpy(np.stack([uniforms(seed, params.max_new_tokens) for seed in seeds])),
            TokenSampling(params.temperature, params.top_k, params.top_p),
            stop_test(self._codec, params.stop) if params.stop else None,
        )
        return {
            (jobs[owner].request, slot): self._response(requests[jobs[owner].request], slot, jobs[owner].prefix, answer, params.stop)
            for (owner, slot), answer in zip(rows, sampled, strict=True)
        }

    def _response(self, request: Request, slot: int, prefix: tuple[int, ...], answer: Generation, stop: Sequence[str]) -> Response:
        ids = prefix + answer.ids
        response = Response(
            question=request.key,
            index=request.indices[slot],
            text=decode(self._vlm, ids),
            token_ids=ids,
            finish="stop" if answer.stopped else "length",
            logprobs=answer.logprobs,
            engine=self.name,
            seed=request.seeds[slot],
            prefix_len=len(prefix),
        )
        return truncate_at_stop(response, self._codec, stop) if stop else response


def _halves(jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Two parts of about half the work. Raises EngineError for a single response, which cannot be split."""
    if len(jobs) > 1:
        return [list(jobs[: len(jobs) // 2]), list(jobs[len(jobs) // 2 :])]
    job, count = jobs[0], len(jobs[0].slots)
    if count == 1:
        raise EngineError(
            "out of memory with a single answer; lower image.max_pixels or max_new_tokens, or use a smaller dtype", code="out-of-memory"
        )
    return [[replace(job, slots=job.slots[: count // 2])], [replace(job, slots=job.slots[count // 2 :])]]
