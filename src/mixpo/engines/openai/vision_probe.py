"""Whether a server passes images to its model, with as many image tokens as in training. Found by test requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from mixpo.engines.openai.client import RequestError
from mixpo.engines.openai.protocol import Completion, data_url, encode_png
from mixpo.engines.tokens import TokenCodec
from mixpo.errors import EngineError
from mixpo.types import IMAGE_TOKEN

MAX_PLACEHOLDER = 3
"""An image that reaches the model takes more prompt tokens than this."""
SHAPES = ((96, 96), (320, 80), (64, 200))
"""Sizes (width, height) of the test images: square, wide and tall are cut into tiles differently."""
NOISE = 1e-3
"""Log-probs of one request sent twice may differ by this much, and by more on servers with dynamic batches."""

Ask = Callable[[str, Sequence[str], float], Awaitable[Completion]]
"""From a prompt, the data URLs of its images and a temperature to a short completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question of the run with its images as data URLs; all examples have equally many."""

    prompt: str
    images: tuple[str, ...]


@dataclass(kw_only=True)
class VisionProbe:
    """One server's use of images. codec: tokens of the model that it should hold, or None. warm: the temperature of sampled tries.

    notes: see `Capabilities`.
    """

    url: str
    ask: Ask
    codec: TokenCodec | None
    warm: float
    notes: list[str] = field(default_factory=list)

    async def run(self, examples: Sequence[Example]) -> str:
        """ "yes", or "no: why". Raises EngineError when images are ignored or tiled differently from training."""
        try:
            for size in SHAPES if self.codec is not None else ():
                await self._compare_length(size)
            # Greedy first; a model that is sure of itself may respond to all images in the same way, and differ only when sampled.
            differ = [await self._differ(examples, 0.0)]
            if not differ[0]:
                differ.append(await self._differ(examples, self.warm))
            unclear = True not in differ and None in differ
            if unclear and await self._counts_images(examples[0]):
                self.notes.append("its answers vary by themselves; only its count of prompt tokens shows that images arrive")
                return "yes"
        except RequestError as error:
            return f"no: {error}"
        if True not in differ:
            raise EngineError(
                f"{self.url}: different images give the same answer to {examples[0].prompt[:60]!r}; the server does not see "
                "images (a text model, or a chat template that drops them)",
                code="server-ignores-images",
            )
        return "yes"

    async def _differ(self, examples: Sequence[Example], temperature: float) -> bool | None:
        """Whether other images change the response by more than a repeated request does; None where that cannot be told.

        One request after the other: some servers keep one seed for all of them.
        """
        prompt, shown = examples[0].prompt, [example.images for example in examples]
        synthetic = [tuple(data_url(encode_png(pattern_image(size)), "png") for _ in shown[0]) for size in SHAPES]
        replies = [await self.ask(prompt, images, temperature) for images in (*shown, *synthetic, shown[0])]
        if not all(reply.choices for reply in replies):
            raise RequestError("no usable answer to an image")
        one, *others, again = [reply.choices[0] for reply in replies]
        if one.logprobs and again.logprobs and all(other.logprobs for other in others):
            noise = abs(one.logprobs[0] - again.logprobs[0])
            return any(abs(one.logprobs[0] - other.logprobs[0]) > max(NOISE, 5 * noise) for other in others)
        if one.text != again.text or not any(choice.text for choice in (one, *others)):
            return None
        return any(other.text != one.text for other in others)

    async def _counts_images(self, example: Example) -> bool:
        """Whether the server reports more prompt tokens with images than without."""
        shown, bare = await self.ask(example.prompt, example.images, 0.0), await self.ask(example.prompt.replace(IMAGE_TOKEN, ""), (), 0.0)
        return bare.prompt_tokens >= 0 and shown.prompt_tokens > bare.prompt_tokens + MAX_PLACEHOLDER

    async def _compare_length(self, size: tuple[int, int]) -> None:
        """Compare the prompt's length at the server and in training: both must resize and tile in the same way."""
        image = pattern_image(size)
        prompt = f"{IMAGE_TOKEN}\nDescribe the picture."
        reply = await self.ask(prompt, [data_url(encode_png(image), "png")], 0.0)
        assert self.codec is not None
        expected = len(self.codec.prompt_ids(prompt, [image])) if reply.prompt_tokens >= 0 else -1
        if expected >= 0 and reply.prompt_tokens != expected:
            raise EngineError(
                f"{self.url}: a picture of {size[0]} x {size[1]} pixels makes a prompt of {reply.prompt_tokens} tokens there "
                f"and of {expected} in training; give the server the model folder, chat template and image limits of model.path, or set "
                "sample.server.same_model = false",
                code="server-image-tokens",
            )


def pattern_image(size: tuple[int, int]) -> Image.Image:
    """Stripes and a disc, different for each size."""
    width, height = size
    image = Image.new("RGB", size, (width % 256, height % 256, (width * height) % 256))
    draw = ImageDraw.Draw(image)
    for x in range(0, width, 8 + height % 7):
        draw.line([(x, 0), (x, height)], fill=(0, (x * 5) % 256, 200), width=2)
    draw.ellipse([width // 4, height // 4, width // 2, height // 2], fill=(255, 255 - height % 256, 0))
    return image
