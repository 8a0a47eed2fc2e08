"""What is asked of the servers for one question: what is asked again, and which answers cannot be used. Knows no threads, no replicas."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from mixpo.engines.base import Request, SamplingParams
from mixpo.engines.openai.client import LostError, RowError, Transport
from mixpo.engines.openai.probe import HOT, RANDOM, SHORT, Capabilities
from mixpo.engines.openai.protocol import Reply, address_of, continuation, parse, sampling, user_turn
from mixpo.engines.responses import FEW, Choice, response_of, suspicious
from mixpo.engines.tokens import Words
from mixpo.errors import SourceError
from mixpo.plural import amount
from mixpo.recipe import ImageTable
from mixpo.records import Sampled
from mixpo.types import IMAGE_TOKEN

Value = TypeVar("Value")

TOP_UPS = 4
"""How often missing answers of a question are asked for again."""
ANOTHER = 7919
"""Added to a seed when the same slot is asked for again."""
SHOWN = 2
"""Reasons that are named for answers that could not be used."""
CONTROL = "answers with control tokens"
"""How such answers are counted."""
SURE = "identical answers, of a sure model"
"""How questions are counted whose answers are equal while the server samples all the same."""


@dataclass(kw_only=True)
class Asking:
    """Asks servers that can do what `known` says.

    words: tokens of the model that learns. served: the same, where that model also answers. foreign: answers are only marked and never
    trained on, so their form is free, and each says what answered. counts: what was topped up, dropped or left over.
    """

    transport: Transport
    known: Capabilities
    params: SamplingParams
    image: ImageTable
    words: Words | None
    served: Words | None
    foreign: bool
    name: str
    counts: Counter[str]

    async def answers(self, request: Request) -> Sampled:
        """The answers to one question; what is wrong with this question alone is its error."""
        try:
            choices = await (self._continued if request.prefixes else self._fresh)(request)
        except (RowError, LostError, SourceError) as error:
            self.counts["failed questions"] += 1
            return Sampled(question=request.key, error=str(error))
        names = [f"{self.name}: {choice.model or self.known.model}" if self.foreign else self.name for choice in choices]
        made = (response_of(request, slot, choice, self.words, names[slot]) for slot, choice in enumerate(choices))
        return Sampled(question=request.key, responses=tuple(made))

    async def _fresh(self, request: Request) -> list[Choice]:
        marks, params = request.prompt.count(IMAGE_TOKEN), self.params
        if marks != len(request.images):
            raise SourceError(
                f"the prompt has {amount(marks, f'{IMAGE_TOKEN} mark')} for {amount(len(request.images), 'image')}; "
                "give one mark to each image"
            )
        if self.served is not None:
            self.served.prompt_text(request.prompt)  # refuses a text that would end its own turn
        pictures = [await asyncio.to_thread(address_of, image, self.image) for image in request.images]
        turn = user_turn(request.prompt, pictures, IMAGE_TOKEN)
        choices = await self._collect(request.seeds, partial(self._ask, turn))
        if not self.foreign and suspicious(choices, params.temperature):
            self.counts["identical answers, asked again"] += 1
            again = await self._collect([seed + ANOTHER for seed in request.seeds], partial(self._ask, turn))
            if len({choice.text for choice in (*choices, *again)}) == 1:
                # With log-probs it is known already that the model is not that sure.
                if choices[0].logprobs or not await self._samples(request, pictures):
                    raise RowError(
                        f"{len(choices)} identical answers at temperature {params.temperature:g}, twice; the server ignores the temperature"
                    )
                self.counts[SURE] += 1
            choices = again
        return choices

    async def _samples(self, request: Request, pictures: Sequence[str]) -> bool:
        """Whether the server samples beside the pictures of a question: then the model is sure of its answer, and no more is wrong."""
        turn = user_turn(f"{request.prompt}\n{RANDOM}", pictures, IMAGE_TOKEN)
        hot = replace(self.params, temperature=HOT, max_new_tokens=SHORT, stop=())
        replies = await _all([self._ask(turn, 1, seed + 2 * ANOTHER, hot) for seed in request.seeds[:FEW]])
        return len({choice.text for reply in replies for choice in reply.choices}) > 1

    async def _continued(self, request: Request) -> list[Choice]:
        if self.served is not None and not all(self.served.control.isdisjoint(prefix) for prefix in request.prefixes):
            raise SourceError("the beginning to continue holds an image token or another control token of the model; cut it before that")
        works = [self._collect([seed], partial(self._continue, request, slot)) for slot, seed in enumerate(request.seeds)]
        return [choice for (choice,) in await _all(works)]

    async def _collect(self, seeds: Sequence[int], ask: partial[Coroutine[Any, Any, Reply]]) -> list[Choice]:
        """One choice for each seed; what is missing or cannot be used is asked for again with other seeds. ask: n answers from a seed."""
        got: dict[int, Choice] = {}
        dropped, left_out = 0, Counter[str]()
        for trial in range(TOP_UPS + 1):
            missing = [slot for slot in range(len(seeds)) if slot not in got]
            if not missing:
                break
            if trial:
                self.counts["answers topped up"] += len(missing)
            parts = [missing[start : start + self.known.n] for start in range(0, len(missing), self.known.n)]
            replies = await _all([ask(len(part), seeds[part[0]] + ANOTHER * trial) for part in parts])
            for part, reply in zip(parts, replies, strict=True):
                usable = [choice for choice in map(self._understood, reply.choices) if self._usable(choice)]
                dropped += len(reply.choices) - len(usable)
                got |= dict(zip(part, usable, strict=False))
                left_out.update(reply.unusable)
                self.counts["answers too many"] += max(0, len(reply.choices) - len(part))
        self.counts[CONTROL] += dropped
        self.counts["unusable answers"] += left_out.total()
        if len(got) < len(seeds):
            why = [f"{dropped} held control tokens of the model, such as image tokens"] if dropped else []
            why += [f"{count} could not be used: {reason}" for reason, count in left_out.most_common(SHOWN)]
            raise RowError("; ".join([f"only {len(got)} of {amount(len(seeds), 'answer')} came in {TOP_UPS + 1} rounds of asking", *why]))
        return [got[slot] for slot in range(len(seeds))]

    def _understood(self, choice: Choice) -> Choice:
        """The choice without ids where these are not those of the model that learns."""
        return choice if self.known.ids_out else replace(choice, ids=())

    def _usable(self, choice: Choice) -> bool:
        """Whether training could read the answer. A greedy one is marked only, and would come the same again."""
        if self.foreign or self.words is None or not self.params.temperature:
            return True
        return not self.words.holds_control(choice.text, choice.ids)

    async def _ask(self, turn: Mapping[str, Any], n: int, seed: int, params: SamplingParams | None = None) -> Reply:
        known = self.known
        body = sampling(known.model, params or self.params, n, seed, known.dialect, self._ends, known.bias)
        body["messages"] = [turn]
        if known.logprobs:
            body |= {"logprobs": True, "top_logprobs": 1}
        return await self.transport.post("/chat/completions", body, partial(parse, foreign=self.foreign))

    async def _continue(self, request: Request, slot: int, n: int, seed: int) -> Reply:
        """Raises RowError when the server did not count the prompt and the beginning as they are."""
        assert self.served is not None
        known = self.known
        path, body, expected = continuation(self.served, known.continuation, request.prompt, request.prefixes[slot])
        whole = sampling(known.model, self.params, n, seed, known.dialect, self._ends, known.bias) | body
        if known.logprobs:
            whole |= {"logprobs": 1} if path == "/completions" else {"logprobs": True, "top_logprobs": 1}
        reply: Reply = await self.transport.post(path, whole, parse)
        if reply.prompt_tokens != expected:
            raise RowError(
                f"the beginning did not arrive as it is: the server counts {reply.prompt_tokens} prompt tokens, {expected} were sent"
            )
        return reply

    @property
    def _ends(self) -> tuple[int, ...]:
        return self.served.end_ids if self.served is not None else ()


async def _all(works: Sequence[Coroutine[Any, Any, Value]]) -> list[Value]:
    """The results in order; when one fails the others are given up."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
