"""The command line: what it prints, where, and the exit status."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_run
import typer
from failures import shows
from rich.console import Console
from slow_rows import slow_except
from spying import replace_in

import mixpo
from mixpo import sealed
from mixpo.cli import main, output
from mixpo.cli.app import EXAMPLES, INSPECT, USE, WORK, app
from mixpo.cli.output import Lines, printable
from mixpo.cli.tables import table
from mixpo.commands.rates import ANSWER_SHARE, PROMPT_TOKENS
from mixpo.recipe import load

SETS = (("digits", '"digits", pool = "test"'), ("mine", '"jsonl", path = "none.jsonl"'))
"""Names and tables of two evaluation sets, of which one has no file."""


@pytest.fixture
def small(finished_run: Path) -> tuple[Path, Path]:
    """A recipe and a finished run of it."""
    return finished_run / "recipe.toml", finished_run / "run"


def test_run_prints_the_results(small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = small
    assert main(["run", str(recipe), "--dir", str(run)]) == 0
    captured = capsys.readouterr()
    assert str(run / "report.html") in captured.out
    assert "held-out" in captured.out
    assert "round-1/train/mpo" in captured.out
    report = json.loads((run / "report.json").read_text())
    assert set(report["models"]) == {"base", "sft", "mpo"}
    assert set(report["models"]["mpo"]) == {"cot", "direct"}
    assert report["models"]["mpo"]["cot"]["n"] == 6


def test_the_resolved_recipe_is_kept(small: tuple[Path, Path]) -> None:
    kept = json.loads((small[1] / "recipe.json").read_text())
    assert kept["sample"]["n"] == 4
    assert kept["train"]["loss"]["beta"] == 0.1


def test_status(small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(small[1]), "--json"]) == 0
    stages = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    assert {row["state"] for row in stages.values()} == {"done"}
    assert stages["round-1/sample"]["done"] == stages["round-1/sample"]["total"] == 3
    assert stages["round-1/sample"]["counts"]["answers"] == 40
    assert stages["source"]["counts"]["questions"] == 10
    assert main(["status", str(small[1])]) == 0
    shown = capsys.readouterr().out
    assert "round-1/train/mpo" in shown
    assert "10 questions, 40 answers, " in shown
    assert not re.search(r"\w_\w", shown.partition("model:")[0])  # no short name of a counter
    assert not re.search(r" $", shown, re.MULTILINE)


@pytest.mark.parametrize("encoding", slow_except(["ascii", "utf-8", "latin-1"], "ascii"))
def test_output_that_cannot_hold_every_character(small: tuple[Path, Path], tmp_path: Path, encoding: str) -> None:
    run = tmp_path / "目录"
    run.symlink_to(small[1])
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(mixpo.__file__).parents[1])}

    def output(*arguments: str) -> str:
        command = [sys.executable, "-m", "mixpo", *arguments]
        return subprocess.run(command, capture_output=True, check=True, env=environment, timeout=240).stdout.decode(encoding)

    assert json.loads(output("status", str(run), "--json"))["run"] == str(run)
    assert output("status", str(run)).count("/models/") == 2
    compared = output("compare", str(run), str(run))
    assert "95 % interval" in compared
    assert len(re.findall(r"^held-out +chain of thought +MPO .*MPO ", compared, re.MULTILINE)) == 1


def test_status_of_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 1
    assert "no run directory" in capsys.readouterr().err


def test_dry_run_makes_nothing(small: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(small[0]), "--dir", str(tmp_path / "new"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    assert "10 of 10 questions" in out
    assert "assumed" in out
    assert main(["run", str(small[0]), "--dir", str(small[1]), "--dry-run", "--set", "sample.temperature=0.5"]) == 0
    out = capsys.readouterr().out
    assert "sample.temperature: 1.0 -> 0.5" in " ".join(out.split())
    assert "measured in this run" in " ".join(out.split())


def test_dry_run_honours_force_and_until(small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(small[0]), "--dir", str(small[1]), "--dry-run"]
    before = sorted(small[1].rglob("*.parquet"))
    assert main([*arguments, "--force", "pair"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if "/" in line}
    assert "--force" in rows["round-1/pair"]
    assert "--force" in rows["round-1/train/mpo"]
    assert "done" in rows["round-1/sample"]
    assert main([*arguments, "--until", "verify"]) == 0
    assert "round-1/pair" not in (out := capsys.readouterr().out)
    assert "round-1/verify" in out
    for option, name in (("--force", "smaple"), ("--until", "verfy")):
        assert main([*arguments, option, name]) == 2
        assert shows("unknown-stage", capsys.readouterr().err)[:2] == (option, name)
    assert sorted(small[1].rglob("*.parquet")) == before


def test_run_until_a_stage(small: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(small[0]), "--dir", str(tmp_path / "run"), "--until", "verify"]) == 0
    out = capsys.readouterr().out
    assert "round-1/verify" in out
    assert "round-1/pair" not in out
    assert not (tmp_path / "run/round-1/pair").exists()


def test_plan_scales_what_a_small_run_measured(small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(small[0]), "--dir", str(small[1]), "--questions", "1000", "--json"]) == 0
    stages = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    measured = {name: json.loads((small[1] / name / "manifest.json").read_text()) for name in ("round-1/sample", "round-1/train/mpo")}
    sample, train = stages["round-1/sample"], stages["round-1/train/mpo"]
    # Ten questions were measured, a thousand are planned.
    assert (sample["todo"], sample["requests"]) == (1000, 1000)
    assert sample["seconds"] == pytest.approx(100 * measured["round-1/sample"]["seconds"])
    assert sample["tokens"] == 100 * measured["round-1/sample"]["counts"]["tokens"]
    size = sum(path.stat().st_size for path in (small[1] / "round-1/sample").glob("*.parquet"))
    assert sample["bytes"] == 100 * size
    assert train["seconds"] == pytest.approx(100 * measured["round-1/train/mpo"]["seconds"])
    assert train["tokens"] == 100 * measured["round-1/train/mpo"]["counts"]["tokens"]
    # Evaluation sets do not grow with the source, and nothing counts as done.
    assert stages["evaluate/held-out/base/cot"]["todo"] == 6
    measured_stages = [name for name in stages if name.startswith("round-1/")]
    assert len(measured_stages) >= 6
    assert not [name for name in measured_stages if stages[name]["basis"] != "measured in this run"]
    assert stages["report"]["basis"] == "assumed"
    # The reference stage counts questions with pairs alone, while its work is that of all ten.
    reference = json.loads((small[1] / "round-1/reference/manifest.json").read_text())
    assert stages["round-1/reference"]["tokens"] == 100 * reference["counts"]["tokens"]
    assert stages["round-1/reference"]["seconds"] == pytest.approx(100 * reference["seconds"])


def test_plan_says_what_was_not_measured(small: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sampled"
    shutil.copytree(small[1], folder, ignore=shutil.ignore_patterns("train", "reference", "pair", "verify"))
    manifest = folder / "round-1/sample/manifest.json"
    facts = json.loads(manifest.read_text()) | {"facts": {"server": {"n": 3}}}
    manifest.write_text(sealed.dumps(facts))
    engine = ["--set", 'sample.engine="openai"', "--set", 'sample.server.urls=["http://127.0.0.1:9/v1"]']
    assert main(["plan", str(small[0]), "--dir", str(folder), *engine, "--json", "--questions", "100"]) == 0
    stages = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    # Four answers from a server that gives three a request take two; each of 20 open questions has 4 answers to continue.
    assert (stages["round-1/sample"]["requests"], stages["round-1/continue"]["requests"]) == (200, 80)
    assert stages["round-1/verify"]["basis"] == "assumed"
    assert stages["round-1/train/mpo"]["basis"] == "assumed from the rate of sampling"
    # Half of the questions give 4 pairs of 4 answers; a prompt of 400 tokens is computed once.
    answer = facts["counts"]["tokens"] / facts["counts"]["answers"]
    assert stages["round-1/train/mpo"]["tokens"] == int(50 * 400 + 50 * 4 * answer)


def test_plan_counts_the_open_requests_of_all_questions(
    small: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight questions with an answer are asked again, for two responses each; the two open ones are not."""
    engine = ["--set", 'sample.engine="openai"', "--set", 'sample.server.urls=["http://127.0.0.1:9/v1"]']
    given = [*engine, "--set", "sample.n=4", "--set", 'pairs.dropout_from="all"', "--set", "pairs.max_dropout_per_question=2"]
    assert main(["plan", str(small[0]), "--dir", str(tmp_path / "new"), *given, "--json"]) == 0
    stages = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    sample = stages["round-1/sample"]
    each = load(small[0]).sample.max_new_tokens * ANSWER_SHARE
    assert (sample["requests"], sample["tokens"]) == (10 + 8, int((10 * 4 + 8 * 2) * each))
    # Every question has two pairs of DropoutNTP, half of all have four of correctness besides.
    assert stages["round-1/train/mpo"]["tokens"] == int(10 * PROMPT_TOKENS + 2 * (5 * 4 + 10 * 2) * each)


def test_plan_with_given_rates(small: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = ["--rate", "100", "--train-rate", "50"]
    assert main(["plan", str(small[0]), "--dir", str(tmp_path / "new"), *rates, "--json"]) == 0
    stages = {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    sample, train, reference = stages["round-1/sample"], stages["round-1/train/mpo"], stages["round-1/reference"]
    assert (sample["seconds"], sample["basis"]) == (sample["tokens"] / 100, "--rate")
    assert (train["seconds"], train["basis"]) == (train["tokens"] / 50, "--train-rate")
    assert reference["seconds"] == pytest.approx(reference["tokens"] / 150)  # forward only
    assert main(["plan", str(small[0]), "--dir", str(tmp_path / "new"), *rates, "--devices", "4", "--memory"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "on 4 devices" in out
    assert "training memory" in out
    assert "FSDP2 on 4 GPUs" in out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("form", "file"), [("mmpr", "meta.json"), ("trl", "pairs.jsonl")])
def test_export(small: tuple[Path, Path], tmp_path: Path, form: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(small[1]), "--format", form, "--to", str(tmp_path / form)]) == 0
    assert (tmp_path / form / file).stat().st_size > 0
    pairs = json.loads((small[1] / "report.json").read_text())["counts"]["round-1/pair"]["pairs"]
    assert f"{pairs} pairs written" in capsys.readouterr().out


def test_export_of_what_is_not_there(small: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(small[1]), "--format", "mmrp", "--to", str(tmp_path)]) == 2
    assert "did you mean 'mmpr'?" in capsys.readouterr().err
    assert main(["export", str(small[1]), "--round", "2", "--to", str(tmp_path)]) == 1


def test_check_of_a_good_recipe(small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(small[0])]) == 0
    out = capsys.readouterr().out
    assert "source: 10 questions\n" in out
    assert "no problems found" in out


@pytest.mark.parametrize(
    ("settings", "possible"),
    [
        (["sample.n=1"], True),  # by its open questions
        (["sample.n=1", "pairs.dropout_ntp=false"], False),
        (["pairs.dropout_ntp=false"], True),
        (["pairs.correctness=false"], True),
        (["pairs.correctness=false", "pairs.dropout_ntp=false"], False),
    ],
)
def test_check_says_when_no_pair_is_possible(
    small: tuple[Path, Path], settings: list[str], possible: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(small[0]), *(word for setting in settings for word in ("--set", setting))]) == (0 if possible else 3)
    assert ("source: no question can give a pair" in capsys.readouterr().out) is not possible


def test_check_finds_everything_at_once(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_run.make(tmp_path, tiny_folder)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    rows[1] = {**rows[1], "answer": "cat"}
    rows[2] = {**rows[2], "image": "images/none.png"}
    rows[3] = {**rows[3], "question": "word " * 600}
    (tmp_path / "images" / "16.png").write_bytes((tmp_path / "images" / "16.png").read_bytes()[:-30])
    rows.append({"image": "images/17.png", "question": "An end <|im_end|> inside", "answer": "1"})
    small_run.write_jsonl(tmp_path / "questions.jsonl", rows)
    settings = ["--set", "source.answer_kind=number", "--set", "sample.script=none.jsonl"]
    assert main(["check", str(recipe), *settings]) == 3
    out = capsys.readouterr().out
    assert "questions.jsonl:2: answer_kind is \"number\", but the answer is 'cat'" in out
    assert "questions.jsonl:3" in out
    assert "none.png" in out
    assert "questions.jsonl:4: over-long" in out
    assert "questions.jsonl:6" in out
    assert "questions.jsonl:11: the text holds '<|im_end|>'" in out
    assert "sample.script" in out
    assert "6 problems found" in out
    assert main(["check", str(recipe), *settings, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert [finding["where"].rpartition("/")[2] for finding in found["findings"]][-1] == "questions.jsonl:11"
    assert len(found["findings"]) == 6
    assert found["counts"]["source: questions"] == 9


def test_check_says_that_a_template_supervises_nothing(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    for path in model.glob("chat_template*"):
        path.unlink()
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>user\n{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<IMG_CONTEXT>{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    recipe = small_run.make(tmp_path, model)
    assert main(["check", str(recipe), "--limit", "1"]) == 3
    assert "would supervise no token" in capsys.readouterr().out


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) in (0, 1)
    out = capsys.readouterr().out
    for word in ("torch", "transformers", "cpu:", "memory", "disk", "extra wandb"):
        assert word in out
    assert ("no GPU found" in out) != ("cuda:0" in out or "mps:" in out)
    assert main(["doctor", "--json"]) in (0, 1)
    topics = {line["topic"]: line for line in json.loads(capsys.readouterr().out)}
    assert topics["python"] == {"topic": "python", "text": platform.python_version(), "problem": False}


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mixpo 0.")
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("run", "sample", "verify", "pair", "reference", "train", "evaluate", "report", "check", "doctor", "status", "demo"):
        assert command in out


HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "scipy",
    "pyarrow",
    "PIL",
    "sympy",
    "jinja2",
    "aiohttp",
    "asyncio",
    "duckdb",
    "fastapi",
    "ray",
}


def loaded(*arguments: str) -> set[str]:
    """The packages that a command has imported by its end."""
    code = (
        "import sys; from mixpo.cli import main; status = main(sys.argv[1:]); print(); print(*{n.partition('.')[0] for n in sys.modules})"
    )
    command = [sys.executable, "-c", f"{code}; sys.exit(status)", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(mixpo.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True, env=environment)
    return set(done.stdout.splitlines()[-1].split())


def test_help_and_status_load_nothing_heavy(small: tuple[Path, Path]) -> None:
    """`benchmarks/startup.py` measures their time."""
    assert not loaded("--help") & {*HEAVY, "pydantic", "rich"}
    assert not loaded("run", "--help") & {*HEAVY, "rich"}
    assert not loaded("status", str(small[1]), "--json") & {*HEAVY, "rich"}
    assert "rich" in (packages := loaded("status", str(small[1])))
    assert not packages & HEAVY


def test_help_is_plain_text_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-h"]) == 0
    out = capsys.readouterr().out
    assert [line.rstrip(":") for line in out.splitlines() if re.fullmatch(r"\w.*:", line)] == ["Options", WORK, INSPECT, USE]
    assert "--install-completion" in out
    assert out.count("...") == 1  # in the usage: every summary is whole
    assert main(["plan", "-h"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"-h, --help +Show", out)
    assert re.search(r"--json +Print", out)


def test_every_command_shows_examples_that_it_understands(capsys: pytest.CaptureFixture[str]) -> None:
    commands = typer.main.get_command(app)
    names = commands.commands  # type: ignore[attr-defined]
    assert set(EXAMPLES) == set(names)
    for name, lines in EXAMPLES.items():
        assert main([name, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert shown.partition("Examples: ")[2] == " ".join(lines)
        for line in lines:
            command, _, arguments = line.partition("mixpo ")[2].partition(" ")
            assert command == name
            names[name].make_context(name, shlex.split(arguments)).close()


def test_wrong_use_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert main(["run", str(tmp_path / "none.toml")]) == 2
    assert "no such recipe" in capsys.readouterr().err
    assert main(["run", "x.toml", "--limit", "0"]) == 2


def test_interrupt(small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mixpo.pipeline.run_recipe", interrupted)
    assert main(["run", str(small[0])]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mixpo.pipeline.run_recipe", broken)
    with pytest.raises(ZeroDivisionError):
        main(["run", str(small[0])])


def test_two_processes_do_not_share_a_run(small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from mixpo.run import Run

    with Run(small[1]).lock():
        assert main(["run", str(small[0]), "--dir", str(small[1])]) == 1
    assert "another mixpo process" in capsys.readouterr().err


@pytest.mark.slow
def test_stage_commands_say_what_is_missing(small: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(small[0]), "--dir", str(tmp_path / "run")]
    assert main(["pair", *arguments]) == 1
    assert "needs round-1/sample, which has not run" in capsys.readouterr().err
    for command in ("sample", "verify", "pair"):
        assert main([command, *arguments]) == 0
    assert main(["train", *arguments]) == 1
    capsys.readouterr()
    assert main(["evaluate", *arguments]) == 0
    assert "answer held-out: mpo, cot: not run, round-1/train/mpo, which has not run" in (said := capsys.readouterr().err)
    assert "evaluate held-out: mpo" not in said
    assert main(["report", *arguments]) == 0
    assert set(json.loads((tmp_path / "run" / "report.json").read_text())["models"]) == {"base"}
    assert main(["verify", *arguments, "--set", "sample.temperature=0.5"]) == 1
    assert "is stale (sample.temperature: 1.0 -> 0.5)" in capsys.readouterr().err


def test_unknown_stage_to_force(small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(small[0]), "--dir", str(small[1]), "--force", "smaple"]) == 2
    assert "no such stage, did you mean 'sample'?" in capsys.readouterr().err


def test_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    lines = Lines(sys.stderr)
    lines.start("sample", 10, "questions", done=4)
    lines.advance(6)
    lines.finish()
    started, done = capsys.readouterr().err.splitlines()
    assert started == "sample: 4 of 10 questions, started", "a model may be loaded for minutes before the first question"
    assert done.startswith("sample: 10 of 10 questions, done in ")
    lines.start("source", 64, "questions")
    lines.advance(5)
    lines.finish()
    assert capsys.readouterr().err.splitlines()[1].startswith("source: 5 questions, done in ")


def test_the_time_left_is_not_that_of_loading_a_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A minute of loading, then 2 questions every 15 seconds: with 8 of 10 to come, there is a minute left."""
    import sys

    moments = iter([100.0, 160.0, 175.0])
    replace_in(monkeypatch, output, "time", monotonic=lambda: next(moments))
    lines = Lines(sys.stderr)
    lines.start("sample", 12, "questions")
    lines.advance(2)
    lines.advance(2)
    _, first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(", working")
    assert second.endswith(", about 1 min 00 s left")


@pytest.mark.slow
def test_nothing_is_told_of_a_training_that_is_done(
    own_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mixpo.cli.output.LOG_SECONDS", 0.0)
    assert main(["train", str(own_run / "recipe.toml"), "--dir", str(own_run / "run"), "--force", "train"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train mpo:")]
    assert len(told) > 1
    assert [number for number, line in enumerate(told) if ", done in " in line] == [len(told) - 1]


def test_nothing_steers_the_terminal() -> None:
    assert printable("a\x1b[31mred\x07 \ud800") == "a\ufffd[31mred\ufffd \ufffd"
    assert printable("4.5\u202f% \u2212 中\n\t") == "4.5\u202f% \u2212 中\n\t"


def test_bars_in_a_terminal_are_taken_down(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    from mixpo.cli.bars import Bars

    bars, written = Bars(), io.StringIO()
    bars.console = Console(file=written, force_terminal=True, width=140)
    bars.start("sample", 10, "questions", done=4)
    bars.advance(2, "loss 0.5")
    bars.say("a message [in brackets]")
    bars.close()
    text = written.getvalue()
    assert "6/10" in text
    assert "loss 0.5" in text
    assert "a message [in brackets]" in text
    assert text.rstrip().endswith("\x1b[?25h")  # the cursor is shown again
    bars.close()


@pytest.mark.parametrize("width", [50, 80, 100, 200])
def test_tables_fit_the_terminal_with_whole_words(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    headings = ("model", "answers", "accuracy", "95 % interval", "no clear answer", "undecided", "questions", "why")
    rows = [(model, mode, "62.5 %", "48.4 to 74.8 %", "0", "0", "1,000", "") for model in ("Start", "MPO") for mode in ("cot", "direct")]
    rows[0] = (*rows[0][:-1], "a reason of many words that may well be broken into several lines where there is no room for it")
    monkeypatch.setattr("mixpo.cli.tables.console", lambda: Console(width=width, highlight=False))
    table(headings, rows, title="results")
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    words = [word for text in (*headings, *(cell for row in rows for cell in row)) for word in text.split()]
    if width == 50:  # without room for all columns, each row becomes a list
        assert lines.count("Start") == lines.count("MPO") == 2
        assert lines.count("  95 % interval    48.4 to 74.8 %") == 4
        assert lines.count("  answers          direct") == 2
    else:
        assert sorted(out.split()) == sorted(["results", *words])  # none is broken
        assert sum(line.startswith("MPO    direct") for line in lines) == 1
    assert ("model  answers  accuracy  95 % interval   no clear answer" in out) == (width >= 100)


def test_a_terminal_without_room_for_a_column_lists_each_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mixpo.cli.tables.console", lambda: Console(width=40, highlight=False))
    stages = ("evaluate/held-out/base/direct", "report")
    rows = [(stages[0], "done", "6 answers, 5 correct, 1 wrong, 84 tokens", ""), (stages[1], "stale", "", "a new input shard")]
    table(("stage", "state", "made", "why"), rows)
    assert capsys.readouterr().out.splitlines() == [
        "evaluate/held-out/base/direct",
        "  state  done",
        "  made   6 answers, 5 correct, 1 wrong,",
        "         84 tokens",
        "report",
        "  state  stale",
        "  why    a new input shard",
    ]


def test_an_error_says_which_evaluation_set_it_is_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All tables of sources have the same keys."""
    recipe = tmp_path / "r.toml"
    sets = "".join(f'[[evaluate.sets]]\nname = "{name}"\nsource = {{ kind = {kind} }}\n' for name, kind in SETS)
    recipe.write_text('[model]\npath = "mixpo:tiny"\n' + sets)
    for command in (["run", str(recipe), "--dry-run"], ["run", str(recipe)]):
        assert main([*command, "--dir", str(tmp_path / "run"), "--limit", "2"]) == 3
        assert f"mixpo: evaluate.sets.mine: {tmp_path / 'none.jsonl'}: no such file" in capsys.readouterr().err
    assert main(["check", str(recipe), "--limit", "2"]) == 3
    assert f"evaluate.sets.mine: {tmp_path / 'none.jsonl'}: no such file" in capsys.readouterr().out
