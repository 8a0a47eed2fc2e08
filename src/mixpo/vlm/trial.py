"""Runs a model on a prompt with an image and one without, so that a family which does not fit is one sentence before any work starts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image

from mixpo.errors import MixpoError, ModelError
from mixpo.vlm.families import described
from mixpo.vlm.inputs import single_inputs
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import EncodedPrompt, encode

TRIAL_SIDE = 224
"""Width and height of the image, noise, in pixels."""
TEXT, PICTURED = "What is it?", "<image>\nWhat is it?"


def trial_problems(vlm: Vlm, text: str) -> Iterator[str]:
    """What is wrong with the logits of `TEXT` or `PICTURED`: also what numbers in config.json (a rope_theta or eps of 0) do to them."""
    try:
        finite = bool(torch.isfinite(_logits(vlm, text)).all())
    except MixpoError as error:
        yield str(error)
    except Exception as error:  # numbers of a stranger's config.json make the model raise anything
        yield _unsupported(vlm, text, error)
    else:
        if not finite:
            yield f"the model gives NaN or infinite logits for {_name(text)}; check the numbers in config.json, or model.dtype"


def refuse_unfit(vlm: Vlm) -> None:
    """Raise ModelError for a family whose processor or forward pass fails, with its name, what fails and what to do.

    What mixpo itself refuses about a prompt (a template without images, say) is not raised here: it need not concern the data. For the
    same reason a family that takes no prompt without an image is not refused as long as it takes one with an image.
    """
    failed: dict[str, Exception] = {}
    for text in (PICTURED, TEXT):
        try:
            _logits(vlm, text)
        except torch.OutOfMemoryError:
            return
        except Exception as error:  # as above
            failed[text] = error
        else:
            break
    for text, cause in failed.items():
        if not isinstance(cause, MixpoError) and (text == PICTURED or PICTURED in failed):
            raise ModelError(_unsupported(vlm, text, cause), code="family-not-supported", path=vlm.folder) from cause


def trial_prompt(vlm: Vlm) -> EncodedPrompt | None:
    """A prompt with an image for a model whose data have none; None where its processor makes none."""
    try:
        return _encoded(vlm, PICTURED)
    except Exception:  # as above; whoever needs it says so
        return None


def _encoded(vlm: Vlm, text: str) -> EncodedPrompt:
    images = [Image.effect_noise((TRIAL_SIDE, TRIAL_SIDE), 60).convert("RGB")] if text == PICTURED else []
    return encode(vlm, text, images)


@torch.inference_mode()
def _logits(vlm: Vlm, text: str) -> torch.Tensor:
    logits: torch.Tensor = vlm.model(**single_inputs(vlm, _encoded(vlm, text))).logits
    return logits


def _name(text: str) -> str:
    return f"a prompt {'with' if text == PICTURED else 'without'} an image"


def _unsupported(vlm: Vlm, text: str, error: Exception) -> str:
    return (
        f"{vlm.model.config.model_type}: {_name(text)} fails with {described(error)}; this family, or a number in its configuration "
        "files, is not supported: compare the files with the published model, or choose a family of docs/families.md"
    )
