"""Everything that training needs, opened and checked before the first step. The steps themselves are in `mixpo.train.loop`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mixpo.errors import MissingExtra, TrainError
from mixpo.progress import Progress, Silent
from mixpo.recipe import ImageTable, TrainTable
from mixpo.train.adapters import choose_trained
from mixpo.train.batch import Batch, Layout, Piece, find_ghost, pieces_of
from mixpo.train.checkpoint import Checkpoint, TrainState, apply_checkpoint, find_checkpoint
from mixpo.train.groups import digest
from mixpo.train.layout_check import choose_layout, sample_of
from mixpo.train.logps import Scorer
from mixpo.train.losses import Weights, weights_of
from mixpo.train.metrics import MetricsFile, Watch
from mixpo.train.model import PartSize, build_optimizer, checkpoint_activations, precision_of, refuse_dropout, use_liger
from mixpo.train.online_reference import Online
from mixpo.train.parallel import Parallel, kind_of, open_accelerator, share_model
from mixpo.train.prompt_cache import Prompts
from mixpo.train.schedule import Schedule
from mixpo.train.vision_cache import Features, open_features
from mixpo.types import Group
from mixpo.vlm.load import Vlm


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What to train, on what, and where it goes.

    vlm: the policy, which is changed in place and must be the reference model that scored `groups`, unless `table.reference` is
    "online". objective: a name of OBJECTIVES.
    folder: for checkpoints and metrics while it works. output: folder of the trained model. logs: for trackers that write files.
    label: what this training is called in trackers. watch: answers held-out questions with the policy as it is (see `watched`).
    """

    vlm: Vlm
    groups: Sequence[Group]
    table: TrainTable
    objective: str
    images: ImageTable
    folder: Path
    output: Path
    logs: Path
    seed: int = 0
    label: str = "train"
    watch: Watch | None = None

    @property
    def schedule(self) -> Schedule:
        """The optimizer steps."""
        return Schedule(
            pair_counts=tuple(len(group.pairs) for group in self.groups),
            batch_size=self.table.batch_size,
            epochs=self.table.epochs,
            seed=self.seed,
            together=self.table.pairs_per_group,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Everything besides the data that decides the result."""
        return {
            "objective": self.objective,
            "seed": self.seed,
            "model": self.vlm.digest,
            "template": self.vlm.template_digest,
            "image": self.images.deciding("train"),
            "train": self.table.deciding("train"),
        }


@dataclass(kw_only=True)
class Session:
    """An opened training. parallel: the model as ranks share it; `job.vlm.model` is the same one, bare.

    ghost: what a rank computes when it has nothing else to do, or no images (see `find_ghost`). zeros: trained matrices that were
    nothing but zeros before the first step.
    online: the reference, where its log-probs are computed in the training step. features: of frozen vision, where they are kept.
    """

    job: TrainJob
    parallel: Parallel
    progress: Progress
    schedule: Schedule
    weights: Weights
    prompts: Prompts
    layout: Layout
    precision: torch.dtype
    had: Mapping[str, torch.dtype]
    parts: Sequence[PartSize]
    ghost: Piece
    zeros: frozenset[str]
    state: TrainState
    metrics: MetricsFile
    online: Online | None
    features: Features | None

    @property
    def accelerator(self) -> Accelerator:
        """Devices, ranks and trackers."""
        return self.parallel.accelerator

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.parallel.main

    def complete(self, batch: Batch, pieces: Sequence[Piece]) -> Batch:
        """The batch of these pieces with what no data holds: vision features that are kept, the online reference's log-probs."""
        if self.features is not None:
            batch = self.features.fill(batch, pieces)
        return batch if self.online is None else self.online.fill(self.accelerator.unwrap_model(self.parallel.scorer), batch)


def open_session(job: TrainJob, progress: Progress) -> Session:
    """Check, freeze, build, and go on from the newest checkpoint. Raises TrainError (or MissingExtra) before any work."""
    weights = _check(job)
    accelerator = _accelerator(job)
    progress = progress if accelerator.is_main_process else Silent()
    vlm, model = job.vlm, job.vlm.model
    vlm.device = accelerator.device
    model.to(vlm.device).train()
    refuse_dropout(model)
    if job.table.liger:
        use_liger(model, vlm.device)
    parts, had = choose_trained(vlm, job.table, job.seed)
    progress.say(f"{job.objective}: {'; '.join(str(part) for part in parts)}")
    online = Online(model, job.objective, job.table.loss) if job.table.reference == "online" else None
    prompts = Prompts(vlm, job.images)
    sample = sample_of(pieces_of(next(job.schedule.steps(0)), job.groups))
    layout, note = choose_layout(vlm, sample, prompts.get, precision_of(had))
    progress.say(f"{job.objective}: {note}")
    features, note = (
        open_features(vlm, job.images, prompts.get, layout, precision_of(had), sample) if job.table.cache_vision else (None, "")
    )
    if note:
        progress.say(f"{job.objective}: {note}")
    if job.table.gradient_checkpointing:
        checkpoint_activations(model, on=True)
    zeros = frozenset(name for name, value in model.named_parameters() if value.requires_grad and value.ndim >= 2 and not value.any())
    state, parallel = _go_on(job, accelerator, progress, Scorer(model, layout, precision_of(had)), online)
    return Session(
        job=job,
        parallel=parallel,
        progress=progress,
        schedule=job.schedule,
        weights=weights,
        prompts=prompts,
        layout=layout,
        precision=precision_of(had),
        had=had,
        parts=parts,
        ghost=find_ghost(job.groups, prompts.length),
        zeros=zeros,
        state=state,
        metrics=_metrics(job, accelerator, state),
        online=online,
        features=features,
    )


def _check(job: TrainJob) -> Weights:
    """What can be found without a model. Returns the weights of the objective."""
    if job.schedule.pairs == 0:
        raise TrainError(
            f"no pairs to train {job.objective} on; see in the pair stage why, or add questions that the model gets right at times"
        )
    for group in job.groups:
        known = job.table.reference == "stage"
        if known and group.pairs and (group.reference is None or len(group.reference) != len(group.responses)):
            raise TrainError(f"question {group.question.id}: no reference log-probs for its responses; run the reference stage")
        for response in group.responses:
            if not response:
                raise TrainError(f"question {group.question.id}: a response has no tokens, so nothing of it would be trained; pair again")
    for tracker in job.table.trackers:
        if find_spec(tracker) is None:
            raise MissingExtra(f"the tracker {tracker!r}", tracker)
    return weights_of(job.objective, job.table.loss)


def _go_on(
    job: TrainJob, accelerator: Accelerator, progress: Progress, scorer: Scorer, online: Online | None
) -> tuple[TrainState, Parallel]:
    """The model as ranks share it, and where it stands: at the newest checkpoint, if there is one."""
    moved = online.moved if online else {}
    state, checkpoint = _state(job, accelerator, progress, bool(moved))
    if checkpoint is not None:
        apply_checkpoint(checkpoint, scorer.model)
        for name, value in moved.items():
            value.copy_(checkpoint.moved[name])
    parallel = share_model(accelerator, scorer, lambda shared: build_optimizer(shared, job.table), job.table.max_grad_norm)
    if checkpoint is not None:
        parallel.restore(checkpoint)
    return state, parallel


def _state(job: TrainJob, accelerator: Accelerator, progress: Progress, moving: bool) -> tuple[TrainState, Checkpoint | None]:
    """Where to go on, and what from. Raises TrainError for a checkpoint of another training or another kind of launch."""
    fresh = TrainState(data=digest(job.groups), settings=job.settings)
    found = find_checkpoint(job.folder / "checkpoints", fresh, progress.say, moving)
    if found is None:
        return fresh, None
    if found.of_deepspeed != (kind_of(accelerator) == "deepspeed"):
        wrote, other = ("DeepSpeed", "without it") if found.of_deepspeed else ("a launch without DeepSpeed", "with it")
        raise TrainError(f"{found.path}: written by {wrote} and unreadable {other}; go on as before, or start again with --force train")
    progress.say(f"{job.objective}: going on after step {found.state.step} of {job.schedule.total}")
    return found.state, found


def _accelerator(job: TrainJob) -> Accelerator:
    accelerator = open_accelerator(job.vlm.device, log_with=list(job.table.trackers) or None, project_dir=job.logs)
    if kind_of(accelerator) != "copies":
        table = job.table
        whole = {
            'train.reference = "online"': table.reference == "online",
            "train.cache_vision": table.cache_vision,
            "train.watch": table.watch,
        }
        for key in (key for key, asked in whole.items() if asked):
            raise TrainError(f"{key} needs a whole model on each rank; launch it as plain data parallel, or take it out of the recipe")
    if job.table.trackers:
        names = {"wandb": {"name": job.label}, "trackio": {"name": job.label, "resume": "allow"}}
        accelerator.init_trackers("mixpo", config=_flat({**job.settings, "pairs": job.schedule.pairs}), init_kwargs=names)
    return accelerator


def _metrics(job: TrainJob, accelerator: Accelerator, state: TrainState) -> MetricsFile:
    # Every rank keeps the rows, only the main one has the file that counts.
    name = "metrics.jsonl" if accelerator.is_main_process else f"metrics-{accelerator.process_index}.jsonl"
    return MetricsFile(job.folder / name, keep_to=state.step)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
