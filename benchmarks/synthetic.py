"""A random InternVL of any size and made-up groups for it, so that benchmarks need no downloads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from mixpo.train.batch import Chunk, make_chunk
from mixpo.types import Group, Question
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt

IMAGE = 1


@dataclass(frozen=True)
class Size:
    """width, layers: of the text model. vision: width of the vision tower. side: of the square image, 14 pixels to a patch."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    vision: int
    vision_layers: int
    side: int

    @property
    def image_tokens(self) -> int:
        """Four patches to a token."""
        return (self.side // 28) ** 2


SIZES = {
    "tiny": Size(width=64, layers=2, heads=4, vocabulary=256, vision=64, vision_layers=1, side=56),
    "demo": Size(width=192, layers=4, heads=6, vocabulary=512, vision=96, vision_layers=3, side=56),
    "quick": Size(width=256, layers=3, heads=4, vocabulary=2048, vision=128, vision_layers=2, side=448),
    "small": Size(width=512, layers=4, heads=8, vocabulary=4096, vision=256, vision_layers=4, side=448),
    "1b": Size(width=1024, layers=40, heads=16, vocabulary=151_680, vision=1024, vision_layers=24, side=448),
    "8b": Size(width=4096, layers=40, heads=32, vocabulary=151_680, vision=1024, vision_layers=24, side=448),
}


def model_of(size: Size, seed: int = 0) -> Vlm:
    """The model with random weights, in float32."""
    text = {
        "model_type": "qwen2",
        "vocab_size": size.vocabulary,
        "hidden_size": size.width,
        "intermediate_size": 3 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": size.vision,
        "intermediate_size": 4 * size.vision,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": max(1, size.vision // 64),
        "image_size": [size.side, size.side],
        "patch_size": [14, 14],
    }
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(InternVLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE))
    processor = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    return Vlm(model.train(), processor, torch.device("cpu"), "", "", (2,))


class Data:
    """Questions of one image and `prompt` tokens with it, and their responses.

    lengths: tokens of the responses of every question. pairs: (chosen, rejected) of every question. alike: tokens that the second
    of two responses begins with in common with the first.
    """

    def __init__(
        self,
        size: Size,
        count: int,
        prompt: int,
        lengths: Sequence[int],
        pairs: Sequence[tuple[int, int]],
        spread: float = 0.0,
        alike: int = 0,
    ) -> None:
        rng = random.Random(0)
        self.prompts: dict[str, EncodedPrompt] = {}
        self.chunks: list[Chunk] = []

        def words(number: int) -> list[int]:
            return [rng.randrange(10, size.vocabulary) for _ in range(number)]

        for number in range(count):
            name = f"q{number}"
            ids = words(4) + [IMAGE] * size.image_tokens
            ids += words(max(1, round(prompt * rng.uniform(1 - spread, 1 + spread)) - len(ids)))
            pixels = torch.randn(1, 3, size.side, size.side, generator=torch.Generator().manual_seed(number))
            self.prompts[name] = EncodedPrompt(torch.tensor(ids), {"pixel_values": pixels})
            tails = [tuple(words(max(1, round(length * rng.uniform(1 - spread, 1 + spread))))) for length in lengths]
            for second in range(1, len(tails), 2):
                tails[second] = tails[second - 1][:alike] + tails[second][alike:]
            group = _group(name, tuple(tails), pairs)
            self.chunks.append(make_chunk(group, group.pairs))

    def get(self, group: Group) -> EncodedPrompt:
        """The prompt of a group."""
        return self.prompts[group.question.id]

    def length(self, group: Group) -> int:
        """Tokens of a group's prompt."""
        return len(self.get(group))


def _group(name: str, tails: tuple[tuple[int, ...], ...], pairs: Sequence[tuple[int, int]]) -> Group:
    return Group(question=Question(id=name, text=""), prompt="", responses=tails, pairs=tuple(pairs), reference=(0.0,) * len(tails))
