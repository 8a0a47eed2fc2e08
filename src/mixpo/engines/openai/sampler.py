"""Samples the responses to one question from servers, with top-ups for unusable ones. Knows nothing about threads and replicas."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.openai.client import Client, RequestError, ServerLostError
from mixpo.engines.openai.probe import HOT, RANDOM, SHORT, Capabilities
from mixpo.engines.openai.protocol import Completion, continuation_body, conversation, image_url, parse_completion, sampling_body
from mixpo.engines.responses import FEW, Choice, improbably_identical, response_of
from mixpo.engines.tokens import TokenCodec, continues_control_token
from mixpo.errors import SourceError
from mixpo.images import open_image
from mixpo.plural import amount
from mixpo.recipe import ImageTable
from mixpo.records import Sampled
from mixpo.types import IMAGE_TOKEN

Value = TypeVar("Value")

TOP_UPS = 4
"""Further rounds for the missing responses of a question."""
SEED_STEP = 7919
"""Added to the seed of a response in every further round."""
MAX_REASONS = 2
"""Reasons that a message names for unusable responses."""
CONTROL = "answers with control tokens"
"""Name of this count."""
SURE = "identical answers, of a sure model"
"""Name of the count of questions with identical responses from a server that does sample."""


@dataclass(kw_only=True)
class Sampler:
    """Sampling from servers with the capabilities `known`.

    codec: tokens of the trained model; served: the same if the servers hold that model, else None. eval_only: responses are graded and
    never trained on, so their form is free, and each names the model that answered. counts: top-ups and dropped responses.
    """

    client: Client
    known: Capabilities
    params: SamplingParams
    image: ImageTable
    codec: TokenCodec | None
    served: TokenCodec | None
    eval_only: bool
    name: str
    counts: Counter[str]

    async def answers(self, request: Request) -> Sampled:
        """The responses to one question; a problem with this question alone is its error."""
        try:
            choices = await (self._continued if request.prefixes else self._sampled)(request)
        except (RequestError, ServerLostError, SourceError) as error:
            self.counts["failed questions"] += 1
            return Sampled(question=request.key, error=str(error))
        names = [f"{self.name}: {choice.model or self.known.model}" if self.eval_only else self.name for choice in choices]
        made = (response_of(request, slot, choice, self.codec, names[slot]) for slot, choice in enumerate(choices))
        return Sampled(question=request.key, responses=tuple(made))

    async def _sampled(self, request: Request) -> list[Choice]:
        texts, params = [request.prompt, *(message.text for message in request.history if message.role == "user")], self.params
        placeholders = sum(text.count(IMAGE_TOKEN) for text in texts)
        if placeholders != len(request.images):
            raise SourceError(
                f"the prompt has {amount(placeholders, f'{IMAGE_TOKEN} placeholder')} for {amount(len(request.images), 'image')}; "
                "use one for each image",
                code="image-placeholders",
            )
        if self.served is not None:
            self.served.prompt_text(request.prompt, request.history)  # refuses a prompt that would end its own turn
        images = [await asyncio.to_thread(image_url, image, self.image.of(request)) for image in request.images]
        turns = conversation(request.history, request.prompt, images, IMAGE_TOKEN)
        choices = await self._collect(request.seeds, partial(self._chat, turns))
        if not self.eval_only and improbably_identical(choices, params.temperature):
            self.counts["identical answers, retried"] += 1
            again = await self._collect([seed + SEED_STEP for seed in request.seeds], partial(self._chat, turns))
            if len({choice.text for choice in (*choices, *again)}) == 1:
                # With log-probs it is already clear that the model is not that sure.
                if choices[0].logprobs or not await self._server_samples(request, images):
                    raise RequestError(
                        f"{len(choices)} identical answers at temperature {params.temperature:g}, twice; the server ignores the temperature"
                    )
                self.counts[SURE] += 1
            choices = again
        return choices

    async def _server_samples(self, request: Request, images: Sequence[str]) -> bool:
        """Whether the server samples another prompt with these images: then the model is sure of its answer and nothing is wrong."""
        turns = conversation(request.history, f"{request.prompt}\n{RANDOM}", images, IMAGE_TOKEN)
        hot = replace(self.params, temperature=HOT, max_new_tokens=SHORT, stop=())
        replies = await _all([self._chat(turns, 1, seed + 2 * SEED_STEP, hot) for seed in request.seeds[:FEW]])
        return len({choice.text for reply in replies for choice in reply.choices}) > 1

    async def _continued(self, request: Request) -> list[Choice]:
        if self.served is not None and not all(self.served.control.isdisjoint(prefix) for prefix in request.prefixes):
            raise continues_control_token()
        images = await asyncio.to_thread(self._images_of, request) if request.images else ((), 0)
        slots = request.slots_by_prefix()
        works = [
            self._collect([request.seeds[slot] for slot in of_prefix], partial(self._continue, request, prefix, images))
            for prefix, of_prefix in slots.items()
        ]
        choices = dict(zip((slot for of_prefix in slots.values() for slot in of_prefix), chain(*await _all(works)), strict=True))
        return [choices[slot] for slot in range(len(request.seeds))]

    def _images_of(self, request: Request) -> tuple[Sequence[str], int]:
        """The images as data URLs, and by how many tokens they make the prompt longer than its text."""
        assert self.served is not None
        limits, text = self.image.of(request), self.served.prompt_text(request.prompt, request.history)
        opened = [open_image(image, limits) for image in request.images]
        length = len(self.served.prompt_ids(request.prompt, opened, limits.tiles, request.history))
        return [image_url(image, limits) for image in request.images], length - len(self.served.encode_raw(text))

    async def _collect(self, seeds: Sequence[int], ask: partial[Coroutine[Any, Any, Completion]]) -> list[Choice]:
        """One choice per seed; missing and unusable ones are sampled again with other seeds. ask: from n and a seed to a completion."""
        got: dict[int, Choice] = {}
        dropped, unusable = 0, Counter[str]()
        for trial in range(TOP_UPS + 1):
            missing = [slot for slot in range(len(seeds)) if slot not in got]
            if not missing:
                break
            if trial:
                self.counts["answers topped up"] += len(missing)
            parts = [missing[start : start + self.known.n] for start in range(0, len(missing), self.known.n)]
            replies = await _all([ask(len(part), seeds[part[0]] + SEED_STEP * trial) for part in parts])
            for part, reply in zip(parts, replies, strict=True):
                usable = [choice for choice in map(self._own_ids, reply.choices) if self._usable(choice)]
                dropped += len(reply.choices) - len(usable)
                got |= dict(zip(part, usable, strict=False))
                unusable.update(reply.unusable)
                self.counts["answers too many"] += max(0, len(reply.choices) - len(part))
        self.counts[CONTROL] += dropped
        self.counts["unusable answers"] += unusable.total()
        if len(got) < len(seeds):
            why = [f"{dropped} held control tokens of the model, such as image tokens"] if dropped else []
            why += [f"{count} could not be used: {reason}" for reason, count in unusable.most_common(MAX_REASONS)]
            raise RequestError("; ".join([f"only {len(got)} of {amount(len(seeds), 'answer')} came in {TOP_UPS + 1} rounds", *why]))
        return [got[slot] for slot in range(len(seeds))]

    def _own_ids(self, choice: Choice) -> Choice:
        """The choice, without ids that are not the trained model's."""
        return choice if self.known.ids_out else replace(choice, ids=())

    def _usable(self, choice: Choice) -> bool:
        """Whether the response can be trained on. Greedy ones are only graded, and would come the same again."""
        if self.eval_only or self.codec is None or not self.params.temperature:
            return True
        return not self.codec.holds_control(choice.text, choice.ids)

    async def _chat(self, turns: Sequence[Mapping[str, Any]], n: int, seed: int, params: SamplingParams | None = None) -> Completion:
        known = self.known
        body = sampling_body(known.model, params or self.params, n, seed, known.dialect, self._ends, known.bias)
        body["messages"] = list(turns)
        if known.logprobs:
            body |= {"logprobs": True, "top_logprobs": 1}
        return await self.client.post("/chat/completions", body, partial(parse_completion, eval_only=self.eval_only))

    async def _continue(self, request: Request, prefix: Sequence[int], images: tuple[Sequence[str], int], n: int, seed: int) -> Completion:
        """Raises RequestError when the server reports another number of prompt tokens than prompt and prefix have."""
        assert self.served is not None
        known = self.known
        route = "prefix" if request.images else known.continuation
        path, body, expected = continuation_body(self.served, route, request.prompt, prefix, request.history, *images)
        whole = sampling_body(known.model, self.params, n, seed, known.dialect, self._ends, known.bias) | body
        if known.logprobs:
            whole |= {"logprobs": 1} if path == "/completions" else {"logprobs": True, "top_logprobs": 1}
        reply: Completion = await self.client.post(path, whole, parse_completion)
        if reply.prompt_tokens != expected:
            raise RequestError(f"the prefix was changed: the server reports {reply.prompt_tokens} prompt tokens, {expected} were sent")
        return reply

    @property
    def _ends(self) -> tuple[int, ...]:
        return self.served.end_ids if self.served is not None else ()


async def _all(works: Sequence[Coroutine[Any, Any, Value]]) -> list[Value]:
    """The results in order; when one fails the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
