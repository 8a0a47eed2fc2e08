"""What goes to the hub, and what must not. No network: the hub is a stub that remembers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from failures import fails

from mixpo.cli import main
from mixpo.errors import RunError
from mixpo.export.push import prepare, push
from mixpo.report.model_card import REMOVED, CardSubject, card, without_secrets
from mixpo.report.words import percent


class Hub:
    """The four calls of HfApi that are made."""

    def __init__(self, private: bool = True) -> None:
        self.private, self.calls = private, list[tuple[str, dict[str, Any]]]()

    def create_repo(self, repository: str, **options: Any) -> str:
        self.calls.append(("create_repo", {"repository": repository, **options}))
        return f"https://huggingface.co/{repository}"

    def repo_info(self, repository: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload_folder", options))

    def upload_file(self, **options: Any) -> None:
        self.calls.append(("upload_file", options))


@pytest.mark.slow
def test_the_card_tells_data_recipe_and_results(finished_run: Path) -> None:
    upload = prepare(finished_run / "run" / "models" / "mpo", "org/model", "apache-2.0")
    front, text = upload.card.split("---\n")[1], upload.card
    assert 'license: "apache-2.0"' in front
    assert 'pipeline_tag: "image-text-to-text"' in front
    assert "base_model" not in front
    counts = json.loads((finished_run / "run" / "round-1" / "pair" / "manifest.json").read_text())["counts"]
    assert f"- {counts['pairs']:,} preference pair" in text
    data = text[text.index("## Training data") : text.index("## Results")]
    assert data.count("\n- ") == 5
    report = json.loads((finished_run / "run" / "report.json").read_text())
    scores = report["models"]["mpo"]["cot"]
    assert f"| {scores['accuracy'] * 100:.1f} % | {scores['low'] * 100:.1f} to {scores['high'] * 100:.1f} % |" in text
    assert '"learning_rate": 0.001' in text
    assert str(finished_run) not in text, "a path of this machine is in the card"


@pytest.mark.parametrize(
    ("origins", "engine", "words"),
    [
        ({"correctness": 2, "imported": 0}, "transformers", "on preference pairs made of its own responses."),
        ({"correctness": 2}, "file", "on preference pairs made of saved responses."),
        ({"imported": 2}, "transformers", "on ready-made preference pairs."),
        ({"imported": 2, "dropout_ntp": 1}, "vllm", "on preference pairs made of its own responses and on ready-made ones."),
    ],
)
def test_the_card_says_whose_pairs_they_are(origins: dict[str, int], engine: str, words: str) -> None:
    nothing = {"total": 0, "tokens_mean": None}
    pairs = {
        "origins": origins, "sources": ["a|b\\c"], "questions": 2, "with_answer": 0, "answers": nothing, "pairs": 2, "with_pairs": 2,
        "verdicts": {"accuracy": None, "undecided": 0},
    }  # fmt: skip
    report: dict[str, Any] = {"title": "T", "headline": None, "versions": {"mixpo": "1"}, "pairs": pairs, "dropped": [], "models": {}}
    text = card(CardSubject(name="mpo", base="", licence="mit"), report, {"sample": {"engine": engine}})
    assert words in text
    assert "0 sampled responses" not in text
    assert "2 questions from a\\|b\\\\c, 0 with an answer key" in text
    assert "SFT rows" not in text
    replayed = card(CardSubject(name="mpo", base="", licence="mit"), report, {"train": {"replay": {"share": 0.25}}})
    assert f"SFT rows mixed in with the generation loss only: {percent(0.25)} of the pairs" in replayed


def test_what_is_uploaded(finished_run: Path) -> None:
    hub, model = Hub(), finished_run / "run" / "models" / "sft"
    assert push(prepare(model, "org/model"), private=True, api=hub) == "https://huggingface.co/org/model"
    assert hub.calls[0] == ("create_repo", {"repository": "org/model", "private": True, "exist_ok": True})
    assert hub.calls[1][1]["folder_path"] == model.resolve()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(hub.calls[1][1]["allow_patterns"])
    assert hub.calls[2][1]["path_in_repo"] == "README.md"
    assert b'license: "unknown"' in hub.calls[2][1]["path_or_fileobj"]


def test_private_means_private(finished_run: Path) -> None:
    hub = Hub(private=False)
    with fails("hub-public", RunError, key="org/model"):
        push(prepare(finished_run / "run" / "models" / "mpo", "org/model"), private=True, api=hub)
    assert [name for name, _ in hub.calls] == ["create_repo"], "something was uploaded to a public repository"


def test_secrets_and_paths_stay_here() -> None:
    recipe = {
        "sample": {"api_key": "abc", "url": "https://user:word@host/v1", "max_new_tokens": 12, "headers": ["Bearer hf_abcdefgh1234"]},
        "model": {"path": "/home/someone/models/vlm"},
        "prompt": {"cot": "{question}"},
    }
    found = without_secrets(recipe)
    assert found["sample"] == {"api_key": REMOVED, "url": REMOVED, "max_new_tokens": 12, "headers": [REMOVED]}
    assert found["model"]["path"] == "vlm"
    assert found["prompt"] == recipe["prompt"]


def test_what_is_no_trained_model(finished_run: Path, tmp_path: Path) -> None:
    for path in (tmp_path, finished_run / "run" / "models" / "dpo", finished_run / "run"):
        with fails("no-trained-model", RunError):
            prepare(path, "org/model")
    with fails("hub-name", RunError, key="../elsewhere"):
        prepare(finished_run / "run" / "models" / "mpo", "../elsewhere")


def test_a_run_without_report(own_run: Path) -> None:
    (own_run / "run" / "report.json").unlink()
    with fails("file-missing", RunError, path=own_run / "run" / "report.json"):
        prepare(own_run / "run" / "models" / "mpo", "org/model")


def test_dry_run_uploads_nothing(finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpo.export.push.push", lambda *_: pytest.fail("it was uploaded"))
    assert main(["push", str(finished_run / "run" / "models" / "mpo"), "org/model", "--dry-run", "--license", "mit"]) == 0
    shown = capsys.readouterr().out
    assert 'license: "mit"' in shown
    assert "files: chat_template.jinja, config.json" in shown
