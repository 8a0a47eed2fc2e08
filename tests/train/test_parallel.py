"""Ways of launching that are refused or read from a file, checkpoints that are kept, weights that must not be saved."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from train.cases import fresh, job, scored

from mixpo.errors import MissingExtra, TrainError
from mixpo.progress import Silent
from mixpo.recipe import ImageTable
from mixpo.train import loop
from mixpo.train.batch import Chunk, find_dummy, footprint, make_chunk, with_dummy
from mixpo.train.loop import train
from mixpo.train.measure import live_line
from mixpo.train.metrics import StepMetrics, read_metrics
from mixpo.train.model import use_liger
from mixpo.train.parallel import _set_parameter, strategy_of
from mixpo.train.prompt_cache import PromptCache
from mixpo.train.session import Session
from mixpo.train.sharding import meta_copy_of
from mixpo.types import Group
from mixpo.vlm.load import Vlm

pytestmark = pytest.mark.usefixtures("unchecked_saves")

CONFIGS = sorted((Path(__file__).parents[2] / "recipes" / "accelerate").glob("*.yaml"))


@pytest.fixture
def vlm(tiny_vlm: Vlm) -> Vlm:
    return fresh(tiny_vlm)


# --- launches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_accelerates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by Accelerate's loader, turned by its launcher into what ranks are told, and understood by its plugins."""
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds[path.stem]
    monkeypatch.setattr("accelerate.commands.launch.is_bf16_available", lambda *_: True, raising=False)
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(path), "-m", "mixpo"]))
    assert arguments.mixed_precision == "no"
    assert arguments.module is True
    if path.stem.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])
        return
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    if path.stem == "fsdp2":
        plugin = FullyShardedDataParallelPlugin()
        assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
        assert not plugin.cpu_ram_efficient_loading
        assert not plugin.activation_checkpointing


def test_all_ways_of_launching_are_shipped() -> None:
    assert [path.stem for path in CONFIGS] == ["ddp", "fsdp2", "zero2", "zero3"]


def test_unknown_launches_are_refused() -> None:
    from accelerate.utils import DistributedType

    for found, kind in (("NO", "ddp"), ("MULTI_GPU", "ddp"), ("FSDP", "fsdp2"), ("DEEPSPEED", "deepspeed")):
        assert strategy_of(SimpleNamespace(distributed_type=DistributedType(found))) == kind
    with pytest.raises(TrainError, match=r"MEGATRON_LM is not supported.*recipes/accelerate"):
        strategy_of(SimpleNamespace(distributed_type=DistributedType.MEGATRON_LM))


def test_an_outline_has_no_weights_until_it_is_filled() -> None:
    first, last = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
    last.weight = first.weight
    model = nn.Sequential(first, last)
    model.register_buffer("table", torch.arange(3.0), persistent=False)
    meta_copy = meta_copy_of(model)
    assert all(value.is_meta for value in meta_copy.parameters())
    assert torch.equal(meta_copy.get_buffer("table"), model.get_buffer("table"))
    _set_parameter(meta_copy, "0.weight", first.weight.detach() + 1)
    assert meta_copy.get_parameter("1.weight") is meta_copy.get_parameter("0.weight"), "weights that were tied are not"
    assert torch.equal(meta_copy.get_parameter("0.weight"), first.weight + 1)


# --- the dummy chunk -----------------------------------------------------------------------------------------------------------


def test_the_dummy_is_small_and_has_an_image(tiny_vlm: Vlm, data: list[Group]) -> None:
    prompts = PromptCache(tiny_vlm, ImageTable())
    dummy = find_dummy(data, prompts.length)
    assert dummy.group.question.images
    assert dummy.pairs == ()
    assert len(dummy.responses) == 1
    pictured = [group for group in data if group.question.images]
    assert prompts.length(dummy.group) == min(prompts.length(group) for group in pictured)
    text = [group for group in data if not group.question.images]
    assert find_dummy(text, prompts.length).group in text


def test_who_gets_a_dummy(tiny_vlm: Vlm, data: list[Group]) -> None:
    dummy = find_dummy(data, PromptCache(tiny_vlm, ImageTable()).length)
    pictured, text = (
        tuple(make_chunk(group, group.pairs) for group in data if bool(group.question.images) is wanted) for wanted in (True, False)
    )
    assert with_dummy(pictured, dummy) == pictured
    assert with_dummy((*text, pictured[0]), dummy) == (*text, pictured[0])
    assert with_dummy(text, dummy) == (*text, dummy)
    assert with_dummy((), dummy) == (dummy,)
    without = Chunk(text[0].group, (0,), ())
    assert with_dummy(text, without) == text


# --- checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "kept"), [(1, [9]), (3, [6, 8, 9])])
def test_how_many_checkpoints_are_kept(vlm: Vlm, data: list[Group], tmp_path: Path, limit: int, kept: list[int]) -> None:
    train(job(vlm, data, tmp_path, epochs=3, batch_size=4, save_every=2, save_total_limit=limit), Silent())
    assert sorted(path.name for path in (tmp_path / "work" / "checkpoints").iterdir()) == [f"step-{step:06d}" for step in kept]


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.0, r"step 4: .*q_proj\.weight has become nothing but zeros; this step is not saved"), (math.nan, r"(gradients are|loss is) n")],
)
def test_bad_weights_are_not_saved(
    vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, message: str
) -> None:
    """A matrix goes bad after step 3; the checkpoint of step 2 stays, and training goes on from it."""
    settings = {"epochs": 3, "batch_size": 4, "save_every": 2}
    weight, real = vlm.model.model.language_model.layers[0].self_attn.q_proj.weight, loop._advance

    def advance(session: Session, row: StepMetrics) -> None:
        real(session, row)
        if row.step == (3 if math.isnan(value) else 4):
            with torch.no_grad():
                weight.fill_(value)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_advance", advance)
        with pytest.raises(TrainError, match=message):
            train(job(vlm, data, tmp_path, **settings), Silent())
    assert [path.name for path in (tmp_path / "work" / "checkpoints").iterdir()] == ["step-000002"]


def test_what_was_zero_before_may_stay_zero(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    with torch.no_grad():
        vlm.model.model.vision_tower.embeddings.cls_token.zero_()
        vlm.model.model.language_model.embed_tokens.weight[-1] = 0
    again = replace(vlm, cache={})
    assert len(train(job(again, scored(again, data), tmp_path, epochs=1), Silent()).steps) == 3


# --- the live line -------------------------------------------------------------------------------------------------------


class Notes(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def advance(self, count: int, note: str = "") -> None:
        self.notes.append(note)


def test_one_line_for_every_logged_step(vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    notes = Notes()
    train(job(vlm, data, tmp_path, epochs=2, log_every=2), notes)
    assert [bool(note) for note in notes.notes] == [True, True, False, True, False, True]
    rows = read_metrics(tmp_path / "work" / "metrics.jsonl")
    assert notes.notes[0] == live_line(rows[0])
    parts = rows[-1].weighted_preference, rows[-1].weighted_quality, rows[-1].weighted_generation
    named = " + ".join(f"{name} {part:.3f}" for name, part in zip(("preference", "quality", "generation"), parts, strict=True))
    assert f"loss {rows[-1].loss:.3f} ({named}), margin {rows[-1].margin:.3f}" in notes.notes[-1]
    assert rows[-1].seconds_left == 0
    assert rows[0].seconds_left > 0
    assert rows[0].memory > 50 * 2**20


def test_the_share_of_the_token_limit(tiny_vlm: Vlm, data: list[Group], tmp_path: Path) -> None:
    """One row of whole groups wastes nothing; a group that is divided repeats its prompt."""
    shares = {}
    for budget in (10_000, 40):
        again = fresh(tiny_vlm)
        row = train(job(again, data, tmp_path / str(budget), batch_size=12, tokens_per_batch=budget), Silent()).steps[0]
        shares[budget] = row.token_efficiency, row.tokens
    prompts = PromptCache(tiny_vlm, ImageTable())
    least = sum(footprint(make_chunk(group, group.pairs), prompts.length(group)).tokens for group in data)
    assert shares[10_000] == (1.0, least)
    assert shares[40][0] == pytest.approx(least / shares[40][1])
    assert shares[40][0] < 0.9


# --- kernels -------------------------------------------------------------------------------------------------------------


def test_liger_needs_a_gpu_and_its_extra(vlm: Vlm, data: list[Group], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainError, match=r"train\.liger: its kernels need a GPU"):
        train(job(vlm, data, tmp_path, liger=True), Silent())
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(MissingExtra, match=r"mixpo\[liger\]"):
        use_liger(vlm.model, torch.device("cuda"))


def test_liger_gets_layers_and_no_losses(vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, bool] = {}
    patch = SimpleNamespace(
        MODEL_TYPE_TO_APPLY_LIGER_FN={"internvl": None}, _apply_liger_kernel_to_instance=lambda model, **to: called.update(to)
    )
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", SimpleNamespace(monkey_patch=patch))
    use_liger(vlm.model, torch.device("cuda"))
    assert called["rms_norm"]
    assert called["rope"]
    assert called["swiglu"]
    assert not called["fused_linear_cross_entropy"]
    assert not called["cross_entropy"]
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN.clear()
    with pytest.raises(TrainError, match="no kernels for models of type internvl"):
        use_liger(vlm.model, torch.device("cuda"))
