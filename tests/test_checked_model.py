"""What `mixpo check` caches: token counts and what is known of a model, for as long as nothing that decides them changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from failures import fails
from tiny import picture

from mixpo.commands.checked_model import CheckedModel
from mixpo.errors import ModelError, SourceError
from mixpo.recipe import Recipe
from mixpo.stages.models import Models
from mixpo.types import Message, Question

QUESTION = Question(id="q", text="How many?", images=(), answer="2", domain="d", source="s")


class LoadedError(BaseException):
    """The model was asked for. Not an Exception, which loading would translate."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def recipe(folder: Path, **more: object) -> Recipe:
    return Recipe.model_validate({"model": {"path": str(folder), "device": "cpu", **more}, "source": {"kind": "digits", "count": 1}})


def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on whatever loads the model fails."""

    def fresh(*_: object) -> None:
        raise LoadedError

    monkeypatch.setattr(Models, "fresh", fresh)


def test_a_second_check_loads_no_model(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, square = picture(tmp_path / "wide.png", (56, 28)), picture(tmp_path / "square.png", (28, 28))
    questions = [
        (prompt, Question(id="q", text=prompt, images=images, history=history, answer="2", domain="d", source="s"))
        for prompt, images in (("How many?", ()), ("<image>\nHow many?", (wide,)), ("<image>\nHow many?", (square,)))
        for history in ((), (Message(role="user", text="Hello"), Message(role="assistant", text="Hello, too")))
    ]

    def seen(model: CheckedModel) -> list[Any]:
        counts = [model.tokens(prompt, question) for prompt, question in questions]
        return [*counts, model.context, model.problems, *(model.response(text) for text in ("Two", "Three", ""))]

    first = CheckedModel(recipe(tiny_folder), tmp_path)
    before = seen(first)
    assert len(set(map(str, before[: len(questions)]))) == len(questions)  # history, image and its size all count
    two, three, nothing = before[-3:]
    assert two != three
    assert nothing == (1, nothing.digest, True)
    with fails("control-token-in-text", SourceError):
        first.tokens("<|im_end|>", QUESTION)
    first.close()
    no_model(monkeypatch)
    second = CheckedModel(recipe(tiny_folder), tmp_path)
    assert seen(second) == before
    for prompt, question in (("How few?", QUESTION), ("<|im_end|>", QUESTION)):  # a failure is not cached
        with pytest.raises(LoadedError):
            second.tokens(prompt, question)


@pytest.mark.parametrize("changed", ["template", "weights", "dtype", "image", "code", "library"])
def test_a_change_empties_the_cache(changed: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    CheckedModel(recipe(folder), tmp_path).close()
    table = recipe(folder)
    no_model(monkeypatch)
    CheckedModel(table, tmp_path).close()
    match changed:
        case "template":
            (folder / "chat_template.jinja").write_text((folder / "chat_template.jinja").read_text() + " ")
        case "weights":
            (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
        case "dtype":
            table = recipe(folder, dtype="bfloat16")
        case "image":
            table = table.model_copy(update={"image": table.image.model_copy(update={"max_pixels": 1000})})
        case "code":
            monkeypatch.setattr("mixpo.commands.checked_model._code", lambda: "other")
        case "library":
            monkeypatch.setattr("mixpo.commands.checked_model.version", lambda name: "0")
    with pytest.raises(LoadedError):
        CheckedModel(table, tmp_path)


@pytest.mark.parametrize("more", [{"trust_remote_code": True}, {"device": "cuda"}])
def test_what_no_digest_covers_is_not_cached(
    more: dict[str, object], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CheckedModel(recipe(tiny_folder), tmp_path).close()
    no_model(monkeypatch)
    with pytest.raises(LoadedError):
        CheckedModel(recipe(tiny_folder, **more), tmp_path)


def test_a_missing_model_is_an_error_also_with_a_cache(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    CheckedModel(recipe(folder), tmp_path).close()
    shutil.rmtree(folder)
    with fails("model-missing", ModelError):
        CheckedModel(recipe(folder), tmp_path)


def test_without_a_cache_folder(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixpo.commands.checked_model.user_cache", lambda: None)
    model = CheckedModel(recipe(tiny_folder), tmp_path)
    assert model.tokens("How many?", QUESTION) > 5
    model.close()


def test_a_huge_cache_is_begun_anew(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CheckedModel(recipe(tiny_folder), tmp_path).close()
    monkeypatch.setattr("mixpo.commands.checked_model.LARGEST", 0)
    no_model(monkeypatch)
    with pytest.raises(LoadedError):
        CheckedModel(recipe(tiny_folder), tmp_path)
