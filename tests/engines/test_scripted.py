"""The scripted engine, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mixpo.engines import Engine, Request, SamplingParams, create
from mixpo.engines.scripted import ByteCodec, ScriptedEngine, ScriptRow
from mixpo.errors import RecipeError, SourceError
from mixpo.records import Sampled
from mixpo.vlm.load import Vlm
from mixpo.vlm.prompt import tokenize_response

PARAMS = SamplingParams(temperature=1.0, max_new_tokens=100)


def ask(engine: Engine, key: str = "k", prompt: str = "p", n: int = 3, prefixes: tuple[tuple[int, ...], ...] = ()) -> Sampled:
    request = Request(key=key, prompt=prompt, images=(), seeds=tuple(range(n)), indices=tuple(range(n)), prefixes=prefixes)
    (sampled,) = engine.sample([request], PARAMS)
    return sampled


def texts(sampled: Sampled) -> list[str]:
    assert not sampled.error
    return [response.text for response in sampled.responses]


def test_answers_go_round() -> None:
    assert texts(ask(ScriptedEngine(["one", "two"]), n=5)) == ["one", "two", "one", "two", "one"]


def test_what_may_end_a_line_for_python_ends_no_row(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"responses": ["one\u2028two", "a\x85b"]}\r\n\n', encoding="utf-8", newline="")
    assert texts(ask(ScriptedEngine(tmp_path / "answers.jsonl"), n=2)) == ["one\u2028two", "a\x85b"]


def test_half_a_character_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"responses": ["fine", {"text": "cut \\ud83d"}]}')
    with pytest.raises(SourceError, match=r"answers\.jsonl:1: a response holds half of a surrogate pair"):
        ScriptedEngine(tmp_path / "answers.jsonl")


def test_rows_by_id_then_by_longest_text_then_the_rest(tmp_path: Path) -> None:
    script = tmp_path / "answers.jsonl"
    script.write_text(
        '{"question": "id1", "responses": ["by id"]}\n'
        '{"question": "the sum", "responses": ["by text"]}\n\n'
        '{"question": "the sum of two", "responses": ["by longer text", {"text": "cut", "finish": "length"}]}\n'
        '{"question": "bad", "error": "server said no"}\n'
        '{"responses": ["rest"]}\n{"responses": ["rest 2"]}\n',
        encoding="utf-8",
    )
    engine = ScriptedEngine(script)
    assert texts(ask(engine, "id1", "the sum", n=1)) == ["by id"]
    assert texts(ask(engine, "x", "What is the sum?", n=1)) == ["by text"]
    sampled = ask(engine, "x", "What is the sum of two?", n=2)
    assert texts(sampled) == ["by longer text", "cut"]
    assert [(r.finish, r.token_ids[-1] == ByteCodec.END) for r in sampled.responses] == [("stop", True), ("length", False)]
    assert texts(ask(engine, "x", "other", n=2)) == ["rest", "rest 2"]
    assert ask(engine, "bad").error == "server said no"


def test_continuations_and_length_limit() -> None:
    engine = ScriptedEngine(["九。"])
    prefix = ByteCodec().encode("答案是")[:-1]
    response = ask(engine, n=1, prefixes=(prefix,)).responses[0]
    assert response.text == "答案是九。"
    assert response.token_ids[: response.prefix_len] == prefix
    (short,) = engine.sample(
        [Request(key="k", prompt="p", images=(), seeds=(1,), indices=(0,))], SamplingParams(temperature=1, max_new_tokens=3)
    )
    assert (short.responses[0].text, short.responses[0].finish) == ("九", "length")


def test_a_question_without_an_answer_is_an_error_of_its_own() -> None:
    assert "no answer" in ask(ScriptedEngine([ScriptRow(question="other", responses=(("x", "stop"),))])).error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"responses": ["a"]}\n{"responses": [', "s.jsonl:2: not valid JSON"),
        ('["a"]', "s.jsonl:1: a row is an object"),
        ('{"response": ["a"]}', "s.jsonl:1: a row is an object"),
        ('{"responses": "a"}', "s.jsonl:1: question and error are texts"),
        ('{"responses": [3]}', "s.jsonl:1: a response is a text"),
        ('{"responses": []}', "s.jsonl:1: give either"),
        ('{"responses": ["a"], "error": "b"}', "s.jsonl:1: give either"),
        ("\n", "is empty"),
    ],
)
def test_bad_scripts(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "s.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(SourceError, match=message):
        ScriptedEngine(tmp_path / "s.jsonl")


def test_a_missing_script(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"sample\.script"):
        create("scripted", script=tmp_path / "none.jsonl")


def test_create_says_what_is_missing() -> None:
    with pytest.raises(RecipeError, match="did you mean 'scripted'"):
        create("scriptd")
    with pytest.raises(RecipeError, match=r"model\.path"):
        create("transformers")
    with pytest.raises(RecipeError, match=r"sample\.script"):
        create("scripted")


def test_a_model_gives_its_own_tokens(tiny_vlm: Vlm, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('{"responses": ["Final answer: 2"]}', encoding="utf-8")
    response = ask(create("scripted", vlm=tiny_vlm, script=tmp_path / "s.jsonl"), n=1).responses[0]
    assert response.token_ids == tokenize_response(tiny_vlm, "Final answer: 2")
    assert response.text == "Final answer: 2"


def test_importing_engines_loads_no_torch() -> None:
    modules = "mixpo.engines, mixpo.engines.scripted, mixpo.pairs.dropout_ntp"
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
