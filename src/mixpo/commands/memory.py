"""Memory of the training that a recipe asks for, on one rank. From the configuration of its model and one question; loads no weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mixpo.commands.rates import ANSWER_SHARE
from mixpo.errors import ModelError
from mixpo.progress import Silent
from mixpo.run import Run
from mixpo.stages import prompting
from mixpo.stages.job import Context
from mixpo.stages.reading import reading_of

if TYPE_CHECKING:
    from mixpo.train.memory_plan import MemoryPlan
    from mixpo.vlm.load import Vlm
    from mixpo.vlm.prompt import EncodedPrompt


def training_memory(context: Context) -> MemoryPlan:
    """The planned memory with rows of `train.tokens_per_batch` tokens. Raises ModelError for a family that cannot be planned."""
    from mixpo.train.memory_plan import plan_memory
    from mixpo.vlm.families import MODEL_ERRORS, described
    from mixpo.vlm.shapes import load_shapes

    recipe = context.recipe
    vlm = load_shapes(recipe.model, context.recipe_folder)
    prompt = _pictured_prompt(context, vlm)
    responses = int(2 * ANSWER_SHARE * recipe.sample.max_new_tokens)  # of one pair
    prompts = 0 if prompt is None else max(1, recipe.train.tokens_per_batch // (len(prompt) + responses))
    try:
        return plan_memory(vlm, recipe.train, prompts, prompt)
    except MODEL_ERRORS as error:
        raise ModelError(
            f"{vlm.model.config.model_type}: its memory cannot be planned without weights ({described(error)}); run `mixpo plan` without "
            "--memory",
            code="memory-not-planned",
            path=vlm.folder,
        ) from error


def _pictured_prompt(context: Context, vlm: Vlm) -> EncodedPrompt | None:
    """The first question of [source] with an image, as the model gets it."""
    from mixpo.train.prompt_cache import PromptCache

    recipe = context.recipe
    if recipe.source is None:
        return None
    with TemporaryDirectory(prefix="mixpo-dry-") as folder:
        elsewhere = replace(context, run=Run(Path(folder)), progress=Silent())
        blocks = reading_of(elsewhere, recipe.source).blocks()
        question = next((question for block in blocks for question in block if question.images), None)
        if question is None:
            return None
        text = prompting.prompts_of(recipe, question)[0].render(question.text)
        return PromptCache(vlm, recipe.image).of(prompting.with_system(recipe.prompt, question), text)
