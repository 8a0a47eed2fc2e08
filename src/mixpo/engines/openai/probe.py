"""What a server can do, found out by asking. Servers answer 200 and ignore what they cannot do, so nothing is believed unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from mixpo.engines.base import SamplingParams
from mixpo.engines.openai.client import Replica, RowError, Transport
from mixpo.engines.openai.protocol import BIAS, DIALECTS, Dialect, Reply, Route, continuation, parse, sampling, user_turn
from mixpo.engines.openai.vision_probe import Example, Looks
from mixpo.engines.responses import Choice, agree
from mixpo.engines.tokens import Words
from mixpo.errors import EngineError
from mixpo.types import IMAGE_TOKEN

HOT = 2.0
"""A temperature at which no model that samples writes the same twice."""
RANDOM = "Write a random sentence."
"""What no model that samples answers twice alike, at that temperature."""
SHORT = 16
"""Tokens of a test answer."""
WARM = 1.0
"""The highest temperature that every commercial endpoint takes."""
PLAIN = "x"
"""Text of an ordinary token that a bias is to force."""
MOST_BIASED = 300
"""Tokens that a request may bias in OpenAI's protocol; vLLM takes 1,024."""
BEGUN = "One,\n"
"""The beginning that is to be continued. Its newline is what careless templates strip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What was seen. n: answers that one request gives. images: "yes", "no: why" or "not asked". notes: for people.

    bias: by token id, what keeps control tokens out of the answers; empty where the server does not heed it.
    """

    model: str
    dialect: Dialect = "plain"
    n: int = 1
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: bool | None = None
    logprobs: bool = False
    ids_out: bool = False
    continuation: Route = ""
    images: str = "not asked"
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "bias": len(self.bias), "notes": list(self.notes)}

    def said(self) -> str:
        """One line for the user."""
        ways = {"ids": "from token ids", "prefix": "by an open assistant turn", "text": "from rendered text", "": "no"}
        can = {
            "answers a request": str(self.n),
            "seed": _yes(self.seed),
            "log-probs": _yes(self.logprobs),
            "token ids": _yes(self.ids_out),
            "control tokens kept out": _yes(bool(self.bias)),
            "continuing": ways[self.continuation],
            "images": self.images,
        }
        return ", ".join(f"{name}: {value}" for name, value in can.items()) + "".join(f"; {note}" for note in self.notes)


def _yes(value: bool | None) -> str:
    return "not asked" if value is None else "yes" if value else "no"


@dataclass(slots=True)
class Probed:
    """What servers were seen to do, once they were asked: engines that are opened one after another for the same work ask once."""

    found: Capabilities | None = None


@dataclass(kw_only=True)
class Probe:
    """Asks one server. words: the tokens of the model it should hold, or None. wanted: answers of a question.

    foreign: see `Asking`. What only matters for sampling is not asked where answers are greedy.
    """

    transport: Transport
    replica: Replica
    model: str
    params: SamplingParams
    wanted: int
    words: Words | None
    foreign: bool = False
    dialect: Dialect = "plain"
    logprobs: bool = True
    notes: list[str] = field(default_factory=list)

    async def run(self, examples: Sequence[Example]) -> Capabilities:
        """examples: some of the run's own questions, if they have pictures: a model may say nothing to other ones.

        Raises EngineError when the server cannot be used at all: refuses requests, or ignores temperature or pictures; LostError when it
        goes away, because then nothing that was seen is worth anything.
        """
        first = await self._first()
        if self.dialect == "plain" and self.params.temperature:
            self.notes.append("it takes no top_k, so its own setting holds")
        if self.dialect == "bare":
            self.notes.append("it takes no temperature, so its own setting holds")
        sampled = self.params.temperature > 0
        n, answers = await self._several() if sampled else (1, [])
        if sampled and not self.foreign and len({answer.text for answer in answers}) == 1:
            raise EngineError(
                f"{self.replica.url}: {len(answers)} answers at temperature {HOT:g} are identical; the server does not sample "
                "(transformers needs do_sample = true in generation_config.json, vLLM and llama.cpp a temperature)"
            )
        ids_out = self.words is not None and _ids_agree(self.words, [*answers, *first.choices])
        if self.words is not None and not ids_out:
            self.notes.append("its answers are tokenised again")
        bias = await self._bias()
        return Capabilities(
            model=self.model,
            dialect=self.dialect,
            n=n,
            bias=bias,
            seed=await self._seeds() if sampled else None,
            logprobs=self.logprobs and all(choice.logprobs for choice in first.choices),
            ids_out=ids_out,
            continuation=await self._continuation(bias),
            images=await self._looks(examples) if examples else "not asked",
            notes=tuple(self.notes),
        )

    async def _looks(self, examples: Sequence[Example]) -> str:
        async def ask(prompt: str, pictures: Sequence[str], temperature: float) -> Reply:
            return await self.ask(prompt, pictures, temperature=temperature)

        return await Looks(url=self.replica.url, ask=ask, words=self.words, warm=self._warm, notes=self.notes).see(examples)

    async def ask(
        self,
        prompt: str,
        pictures: Sequence[str] = (),
        n: int = 1,
        seed: int = 1,
        temperature: float | None = None,
        bias: Mapping[int, float] | None = None,
    ) -> Reply:
        """One short chat completion, hot where answers are sampled."""
        hot = 0.0 if not self.params.temperature else self._warm
        params = replace(self.params, temperature=hot if temperature is None else temperature, max_new_tokens=SHORT, stop=())
        body = sampling(self.model, params, n, seed, self.dialect, self.words.end_ids if self.words else (), bias or {})
        body["messages"] = [user_turn(prompt, pictures, IMAGE_TOKEN)]
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": 1}
        return await self.transport.post("/chat/completions", body, partial(parse, foreign=self.foreign), self.replica, retries=1)

    @property
    def _warm(self) -> float:
        return WARM if self.foreign else HOT

    # --- the questions, one by one -----------------------------------------------------------------------------------------

    async def _first(self) -> Reply:
        """The first form of request that the server takes."""
        reason = ""
        for self.logprobs in (True, False):
            for self.dialect in DIALECTS:
                if not self._may_speak(self.dialect):
                    continue
                try:
                    reply = await self.ask("Hello.")
                except RowError as error:
                    reason = reason or str(error)
                    continue
                if reply.choices:
                    return reply
                reason = reason or f"the reply holds no usable answer ({', '.join(reply.unusable) or 'no choices'})"
        raise EngineError(f"{self.replica.url}: takes no request of this form: {reason}")

    def _may_speak(self, dialect: Dialect) -> bool:
        if dialect == "generation_config":
            return self.words is not None
        if dialect == "plain":
            return not (self.params.top_k and self.params.temperature)
        return self.foreign or dialect != "bare"

    async def _several(self) -> tuple[int, list[Choice]]:
        """How many answers one request gives, and some answers to one question."""
        n = self.wanted
        while n > 1:
            try:
                reply = await self.ask(RANDOM, n=n)
            except RowError:
                n //= 2
                continue
            # Equal answers may have come from one seed, as from SGLang in its deterministic mode; then each is asked for by itself.
            if len({choice.text for choice in reply.choices}) >= 2:
                return min(n, len(reply.choices)), list(reply.choices)
            n = 1
        replies = await asyncio.gather(*(self.ask(RANDOM, seed=seed) for seed in range(4)))
        return 1, [choice for reply in replies for choice in reply.choices]

    async def _seeds(self) -> bool:
        same = await asyncio.gather(*(self.ask(RANDOM, seed=7) for _ in range(4)))
        return len({reply.choices[0].text for reply in same if reply.choices}) == 1

    async def _bias(self) -> Mapping[int, float]:
        """The bias that keeps control tokens out, where the server does what a bias says: with it, one ordinary token is forced."""
        if self.words is None:
            return {}
        never = dict.fromkeys(self.words.banned[:MOST_BIASED], -BIAS)
        plain = self.words.encode(PLAIN)[0]
        try:
            reply = await self.ask("Hello.", bias={**never, plain: BIAS})
        except RowError:
            return {}
        text = "".join(choice.text for choice in reply.choices).strip()
        piece = self.words.decode([plain]).strip()
        return never if len(text) > len(piece) and not text.replace(piece, "").strip() else {}

    async def _continuation(self, bias: Mapping[int, float]) -> Route:
        """The first way of continuing that is proved by the number of prompt tokens that the server counts."""
        if self.words is None:
            return ""
        routes: tuple[Route, ...] = ("ids", "prefix", "text")
        for route in routes:
            path, body, expected = continuation(self.words, route, "Count.", self.words.encode(BEGUN)[:-1])
            params = replace(self.params, max_new_tokens=SHORT, stop=())
            whole = sampling(self.model, params, 1, 1, self.dialect, self.words.end_ids, bias) | body
            try:
                reply = await self.transport.post(path, whole, parse, self.replica, retries=0)
            except (RowError, EngineError):  # here a 404 means only that this server has no such endpoint
                continue
            if reply.choices and reply.prompt_tokens == expected and not reply.choices[0].text.startswith(BEGUN):
                return route
        return ""


def together(found: Sequence[Capabilities], where: str) -> Capabilities:
    """What all servers can do. Raises EngineError when they do not take the same requests. where: the table that names them."""
    first = found[0]
    if len(names := sorted({other.model for other in found})) > 1:
        raise EngineError(
            f"the servers in {where}.urls list different models ({', '.join(names)}); use servers of one model, or say the name that all "
            f"of them know it by in {where}.model"
        )
    if any((other.dialect, other.logprobs, other.ids_out) != (first.dialect, first.logprobs, first.ids_out) for other in found):
        raise EngineError(f"the servers in {where}.urls are of different kinds; use equal ones in one run")
    routes = {other.continuation for other in found}
    return replace(
        first,
        n=min(other.n for other in found),
        bias=first.bias if all(other.bias for other in found) else {},
        seed=first.seed if first.seed is None else all(other.seed for other in found),
        continuation=first.continuation if len(routes) == 1 else "",
        images=next((other.images for other in found if other.images != "yes"), "yes") if first.images != "not asked" else first.images,
        notes=tuple(dict.fromkeys(note for other in found for note in other.notes)),
    )


def _ids_agree(words: Words, choices: Sequence[Choice]) -> bool:
    return all(choice.ids and agree(choice, words) for choice in choices)
