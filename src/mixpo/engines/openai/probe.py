"""What a server can do, found out by asking. Servers answer 200 and ignore what they cannot do, so nothing is believed unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from PIL import Image, ImageDraw

from mixpo.engines.base import SamplingParams
from mixpo.engines.openai.pictures import data_address, png
from mixpo.engines.openai.transport import LostError, Replica, RowError, Transport
from mixpo.engines.openai.wire import DIALECTS, Choice, Dialect, Reply, parse, sampling, user_turn
from mixpo.engines.words import Words
from mixpo.errors import EngineError
from mixpo.types import IMAGE_MARK

Route = Literal["ids", "prefix", "text", ""]
"""How an answer that has begun is continued: prompt ids, the assistant's message left open, rendered text, or not at all."""

HOT = 2.0
"""A temperature at which no model that samples writes the same twice."""
SHORT = 16
"""Tokens of a test answer."""
BEGUN = "One,\n"
"""The beginning that is to be continued. Its newline is what careless templates strip."""
NOISE = 1e-3
"""Log-probs of one picture asked twice may differ by this much, and more on servers where batches do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What was seen. n: answers that one request gives. images: "yes", "no: why" or "not asked". notes: for people."""

    model: str
    dialect: Dialect = "plain"
    n: int = 1
    seed: bool = False
    logprobs: bool = False
    ids_out: bool = False
    continuation: Route = ""
    images: str = "not asked"
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "notes": list(self.notes)}

    def said(self) -> str:
        """One line for the user."""
        ways = {"ids": "from token ids", "prefix": "by an open assistant turn", "text": "from rendered text", "": "no"}
        can = {
            "answers a request": str(self.n),
            "seed": _yes(self.seed),
            "log-probs": _yes(self.logprobs),
            "token ids": _yes(self.ids_out),
            "continuing": ways[self.continuation],
            "images": self.images,
        }
        return ", ".join(f"{name}: {value}" for name, value in can.items()) + "".join(f"; {note}" for note in self.notes)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def together(found: Sequence[Capabilities]) -> Capabilities:
    """What all servers can do. Raises EngineError when they do not take the same requests."""
    first = found[0]
    if any((other.dialect, other.logprobs, other.ids_out) != (first.dialect, first.logprobs, first.ids_out) for other in found):
        raise EngineError("the servers in sample.server.urls are of different kinds; use equal ones in one run")
    routes = {other.continuation for other in found}
    return replace(
        first,
        n=min(other.n for other in found),
        seed=all(other.seed for other in found),
        continuation=first.continuation if len(routes) == 1 else "",
        images=next((other.images for other in found if other.images != "yes"), "yes") if first.images != "not asked" else first.images,
        notes=tuple(dict.fromkeys(note for other in found for note in other.notes)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question of the run with its pictures as data addresses; all examples have equally many."""

    prompt: str
    pictures: tuple[str, ...]


@dataclass(kw_only=True)
class Probe:
    """Asks one server. words: the tokens of the model it should hold, or None. wanted: answers of a question."""

    transport: Transport
    replica: Replica
    model: str
    params: SamplingParams
    wanted: int
    words: Words | None
    dialect: Dialect = "plain"
    logprobs: bool = True

    async def run(self, examples: Sequence[Example]) -> Capabilities:
        """examples: some of the run's own questions, if they have pictures: a model may say nothing to other ones.

        Raises EngineError when the server cannot be used at all: refuses requests, or ignores temperature or pictures; LostError when it
        goes away, because then nothing that was seen is worth anything.
        """
        notes = []
        first = await self._first()
        if self.dialect == "plain":
            notes.append("it takes no top_k, so its own setting holds")
        n, answers = await self._several()
        if len({answer.text for answer in answers}) == 1:
            raise EngineError(
                f"{self.replica.url}: {len(answers)} answers at temperature {HOT:g} are identical; the server does not sample "
                "(transformers needs do_sample = true in generation_config.json, vLLM and llama.cpp a temperature)"
            )
        same = await asyncio.gather(*(self.ask("Write a random sentence.", seed=7) for _ in range(4)))
        ids_out = self.words is not None and _ids_agree(self.words, [*answers, *first.choices])
        if self.words is not None and not ids_out:
            notes.append("its answers are tokenised again")
        return Capabilities(
            model=self.model,
            dialect=self.dialect,
            n=n,
            seed=len({reply.choices[0].text for reply in same if reply.choices}) == 1,
            logprobs=self.logprobs and all(choice.logprobs for choice in first.choices),
            ids_out=ids_out,
            continuation=await self._continuation(),
            images=await self._pictures(examples) if examples else "not asked",
            notes=tuple(notes),
        )

    async def ask(self, prompt: str, pictures: Sequence[str] = (), n: int = 1, seed: int = 1, temperature: float = HOT) -> Reply:
        """One short chat completion."""
        params = replace(self.params, temperature=temperature, max_new_tokens=SHORT, stop=())
        body = sampling(self.model, params, n, seed, self.dialect, self.words.end_ids if self.words else ())
        body["messages"] = [user_turn(prompt, pictures, IMAGE_MARK)]
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": 1}
        return await self.transport.post("/chat/completions", body, parse, self.replica, retries=1)

    # --- the questions, one by one -----------------------------------------------------------------------------------------

    async def _first(self) -> Reply:
        """The first form of request that the server takes."""
        reason = ""
        for self.logprobs in (True, False):
            for self.dialect in DIALECTS:
                if (self.dialect == "generation_config" and self.words is None) or (self.dialect == "plain" and self.params.top_k):
                    continue
                try:
                    reply = await self.ask("Hello.")
                except LostError:
                    raise
                except RowError as error:
                    reason = reason or str(error)
                    continue
                if reply.choices:
                    return reply
                reason = reason or "the reply holds no usable answer"
        raise EngineError(f"{self.replica.url}: takes no request of this form: {reason}")

    async def _several(self) -> tuple[int, list[Choice]]:
        """How many answers one request gives, and some answers to one question."""
        n = self.wanted
        while n > 1:
            try:
                reply = await self.ask("Write a random sentence.", n=n)
            except LostError:
                raise
            except RowError:
                n //= 2
                continue
            if len(reply.choices) >= 2:
                return min(n, len(reply.choices)), list(reply.choices)
            n = 1
        replies = await asyncio.gather(*(self.ask("Write a random sentence.", seed=seed) for seed in range(4)))
        return 1, [choice for reply in replies for choice in reply.choices]

    async def _continuation(self) -> Route:
        """The first way of continuing that is proved by the number of prompt tokens that the server counts."""
        if self.words is None:
            return ""
        routes: tuple[Route, ...] = ("ids", "prefix", "text")
        for route in routes:
            path, body, expected = continuation(self.words, route, "Count.", self.words.encode(BEGUN)[:-1])
            params = replace(self.params, max_new_tokens=SHORT, stop=())
            whole = sampling(self.model, params, 1, 1, self.dialect, self.words.end_ids) | body
            try:
                reply = await self.transport.post(path, whole, parse, self.replica, retries=0)
            except LostError:
                raise
            except (RowError, EngineError):  # here a 404 means only that this server has no such endpoint
                continue
            if reply.choices and reply.prompt_tokens == expected and not reply.choices[0].text.startswith(BEGUN):
                return route
        return ""

    async def _pictures(self, examples: Sequence[Example]) -> str:
        """Whether pictures are taken and looked at. Raises EngineError when they are ignored or cut otherwise than in training."""
        try:
            for size in SHAPES:
                await self._measure(size)
            # Greedy answers first; a model that is sure of itself may give one to all pictures, and shows a difference in what it
            # samples with one seed.
            looks = await self._differ(examples, 0.0) or await self._differ(examples, HOT)
        except LostError:
            raise
        except RowError as error:
            return f"no: {error}"
        if not looks:
            raise EngineError(
                f"{self.replica.url}: different pictures give the same answer to {examples[0].prompt[:60]!r}; the server does not look at "
                "images (a text model, or a chat template that drops them)"
            )
        return "yes"

    async def _differ(self, examples: Sequence[Example], temperature: float) -> bool:
        """Whether other pictures change the answer by more than the same picture asked again does. One after the other: some
        servers keep one seed for all requests."""
        prompt, shown = examples[0].prompt, [example.pictures for example in examples]
        synthetic = [tuple(data_address(png(picture(size)), "png") for _ in shown[0]) for size in SHAPES]
        replies = [await self.ask(prompt, pictures, temperature=temperature) for pictures in (*shown, *synthetic, shown[0])]
        if not all(reply.choices for reply in replies):
            raise RowError("no usable answer to a picture")
        one, *others, again = [reply.choices[0] for reply in replies]
        if one.logprobs and again.logprobs and all(other.logprobs for other in others):
            noise = abs(one.logprobs[0] - again.logprobs[0])
            return any(abs(one.logprobs[0] - other.logprobs[0]) > max(NOISE, 5 * noise) for other in others)
        return one.text == again.text and any(other.text != one.text for other in others)

    async def _measure(self, size: tuple[int, int]) -> None:
        """Compare the prompt's length there and here: pixel limits and tiles must be those of training."""
        image = picture(size)
        prompt = f"{IMAGE_MARK}\nDescribe the picture."
        reply = await self.ask(prompt, [data_address(png(image), "png")], temperature=0.0)
        expected = len(self.words.prompt_ids(prompt, [image])) if self.words is not None and reply.prompt_tokens >= 0 else -1
        if expected >= 0 and reply.prompt_tokens != expected:
            raise EngineError(
                f"{self.replica.url}: a picture of {size[0]} x {size[1]} pixels makes a prompt of {reply.prompt_tokens} tokens there "
                f"and of {expected} in training; give the server the model folder, chat template and image limits of model.path, or set "
                "sample.server.same_model = false"
            )


def continuation(words: Words, route: Route, prompt: str, prefix: Sequence[int]) -> tuple[str, dict[str, Any], int]:
    """Path, body and the number of prompt tokens that the server must count when an answer that begins with `prefix` arrives whole."""
    if route == "ids":
        ids = [*words.prompt_ids(prompt), *prefix]
        return "/completions", {"prompt": ids}, len(ids)
    begun = words.decode(prefix)
    rendered = words.prompt_text(prompt) + begun
    if route == "text":
        return "/completions", {"prompt": rendered}, len(words.raw_ids(rendered))
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": begun}]
    body = {"messages": turns, "add_generation_prompt": False, "continue_final_message": True}
    return "/chat/completions", body, len(words.raw_ids(rendered))


def _ids_agree(words: Words, choices: Sequence[Choice]) -> bool:
    return all(choice.ids and words.decode(choice.ids) == choice.text for choice in choices)


# --- pictures ----------------------------------------------------------------------------------------------------------

SHAPES = ((96, 96), (320, 80), (64, 200))
"""Sizes (width, height) of the test pictures: square, wide and tall are cut into tiles differently."""


def picture(size: tuple[int, int]) -> Image.Image:
    """Stripes and a disc, different for each size."""
    width, height = size
    image = Image.new("RGB", size, (width % 256, height % 256, (width * height) % 256))
    draw = ImageDraw.Draw(image)
    for x in range(0, width, 8 + height % 7):
        draw.line([(x, 0), (x, height)], fill=(0, (x * 5) % 256, 200), width=2)
    draw.ellipse([width // 4, height // 4, width // 2, height // 2], fill=(255, 255 - height % 256, 0))
    return image
