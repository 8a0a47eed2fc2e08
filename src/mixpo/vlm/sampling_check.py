"""Checks sampling on real prompts: the log-probs of generated tokens must be those of the family's own forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixpo.errors import ModelError
from mixpo.vlm.families import MODEL_ERRORS, described
from mixpo.vlm.generate import TokenSampling, generate
from mixpo.vlm.inputs import single_inputs
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt

STEPS = 6
"""Tokens that the check generates for each prompt."""
JOINED_TOLERANCE = {torch.float32: 1e-3}
"""Largest difference of a response's mean log-prob per token with which prompts may be sampled together; `ROUGH` in shorter types."""
ROUGH = 0.05
REFUSED = 0.5
"""A larger difference in prompts that are sampled alone refuses the family: no rounding reaches it."""


@torch.inference_mode()
def why_not_joined(vlm: Vlm, prompts: Sequence[EncodedPrompt]) -> str:
    """Why these prompts cannot be sampled in one batch, "" if they can. Raises ModelError for a family that cannot be sampled alone."""
    if len(prompts) > 1:
        try:
            gap = _gap(vlm, prompts)
            if gap <= JOINED_TOLERANCE.get(next(vlm.model.parameters()).dtype, ROUGH):
                return ""
            reason = f"in a batch, log-probs of sampled tokens change by {gap:.2g} per token"
        except MODEL_ERRORS as error:
            reason = f"a batch fails with {described(error)}"
    else:
        reason = ""
    for prompt in prompts:
        refuse_unsampled(vlm, prompt)
    return reason


def refuse_unsampled(vlm: Vlm, prompt: EncodedPrompt) -> None:
    """Raise ModelError when tokens sampled for one prompt have other log-probs than the family's own forward pass gives them."""
    what = "a prompt with an image" if prompt.features else "a prompt without an image"
    try:
        gap = _gap(vlm, [prompt])
    except torch.OutOfMemoryError:
        return  # the engine itself says how much fits
    except MODEL_ERRORS as error:
        raise ModelError(
            f"{vlm.model.config.model_type}: sampling for {what} fails with {described(error)}; "
            "this family is not supported, choose one of docs/families.md",
            code="family-sampling-fails",
        ) from error
    if not gap <= REFUSED:  # true for NaN
        raise ModelError(
            f"{vlm.model.config.model_type}: tokens sampled for {what} have other log-probs than in the model's own forward pass "
            f"(by {gap:.2g} per token); this family is not supported, choose one of docs/families.md",
            code="family-sampling-differs",
        )


def _gap(vlm: Vlm, prompts: Sequence[EncodedPrompt]) -> float:
    """The largest difference of a response's mean log-prob per token, between greedy sampling together and each response alone."""
    numbers = torch.zeros(len(prompts), STEPS)
    sampled = generate(vlm, prompts, [()] * len(prompts), range(len(prompts)), numbers, TokenSampling(temperature=0))
    gaps = [
        (torch.tensor(one.logprobs) - single_logps(vlm, prompt, one.ids).cpu()).mean().abs()
        for prompt, one in zip(prompts, sampled, strict=True)
    ]
    return float(torch.stack(gaps).max())


def single_logps(vlm: Vlm, prompt: EncodedPrompt, tail: Sequence[int]) -> Tensor:
    """(tokens of `tail`,) log-probs from the family's own forward pass over one prompt and its response."""
    logits = vlm.model(**single_inputs(vlm, prompt, tail)).logits[0, len(prompt) - 1 : -1].float()
    logps: Tensor = logits.log_softmax(-1).gather(-1, torch.tensor(tail, device=logits.device)[:, None])[:, 0]
    return logps
