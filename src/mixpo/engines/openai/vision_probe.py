"""Whether a server looks at pictures, and cuts them as training does. Found out by asking; nothing is believed unseen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from mixpo.engines.openai.client import RowError
from mixpo.engines.openai.protocol import Reply, data_address, png
from mixpo.engines.tokens import Words
from mixpo.errors import EngineError
from mixpo.types import IMAGE_TOKEN

COUNTED = 3
"""A picture that reaches a model takes more prompt tokens than this."""
SHAPES = ((96, 96), (320, 80), (64, 200))
"""Sizes (width, height) of the test pictures: square, wide and tall are cut into tiles differently."""
NOISE = 1e-3
"""Log-probs of one picture asked twice may differ by this much, and more on servers where batches do."""

Ask = Callable[[str, Sequence[str], float], Awaitable[Reply]]
"""From a prompt, the data addresses of its pictures and a temperature to a short answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question of the run with its pictures as data addresses; all examples have equally many."""

    prompt: str
    pictures: tuple[str, ...]


@dataclass(kw_only=True)
class Looks:
    """url: of the server. words: tokens of the model it should hold, or None. warm: the temperature of sampled tries. notes: see
    `Capabilities`."""

    url: str
    ask: Ask
    words: Words | None
    warm: float
    notes: list[str] = field(default_factory=list)

    async def see(self, examples: Sequence[Example]) -> str:
        """Whether pictures are taken and looked at. Raises EngineError when they are ignored or cut otherwise than in training."""
        try:
            for size in SHAPES if self.words is not None else ():
                await self._measure(size)
            # Greedy answers first; a model that is sure of itself may give one to all pictures, and shows a difference in what it
            # samples with one seed.
            looks = [await self._differ(examples, 0.0)]
            if not looks[0]:
                looks.append(await self._differ(examples, self.warm))
            unclear = True not in looks and None in looks
            if unclear and await self._counts_pictures(examples[0]):
                self.notes.append("its answers vary by themselves, so only its count of prompt tokens shows that images arrive")
                return "yes"
        except RowError as error:
            return f"no: {error}"
        if True not in looks:
            raise EngineError(
                f"{self.url}: different pictures give the same answer to {examples[0].prompt[:60]!r}; the server does not look at "
                "images (a text model, or a chat template that drops them)"
            )
        return "yes"

    async def _differ(self, examples: Sequence[Example], temperature: float) -> bool | None:
        """Whether other pictures change the answer by more than the same picture asked again does; None where that cannot be told.

        One after the other: some servers keep one seed for all requests.
        """
        prompt, shown = examples[0].prompt, [example.pictures for example in examples]
        synthetic = [tuple(data_address(png(picture(size)), "png") for _ in shown[0]) for size in SHAPES]
        replies = [await self.ask(prompt, pictures, temperature) for pictures in (*shown, *synthetic, shown[0])]
        if not all(reply.choices for reply in replies):
            raise RowError("no usable answer to a picture")
        one, *others, again = [reply.choices[0] for reply in replies]
        if one.logprobs and again.logprobs and all(other.logprobs for other in others):
            noise = abs(one.logprobs[0] - again.logprobs[0])
            return any(abs(one.logprobs[0] - other.logprobs[0]) > max(NOISE, 5 * noise) for other in others)
        if one.text != again.text or not any(choice.text for choice in (one, *others)):
            return None
        return any(other.text != one.text for other in others)

    async def _counts_pictures(self, example: Example) -> bool:
        """Whether the server counts more prompt tokens with pictures than without."""
        shown, bare = (
            await self.ask(example.prompt, example.pictures, 0.0),
            await self.ask(example.prompt.replace(IMAGE_TOKEN, ""), (), 0.0),
        )
        return bare.prompt_tokens >= 0 and shown.prompt_tokens > bare.prompt_tokens + COUNTED

    async def _measure(self, size: tuple[int, int]) -> None:
        """Compare the prompt's length there and here: pixel limits and tiles must be those of training."""
        image = picture(size)
        prompt = f"{IMAGE_TOKEN}\nDescribe the picture."
        reply = await self.ask(prompt, [data_address(png(image), "png")], 0.0)
        assert self.words is not None
        expected = len(self.words.prompt_ids(prompt, [image])) if reply.prompt_tokens >= 0 else -1
        if expected >= 0 and reply.prompt_tokens != expected:
            raise EngineError(
                f"{self.url}: a picture of {size[0]} x {size[1]} pixels makes a prompt of {reply.prompt_tokens} tokens there "
                f"and of {expected} in training; give the server the model folder, chat template and image limits of model.path, or set "
                "sample.server.same_model = false"
            )


def picture(size: tuple[int, int]) -> Image.Image:
    """Stripes and a disc, different for each size."""
    width, height = size
    image = Image.new("RGB", size, (width % 256, height % 256, (width * height) % 256))
    draw = ImageDraw.Draw(image)
    for x in range(0, width, 8 + height % 7):
        draw.line([(x, 0), (x, height)], fill=(0, (x * 5) % 256, 200), width=2)
    draw.ellipse([width // 4, height // 4, width // 2, height // 2], fill=(255, 255 - height % 256, 0))
    return image
