"""Model folders: what is refused before any work, and that what is saved is what was in memory."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from failures import fails
from safetensors.torch import load_file, save_file

from mixpo.errors import ModelError
from mixpo.recipe import ModelTable
from mixpo.vlm import load as load_module
from mixpo.vlm import save as save_module
from mixpo.vlm.folder import digests
from mixpo.vlm.inputs import batch_inputs
from mixpo.vlm.load import Vlm, check_weights, load, pick_device
from mixpo.vlm.prompt import encode
from mixpo.vlm.save import save
from mixpo.vlm.tokenizer_only import load_tokenizer_only

HEAD = "model.language_model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def open_folder(folder: Path) -> Vlm:
    return load(ModelTable(path=folder.name, device="cpu"), folder.parent)


def change_weights(folder: Path, change: object) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if key.endswith("layers.1.mlp.down_proj.weight"))
    change(tensors, name)  # type: ignore[operator]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_load_gives_a_model_ready_for_use(tiny_vlm: Vlm) -> None:
    assert not tiny_vlm.model.training
    assert len(tiny_vlm.digest) == len(tiny_vlm.template_digest) == 16
    assert [tiny_vlm.processor.tokenizer.convert_ids_to_tokens(token) for token in tiny_vlm.end_ids] == ["<|im_end|>"]


def test_dtype_follows_the_recipe(folder: Path) -> None:
    vlm = load(ModelTable(path=str(folder), dtype="bfloat16", device="cpu"), Path())
    assert {parameter.dtype for parameter in vlm.model.parameters()} == {torch.bfloat16}


def test_another_folder_may_be_given(folder: Path) -> None:
    assert load(ModelTable(path="nowhere", device="cpu"), Path(), folder).folder == folder


def test_a_tokenizer_with_ids_beyond_the_embeddings_is_refused(folder: Path) -> None:
    """Sampling would stop with an IndexError at the first such token."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    rows = load(ModelTable(path=str(folder), device="cpu"), Path()).model.get_input_embeddings().weight.shape[0]
    known = {token["id"] for token in tokenizer["added_tokens"]} | set(tokenizer["model"]["vocab"].values())
    for number in range(max(known) + 1, rows + 1):
        added = {"id": number, "content": f"<more_{number}>", "special": False}
        tokenizer["added_tokens"].append({**added, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False})
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=rf"the tokenizer gives ids up to {rows} \('<more_{rows}>'\), .* for {rows} ids only; take the"):
        load(ModelTable(path=str(folder), device="cpu"), Path())


def test_the_tokenizer_leaves_lengths_to_us(tiny_vlm: Vlm) -> None:
    """A warning about indexing errors would stand beside our own message about an over-long question."""
    assert len(tiny_vlm.processor.tokenizer("word " * 5000)["input_ids"]) > 4096
    assert tiny_vlm.processor.tokenizer.model_max_length > 10**9


def test_digests_follow_the_files(folder: Path) -> None:
    table = ModelTable(path=str(folder), device="cpu")
    before = digests(folder)
    assert (before.weights, before.template) == (load(table, Path()).digest, load(table, Path()).template_digest)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    after_template = digests(folder)
    assert after_template.weights == before.weights
    assert after_template.template != before.template
    change_weights(folder, lambda tensors, name: tensors[name].mul_(1.001))
    after_weights = digests(folder)
    assert after_weights.weights != before.weights
    assert after_weights.template == after_template.template


# --- unusable folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "not a model folder"),
        ("processor_config.json", "no processor"),
        ("model.safetensors", "no .*safetensors"),
        ("chat_template.jinja", "no chat template"),
        ("tokenizer.json", "processor cannot be loaded"),
    ],
)
def test_a_folder_that_lacks_a_file(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=message) as caught:
        open_folder(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such model folder; model\.path"):
        load(ModelTable(path="./nowhere"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="must be a folder"):
        load(ModelTable(path="file"), tmp_path)


def test_an_unreachable_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="the hub does not give it"):
        load(ModelTable(path="nobody/nothing-of-this-name"), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, name: tensors[name][3].fill_(float("nan")), "NaN or infinite"),
        (lambda tensors, name: tensors[name][3].fill_(float("-inf")), "NaN or infinite"),
        (lambda tensors, name: tensors[name].zero_(), "only zeros"),
        (lambda tensors, name: tensors.pop(name), "lack"),
        (lambda tensors, name: tensors.update({"model.language_model.extra.weight": torch.ones(2)}), "unknown"),
        (lambda tensors, name: tensors.update({name: torch.ones(3, 3)}), "shape|size"),
    ],
    ids=["nan", "inf", "zero", "missing", "unexpected", "shape"],
)
def test_bad_weights(folder: Path, change: object, message: str) -> None:
    change_weights(folder, change)
    with pytest.raises(ModelError, match=message):
        open_folder(folder)


def test_torn_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors: not a complete safetensors file"):
        open_folder(folder)


def test_a_model_without_images(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())["text_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="model cannot be loaded"):
        open_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json"])
def test_a_file_that_is_no_json(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(ModelError, match=f"{name}: not readable JSON|cannot be loaded: .*"):
        open_folder(folder)


def test_a_processor_of_another_model(folder: Path) -> None:
    config = json.loads((folder / "processor_config.json").read_text())
    config["image_seq_length"] = 9
    (folder / "processor_config.json").write_text(json.dumps(config))
    vlm = open_folder(folder)
    from PIL import Image

    with pytest.raises(ModelError, match="1 image became 9 image tokens where the model computes 4"):
        encode(vlm, "<image> sum?", [Image.new("RGB", (28, 28))])


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="this device is not available"):
            pick_device("cuda")


# --- saving -----------------------------------------------------------------------------------------------------------


def test_save_and_load(folder: Path, tmp_path: Path) -> None:
    vlm = open_folder(folder)
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight.add_(0.01)
    batch = batch_inputs(vlm, [encode(vlm, "What is the sum?", [])], "left")
    saved = save(vlm, tmp_path / "trained" / "model", batch)
    again = load(ModelTable(path=str(saved), device="cpu"), Path())
    with torch.no_grad():
        torch.testing.assert_close(again.model(**batch).logits, vlm.model(**batch).logits, atol=0, rtol=0)
    assert again.template_digest == vlm.template_digest
    assert again.digest != vlm.digest
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    (saved.parent / ".model.tmp").mkdir()  # as a killed process leaves it
    save(vlm, saved, batch)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_processor_with_code_of_its_own_is_saved_with_it(folder: Path, tmp_path: Path) -> None:
    """Its code runs only where the recipe trusts it; the saved model keeps code and named templates, and loads again."""
    (folder / "processing_own.py").write_text(
        "from transformers import InternVLProcessor\n\n\nclass OwnProcessor(InternVLProcessor):\n    own = True\n"
    )
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(
        json.dumps({**settings, "processor_class": "OwnProcessor", "auto_map": {"AutoProcessor": "processing_own.OwnProcessor"}})
    )
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text((folder / "chat_template.jinja").read_text())
    with fails("remote-code-not-trusted", ModelError, path=folder, key="model.trust_remote_code"):
        load(ModelTable(path=str(folder), device="cpu"), Path())
    trusting = ModelTable(path=str(folder), device="cpu", trust_remote_code=True)
    vlm = load(trusting, Path())
    assert vlm.processor.own
    saved = save(vlm, tmp_path / "saved")
    again = load(ModelTable(path=str(saved), device="cpu", trust_remote_code=True), Path())
    assert again.processor.own
    assert again.template_digest == vlm.template_digest
    assert (saved / "additional_chat_templates" / "tools.jinja").read_bytes() == (folder / "chat_template.jinja").read_bytes()


def test_save_without_a_folder_of_origin(folder: Path, tmp_path: Path) -> None:
    saved = save(replace(open_folder(folder), folder=None), tmp_path / "saved")
    assert load(ModelTable(path=str(saved), device="cpu"), Path()).processor.chat_template


def test_nothing_is_kept_of_a_save_that_fails(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = open_folder(folder)
    target = tmp_path / "saved"
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        save(vlm, target)
    assert not target.exists()
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[0, 0] = 0.0

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save_module, "_write_processor", full)
    with pytest.raises(ModelError, match=r"No space left on device.*free some space"):
        save(vlm, target)
    assert not [path for path in tmp_path.iterdir() if path != folder]


def test_a_save_that_does_not_come_back_equal(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = open_folder(folder)
    batch = batch_inputs(vlm, [encode(vlm, "What is the sum?", [])], "left")
    real = load_module.load_model

    def damaged(*args: Any) -> Any:
        model: Any = real(*args)
        with torch.no_grad():
            model.get_output_embeddings().weight[7] += 1
        return model

    monkeypatch.setattr(save_module, "load_model", damaged)
    with pytest.raises(ModelError, match="other logits"):
        save(vlm, tmp_path / "saved", batch)
    assert not (tmp_path / "saved").exists()


def test_a_foreign_folder_is_not_overwritten(tiny_vlm: Vlm, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    with pytest.raises(ModelError, match="exists and is not a model folder"):
        save(tiny_vlm, tmp_path / "notes")
    assert (tmp_path / "notes" / "text").read_text() == "mine"


def test_check_weights_names_the_tensor() -> None:
    model = torch.nn.Linear(2, 2)
    check_weights(model, "here")
    with torch.no_grad():
        model.bias.zero_()
        check_weights(model, "here")
        model.bias[0] = float("inf")
    with pytest.raises(ModelError, match="here: bias"):
        check_weights(model, "here")


def test_tiles_are_limited_where_the_processor_counts_them(tiny_folder: Path, tiny_qwen: Vlm) -> None:
    """Four image tokens for each tile; a wide image has two tiles and an overview."""
    from PIL import Image

    from mixpo.vlm.load import limit_tiles
    from mixpo.vlm.prompt import encode

    vlm = load_tokenizer_only(ModelTable(path=str(tiny_folder)), Path())
    wide = Image.new("RGB", (80, 40))
    before = len(encode(vlm, "<image>\n?", [wide]))
    limit_tiles(vlm.processor, 1)
    assert before - len(encode(vlm, "<image>\n?", [wide])) == 8
    with pytest.raises(ModelError, match=r"image\.tiles.*has no tile limit"):
        limit_tiles(tiny_qwen.processor, 1)


def test_without_weights_prompts_and_answers_are_the_same(tiny_folder: Path, tiny_vlm: Vlm) -> None:
    from PIL import Image

    from mixpo.vlm.prompt import control_ids, encode, render_prompt, tokenize_response

    light = load_tokenizer_only(ModelTable(path=str(tiny_folder)), Path())
    assert (light.end_ids, light.digest, light.template_digest) == (tiny_vlm.end_ids, tiny_vlm.digest, tiny_vlm.template_digest)
    assert control_ids(light) == control_ids(tiny_vlm)
    image = Image.new("RGB", (50, 20))
    assert encode(light, "<image>\nSum?", [image]).ids.tolist() == encode(tiny_vlm, "<image>\nSum?", [image]).ids.tolist()
    assert tokenize_response(light, "3 + 4") == tokenize_response(tiny_vlm, "3 + 4")
    rendered = render_prompt(light, "Sum?")
    assert light.processor.tokenizer(rendered)["input_ids"] == encode(tiny_vlm, "Sum?", []).ids.tolist()


def test_an_encoder_decoder_is_refused_by_its_configuration(folder: Path) -> None:
    tf.Florence2Config().save_pretrained(folder)
    for loader in (load, load_tokenizer_only):
        with fails("encoder-decoder", ModelError, path=folder):
            loader(ModelTable(path=str(folder), device="cpu"), Path())
