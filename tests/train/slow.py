"""Data for the tiny models of `architectures`, and the slow way to their log-probs: one sequence at a time, the model alone decides."""

from __future__ import annotations

from typing import Any

import torch
from train.architectures import Family, prompt

from mixpo.train.batch import Chunk
from mixpo.types import Group, ImageRef, Question
from mixpo.vlm.families import answer_type
from mixpo.vlm.prompt import EncodedPrompt


class Data:
    """Groups with 1, 0, 3 and 2 images and 3, 2, 4 and 1 responses, of different lengths, and their prompts.

    Two responses of the first group have a beginning in common; in the third group one response begins another one, and both have
    a shorter beginning in common with a third.
    """

    def __init__(self, family: Family, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.prompts: dict[str, EncodedPrompt] = {}
        self.chunks: list[Chunk] = []
        images = (1, 0, 3, 2) if family.picture else (0, 0, 0, 0)
        images = (1, 1, 3, 2) if family.whole_prompt else images
        for number, (count, responses) in enumerate(zip(images, (3, 2, 4, 1), strict=True)):
            self.prompts[f"q{number}"] = prompt(family, rng, count)
            lengths = torch.randint(1, 9, (responses,), generator=rng).tolist()
            tails = [tuple(torch.randint(10, 128, (length,), generator=rng).tolist()) for length in lengths]
            if number in (0, 2):
                tails[0] = tuple(torch.randint(10, 128, (12,), generator=rng).tolist())
                tails[1] = (*tails[0][:6], 9, *tails[1])
            if number == 2:
                tails[2] = tails[0][:11]
            refs = tuple(ImageRef(path="", digest=f"{number}-{place}") for place in range(count))
            asked = Question(id=f"q{number}", text="", images=refs)
            group = Group(question=asked, prompt="", responses=tuple(tails), pairs=())
            self.chunks.append(Chunk(group, tuple(range(responses)), ()))

    def get(self, group: Group) -> EncodedPrompt:
        return self.prompts[group.question.id]

    @property
    def factors(self) -> torch.Tensor:
        return torch.linspace(-1, 2, sum(len(chunk.responses) for chunk in self.chunks))


def naive(model: Any, one: EncodedPrompt, answer: tuple[int, ...]) -> torch.Tensor:
    """log pi(answer | prompt): the model alone decides about masks and positions."""
    tail = torch.tensor(answer)
    kinds = {
        name: torch.cat([value, torch.full_like(tail, answer_type(model) if name == "token_type_ids" else 0)])[None]
        for name, value in one.token_types.items()
    }
    logits = model(input_ids=torch.cat([one.ids, tail])[None], **one.features, **kinds).logits[0]
    total: torch.Tensor = logits[len(one.ids) - 1 : -1].log_softmax(-1)[torch.arange(len(tail)), tail].sum(dtype=torch.float64)
    return total


def slow(model: Any, data: Data) -> torch.Tensor:
    return torch.stack([naive(model, data.get(chunk.group), answer) for chunk in data.chunks for answer in chunk.group.responses])


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    noise = 1e-6 * max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        # Exactly zero gradients (a bias before a softmax) are rounding noise in both.
        gap = float((found[name] - gradient).norm())
        assert gap <= (1e-4 * float(gradient.norm()) if float(gradient.norm()) > noise else 2 * noise), name
