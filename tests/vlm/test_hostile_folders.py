"""Model folders that are broken or hostile: each is one sentence that names the folder or its file, never a traceback or a hang."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import small_run
import torch
from slow_rows import slow_except

from mixpo.commands.check import check
from mixpo.errors import ModelError
from mixpo.progress import Silent
from mixpo.recipe import ModelTable, load
from mixpo.vlm.tokenizer_only import load_tokenizer_only

Change = Callable[[Path], object]


def edit(name: str, **changes: object) -> Change:
    """Set keys of a JSON file; "a__b" is b inside a."""

    def change(folder: Path) -> None:
        path = folder / name
        settings = json.loads(path.read_text())
        for key, value in changes.items():
            *outer, last = key.split("__")
            target = settings
            for part in outer:
                target = target[part]
            target[last] = value
        path.write_text(json.dumps(settings))

    return change


def text(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def template(content: str) -> Change:
    return text("chat_template.jinja", content)


def tokenizer(**changes: object) -> Change:
    return edit("tokenizer.json", **changes)


def cut(name: str, bytes_left: int) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:bytes_left])

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def act(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})

    return act


def first_two_swapped(tensors: dict[str, torch.Tensor]) -> None:
    """Two tensors of other shapes under each other's names, as two swapped shards have them."""
    names = [name for name in tensors if name.endswith("weight") and tensors[name].ndim == 2]
    other = next(name for name in names if tensors[name].shape != tensors[names[0]].shape)
    tensors[names[0]], tensors[other] = tensors[other], tensors[names[0]]


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLES = "{% set n = namespace(t='xxxxxxxx') %}{% for a in range(40) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}"

SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
ENDLESS = "^(([a-z])+.)+[A-Z]([a-z])+$"

FOLDERS: dict[str, tuple[Change, str]] = {
    "template raises": (template("{{ raise_exception('no') }}"), "chat_template.jinja"),
    "template includes": (template("{% include '/etc/passwd' %}"), "chat_template.jinja"),
    "template imports": (template("{% import 'os' as os %}{{ os.system('id') }}"), "chat_template.jinja"),
    "template loops": (template(LOOP), "chat_template.jinja"),
    "template doubles text": (template(DOUBLES), "chat_template.jinja"),
    "template writes much": (template("{{ messages[0].role * 100000 }}"), "chat_template.jinja"),
    "template with a syntax error": (template("{% if %}"), "chat_template.jinja"),
    "template reads undefined values": (template("{{ messages[7].content.text.x }}"), "chat_template.jinja"),
    "template divides by zero": (template("{{ 1 / 0 }}"), "chat_template.jinja"),
    "template reaches for classes": (template("{{ ''.__class__.__mro__[1].__subclasses__() }}"), "chat_template.jinja"),
    "template leaves the answer out": (template("{{ messages[0].content }}"), "template"),
    "template without the image": (template("{% for m in messages %}{{ m.role }} a question the answer of the check{% endfor %}"), ""),
    "config is no JSON": (text("config.json", "{"), "config.json"),
    "config is a list": (text("config.json", "[1]"), "config.json"),
    "config is nested": (text("config.json", "[" * 100_000), "config.json"),
    "config of another type": (edit("config.json", model_type="bert"), ""),
    "config of no type": (edit("config.json", model_type="no-such-type"), ""),
    "layers against layer_types": (edit("config.json", text_config__num_hidden_layers=1), ""),
    "giant number of layers": (edit("config.json", text_config__num_hidden_layers=10**9), "config.json: num_hidden_layers"),
    "giant vocabulary": (edit("config.json", text_config__vocab_size=10**12), "config.json: vocab_size"),
    "negative width": (edit("config.json", text_config__hidden_size=-48), "config.json: hidden_size"),
    "width as text": (edit("config.json", text_config__hidden_size="wide"), ""),
    "heads that do not divide": (edit("config.json", text_config__num_attention_heads=7), ""),
    "no heads": (edit("config.json", text_config__num_attention_heads=0), ""),
    "eps of NaN": (edit("config.json", text_config__rms_norm_eps=float("nan")), "logits"),
    "rope_theta of 0": (edit("config.json", text_config__rope_parameters={"rope_type": "default", "rope_theta": 0.0}), ""),
    "the language model of a default configuration": (edit("config.json", text_config=None), "config.json: describes"),
    "unknown activation": (edit("config.json", text_config__hidden_act="no-such"), ""),
    "image_std of zeros": (edit("processor_config.json", image_processor__image_std=[0.0, 0.0, 0.0]), "image_std = 0"),
    "rescale_factor of infinity": (edit("processor_config.json", image_processor__rescale_factor=float("inf")), "rescale_factor"),
    "giant picture size": (edit("processor_config.json", image_processor__size={"height": 10**6, "width": 10**6}), "height"),
    "picture size of zero": (edit("processor_config.json", image_processor__size={"height": 0, "width": 0}), "height"),
    "giant number of patches": (edit("processor_config.json", image_processor__max_patches=10**9), "max_patches"),
    "giant number of image tokens": (edit("processor_config.json", image_seq_length=10**10), "image_seq_length"),
    "processor of an unknown class": (edit("processor_config.json", processor_class="os.system"), ""),
    "tokenizer is no JSON": (text("tokenizer.json", "{"), ""),
    "tokenizer is binary": (text("tokenizer.json", b"\xff\xfe\x00" * 50), ""),
    "tokenizer with a pattern that never ends": (tokenizer(pre_tokenizer=SPLIT | {"pattern": {"Regex": ENDLESS}}), "tokenizer.json"),
    "tokenizer with a broken pattern": (tokenizer(pre_tokenizer=SPLIT | {"pattern": {"Regex": "(["}}), ""),
    "tokenizer without a vocabulary": (tokenizer(model={"type": "BPE", "vocab": {}, "merges": []}), ""),
    "tokenizer of another model": (tokenizer(model={"type": "WordLevel", "vocab": {"a": 10**6}, "unk_token": "a"}), ""),
    "weights cut short": (cut("model.safetensors", 5_000), "model.safetensors"),
    "weights without a header": (text("model.safetensors", b"\0" * 100), "model.safetensors"),
    "weights with a giant header": (text("model.safetensors", b"\xff" * 100), "model.safetensors"),
    "weights of another shape": (weights(lambda t: t.update({k: v.T for k, v in t.items() if v.ndim == 2})), ""),
    "swapped weights": (weights(first_two_swapped), ""),
    "weights that lack one": (weights(lambda t: t.pop(next(iter(t)))), ""),
    "generation config is a list": (text("generation_config.json", "[1]"), "generation_config.json"),
    "end of turn as text": (edit("generation_config.json", eos_token_id="end"), ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    return small_run.make(tmp_path_factory.mktemp("hostile"), tiny_folder, count=1)


@pytest.fixture(autouse=True)
def own_cache(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for all folders: most have the same good template and tokenizer, which are tried once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(recipe.parent / "cache"))


FAST = ("template includes", "layers against layer_types", "giant vocabulary", "eps of NaN", "image_std of zeros", "weights cut short")


@pytest.mark.parametrize("name", slow_except(FOLDERS, *FAST))
def test_check_finds_it(recipe: Path, tiny_folder: Path, tmp_path: Path, name: str) -> None:
    change, says = FOLDERS[name]
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    change(folder)
    begun = time.process_time()
    checked = check(load(recipe, (f'model.path="{folder}"',)), recipe.parent, Silent(), 1)
    assert time.process_time() - begun < 60
    problems = [finding for finding in checked.findings if "model" in finding.where or "model" in finding.problem]
    assert problems, f"{name}: nothing was found"
    for finding in problems:
        assert "\n" not in finding.problem
        assert len(finding.problem) < 1_000
    whole = " ".join(f"{finding.where} {finding.problem}" for finding in problems)
    assert says in whole
    assert str(folder) in whole


def test_a_good_folder_passes_and_is_remembered(recipe: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixpo.vlm import vetting

    vetting._PASSED.clear()
    table = ModelTable(path=str(tiny_folder), device="cpu")
    load_tokenizer_only(table, Path())
    vetting._PASSED.clear()
    monkeypatch.setattr(vetting, "_try", lambda _: pytest.fail("tried again"))
    load_tokenizer_only(table, Path())


def test_a_template_that_is_hostile_to_one_conversation_only(tiny_folder: Path, tmp_path: Path) -> None:
    """What the trial does not meet is a sentence, too."""
    from mixpo.vlm.load import load as load_model
    from mixpo.vlm.prompt import render_prompt

    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    text_of_template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(
        "{% set t = messages[0].content | string %}{% if 'boom' in t %}{{ 1 / 0 }}{% elif 'much' in t %}{{ 'x' * 300000 }}{% endif %}"
        + text_of_template
    )
    vlm = load_model(ModelTable(path=str(folder), device="cpu"), Path())
    assert render_prompt(vlm, "hello")
    for word, code in (("boom", "template-refuses-turn"), ("much", "template-too-long")):
        with pytest.raises(ModelError) as caught:
            render_prompt(vlm, word)
        assert caught.value.code == code
