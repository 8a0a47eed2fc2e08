"""Opens and checks everything that training needs; the loop is in `mixpo.train.loop`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule

from mixpo.errors import MissingExtra, TrainError
from mixpo.masking import masked
from mixpo.progress import Progress, Silent
from mixpo.recipe import ImageTable, TrainTable
from mixpo.train.adapters import can_stay_unread, prepare_trainable
from mixpo.train.batch import TRIED, Batch, Chunk, Layout, find_dummy
from mixpo.train.checkpoint import Checkpoint, CheckpointWriter, TrainState, find_checkpoint
from mixpo.train.compiled import require_compiler
from mixpo.train.group_data import NO_GROUPS, Groups, PairedGroups
from mixpo.train.layout_check import TOGETHER, agree, check_sample, choose_layout, compile_layers
from mixpo.train.logps import Scorer
from mixpo.train.losses import LossWeights, loss_weights
from mixpo.train.metrics import EvaluatePolicy, MetricsFile
from mixpo.train.model import PartSize, build_optimizer, checkpoint_activations, compute_dtype, refuse_dropout, use_liger
from mixpo.train.online_reference import OnlineReference
from mixpo.train.parallel import Parallel, open_accelerator, strategy_of, wrap_model
from mixpo.train.prompt_cache import PromptCache
from mixpo.train.schedule import Schedule
from mixpo.train.sharding import shard_model, weight_flags
from mixpo.train.vision_cache import VisionCache, open_vision_cache
from mixpo.types import content_id
from mixpo.vlm.load import Vlm
from mixpo.vlm.quantization import described


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What to train, on what data, and where to write it.

    vlm: the policy, changed in place; must be the reference model that scored `groups`, unless `table.reference` is "online".
    objective: a key of OBJECTIVES. folder: of checkpoints and metrics. output: folder of the trained model. logs: of trackers.
    wandb_folder: of the files of Weights & Biases; without it `logs`. round: of the recipe, a key of random numbers.
    reference_layout: of the reference stage's log-probs, "" where unknown.
    replay: SFT rows in the order in which the steps use them (see `mixpo.train.replay`).
    label: run name in trackers. watch: in-training evaluation (see `mixpo.train.measure.evaluate_policy`).
    guard: the same on the questions of `table.guard` (see `mixpo.train.guards.check_degeneration`).
    """

    vlm: Vlm
    groups: PairedGroups
    table: TrainTable
    objective: str
    images: ImageTable
    folder: Path
    output: Path
    logs: Path
    wandb_folder: Path | None = None
    replay: Groups = NO_GROUPS
    seed: int = 0
    round: int = 1
    reference_layout: str = ""
    label: str = "train"
    watch: EvaluatePolicy | None = None
    guard: EvaluatePolicy | None = None

    @property
    def schedule(self) -> Schedule:
        """The optimizer steps."""
        return Schedule(
            pair_counts=self.groups.sizes["pairs"],
            batch_size=self.table.batch_size,
            epochs=self.table.epochs,
            seed=self.seed,
            pairs_per_group=self.table.pairs_per_group,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the result, except the data."""
        return {
            "objective": self.objective,
            "seed": self.seed,
            "model": self.vlm.digest,
            **({"quantization": self.vlm.quantization} if self.vlm.quantization else {}),
            "template": self.vlm.template_digest,
            "image": self.images.deciding("train"),
            "train": self.table.deciding("train"),
        }


@dataclass(kw_only=True)
class Session:
    """An opened training. parallel: the wrapped model; `job.vlm.model` is the same one, unwrapped.

    dummy: chunk of a rank without work or without images (see `find_dummy`). zero_matrices: trained matrices that are all zero before
    the first step. online: the reference, where its log-probs are computed in the training step. vision_cache: if features are cached.
    """

    job: TrainJob
    parallel: Parallel
    progress: Progress
    schedule: Schedule
    weights: LossWeights
    prompts: PromptCache
    layout: Layout
    precision: torch.dtype
    dtypes: Mapping[str, torch.dtype]
    parts: Sequence[PartSize]
    dummy: Chunk
    zero_matrices: frozenset[str]
    state: TrainState
    checkpoints: CheckpointWriter
    metrics: MetricsFile
    online: OnlineReference | None
    vision_cache: VisionCache | None

    @property
    def accelerator(self) -> Accelerator:
        """Devices, ranks and trackers."""
        return self.parallel.accelerator

    @property
    def scorer(self) -> Scorer:
        """The scorer without what the launch wraps around it."""
        scorer: Scorer = self.accelerator.unwrap_model(self.parallel.scorer)
        return scorer

    @property
    def main(self) -> bool:
        """Whether this is the main process."""
        return self.parallel.main

    def complete(self, batch: Batch, chunks: Sequence[Chunk]) -> Batch:
        """The batch with cached vision features and the online reference's log-probs, where used."""
        if self.vision_cache is not None:
            batch = self.vision_cache.fill(batch, chunks)
        return batch if self.online is None else self.online.fill(self.scorer, batch)


def open_session(job: TrainJob, progress: Progress) -> Session:
    """Check, freeze, build, and resume from the newest checkpoint. Raises TrainError or MissingExtra."""
    weights = _check(job)
    accelerator = _accelerator(job)
    progress = progress if accelerator.is_main_process else Silent()
    vlm = job.vlm
    vlm.device = accelerator.device
    prompts = PromptCache(vlm, job.images)
    sample = check_sample(job.groups[number] for number in job.groups.sample)
    prompt = prompts.sample([chunk.group for chunk in sample])
    if vlm.unread is not None and (strategy_of(accelerator) != "fsdp2" or not can_stay_unread(vlm, job.table, prompt)):
        vlm.model, vlm.unread = vlm.unread.whole(), None
    model = vlm.model
    if vlm.unread is None:
        model.to(vlm.device)
    model.train()
    refuse_dropout(model)
    if job.table.liger:
        use_liger(model, vlm.device)
    parts, dtypes = prepare_trainable(vlm, job.table, job.seed, prompt)
    progress.say(f"{job.objective}: {'; '.join(str(part) for part in parts)}")
    if quantized := described(model):
        progress.say(f"{job.objective}: {quantized}")
    online = OnlineReference(model, job.objective, job.table.loss) if job.table.reference == "online" else None
    scorer, meta_copy = Scorer(model, "single", compute_dtype(dtypes)), None
    if strategy_of(accelerator) == "fsdp2":
        meta_copy, dtypes = shard_model(accelerator, scorer, vlm.unread)
        vlm.unread = None
    layout, note = choose_layout(vlm, sample, prompts.get, scorer.precision, gradients=True, scorer=scorer)
    layout, note = agree(layout, note, job.reference_layout)
    scorer.layout = layout
    progress.say(f"{job.objective}: {note}")
    if layout == "single" and strategy_of(accelerator) != "ddp":
        raise TrainError(
            f"{vlm.model.config.model_type}: {note}; ranks that share a model cannot run these, launch it as plain data parallel",
            code="layout-needs-whole-model",
        )
    vision_cache, note = None, ""
    if job.table.cache_vision:
        vision_cache, note = open_vision_cache(vlm, job.images, prompts.get, layout, scorer.precision, sample[:TOGETHER])
    if note:
        progress.say(f"{job.objective}: {note}")
    if job.table.gradient_checkpointing:
        checkpoint_activations(model, on=True)
    if job.table.compile:
        compiled = compile_layers(vlm, sample, prompts.get, scorer, layout, gradients=True)
        progress.say(f"{job.objective}: {compiled.news()}")
    if isinstance(scorer, FSDPModule):
        scorer.reshard()  # what the check gathered
    matrices = [(name, value) for name, value in model.named_parameters() if value.requires_grad and value.ndim >= 2]
    _, alive = weight_flags(accelerator, [value for _, value in matrices])
    zero_matrices = frozenset(name for (name, _), any_rank in zip(matrices, alive, strict=True) if not any_rank)
    state, parallel = _resume(job, accelerator, progress, scorer, online, meta_copy)
    return Session(
        job=job,
        parallel=parallel,
        progress=progress,
        schedule=job.schedule,
        weights=weights,
        prompts=prompts,
        layout=layout,
        precision=scorer.precision,
        dtypes=dtypes,
        parts=parts,
        dummy=find_dummy([job.groups[number] for number in job.groups.smallest_prompts(TRIED)], prompts.length),
        zero_matrices=zero_matrices,
        state=state,
        checkpoints=CheckpointWriter(job.folder / "checkpoints", job.table.save_total_limit, parallel, progress.say),
        metrics=_metrics(job, accelerator, state),
        online=online,
        vision_cache=vision_cache,
    )


def _check(job: TrainJob) -> LossWeights:
    """The checks that need no model; returns the loss weights."""
    if job.schedule.pairs == 0:
        raise TrainError(
            f"no pairs to train {job.objective} on; see in the pair stage why, or add questions that the model gets right at times",
            code="no-pairs",
        )
    if job.table.compile:
        require_compiler(job.vlm.device)
    index = job.groups.sizes
    unscored = index["unscored"] & (index["pairs"] > 0) & (job.table.reference == "stage")
    if (bad := (unscored | index["empty"]).nonzero()[0]).size:
        number = int(bad[0])
        question = job.groups[number].question.id
        if unscored[number]:
            raise TrainError(
                f"question {question}: no reference log-probs for its responses; run the reference stage",
                code="reference-logprobs-missing",
                key=question,
            )
        raise TrainError(
            f"question {question}: a response has no tokens, so nothing of it would be trained; pair again",
            code="response-empty",
            key=question,
        )
    weights = loss_weights(job.objective, job.table.loss)
    tokenless = ~index["forked"] | (index["tokenless"] & (job.table.reference == "stage"))
    if weights.hold and (bad := (tokenless & (index["pairs"] > 0)).nonzero()[0]).size:
        question = job.groups[int(bad[0])].question.id
        raise TrainError(
            f"question {question}: train.loss.hold needs the forks of its responses and the reference log-probs of their tokens; run the "
            "reference stage",
            code="token-logprobs-missing",
            key=question,
        )
    if job.table.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise MissingExtra('train.optimizer = "adamw_8bit"', "bitsandbytes")
    for tracker in job.table.trackers:
        if find_spec(tracker) is None:
            raise MissingExtra(f"the tracker {tracker!r}", tracker)
    return weights


def _resume(
    job: TrainJob,
    accelerator: Accelerator,
    progress: Progress,
    scorer: Scorer,
    online: OnlineReference | None,
    meta_copy: nn.Module | None,
) -> tuple[TrainState, Parallel]:
    """The training state and the wrapped model, from the newest checkpoint if there is one."""
    moving_values = online.moving_values if online else {}
    state, checkpoint = _find_state(job, accelerator, progress, bool(moving_values))
    parallel = wrap_model(accelerator, scorer, lambda shared: build_optimizer(shared, job.table), job.table.max_grad_norm, meta_copy)
    if checkpoint is not None:
        parallel.load(checkpoint)
        parallel.restore(checkpoint)
        for name, value in moving_values.items():
            value.copy_(checkpoint.moving_values[name])
    return state, parallel


def _find_state(
    job: TrainJob, accelerator: Accelerator, progress: Progress, moving_reference: bool
) -> tuple[TrainState, Checkpoint | None]:
    """The state to resume from and its checkpoint. Raises TrainError for one of another training or launch strategy."""
    expected = TrainState(data=content_id(job.groups.digest, job.replay.digest), settings=job.settings)
    checkpoint = find_checkpoint(job.folder / "checkpoints", expected, progress.say, moving_reference)
    if checkpoint is None:
        return expected, None
    if checkpoint.is_deepspeed != (strategy_of(accelerator) == "deepspeed"):
        wrote, other = ("DeepSpeed", "without it") if checkpoint.is_deepspeed else ("a launch without DeepSpeed", "with it")
        raise TrainError(
            f"{checkpoint.path}: written by {wrote} and unreadable {other}; launch it as before, or retrain with --force train",
            code="checkpoint-other-launch",
            path=checkpoint.path,
        )
    progress.say(f"{job.objective}: resuming after step {checkpoint.state.step} of {job.schedule.total}")
    return checkpoint.state, checkpoint


def _accelerator(job: TrainJob) -> Accelerator:
    accelerator = open_accelerator(job.vlm.device, log_with=list(job.table.trackers) or None, project_dir=job.logs)
    if strategy_of(accelerator) != "ddp":
        table = job.table
        whole = {
            'train.reference = "online"': table.reference == "online",
            "model.quantization": job.vlm.quantization,
            'train.optimizer = "adamw_8bit"': table.optimizer == "adamw_8bit",
            "train.cache_vision": table.cache_vision,
            "train.watch": table.watch,
            "train.guard": table.guard,
            "train.compile": table.compile and strategy_of(accelerator) == "deepspeed",
        }
        for key in (key for key, asked in whole.items() if asked):
            raise TrainError(
                f"{key} needs a whole model on each rank; launch it as plain data parallel, or take it out of the recipe",
                code="needs-whole-model",
                key=key,
            )
    if job.table.trackers:
        wandb, folder = job.table.wandb, job.wandb_folder or job.logs
        folder.mkdir(parents=True, exist_ok=True)  # W&B falls back to a temporary folder where there is none
        group = wandb.group or job.label.rpartition(" ")[0]
        names = {
            "wandb": {"name": job.label, "entity": wandb.entity, "group": group, "dir": str(folder)},
            "trackio": {"name": job.label, "resume": "allow"},
        }
        config = _flat({**job.settings, "pairs": job.schedule.pairs})
        accelerator.init_trackers(wandb.project, config=config, init_kwargs=names)
    return accelerator


def _metrics(job: TrainJob, accelerator: Accelerator, state: TrainState) -> MetricsFile:
    # Every rank keeps the rows; only the file of the main rank is read later.
    name = "metrics.jsonl" if accelerator.is_main_process else f"metrics-{accelerator.process_index}.jsonl"
    return MetricsFile(job.folder / name, keep_to=state.step)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, bool)) else masked(str(value))
    return flat
