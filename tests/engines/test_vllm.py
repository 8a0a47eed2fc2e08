"""The engine on a stand-in for `vllm` with the interface that version 0.32 showed. On vLLM itself: test_real_vllm.py."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny import picture

from mixpo.engines import Request, SamplingParams
from mixpo.engines.tokens import TokenCodec
from mixpo.engines.vllm import VllmEngine, load_llm
from mixpo.errors import EngineError
from mixpo.recipe import ImageTable, SampleTable, VllmTable
from mixpo.records import Sampled
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import decode

PARAMS = SamplingParams(temperature=1.0, max_new_tokens=12)


@dataclass
class Output:
    """vllm.outputs.CompletionOutput as far as it is used."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: list[dict[int, Any]]


class FakeLLM:
    """Takes what vllm.LLM takes, refuses what it refuses, and answers with tokens that follow from prompt and seed."""

    codec: TokenCodec
    extra = 0

    def __init__(self, model: str, **settings: Any) -> None:
        assert (Path(model) / "config.json").exists()
        assert settings["enable_prefix_caching"]
        self.settings = settings
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=512))
        self.calls: list[tuple[list[dict[str, Any]], list[Any]]] = []

    def generate(self, prompts: list[dict[str, Any]], sampling_params: list[Any], use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        assert len(prompts) == len(sampling_params)
        self.calls.append((prompts, sampling_params))
        return [self._one(prompt, params) for prompt, params in zip(prompts, sampling_params, strict=True)]

    def _one(self, prompt: dict[str, Any], params: Any) -> Any:
        if "prompt" in prompt:
            images = prompt["multi_modal_data"]["image"]
            assert prompt["prompt"].count("<IMG_CONTEXT>") == len(images)
            ids = [0] * (sum(len(self.codec.prompt_ids("<image>", [image])) for image in images) + self.extra)
            ids += [0] * (self.length_of(prompt["prompt"]) - len(images) * self.length_of_mark())
        else:
            ids = prompt["prompt_token_ids"]
            for image in prompt.get("multi_modal_data", {}).get("image", ()):
                ids = [0] * (len(self.codec.prompt_ids("<image>", [image])) - self.length_of_mark()) + ids
        if len(ids) + params.max_tokens > 512:
            raise ValueError("The decoder prompt is longer than the maximum model length")
        return SimpleNamespace(prompt_token_ids=ids, outputs=[self._answer(params, number) for number in range(params.n)])

    def length_of(self, text: str) -> int:
        return len(self.codec.encode_raw(text))

    def length_of_mark(self) -> int:
        return self.length_of(self.codec.prompt_text("<image>"))

    def _answer(self, params: Any, number: int) -> Output:
        ids = (*(70 + (params.seed + number + i) % 20 for i in range(5)), self.codec.end_ids[0])
        text = self.codec.decode(ids)
        for stop in params.stop or ():
            text = text.partition(stop)[0]  # vLLM cuts the text and leaves the ids
        return Output(text, ids, "stop", [{token: SimpleNamespace(logprob=-0.5)} for token in ids])


@pytest.fixture
def engine(tiny_vlm: Vlm, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    fake: Any = ModuleType("vllm")
    FakeLLM.codec, FakeLLM.extra = TokenCodec(tiny_vlm), 0
    fake.LLM, fake.SamplingParams = FakeLLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", fake)
    return VllmEngine(load_llm(tiny_folder, "float32", VllmTable()), TokenCodec(tiny_vlm), ImageTable())


def asking(key: str, text: str = "What is the sum?", n: int = 3, **more: Any) -> Request:
    first = 100 * len(key)
    return Request(
        key=key, prompt=text, images=more.pop("images", ()), seeds=tuple(range(first, first + n)), indices=tuple(range(n)), **more
    )


def sample(engine: VllmEngine, requests: list[Request], params: SamplingParams = PARAMS) -> list[Sampled]:
    return list(engine.sample(requests, params))


def test_answers_with_ids_and_logprobs(engine: VllmEngine, tiny_vlm: Vlm, tmp_path: Path) -> None:
    shown = asking("pp", "<image>\nWhat?", images=(picture(tmp_path / "a.png", (90, 30)),))
    sampled = sample(engine, [asking("a"), shown])
    for row in sampled:
        assert len({response.text for response in row.responses}) == 3
        for response in row.responses:
            assert decode(tiny_vlm, response.token_ids) == response.text
            assert len(response.logprobs) == len(response.token_ids) == 6
            assert not response.retokenised
    ((_, settings),) = engine._llm.calls
    assert [(s.n, s.top_k, s.seed, s.max_tokens) for s in settings] == [(3, -1, 100, 12), (3, -1, 200, 12)]
    assert set(settings[0].logit_bias) == set(TokenCodec(tiny_vlm).banned)


def test_bad_questions_fail_alone(engine: VllmEngine, tmp_path: Path) -> None:
    torn = picture(tmp_path / "b.png")
    Path(torn.path).write_bytes(b"torn")
    sampled = sample(engine, [asking("a"), asking("long", "sum " * 600), asking("torn", "<image>?", images=(torn,)), asking("end")])
    assert [bool(row.error) for row in sampled] == [False, True, True, False]
    assert "512" in sampled[1].error
    assert "changed since" in sampled[2].error


def test_continuations_from_prompt_ids(engine: VllmEngine, tiny_vlm: Vlm) -> None:
    prefixes = ((70, 71), (80, 81, 82))
    wanted = replace(asking("q", n=2), prefixes=prefixes)
    (sampled,) = sample(engine, [wanted])
    for response, prefix in zip(sampled.responses, prefixes, strict=True):
        assert response.token_ids[: response.prefix_len] == prefix
        assert response.text == decode(tiny_vlm, response.token_ids)
    ((prompts, settings),) = engine._llm.calls
    assert [p["prompt_token_ids"][-len(prefix) :] for p, prefix in zip(prompts, prefixes, strict=True)] == [list(p) for p in prefixes]
    assert [(s.n, s.seed) for s in settings] == [(1, 100), (1, 101)]
    (bad,) = sample(engine, [replace(wanted, prefixes=(tiny_vlm.end_ids, (70,)))])
    assert "control token" in bad.error


def test_continuations_see_the_image(engine: VllmEngine, tiny_vlm: Vlm, tmp_path: Path) -> None:
    shown = asking("q", "<image>\nWhat?", n=2, images=(picture(tmp_path / "a.png", (90, 30)),))
    (sampled,) = sample(engine, [replace(shown, prefixes=((70, 71), (70, 71)))])
    assert [response.token_ids[:2] for response in sampled.responses] == [(70, 71)] * 2
    ((prompts, _),) = engine._llm.calls
    text = TokenCodec(tiny_vlm).prompt_text("<image>\nWhat?")
    assert all(prompt["prompt_token_ids"] == [*TokenCodec(tiny_vlm).encode_raw(text), 70, 71] for prompt in prompts)
    assert all(len(prompt["multi_modal_data"]["image"]) == 1 for prompt in prompts)


def test_a_stop_text_leaves_text_alone(engine: VllmEngine, tiny_vlm: Vlm) -> None:
    (whole,) = sample(engine, [asking("a")])
    text = whole.responses[0].text
    (cut,) = sample(engine, [asking("a")], replace(PARAMS, stop=(text[2:4],)))
    assert cut.responses[0].text == text[:2]
    assert cut.responses[0].retokenised
    assert decode(tiny_vlm, cut.responses[0].token_ids) == text[:2]


def test_other_image_tokens_than_in_training_are_refused(engine: VllmEngine, tmp_path: Path) -> None:
    FakeLLM.extra = 4
    with pytest.raises(EngineError, match="tokens where training sees"):
        sample(engine, [asking("pp", "<image>\nWhat?", images=(picture(tmp_path / "a.png"),))])


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm(tiny_folder: Path) -> None:
    with pytest.raises(EngineError, match=r"docs/engines\.md"):
        load_llm(tiny_folder, "float32", VllmTable())


def test_gpus_and_memory_are_those_of_the_recipe(engine: VllmEngine, tiny_folder: Path) -> None:
    assert engine._llm.settings.keys() == {"dtype", "seed", "enable_prefix_caching", "limit_mm_per_prompt", "tensor_parallel_size"}
    gpus = {"tensor_parallel_size": 4, "gpu_memory_utilization": 0.8, "max_model_len": 4096}
    table = SampleTable.model_validate({"engine": "vllm", "vllm": gpus})
    settings = load_llm(tiny_folder, "bfloat16", table.vllm).settings
    assert {name: settings[name] for name in gpus} == gpus
    assert "vllm" not in table.deciding("sample")
