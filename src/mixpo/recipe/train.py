"""[train], [train.loss] and [train.lora]."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mixpo.objectives import OBJECTIVES
from mixpo.recipe.base import CHOOSES_STAGES, NOTHING, Decides, Table
from mixpo.recipe.errors import did_you_mean
from mixpo.recipe.sources import Source


class LossTable(Table):
    """Weights of the mixed loss (paper, section 4): w_p preference + w_q quality + w_g generation."""

    beta: Annotated[float, Decides("train")] = Field(default=0.1, gt=0)
    """A response's reward is beta times its log-ratio to the reference."""
    preference: Annotated[float, Decides("train")] = Field(default=0.8, ge=0)
    """w_p, of the preference term (DPO, or the term that replaces it)."""
    quality: Annotated[float, Decides("train")] = Field(default=0.2, ge=0)
    """w_q, of the BCO term."""
    generation: Annotated[float, Decides("train")] = Field(default=1.0, ge=0)
    """w_g, of the SFT term."""
    hold: Annotated[float, Decides("train", switches=("reference",))] = Field(default=0.0, ge=0)
    """w_h, of the hold term, which keeps the tokens of chosen responses near the reference except where a pair parts; 0 is off."""
    hold_width: Annotated[float, Decides("train")] = Field(default=0.3, gt=0)
    """Nats that a token may move before the pull of the hold term stops growing."""
    label_smoothing: Annotated[float, Decides("train")] = Field(default=0.1, ge=0, lt=0.5)
    """Assumed share of flipped pairs, for "cdpo" and "robust_dpo"."""
    reference_alpha: Annotated[float, Decides("train")] = Field(default=0.6, gt=0, le=1)
    """How far "tr_dpo" moves the reference toward the policy in each update; 1 is a hard update."""
    reference_every: Annotated[int, Decides("train")] = Field(default=1, ge=1)
    """Optimizer steps between these updates."""


Part = Literal["vision", "projector", "llm"]


class LoraTable(Table):
    """Train a LoRA adapter instead of the weights. The model is saved with the adapter merged, and the adapter is saved separately."""

    rank: Annotated[int, Decides("train")] = Field(default=16, ge=1)
    """Rank of the adapter matrices."""
    alpha: Annotated[float, Decides("train")] = Field(default=32.0, gt=0)
    """Scaling: the adapter output is multiplied by alpha / rank."""
    dropout: Annotated[float, Decides("train")] = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's inputs, from the second step on; the first step checks that policy and reference agree."""
    parts: Annotated[tuple[Part, ...], Decides("train")] = ("llm",)
    """Parts whose linear layers get an adapter."""
    modules: Annotated[tuple[str, ...], Decides("train")] = ()
    """Restrict to layers whose name ends like this, such as "q_proj"; empty means all but the output head."""

    @model_validator(mode="after")
    def _something(self) -> LoraTable:
        if not self.parts:
            raise ValueError("parts is empty, so there is nothing to train; name vision, projector or llm")
        return self


class WatchTable(Table):
    """In-training evaluation on a fixed set of questions: accuracy, length, repetition and truncation."""

    every: Annotated[int, NOTHING] = Field(default=50, ge=1)
    """Steps between evaluations; the last step is always evaluated."""
    count: Annotated[int, NOTHING] = Field(default=32, ge=1)
    """Number of questions, from the beginning of the set."""
    set: Annotated[str, NOTHING] = ""
    """Name of an evaluation set; empty means the first one."""


class GuardTable(Table):
    """Stops a training whose model degenerates, by greedy responses to a fixed set of questions."""

    every: Annotated[int, NOTHING] = Field(default=50, ge=1)
    """Steps between checks. The base model is checked before the first step, and the policy before every checkpoint."""
    count: Annotated[int, NOTHING] = Field(default=64, ge=1)
    """Number of questions, from the beginning of the set."""
    max_unparsable: Annotated[float, NOTHING] = Field(default=0.05, ge=0, le=1)
    """Largest share of responses without a final answer, failed ones included."""
    max_loops: Annotated[float, NOTHING] = Field(default=0.02, ge=0, le=1)
    """Largest share of responses that end in a repeated phrase."""
    max_truncated: Annotated[float, NOTHING] = Field(default=0.1, ge=0, le=1)
    """Largest share of responses that do not end before `evaluate.max_new_tokens`, with an answer or without."""
    set: Annotated[str, NOTHING] = ""
    """Name of an evaluation set; empty means the first one, or the questions of [source] if there is none."""


class WandbTable(Table):
    """Where Weights & Biases files a training, for trackers = ["wandb"]."""

    project: Annotated[str, NOTHING] = Field(default="mixpo", min_length=1)
    """Name of the project."""
    entity: Annotated[str | None, NOTHING] = None
    """User or team; unset uses your default one."""
    group: Annotated[str | None, NOTHING] = None
    """Group of runs, such as the name of an experiment; unset uses the name of the run directory."""
    folder: Annotated[str, NOTHING] = ""
    """Folder of its local files, relative to the recipe; empty means `logs/` in the run directory."""


class ReplayTable(Table):
    """Plain SFT rows, with or without images, that are mixed into the steps with the generation loss only, against forgetting."""

    source: Source
    """Where they come from, as in [source]. A row's response is its `rationale`, or else its `answer`; the question gets no prompt."""
    share: Annotated[float, Decides("train")] = Field(default=0.1, gt=0)
    """Rows per pair: 0.1 adds one row to every ten pairs of a step. They are shuffled, and start again when all have been used."""
    weight: Annotated[float, Decides("train")] = Field(default=1.0, gt=0)
    """Weight of their mean NLL per token in the loss of a step."""


class TrainTable(Table):
    """Preference optimization of the policy."""

    objective: Annotated[str, CHOOSES_STAGES] = "mpo"
    """A name from the table of objectives."""
    baselines: Annotated[tuple[str, ...], CHOOSES_STAGES] = ()
    """Further objectives, trained from the base model on the first round's pairs, for comparison."""
    rounds: Annotated[int, CHOOSES_STAGES] = Field(default=1, ge=1)
    """On-policy rounds: each samples from the previous round's model, builds pairs and trains on them."""
    loss: LossTable = Field(default_factory=LossTable)
    """Weights and constants of the loss."""
    learning_rate: Annotated[float, Decides("train")] = Field(default=5e-6, gt=0)
    """Peak learning rate, after the warm-up."""
    schedule: Annotated[Literal["cosine", "linear", "constant"], Decides("train")] = "cosine"
    """Learning rate schedule after the warm-up."""
    warmup: Annotated[float, Decides("train")] = Field(default=0.03, ge=0, lt=1)
    """Share of all steps used for linear warm-up."""
    optimizer: Annotated[Literal["adamw", "adamw_8bit"], Decides("train")] = "adamw"
    """"adamw_8bit" keeps the moments of AdamW in 8 bits: 2 bytes per trained parameter instead of 8. Requires the extra `bitsandbytes`."""
    weight_decay: Annotated[float, Decides("train")] = Field(default=0.05, ge=0)
    """AdamW weight decay, not applied to biases and norms."""
    epochs: Annotated[int, Decides("train")] = Field(default=1, ge=1)
    """Passes over all pairs."""
    batch_size: Annotated[int, Decides("train")] = Field(default=256, ge=1)
    """Pairs per optimizer step, over all ranks."""
    tokens_per_batch: Annotated[int, NOTHING] = Field(default=8192, ge=1)
    """Maximum tokens per forward pass, padding included; larger steps accumulate gradients."""
    pairs_per_group: Annotated[int, Decides("train")] = Field(default=0, ge=0)
    """How many pairs of a question stay together when pairs are shuffled; 0 keeps all together, which is fastest."""
    replay: ReplayTable | None = None
    """Unset: the steps hold pairs only."""
    max_length: Annotated[int, Decides("reference")] = Field(default=6144, ge=1)
    """Pairs with a longer prompt + response are dropped and counted; nothing is truncated."""
    max_grad_norm: Annotated[float, Decides("train")] = Field(default=1.0, gt=0)
    """Gradient norm clipping."""
    freeze: Annotated[tuple[Part, ...], Decides("train")] = ()
    """Parts that are not trained."""
    lora: LoraTable | None = None
    """Train an adapter only. Requires the extra `lora`."""
    reference: Annotated[Literal["stage", "online"], Decides("reference", "train")] = "stage"
    """How reference log-probs are computed: once, in a separate stage, or with one more forward pass in every step."""
    cache_vision: Annotated[bool, NOTHING] = False
    """Cache image features between epochs; requires frozen vision."""
    gradient_checkpointing: Annotated[bool, NOTHING] = False
    """Recompute activations: less memory for about a third more time."""
    liger: Annotated[bool, NOTHING] = False
    """Use Liger kernels for norms, rotary embeddings and gated layers. Requires the extra `liger` and an NVIDIA or AMD GPU."""
    compile: Annotated[bool, NOTHING] = False
    """Compile the decoder layers with torch.compile, in training and in the reference stage. Requires a C++ compiler."""
    save_every: Annotated[int, NOTHING] = Field(default=100, ge=1)
    """Steps between checkpoints."""
    save_total_limit: Annotated[int, NOTHING] = Field(default=2, ge=1)
    """How many of the newest checkpoints to keep. With 1 there is no fallback if the newest cannot be read."""
    log_every: Annotated[int, NOTHING] = Field(default=1, ge=1)
    """Steps between logged metrics, on screen and in the records."""
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], NOTHING] = ()
    """Additional experiment trackers."""
    wandb: WandbTable = Field(default_factory=WandbTable)
    """Project, entity, group and folder of Weights & Biases."""
    guard: GuardTable | None = None
    """Unset: no check for degeneration."""
    watch: WatchTable | None = None
    """Unset: no evaluation during training."""

    @model_validator(mode="after")
    def _known(self) -> TrainTable:
        names = (self.objective, *self.baselines)
        for name in (name for name in names if name not in OBJECTIVES):
            raise ValueError(f"unknown objective {name!r}{did_you_mean(name, OBJECTIVES)}; known: {', '.join(OBJECTIVES)}")
        if len(set(names)) != len(names):
            raise ValueError("objective and baselines must differ from each other")
        if self.loss.hold and not OBJECTIVES[self.objective].held:
            raise ValueError(
                f"objective {self.objective!r} has no preference or quality term for train.loss.hold to restrain; set train.loss.hold = 0"
            )
        moving = next((name for name in names if OBJECTIVES[name].moving_reference), "")
        if moving and self.reference != "online":
            raise ValueError(f'objective {moving!r} moves its reference, which no stage can know; set train.reference = "online"')
        if moving and self.lora and self.loss.reference_alpha < 1:
            raise ValueError(
                f"objective {moving!r} with train.lora can only replace the reference, because a mean of adapters is not the adapter of "
                "the mean; set train.loss.reference_alpha = 1 and train.loss.reference_every"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> TrainTable:
        if self.lora and self.freeze:
            raise ValueError(
                "freeze has no meaning with train.lora, which trains the adapter only; name the adapted parts in train.lora.parts"
            )
        if self.compile and self.lora and self.lora.dropout:
            raise ValueError("compile draws other random numbers for train.lora.dropout than without it; set train.lora.dropout = 0")
        if self.cache_vision and not self.sees_the_same:
            raise ValueError(
                'cache_vision needs frozen vision: set train.freeze = ["vision", "projector"], or remove both from train.lora.parts'
            )
        return self

    @model_validator(mode="after")
    def _trains_something(self) -> TrainTable:
        if {"vision", "projector", "llm"} <= set(self.freeze):
            raise ValueError("freeze names every part, so there is nothing to train; remove one")
        for name in (self.objective, *self.baselines):
            terms = [term for term in ("preference", "quality", "generation") if getattr(OBJECTIVES[name], term)]
            if not OBJECTIVES[name].single and not any(getattr(self.loss, term) for term in terms):
                raise ValueError(
                    f"objective {name!r}: all its weights in train.loss are 0 ({', '.join(terms)}), so there is nothing to learn"
                )
        return self

    @property
    def sees_the_same(self) -> bool:
        """Whether vision features stay as they are, because what computes them is not trained."""
        trained = {"vision", "projector", "llm"} - set(self.freeze) if self.lora is None else set(self.lora.parts)
        return trained == {"llm"}
