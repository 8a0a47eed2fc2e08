"""Which model a stage uses, and the one that is in memory. Models are loaded when first asked for and given back between stages."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpo.errors import ModelError, RunError
from mixpo.integrity import damages, recorded_below
from mixpo.recipe import ImageTable, ModelTable, PredictionsTable, Recipe, ServedModel, StageKind
from mixpo.run import Stage
from mixpo.vlm.folder import digests, find_adapter, find_model

if TYPE_CHECKING:
    from mixpo.vlm.load import Vlm


TRAINED = "model-"
"""How the folder of a trained model begins."""
SERVED = "served "
"""How the identity of a model begins that is known by its name at a server alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model by name.

    identity: what decides its weights. folder: where a trained one lies, None for the recipe's model; job: what trains it.
    served: where another model answers whose weights are not here; its identity is then its name there.
    predictions: where another tool generated the responses; its identity is then that of the file.
    """

    name: str
    identity: str
    folder: Path | None = None
    job: str = ""
    served: ServedModel | None = None
    predictions: PredictionsTable | None = None


def settings_of(recipe: Recipe, stage: StageKind, model: ModelRef) -> dict[str, Any]:
    """What the recipe and a model decide in a stage; the precision of the weights with the model's identity."""
    settings = recipe.deciding(stage)
    return {**settings.pop("model", {}), **settings, "model": model.identity}


def check_trained(folder: Path) -> None:
    """Compare all files of a trained model with the digests that its training recorded. Raises ModelError naming the first damaged one."""
    folder = folder.resolve()
    stage = Stage(folder.parent, folder.parent.name)
    records = recorded_below(stage.folder, manifest.files, folder) if (manifest := stage.manifest) is not None else {}
    for name, damage in damages(stage.folder, records).items():
        path = stage.folder / name
        raise ModelError(f"{path}: {damage}; `mixpo run` trains the model again", code="model-damaged", path=path)


class Models:
    """Loads the models of one command, one at a time."""

    def __init__(self, table: ModelTable, recipe_folder: Path, image: ImageTable, known: str = "") -> None:
        """known: identity of the recipe's model when the run last used it, for commands that only read the run once it is gone."""
        self.table = table
        self.image = image
        self.recipe_folder = recipe_folder
        self.known = known
        self.gone = ""
        self._held: tuple[ModelRef, Vlm] | None = None
        self._words: tuple[ModelRef, Vlm] | None = None
        self._base_model: ModelRef | None = None

    def base_model(self) -> ModelRef:
        """The recipe's model, known by a digest of its files and its adapter's. Raises ModelError when it is not there or incomplete.

        Where an earlier identity is known, `gone` then says so instead; whoever wants the model itself gets the error from `load`.
        """
        if self._base_model is None:
            try:
                digest = digests(find_model(self.table, self.recipe_folder), find_adapter(self.table, self.recipe_folder))
                identity = f"{digest.weights}-{digest.template}"
            except ModelError as error:
                if not self.known:
                    raise
                identity, self.gone = self.known, str(error)
            self._base_model = ModelRef(name="base", identity=identity)
        return self._base_model

    def load(self, ref: ModelRef) -> Vlm:
        """The model itself; the one that was held before is let go."""
        if self._held is not None and self._held[0] == ref:
            return self._held[1]
        self._held = (ref, self.fresh(ref))
        return self._held[1]

    def words(self, ref: ModelRef) -> Vlm:
        """The model's tokens: the model itself where it is in memory, else everything of it but the weights."""
        if self._held is not None and self._held[0] == ref:
            return self._held[1]
        if self._words is None or self._words[0] != ref:
            from mixpo.vlm.tokenizer_only import load_tokenizer_only

            self._words = (ref, self._tiled(load_tokenizer_only(self.table, self.recipe_folder, ref.folder)))
        return self._words[1]

    def folder(self, ref: ModelRef) -> Path:
        """Where the files of a model are, for engines that load it themselves. Raises ModelError when an adapter belongs to it."""
        if ref.folder is None and find_adapter(self.table, self.recipe_folder) is not None:
            raise ModelError(
                "model.adapter: servers and vLLM would load the model without it; merge the adapter into a model folder first",
                code="adapter-not-merged",
                key="model.adapter",
            )
        self._check(ref)
        return ref.folder or find_model(self.table, self.recipe_folder)

    def fresh(self, ref: ModelRef, unread: bool = False) -> Vlm:
        """A copy of its own for who changes the weights; nothing else stays in memory. unread: without its weights."""
        from mixpo.vlm.load import load
        from mixpo.vlm.shapes import load_unread
        from mixpo.vlm.trial import refuse_unfit

        self.release()
        self._check(ref)
        if unread:
            return self._tiled(load_unread(self.table, self.recipe_folder, ref.folder))
        vlm = self._tiled(load(self.table, self.recipe_folder, ref.folder))
        refuse_unfit(vlm)
        return vlm

    def _check(self, ref: ModelRef) -> None:
        """Compare a model that this run trained, or that the recipe takes from another run, with the digests of its training."""
        if ref.folder is not None:
            check_trained(ref.folder)
            return
        for base in (find_model(self.table, self.recipe_folder), find_adapter(self.table, self.recipe_folder)):
            if base is not None and base.resolve().name.startswith(TRAINED):
                with suppress(RunError):  # a manifest.json of something else
                    check_trained(base)

    def _tiled(self, vlm: Vlm) -> Vlm:
        from mixpo.vlm.load import limit_tiles, tile_setting

        limit_tiles(vlm.processor, self.image.tiles)
        if any(limits.tiles for limits in self.image.limits):
            tile_setting(vlm.processor)  # an error now, not at the first such question
        return vlm

    def release(self) -> None:
        """Let go of the model in memory."""
        self._held = None
