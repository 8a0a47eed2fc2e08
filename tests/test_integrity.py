"""A run holds what was written: a file that is torn, flipped or replaced is noticed, rebuilt where a stage can, else refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_run
from failures import fails

from mixpo import sealed
from mixpo.cache import Cache
from mixpo.cli import main
from mixpo.errors import ModelError, RecordError, RunError, TrainError
from mixpo.export.push import prepare
from mixpo.human_labels import HumanLabel, append_label, read_labels
from mixpo.integrity import FileRecord, records_of
from mixpo.pipeline import open_run, run_recipe
from mixpo.recipe import ImageTable, ModelTable
from mixpo.records import Sampled, read_rows, write_rows
from mixpo.run import Run
from mixpo.stages.models import Models, check_trained
from mixpo.stages.question_index import load_index
from mixpo.stages.report import load_report
from mixpo.stages.source import load_skipped
from mixpo.train.metrics import MetricsFile, read_metrics


def flip(path: Path, place: float = 0.5) -> None:
    """Another bit in the middle of a file; its size stays, unless it was empty."""
    content = bytearray(path.read_bytes() or b"x")
    content[int(len(content) * place)] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    """The end of a file is lost."""
    path.write_bytes(path.read_bytes()[:-9])


def shard_of(folder: Path, stage: str) -> Path:
    return min((folder / "run" / stage).glob("*.parquet"))


def again(folder: Path) -> tuple[list[str], dict[str, bytes]]:
    """What `mixpo run` logs, and every shard apart from those with times in them."""
    context = small_run.open_small(folder / "recipe.toml", folder / "run")
    run_recipe(context)
    shards = {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "run").rglob("*.parquet"))}
    return small_run.said(context), {name: content for name, content in shards.items() if "/train/" not in name and "/report/" not in name}


# --- sealed records ----------------------------------------------------------------------------------------------------------


def test_every_bit_of_a_json_record_counts() -> None:
    text = sealed.dumps({"b": [1, 2.5, None], "a": {"x": "\u00e9"}, "rows": (1, 2)}, indent=2)
    record = sealed.loads(text)
    assert record == {"b": [1, 2.5, None], "a": {"x": "\u00e9"}, "rows": [1, 2]}
    whole = text.encode()
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert sealed.loads(flipped.decode()) == record
        except ValueError:
            continue
    assert sealed.loads(json.dumps(json.loads(text))) == record  # another layout of the same values
    for broken in ("[]", "{}", "{", "[" * 100_000, '{"checksum": 1}'):
        with pytest.raises(ValueError, match=r"."):
            sealed.loads(broken)


def test_a_shard_is_bound_to_its_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "00000-a.parquet", Sampled, [Sampled(question="a")])
    shutil.copy(tmp_path / "00000-a.parquet", tmp_path / "00001-b.parquet")
    assert read_rows(tmp_path / "00000-a.parquet", Sampled)
    with fails("record-broken", RecordError, path=tmp_path / "00001-b.parquet"):
        read_rows(tmp_path / "00001-b.parquet", Sampled)


def test_a_damaged_entry_of_a_cache_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    cache = Cache(path)
    cache.put("key", "a verdict")
    cache._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cache.close()
    path.write_bytes(path.read_bytes().replace(b"a verdict", b"a verdicu"))
    cache = Cache(path)
    assert cache.get("key") is None
    cache.put("key", "a verdict")
    assert cache.get("key") == "a verdict"
    cache.close()
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    assert Cache(path).get("key") is None


def test_a_damaged_label_is_refused_and_one_by_hand_is_not(tmp_path: Path) -> None:
    append_label(tmp_path, HumanLabel(question="q", index=3, outcome="wrong"))
    path = tmp_path / "audit" / "labels.jsonl"
    path.write_text(path.read_text() + '{"question": "r", "index": 0, "outcome": "correct"}\n')
    assert {key: label.outcome for key, label in read_labels(tmp_path).items()} == {(1, "q", 3): "wrong", (1, "r", 0): "correct"}
    for damaged in ('"index": 3', '"checksum"'):
        path.write_text(path.read_text().replace(damaged, damaged.replace("3", "2").replace("check", "chack")))
        with fails("invalid-label", RecordError, line=1):
            read_labels(tmp_path)


def test_a_damaged_line_of_metrics_is_refused(finished_run: Path, tmp_path: Path) -> None:
    rows = open_rows(finished_run)
    log = MetricsFile(tmp_path / "metrics.jsonl", keep_to=0)
    log.append(rows[0])
    assert read_metrics(log.path) == [rows[0]]
    log.path.write_text(log.path.read_text().replace('"step": 1', '"step": 3'))
    with fails("metrics-invalid", TrainError, line=1):
        read_metrics(log.path)


def open_rows(folder: Path) -> list[Any]:
    context = small_run.open_small(folder / "recipe.toml", folder / "run")
    return small_run.plan_of(context).rows("round-1/train/mpo", 0)


# --- done means whole --------------------------------------------------------------------------------------------------------

STAGES = ["source", "round-1/sample", "round-1/continue", "round-1/verify", "round-1/pair", "round-1/reference",
          "evaluate/held-out/source", "answer/held-out/base/cot", "evaluate/held-out/base/cot"]  # fmt: skip


def test_torn_shards_of_every_stage_are_rebuilt(own_run: Path) -> None:
    _, before = again(own_run)
    for stage in STAGES:
        cut(shard_of(own_run, stage))
    context = small_run.open_small(own_run / "recipe.toml", own_run / "run")
    plan = small_run.plan_of(context)  # which reads the sources
    assert {name for name in STAGES if "source" not in name} == small_run.unfinished(plan) - {"report"}
    lines, after = again(own_run)
    assert after == before
    lines += small_run.said(context)
    for stage in STAGES:
        assert any(stage.split("/")[-3 if "held-out" in stage and "source" not in stage else -1] in line for line in lines), stage


def test_flipped_shards_are_rebuilt_by_who_reads_them(own_run: Path) -> None:
    """A finished run reads no shard; what is made again, here the report, reads them all."""
    _, before = again(own_run)
    damaged = [
        shard_of(own_run, stage) for stage in ("source", "round-1/sample", "round-1/verify", "round-1/pair", "evaluate/held-out/base/cot")
    ]
    for path in damaged:
        flip(path)
    (own_run / "run" / "report.html").unlink()
    lines, after = again(own_run)
    assert after == before
    for path in damaged:
        assert f"{path}: damaged, rebuilding it" in lines
    assert not (set(lines) & {line for line in lines if "came out different" in line})


def test_what_was_made_from_a_shard_that_comes_out_different_is_rebuilt(own_run: Path) -> None:
    """A server answers differently the second time: the verdicts on its first answers are of no use."""
    _, before = again(own_run)
    stage, path = Run(own_run / "run").stage("round-1/sample"), shard_of(own_run, "round-1/sample")
    manifest = stage.manifest
    assert manifest is not None
    other = str(FileRecord(path.stat().st_size + 1, "0" * 64))
    stage.save_manifest(replace(manifest, files={**manifest.files, path.name: other}))
    lines, after = again(own_run)
    assert after == before
    different = "1 shard removed, round-1/sample came out different from what was damaged"
    assert {f"{kind}: {different}" for kind in ("continue", "verify", "pair")} <= {*lines}
    manifest = stage.manifest
    assert manifest is not None
    assert not manifest.replaced


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_model_is_trained_again(own_run: Path, damage: Callable[[Path], None]) -> None:
    weights = own_run / "run" / "models" / "mpo" / "model.safetensors"
    whole = weights.read_bytes()
    damage(weights)
    flip(own_run / "run" / "round-1" / "reference" / "groups.rows")
    with fails("model-damaged", ModelError):
        check_trained(weights.parent.resolve())
    with fails("model-damaged", ModelError):
        prepare(own_run / "run" / "models" / "mpo", "a/b")
    if damage is flip:  # no stage of this run reads the weights again: the responses of its script are known
        assert main(["verify-run", str(own_run / "run"), "--repair"]) == 0
    again(own_run)
    assert (own_run / "run" / "models" / "mpo" / "model.safetensors").read_bytes() == whole
    assert main(["verify-run", str(own_run / "run")]) == 0


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "chat_template.jinja"])
def test_small_files_of_a_model_count(own_run: Path, name: str) -> None:
    flip(own_run / "run" / "models" / "sft" / name)
    with fails("model-damaged", ModelError):
        check_trained((own_run / "run" / "models" / "sft").resolve())


def test_a_damaged_model_of_another_run_is_no_base_model(own_run: Path) -> None:
    table = ModelTable(path="run/models/mpo", device="cpu")
    models = Models(table, own_run, ImageTable())
    assert models.load(models.base_model())
    flip(own_run / "run" / "models" / "mpo" / "model.safetensors")
    models = Models(table, own_run, ImageTable())
    for use in (models.load, models.folder):
        with fails("model-damaged", ModelError):
            use(models.base_model())


def test_reading_commands_refuse_what_they_cannot_rebuild(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(shard_of(own_run, "round-1/pair"))
    assert main(["export", str(own_run / "run"), "--to", str(own_run / "pairs")]) == 1
    error = capsys.readouterr().err
    assert "fails its checksum" in error
    assert "Traceback" not in error
    with fails("record-broken", RecordError):
        list(Run(own_run / "run").stage("round-1/pair").read_all(object))


# --- derived files -----------------------------------------------------------------------------------------------------------


def test_derived_files_are_rebuilt_with_a_notice(own_run: Path) -> None:
    run, (_, before) = own_run / "run", again(own_run)
    derived = [run / "round-1/sample/manifest.json", run / "report/manifest.json", run / "source/manifest.json", run / "source/index.json"]
    for path in derived:
        flip(path)
    flip(run / "report.html")
    flip(run / "round-1/verify/all_wrong.jsonl")
    listed = (run / "round-1/verify/all_wrong.jsonl").read_bytes()
    lines, after = again(own_run)
    assert after == before
    for path in derived:
        assert f"{path}: damaged, rebuilding it" in lines
    assert main(["verify-run", str(run)]) == 0
    assert (run / "round-1/verify/all_wrong.jsonl").read_bytes() != listed
    assert load_report(run)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_report_alone_leaves_out_no_stage_whose_manifest_is_gone(own_run: Path, damage: Callable[[Path], object]) -> None:
    run = own_run / "run"
    command = ["report", str(own_run / "recipe.toml"), "--dir", str(run), "--force", "report"]
    assert main(command) == 0
    before = load_report(run)
    for path in [*Run(run).manifests()]:
        damage(path)
    assert main(command) == 0
    after = load_report(run)
    assert before is not None
    assert after is not None
    for lost in ("created", "timings"):
        del before[lost], after[lost]
    assert after == before
    assert main(["verify-run", str(run)]) == 0


def test_records_that_are_read_alone_are_refused(own_run: Path) -> None:
    run = own_run / "run"
    for path, code, read in (
        (run / "report.json", "report-unreadable", lambda: load_report(run)),
        (run / "recipe.json", "run-unreadable", lambda: open_run(run)),
        (run / "source/index.json", "index-broken", lambda: load_index(Run(run).stage("source"))),
        (run / "round-1/pair/manifest.json", "manifest-broken", lambda: Run(run).stage("round-1/pair").manifest),
    ):
        flip(path)
        with fails(code, RunError):
            read()
    (run / "source/skipped.jsonl").write_text('{"where": "a", "reason": "b"}\n')
    with fails("record-broken", RecordError):
        load_skipped(Run(run).stage("source"))


# --- mixpo verify-run --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify_run_finds_one_bit_anywhere_and_repairs(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, (_, before) = own_run / "run", again(own_run)
    assert main(["verify-run", str(run)]) == 0
    assert "every file is as it was written" in capsys.readouterr().out
    damaged = [shard_of(own_run, stage) for stage in STAGES] + [
        run / "models/mpo/model.safetensors", run / "report.json", run / "round-1/verify/all_wrong.jsonl", run / "source/index.json",
        run / "round-1/reference/groups.rows",
    ]  # fmt: skip
    for path in damaged:
        flip(path)
    assert main(["verify-run", str(run), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    found = {Path(row["path"]).resolve() for row in document["left"]}
    assert found == {path.resolve() for path in damaged}
    assert main(["verify-run", str(run), "--repair"]) == 0
    assert "removed; `mixpo run` makes what is missing" in capsys.readouterr().out
    _, after = again(own_run)
    assert after == before
    assert main(["verify-run", str(run)]) == 0


def test_verify_run_compares_the_seal_of_a_shard_that_was_recorded_when_damaged(own_run: Path) -> None:
    stage, path = Run(own_run / "run").stage("round-1/pair"), shard_of(own_run, "round-1/pair")
    manifest = stage.manifest
    assert manifest is not None
    flip(path)
    stage.save_manifest(replace(manifest, files={**manifest.files, path.name: str(FileRecord.of(path))}))
    assert main(["verify-run", str(own_run / "run")]) == 3


def test_verify_run_needs_a_run(tmp_path: Path) -> None:
    assert main(["verify-run", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())


def test_records_name_files_by_their_place(tmp_path: Path) -> None:
    (tmp_path / "stage" / "model").mkdir(parents=True)
    (tmp_path / "stage" / "model" / "a.bin").write_bytes(b"abc")
    (tmp_path / "report.html").write_text("x")
    records = records_of(tmp_path / "stage", [tmp_path / "stage" / "model", tmp_path / "report.html", tmp_path / "gone"])
    assert set(records) == {"model/a.bin", "../report.html"}
    record = FileRecord.parse(records["model/a.bin"])
    assert record.damage(tmp_path / "stage/model/a.bin") == ""
    assert "missing" in record.damage(tmp_path / "gone")
