"""[train], [train.loss] and [train.lora]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mixpo.objectives import OBJECTIVES
from mixpo.recipe.base import Table
from mixpo.recipe.errors import did_you_mean


class LossTable(Table):
    """Weights of the mixed loss (paper, section 4): w_p preference + w_q quality + w_g generation."""

    beta: float = Field(default=0.1, gt=0)
    """A response's reward is beta times its log-ratio to the reference."""
    preference: float = Field(default=0.8, ge=0)
    """w_p, of the preference term (DPO, or what the objective has in its place)."""
    quality: float = Field(default=0.2, ge=0)
    """w_q, of the BCO term."""
    generation: float = Field(default=1.0, ge=0)
    """w_g, of the SFT term."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """The share of pairs that is taken to be the wrong way round, in "cdpo" and "robust_dpo"; other objectives do not use it."""
    reference_alpha: float = Field(default=0.6, gt=0, le=1)
    """How far "tr_dpo" moves the reference towards the policy each time; 1 makes it the policy (a hard update)."""
    reference_every: int = Field(default=1, ge=1)
    """Optimizer steps between two of these moves."""


Part = Literal["vision", "projector", "llm"]


class LoraTable(Table):
    """Train a low-rank adapter in place of the weights. The trained model is saved with the adapter merged, and the adapter beside it."""

    rank: int = Field(default=16, ge=1)
    """Width of the two thin matrices that each layer gets."""
    alpha: float = Field(default=32.0, gt=0)
    """What the adapter adds is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapter's inputs, from the second step on: the first one checks that policy and reference are equal."""
    parts: tuple[Part, ...] = ("llm",)
    """Parts whose linear layers get an adapter."""
    modules: tuple[str, ...] = ()
    """Of these, only layers with such a name (the end of it, as in "q_proj"); empty: all but the output head."""

    @model_validator(mode="after")
    def _something(self) -> LoraTable:
        if not self.parts:
            raise ValueError("parts is empty, so there is nothing to train; name vision, projector or llm")
        return self


class WatchTable(Table):
    """Answers to a fixed held-out set while the model is trained: accuracy, length, repetition and cut answers over the steps."""

    every: int = Field(default=50, ge=1)
    """Steps between two looks; the last step is always looked at."""
    count: int = Field(default=32, ge=1)
    """The first so many questions of the set."""
    set: str = ""
    """Name of an evaluation set; empty means the first one."""


class TrainTable(Table):
    """Preference optimization of the policy."""

    objective: str = "mpo"
    """A name from the table of objectives."""
    baselines: tuple[str, ...] = ()
    """Further objectives trained on the first round's pairs from the same start, to compare with."""
    rounds: int = Field(default=1, ge=1)
    """On-policy rounds: each samples from the last round's model, builds pairs and trains on them."""
    loss: LossTable = LossTable()
    """Weights and constants of the loss."""
    learning_rate: float = Field(default=5e-6, gt=0)
    """The highest one, after the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of all steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Of AdamW; biases and norms have none."""
    epochs: int = Field(default=1, ge=1)
    """How often all pairs are seen."""
    batch_size: int = Field(default=256, ge=1)
    """Pairs in one optimizer step."""
    tokens_per_batch: int = Field(default=8192, ge=1)
    """Tokens that pass through the model at once, padding included; larger steps accumulate gradients."""
    pairs_per_group: int = Field(default=0, ge=0)
    """At most this many pairs of a question stay together when their order is drawn; 0 keeps all, which is fastest."""
    max_length: int = Field(default=6144, ge=1)
    """Pairs with a longer prompt + response are left out, and counted. Nothing is ever cut."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are clipped to this length."""
    freeze: tuple[Part, ...] = ()
    """Parts that keep their weights."""
    lora: LoraTable | None = None
    """Train an adapter only. Needs the extra `lora`."""
    reference: Literal["stage", "online"] = "stage"
    """Where log-probs of the reference come from: a stage of its own, once for all trainings, or one more forward pass in every step."""
    cache_vision: bool = False
    """Keep the features of frozen vision in memory from one epoch to the next."""
    gradient_checkpointing: bool = False
    """Less memory for about a third more time."""
    liger: bool = False
    """Kernels of Liger for norms, rotary positions and gated layers. Needs the liger extra and an NVIDIA or AMD GPU."""
    save_every: int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    save_total_limit: int = Field(default=2, ge=1)
    """Checkpoints that are kept: the newest ones. With 1 there is none to go back to when the newest cannot be read."""
    log_every: int = Field(default=1, ge=1)
    """Steps between lines of metrics, on screen and in the records."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides the run's own records."""

    watch: WatchTable | None = None
    """Unset watches nothing."""

    @model_validator(mode="after")
    def _known(self) -> TrainTable:
        names = (self.objective, *self.baselines)
        for name in (name for name in names if name not in OBJECTIVES):
            raise ValueError(f"unknown objective {name!r}{did_you_mean(name, OBJECTIVES)}; known: {', '.join(OBJECTIVES)}")
        if len(set(names)) != len(names):
            raise ValueError("objective and baselines must differ from each other")
        moving = next((name for name in names if OBJECTIVES[name].moving), "")
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
                "freeze has no meaning beside train.lora, which trains the adapter only; name the adapted parts in train.lora.parts"
            )
        if self.cache_vision and not self.sees_the_same:
            raise ValueError(
                'cache_vision needs frozen vision: set train.freeze = ["vision", "projector"], or leave both out of train.lora.parts'
            )
        return self

    @model_validator(mode="after")
    def _trains_something(self) -> TrainTable:
        if {"vision", "projector", "llm"} <= set(self.freeze):
            raise ValueError("freeze names every part, so there is nothing to train; leave one out")
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
