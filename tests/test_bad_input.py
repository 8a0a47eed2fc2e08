"""What users get wrong: each gives one clear sentence with the remedy and the right exit status, or a counted, listed skip."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import small_run
from PIL import Image
from slow_rows import slow_except

from mixpo import sealed
from mixpo.cli import main
from mixpo.run import Run
from mixpo.stages.source import load_skipped
from mixpo.types import Skipped


def run(recipe: Path, *more: str, command: str = "run") -> int:
    return main([command, str(recipe), "--dir", str(recipe.parent / "run"), *more])


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The error message: the last line of standard error, and the only one that is an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert [line for line in lines if line.startswith("mixpo: ")] == lines[-1:]
    assert "Traceback" not in "\n".join(lines)
    return lines[-1]


def skipped(recipe: Path) -> dict[str, str]:
    lines = (recipe.parent / "run" / "source" / "skipped.jsonl").read_text().splitlines()
    return {row["where"].rsplit("/", 1)[-1]: row["reason"] for row in map(json.loads, lines)}


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    """A good recipe to spoil; it trains one model."""
    made = small_run.make(tmp_path, tiny_folder)
    made.write_text(made.read_text().replace('baselines = ["sft"]', "baselines = []"))
    return made


def rows_of(recipe: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (recipe.parent / "questions.jsonl").read_text().splitlines()]


# --- images ----------------------------------------------------------------------------------------------------------------


def test_unusable_images_are_listed_skips(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = recipe.parent / "images"
    (images / "11.png").write_text("this is no image")
    (images / "12.png").unlink()
    (images / "13.png").write_bytes(b"")
    Image.new("RGB", (20_000, 3)).save(images / "14.png")
    assert run(recipe, command="sample") == 0
    reasons = skipped(recipe)
    assert list(reasons) == [f"questions.jsonl:{line}" for line in (1, 2, 3, 4)]
    assert "not an image" in reasons["questions.jsonl:1"]
    assert "no such image" in reasons["questions.jsonl:2"] or "not found" in reasons["questions.jsonl:2"]
    assert "empty" in reasons["questions.jsonl:3"]
    assert "longer than image.max_side" in reasons["questions.jsonl:4"]
    err = capsys.readouterr().err
    assert "source: 4 rows skipped: " in err
    assert "and 1 more" in err
    manifest = json.loads((recipe.parent / "run" / "source" / "manifest.json").read_text())
    assert manifest["counts"]["skipped"] == 4
    assert manifest["counts"]["questions"] == 6


def test_unusual_images_are_used(recipe: Path) -> None:
    images = recipe.parent / "images"
    Image.new("CMYK", (28, 28), (0, 200, 10, 0)).save(images / "11.png".replace("png", "jpg"))
    Image.new("P", (28, 28), 3).save(images / "12.png")
    Image.new("RGBA", (28, 28), (1, 2, 3, 4)).save(images / "13.png")
    Image.new("I;16", (28, 28), 40_000).save(images / "14.png")
    rows = rows_of(recipe)
    rows[0]["image"] = "images/11.jpg"
    small_run.write_jsonl(recipe.parent / "questions.jsonl", rows)
    settings = ("--set", "sample.engine=transformers", "--set", "sample.max_new_tokens=2")
    assert run(recipe, *settings, command="sample") == 0
    assert skipped(recipe) == {}
    manifest = json.loads((recipe.parent / "run" / "round-1" / "sample" / "manifest.json").read_text())
    assert manifest["counts"]["failed"] == 0
    assert manifest["counts"]["answers"] == 40


def test_a_truncated_image_fails_its_question_only(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its header is good, so that only decoding tells."""
    path = recipe.parent / "images" / "12.png"
    path.write_bytes(path.read_bytes()[:-30])
    settings = ("--set", "sample.engine=transformers", "--set", "sample.max_new_tokens=2")
    assert run(recipe, *settings, command="sample") == 1
    message = one_sentence(capsys)
    assert "1 of 10 questions failed" in message
    assert "12.png: broken or truncated image" in message
    assert run(recipe, *settings, "--set", "max_error_rate=0.1", command="sample") == 0


@pytest.mark.slow
def test_an_image_that_changes_while_a_run_waits(recipe: Path) -> None:
    """The next command reads the source again, so the question is another one; nothing is trained on the wrong picture."""
    assert run(recipe, command="sample") == 0
    small_run.picture(recipe.parent / "images" / "12.png", 99)
    assert run(recipe, command="verify") == 1
    assert run(recipe, command="sample") == 0
    assert run(recipe, command="verify") == 0


# --- rows ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "message"), [("", "no rows"), ("\n\n", "no rows"), ("{", "none of the rows (1) is usable")])
def test_no_usable_row(recipe: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "questions.jsonl").write_text(content)
    assert run(recipe) == 3
    assert message in one_sentence(capsys)


def test_no_such_file(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "questions.jsonl").unlink()
    assert run(recipe) == 3
    assert "questions.jsonl: no such file" in one_sentence(capsys)


def test_zero_valid_rows_name_the_first_reasons(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(recipe.parent / "images")
    (recipe.parent / "images").mkdir()
    assert run(recipe) == 3
    message = one_sentence(capsys)
    assert "evaluate/held-out/source: none of the rows (6) is usable" in message
    assert message.count("held_out.jsonl:") == 3
    assert "mixpo check" in message


def test_a_reason_that_all_rows_share_is_given_once(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_run.write_jsonl(recipe.parent / "questions.jsonl", [{"image": "images/0.png", "question": ""}] * 3)
    assert run(recipe) == 3
    message = one_sentence(capsys)
    assert "none of the rows (3) is usable" in message
    assert message.count("questions.jsonl:") == 1
    assert "(the same in every row)" in message


def test_one_row_is_enough(recipe: Path) -> None:
    small_run.write_jsonl(recipe.parent / "questions.jsonl", rows_of(recipe)[:1])
    assert run(recipe) == 0
    report = json.loads((recipe.parent / "run" / "report.json").read_text())
    assert report["counts"]["round-1/pair"]["pairs"] == 4
    assert "mpo" in report["models"]


@pytest.mark.parametrize(("right", "message"), [(True, "8 have all answers right and 0 all wrong"), (False, "0 have all answers right")])
def test_all_right_and_all_wrong(recipe: Path, right: bool, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [f"{word} Final answer: {{}}" for word in ("One.", "Two.", "Three.")]
    lines = [
        {"question": f"What is number {n}?", "responses": [answer.format(n if right else 88) for answer in answers]}
        for n in [*range(11, 21), *range(501, 507)]
    ]
    small_run.write_jsonl(recipe.parent / "script.jsonl", lines)
    assert run(recipe, "--set", "pairs.dropout_ntp=false") == 1
    sentence = one_sentence(capsys)
    assert "no pairs" in sentence
    assert message in sentence
    assert "mixpo evaluate" in sentence


# --- recipe and model ------------------------------------------------------------------------------------------------------


def test_a_typo_in_the_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(recipe.read_text().replace("learning_rate", "learnin_rate"))
    assert run(recipe) == 2
    message = one_sentence(capsys)
    assert "recipe.toml:" in message
    assert "unknown key 'learnin_rate', did you mean 'learning_rate'?" in message
    assert not (recipe.parent / "run").exists()


def test_a_missing_script(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "script.jsonl").unlink()
    assert run(recipe) == 2
    assert "sample.script" in one_sentence(capsys)


def spoiled(recipe: Path, tiny_folder: Path) -> Path:
    model = recipe.parent / "model"
    shutil.copytree(tiny_folder, model)
    recipe.write_text(recipe.read_text().replace(str(tiny_folder), "model"))
    return model


def test_a_model_without_processor(recipe: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = spoiled(recipe, tiny_folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (model / name).unlink(missing_ok=True)
    assert run(recipe) == 1
    assert "no processor" in one_sentence(capsys)
    assert not (recipe.parent / "run" / "round-1").exists()


@pytest.mark.parametrize(("name", "message"), [("config.json", "no config.json"), ("model.safetensors", "no *.safetensors weights")])
def test_an_incomplete_model(recipe: Path, tiny_folder: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (spoiled(recipe, tiny_folder) / name).unlink()
    assert run(recipe) == 1
    assert message in one_sentence(capsys)


def test_no_such_model(recipe: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(spoiled(recipe, tiny_folder))
    assert run(recipe) == 1
    assert "model" in one_sentence(capsys)


def test_weights_that_are_not_numbers(recipe: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    path = spoiled(recipe, tiny_folder) / "model.safetensors"
    weights = load_file(path)
    name = next(name for name, value in weights.items() if value.ndim == 2)
    weights[name][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    assert run(recipe) == 1
    assert "NaN or infinite" in one_sentence(capsys)


# --- disk ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", slow_except([0, 3, 9, 20], 9))
def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(
    recipe: Path, after: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = os.fsync, iter(range(10**9))

    def full(handle: int) -> None:
        if next(calls) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run(recipe) == 1
    message = one_sentence(capsys)
    assert "No space left on device" in message
    assert "free some space" in message
    assert not list((recipe.parent / "run").rglob("*.tmp"))
    assert run(recipe) == 0


def test_a_run_directory_that_cannot_be_made(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "file").write_text("")
    assert main(["run", str(recipe), "--dir", str(recipe.parent / "file" / "run")]) == 1
    assert "cannot be used as a run directory" in one_sentence(capsys)


def test_a_torn_record_file(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, command="sample") == 0
    shard = next((recipe.parent / "run" / "round-1" / "sample").glob("00000-*"))
    shard.write_bytes(shard.read_bytes()[:100])
    assert run(recipe, command="verify") == 1
    assert "1 shard has another size than was written); run that stage first" in one_sentence(capsys)
    assert run(recipe, command="sample") == 0
    assert "1 of 3 shards is redone" in capsys.readouterr().err
    assert run(recipe, command="verify") == 0


def test_a_broken_manifest(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, command="sample") == 0
    (recipe.parent / "run" / "round-1" / "sample" / "manifest.json").write_text("{")
    assert main(["status", str(recipe.parent / "run")]) == 1
    assert "delete this file and run again" in one_sentence(capsys)
    # It is rebuilt, which costs no answer.
    assert run(recipe, command="sample") == 0
    said = capsys.readouterr().err
    assert "manifest.json: damaged, rebuilding it" in said
    assert "redone" not in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("command.json", None, "has no command.json"),
        ("recipe.json", None, "has no recipe.json"),
        ("command.json", "{}", "recipe.json or command.json is broken"),
        ("command.json", "[1]", "recipe.json or command.json is broken"),
        ("recipe.json", "{", "recipe.json or command.json is broken"),
    ],
)
def test_a_run_without_its_recipe(recipe: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, message: str) -> None:
    assert run(recipe, command="sample") == 0
    capsys.readouterr()
    path = recipe.parent / "run" / name
    path.unlink() if content is None else path.write_text(content)
    assert main(["status", str(recipe.parent / "run")]) == 1
    assert message in one_sentence(capsys)
    assert run(recipe, command="sample") == 0
    assert main(["status", str(recipe.parent / "run")]) == 0


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EROFS, "correct that")]
)
def test_the_remedy_fits_what_keeps_a_file_from_being_written(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    assert run(recipe, command="sample") == 1
    message = one_sentence(capsys)
    assert os.strerror(code) in message
    assert remedy in message


def test_rows_with_half_a_character_are_left_out_alone(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON can name a half, as cut emojis leave it, in every field; no file can hold one."""
    broken = [
        {"question": "a \ud83d"},
        {"question": "b", "answer": "\ud83d"},
        {"question": "c", "image": "\ud83d.png"},
        {"question": "d", "domain": "\ud83d"},
    ]
    with (recipe.parent / "questions.jsonl").open("a") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in broken)
    assert run(recipe, command="sample") == 0
    skipped = load_skipped(Run(recipe.parent / "run").stage("source"))
    assert [row.where.rpartition(":")[2] for row in skipped] == ["11", "12", "13", "14"]


def test_reasons_with_odd_line_ends_are_read_again(tmp_path: Path) -> None:
    stage = Run(tmp_path).stage("source")
    stage.folder.mkdir()
    row = Skipped(where="a\u2028b", reason="c\x85d")
    (stage.folder / "skipped.jsonl").write_text(sealed.dumps(asdict(row)), encoding="utf-8")
    assert load_skipped(stage) == [row]


def test_a_recipe_from_an_editor_that_puts_a_mark_in_front(recipe: Path) -> None:
    recipe.write_text("\ufeff" + recipe.read_text(), encoding="utf-8")
    assert run(recipe, command="sample") == 0
