"""Fixtures for every room: small real models, built once in a session."""

from __future__ import annotations

import datetime
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# How long one example takes on a busy machine says nothing about the code; what hangs meets the time limit of its test. Every run has
# the same examples, so that a failure is one of the code; MIXPO_FUZZ looks for new ones.
settings.register_profile("any machine", deadline=None, derandomize=True)
settings.load_profile("any machine")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MIXPO_TEST_DAY", str(datetime.datetime.now(datetime.UTC).toordinal()))  # the same in all workers, also at midnight
os.environ["MIXPO_BENCHMARK_HISTORY"] = os.devnull  # benchmarks that a test runs in small are no figures
# Compiled once, also where the environment says otherwise: both workers and every command in a process of its own read it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a worker for each core; more threads would only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from mixpo.vlm.load import Vlm


def pytest_make_parametrize_id(val: object, argname: str) -> None:
    """Refuse packed bytes in the name of a test: they differ by time and machine, and pytest-xdist needs equal names in all workers."""
    if isinstance(val, bytes) and val.startswith((b"\x1f\x8b", b"PK\x03\x04")) and len(val) > 8:
        raise pytest.UsageError(f"parameter {argname} is packed bytes: give the row an id, as in pytest.param(value, id='gzip')")


LONGEST = ("unread", "ray", "ranks", "launch", "pool", "kill", "served_models", "adapter_ranks", "all_families", "real_servers")
"""Modules with the longest tests."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests first, the longest of all in front: workers then end together, with short tests. Modules stay whole."""
    slow = {item.path for item in items if "slow" in item.keywords}
    first = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (first.get(item.path.name, len(first)), item.path not in slow))


def pytest_collection_finish() -> None:
    """Take tests and libraries out of garbage collection: no test frees them, and each full collection would walk through them all."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """No test survives a power cut, and on a busy disk each call takes many milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small InternVL with random weights, saved as users have theirs. Copy it before changing anything in it."""
    from tiny import build_internvl

    return build_internvl(tmp_path_factory.mktemp("models") / "internvl")


@pytest.fixture(scope="session")
def tiny_vlm(tiny_folder: Path) -> Vlm:
    """The model of `tiny_folder`, loaded. Shared by all tests: leave its weights alone."""
    from mixpo.recipe import ModelTable
    from mixpo.vlm.load import load

    return load(ModelTable(path=str(tiny_folder), device="cpu"), Path())


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    """A small Qwen2.5-VL: positions on three axes."""
    from tiny import build_qwen

    from mixpo.recipe import ModelTable
    from mixpo.vlm.load import load

    folder = build_qwen(tmp_path_factory.mktemp("models") / "qwen2_5_vl")
    return load(ModelTable(path=str(folder), device="cpu"), Path())


@pytest.fixture(params=["tiny_vlm", "tiny_qwen"])
def vlm(request: pytest.FixtureRequest) -> Vlm:
    """One model after the other, where a file has no `vlm` of its own. Leave its weights alone."""
    shared: Vlm = request.getfixturevalue(request.param)
    return shared


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with recipe.toml and, in run/, a finished run of it. Shared by all tests: leave it as it is."""
    import small_run

    from mixpo.pipeline import run_recipe

    folder = tmp_path_factory.mktemp("finished")
    run_recipe(small_run.open_small(small_run.make(folder, tiny_folder), folder / "run"))
    return folder


@pytest.fixture
def own_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of `finished_run` to change."""
    return Path(shutil.copytree(finished_run, tmp_path / "own", symlinks=True))
