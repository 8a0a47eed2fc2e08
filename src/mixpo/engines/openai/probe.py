"""What a server supports, found by test requests: servers reply 200 and ignore what they do not support."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from mixpo.engines.base import SamplingParams
from mixpo.engines.openai.client import Client, Replica, RequestError
from mixpo.engines.openai.protocol import (
    BIAS,
    DIALECTS,
    Completion,
    Dialect,
    Route,
    continuation_body,
    parse_completion,
    sampling_body,
    user_message,
)
from mixpo.engines.openai.vision_probe import Example, VisionProbe
from mixpo.engines.responses import Choice, ids_match_text
from mixpo.engines.tokens import TokenCodec
from mixpo.errors import EngineError
from mixpo.types import IMAGE_TOKEN

HOT = 2.0
"""A temperature at which no model gives the same response twice."""
RANDOM = "Write a random sentence."
"""A prompt with different responses at that temperature."""
SHORT = 16
"""Length limit of a test response, in tokens."""
WARM = 1.0
"""The highest temperature that every commercial endpoint accepts."""
PLAIN = "x"
"""Text of the token that the test of logit_bias forces."""
MAX_BIASED = 300
"""Tokens that a request may bias in OpenAI's protocol; vLLM accepts 1,024."""
PREFIX = "One,\n"
"""The prefix of the test of continuation. Some chat templates strip its newline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What was observed. n: responses per request. images: "yes", "no: why" or "not asked". notes: for the user.

    continuation: the route for prompts of text. image_continuation: whether an open assistant turn, the only route with images, is
    continued; None where nothing needs it.

    bias: token id to the logit bias that bans control tokens; empty where the server ignores it.
    """

    model: str
    dialect: Dialect = "plain"
    n: int = 1
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: bool | None = None
    logprobs: bool = False
    ids_out: bool = False
    continuation: Route = ""
    image_continuation: bool | None = None
    images: str = "not asked"
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        known = {name: value for name, value in asdict(self).items() if name != "image_continuation" or value is not None}
        return {**known, "bias": len(self.bias), "notes": list(self.notes)}

    def summary(self) -> str:
        """One line for the user."""
        ways = {"ids": "from token ids", "prefix": "by an open assistant turn", "text": "from rendered text", "": "no"}
        can = {
            "answers per request": str(self.n),
            "seed": _yes(self.seed),
            "log-probs": _yes(self.logprobs),
            "token ids": _yes(self.ids_out),
            "control tokens banned": _yes(bool(self.bias)),
            "continuation": ways[self.continuation],
            "images": self.images,
            **({} if self.image_continuation is None else {"continuation with images": _yes(self.image_continuation)}),
        }
        return ", ".join(f"{name}: {value}" for name, value in can.items()) + "".join(f"; {note}" for note in self.notes)


def _yes(value: bool | None) -> str:
    return "not asked" if value is None else "yes" if value else "no"


@dataclass(slots=True)
class ProbeCache:
    """Capabilities probed by one engine, for later engines of the same work."""

    capabilities: Capabilities | None = None


@dataclass(kw_only=True)
class Probe:
    """Test requests to one server. codec: tokens of the model that it should hold, or None. wanted: responses per question.

    eval_only: see `Sampler`. What only matters for sampling is not probed for greedy responses. step: what is waited for now.
    """

    client: Client
    replica: Replica
    model: str
    params: SamplingParams
    wanted: int
    codec: TokenCodec | None
    eval_only: bool = False
    dialect: Dialect = "plain"
    logprobs: bool = True
    notes: list[str] = field(default_factory=list)
    step: str = "a first reply"

    async def run(self, examples: Sequence[Example]) -> Capabilities:
        """examples: some of the run's own questions with images, since a model may ignore unusual prompts.

        Raises EngineError when the server cannot be used: it refuses requests, or ignores temperature or images. Raises ServerLostError
        when it goes down meanwhile, because then no observation counts.
        """
        first = await self._find_dialect()
        if self.dialect == "plain" and self.params.temperature:
            self.notes.append("it takes no top_k and uses its own")
        if self.dialect == "bare":
            self.notes.append("it takes no temperature and uses its own")
        sampled = self.params.temperature > 0
        self.step = "several responses to one request"
        n, answers = await self._probe_n() if sampled else (1, [])
        if sampled and not self.eval_only and len({answer.text for answer in answers}) == 1:
            raise EngineError(
                f"{self.replica.url}: {len(answers)} answers at temperature {HOT:g} are identical; the server does not sample "
                "(transformers needs do_sample = true in generation_config.json, vLLM and llama.cpp a temperature)",
                code="server-does-not-sample",
            )
        ids_out = self.codec is not None and _ids_agree(self.codec, [*answers, *first.choices])
        if self.codec is not None and not ids_out:
            self.notes.append("its answers are retokenised")
        bias = await self._probe_bias()
        return Capabilities(
            model=self.model,
            dialect=self.dialect,
            n=n,
            bias=bias,
            seed=await self._probe_seed() if sampled else None,
            logprobs=self.logprobs and all(choice.logprobs for choice in first.choices),
            ids_out=ids_out,
            continuation=await self.route(("ids", "prefix", "text"), bias),
            images=await self._probe_images(examples) if examples else "not asked",
            notes=tuple(self.notes),
        )

    async def _probe_images(self, examples: Sequence[Example]) -> str:
        self.step = "replies about images"

        async def ask(prompt: str, images: Sequence[str], temperature: float) -> Completion:
            return await self.ask(prompt, images, temperature=temperature)

        return await VisionProbe(url=self.replica.url, ask=ask, codec=self.codec, warm=self._warm, notes=self.notes).run(examples)

    async def ask(
        self,
        prompt: str,
        images: Sequence[str] = (),
        n: int = 1,
        seed: int = 1,
        temperature: float | None = None,
        bias: Mapping[int, float] | None = None,
    ) -> Completion:
        """One short chat completion, hot where answers are sampled."""
        hot = 0.0 if not self.params.temperature else self._warm
        params = replace(self.params, temperature=hot if temperature is None else temperature, max_new_tokens=SHORT, stop=())
        body = sampling_body(self.model, params, n, seed, self.dialect, self.codec.end_ids if self.codec else (), bias or {})
        body["messages"] = [user_message(prompt, images, IMAGE_TOKEN)]
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": 1}
        return await self.client.post(
            "/chat/completions", body, partial(parse_completion, eval_only=self.eval_only), self.replica, retries=1
        )

    @property
    def _warm(self) -> float:
        return WARM if self.eval_only else HOT

    # --- one capability each ---------------------------------------------------------------------------------------------

    async def _find_dialect(self) -> Completion:
        """The reply to the first form of request that the server accepts; sets `dialect` and `logprobs`."""
        reason = ""
        for self.logprobs in (True, False):
            for self.dialect in DIALECTS:
                if not self._applies(self.dialect):
                    continue
                try:
                    reply = await self.ask("Hello.")
                except RequestError as error:
                    reason = reason or str(error)
                    continue
                if reply.choices:
                    return reply
                reason = reason or f"the reply holds no usable answer ({', '.join(reply.unusable) or 'no choices'})"
        raise EngineError(f"{self.replica.url}: takes no request of this form: {reason}", code="server-protocol")

    def _applies(self, dialect: Dialect) -> bool:
        if dialect == "generation_config":
            return self.codec is not None
        if dialect == "plain":
            return not (self.params.top_k and self.params.temperature)
        return self.eval_only or dialect != "bare"

    async def _probe_n(self) -> tuple[int, list[Choice]]:
        """Responses per request, and some responses to one prompt."""
        n = self.wanted
        while n > 1:
            try:
                reply = await self.ask(RANDOM, n=n)
            except RequestError:
                n //= 2
                continue
            # Some servers use one seed for all n (SGLang in deterministic mode); then each response needs its own request.
            if len({choice.text for choice in reply.choices}) >= 2:
                return min(n, len(reply.choices)), list(reply.choices)
            n = 1
        replies = await asyncio.gather(*(self.ask(RANDOM, seed=seed) for seed in range(4)))
        return 1, [choice for reply in replies for choice in reply.choices]

    async def _probe_seed(self) -> bool:
        self.step = "replies with one seed"
        same = await asyncio.gather(*(self.ask(RANDOM, seed=7) for _ in range(4)))
        return len({reply.choices[0].text for reply in same if reply.choices}) == 1

    async def _probe_bias(self) -> Mapping[int, float]:
        """The bias that bans control tokens, if the server applies biases: the test forces an ordinary token."""
        self.step = "a reply with logit_bias"
        if self.codec is None:
            return {}
        banned = dict.fromkeys(self.codec.banned[:MAX_BIASED], -BIAS)
        plain = self.codec.encode(PLAIN)[0]
        try:
            reply = await self.ask("Hello.", bias={**banned, plain: BIAS})
        except RequestError:
            return {}
        text = "".join(choice.text for choice in reply.choices).strip()
        token_text = self.codec.decode([plain]).strip()
        return banned if len(text) > len(token_text) and not text.replace(token_text, "").strip() else {}

    async def route(self, routes: Sequence[Route], bias: Mapping[int, float]) -> Route:
        """The first route for which the server reports the expected number of prompt tokens, or ""."""
        self.step = "the continuation of a prefix"
        if self.codec is None:
            return ""
        for route in routes:
            path, body, expected = continuation_body(self.codec, route, "Count.", self.codec.encode(PREFIX)[:-1])
            params = replace(self.params, max_new_tokens=SHORT, stop=())
            full = sampling_body(self.model, params, 1, 1, self.dialect, self.codec.end_ids, bias) | body
            try:
                reply = await self.client.post(path, full, parse_completion, self.replica, retries=0)
            except (RequestError, EngineError):  # a 404 only means that there is no such endpoint
                continue
            if reply.choices and reply.prompt_tokens == expected and not reply.choices[0].text.startswith(PREFIX):
                return route
        return ""


def common_capabilities(probed: Sequence[Capabilities], where: str) -> Capabilities:
    """What all servers support. Raises EngineError when they need different requests. where: the recipe table that names them."""
    first = probed[0]
    if len(names := sorted({each.model for each in probed})) > 1:
        raise EngineError(
            f"the servers in {where}.urls list different models ({', '.join(names)}); use servers of one model, or set {where}.model "
            "to a name that all of them know",
            code="servers-of-different-models",
            key=f"{where}.urls",
        )
    if any((each.dialect, each.logprobs, each.ids_out) != (first.dialect, first.logprobs, first.ids_out) for each in probed):
        raise EngineError(
            f"the servers in {where}.urls are of different kinds; use equal ones in one run",
            code="servers-of-different-kinds",
            key=f"{where}.urls",
        )
    routes = {each.continuation for each in probed}
    return replace(
        first,
        n=min(each.n for each in probed),
        bias=first.bias if all(each.bias for each in probed) else {},
        seed=first.seed if first.seed is None else all(each.seed for each in probed),
        continuation=first.continuation if len(routes) == 1 else "",
        images=next((each.images for each in probed if each.images != "yes"), "yes") if first.images != "not asked" else first.images,
        notes=tuple(dict.fromkeys(note for each in probed for note in each.notes)),
    )


def _ids_agree(codec: TokenCodec, choices: Sequence[Choice]) -> bool:
    return all(choice.ids and ids_match_text(choice, codec) for choice in choices)
