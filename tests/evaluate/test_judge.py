"""The judge against a real server process: good, slow, failing half the time, talking nonsense, locked, down."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from failures import fails
from judges import asked, serving
from pydantic import ValidationError

from mixpo.errors import EvaluateError, RecipeError
from mixpo.evaluate import judge as judging
from mixpo.evaluate.benchmarks import BENCHMARKS
from mixpo.evaluate.benchmarks.base import Rubric
from mixpo.evaluate.judge import Judge, completion_text, digest, ready, with_own_prompt
from mixpo.recipe import JudgeTable, load

pytest.importorskip("aiohttp")


def rubric_of(benchmark: str) -> Rubric:
    rubric = BENCHMARKS[benchmark].rubric
    assert rubric is not None
    return rubric


RUBRIC, LLAVA = rubric_of("mmvet"), rubric_of("llava_bench")
FIELDS = {"question": "What is x?", "reference": "-1", "answer": "x = {reference}", "context": ""}

Start = Callable[..., tuple[JudgeTable, Path]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server in a mode; gives the table of a judge that asks it, and the server's folder."""
    with ExitStack() as running:
        number = itertools.count()

        def begin(mode: str, **values: Any) -> tuple[JudgeTable, Path]:
            folder = tmp_path / f"server-{next(number)}"
            url = running.enter_context(serving(mode, folder))
            return JudgeTable(**{"model": "judge-7b", "urls": [url], "timeout_s": 60.0, "retries": 3, **values}), folder

        yield begin


def test_a_mark_with_name_version_and_prompt(start: Start, tmp_path: Path) -> None:
    table, server = start("good")
    mark = Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read)
    assert (mark.value, mark.reply) == ((0.5,), "0.5")
    assert mark.judge == f"judge-7b-2026-01-01 #{digest(RUBRIC)}"
    (request,) = asked(server)
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["temperature"]) == ("judge-7b", 0.0)
    # What stands in an answer is never filled in.
    assert "Answer: x = {reference}" in request["messages"][-1]["content"]


def test_replies_are_kept_by_content(start: Start, tmp_path: Path) -> None:
    table, server = start("good")
    Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read)
    again = Judge(table.model_copy(update={"urls": ["http://127.0.0.1:9/v1"]}), tmp_path / "cache")  # nobody listens there
    assert again.ask(RUBRIC, FIELDS, RUBRIC.read).value == (0.5,)
    assert len(asked(server)) == 1
    (kept,) = (tmp_path / "cache").rglob("*.json")
    kept.write_text('{"reply"')  # torn
    Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read)
    Judge(table, tmp_path / "cache").ask(RUBRIC, {**FIELDS, "answer": "other"}, RUBRIC.read)
    assert len(asked(server)) == 3


def test_a_slow_server_is_asked_again(start: Start, tmp_path: Path) -> None:
    table, server = start("slow", timeout_s=4)
    assert Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read).value == (0.5,)
    assert len(asked(server)) == 2


def test_a_server_that_fails_half_the_time(start: Start, tmp_path: Path) -> None:
    table, server = start("half")
    assert Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read).value == (1.0,)
    assert len(asked(server)) == 2


def test_unreadable_replies_are_asked_again_warmer_and_then_given_up(start: Start, tmp_path: Path) -> None:
    table, server = start("words", attempts=3)
    judge = Judge(table, tmp_path / "cache")
    mark = judge.ask(RUBRIC, FIELDS, RUBRIC.read)
    assert (mark.value, mark.reply) == (None, "I would say it is rather good.")
    assert [request["temperature"] for request in asked(server)] == [0.0, 0.5, 1.0]
    judge.ask(RUBRIC, FIELDS, RUBRIC.read)
    assert len(asked(server)) == 3
    warm, _ = start("warm", attempts=3)
    assert Judge(warm, tmp_path / "other").ask(RUBRIC, FIELDS, RUBRIC.read).value == (0.4,)


@pytest.mark.parametrize("mode", ["shape"])
def test_garbage_is_never_a_mark(start: Start, tmp_path: Path, mode: str) -> None:
    table, _ = start(mode, retries=0, attempts=2)
    mark = Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read)
    assert (mark.value, mark.reply) == (None, "")


def test_a_server_that_never_sends_json_is_no_judge(start: Start, tmp_path: Path) -> None:
    table, _ = start("garbage", retries=0)
    with fails("judge-not-compatible", EvaluateError, key="evaluate.judge.urls"):
        Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_server_that_fails_for_long_is_named_while_it_is_asked_again(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixpo.engines.openai.client.LONG_WAIT", 0.0)
    table, server = start("down", retries=2)
    said: list[str] = []
    with pytest.raises(EvaluateError, match="given up after 3 tries"):
        Judge(table, tmp_path / "cache", said.append).ask(RUBRIC, FIELDS, RUBRIC.read)
    (line,) = said
    assert " fails (HTTP 500" in line
    assert line.endswith("each request is sent up to 3 times")
    assert len(asked(server)) == 3


def test_a_closed_judge_sends_nothing_more(start: Start, tmp_path: Path) -> None:
    table, server = start("good")
    judge = Judge(table, tmp_path / "cache")
    judge.close()
    with pytest.raises(CancelledError):
        judge.ask(RUBRIC, FIELDS, RUBRIC.read)
    assert asked(server) == []


def test_a_server_that_is_down_is_named_once(start: Start, tmp_path: Path) -> None:
    table, _ = start("good", patience_s=0.2)
    down = table.model_copy(update={"urls": ["http://127.0.0.1:9/v1"]})
    with pytest.raises(EvaluateError) as raised:
        Judge(down, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read)
    assert str(raised.value).count("run the same command again") == 1


@pytest.mark.parametrize(("mode", "said"), [("locked", r"HTTP 401: .*wrong key"), ("down", r"refused \(HTTP 500")])
def test_a_server_that_refuses_stops_the_evaluation(start: Start, tmp_path: Path, mode: str, said: str) -> None:
    table, _ = start(mode, retries=1)
    with pytest.raises(EvaluateError, match=said + r".*; replies so far are cached"):
        Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read)
    assert not list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize(
    ("mode", "said"),
    [("moved", "HTTP 307, redirects to .*evaluate.judge.urls"), ("poor", "pay for the account"),
     ("tells", r"wrong key: Bearer \[secret\]")],
)  # fmt: skip
def test_what_no_retry_helps_is_asked_once(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, said: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    table, server = start(mode)
    with pytest.raises(EvaluateError, match=said) as raised:
        Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read)
    assert (raised.value.code, raised.value.key) == ("judge-unavailable", "evaluate.judge")
    assert "sk-secret" not in str(raised.value)
    assert len(asked(server)) == 1


def test_a_busy_judge_is_asked_again_when_it_says(start: Start, tmp_path: Path) -> None:
    table, server = start("waits", retries=0)
    begun = time.monotonic()
    assert Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read).value == (0.5,)
    assert time.monotonic() - begun >= 1
    assert len(asked(server)) == 2


def test_another_replica_takes_over(start: Start, tmp_path: Path) -> None:
    table, server = start("good")
    said: list[str] = []
    both = table.model_copy(update={"urls": ["http://127.0.0.1:9/v1", *table.urls]})
    judge = Judge(both, tmp_path / "cache", said.append)
    assert judge.ask(RUBRIC, FIELDS, RUBRIC.read).value == (0.5,)
    judge.close()
    assert len(asked(server)) == 1
    assert said == ["http://127.0.0.1:9/v1 cannot be reached (connection refused); it gets no requests until it is back"]


def test_a_key_in_place_of_its_variable_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[evaluate.judge]\nmodel = "j"\napi_key_env = "sk-secret-1"\n')
    with pytest.raises(RecipeError, match="api_key_env: must match") as raised:
        load(path)
    assert "sk-secret" not in str(raised.value)


def test_half_a_character_in_a_reply_can_be_kept() -> None:
    assert completion_text({"choices": [{"message": {"content": "0.5 \ud83d"}}]}) == ("0.5 ?", "")


def test_nobody_there(tmp_path: Path) -> None:
    table = JudgeTable(model="j", urls=["http://127.0.0.1:9/v1"], retries=0, patience_s=0.3)
    with pytest.raises(EvaluateError, match="cannot be asked"):
        Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read)


def test_the_key_comes_from_the_environment(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    far = JudgeTable(model="j", urls=["https://judge.example/v1"], api_key_env="MY_KEY")
    with pytest.raises(RecipeError, match="MY_KEY is not set"):
        ready(far)
    with pytest.raises(ValidationError, match="is no address"):
        JudgeTable(model="j", urls=["judge.example"])
    monkeypatch.setenv("MY_KEY", "secret")
    assert ready(far) == "secret"
    table, server = start("good", api_key_env="MY_KEY")
    Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read)
    assert asked(server)[0]["key"] == "Bearer secret"
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "cache").rglob("*.json"))


def test_a_judge_that_takes_no_temperature_is_asked_without(start: Start, tmp_path: Path) -> None:
    """It is found out once, and what is kept is found again under the recipe's settings."""
    table, server = start("reasoner", max_tokens=77)
    judge = Judge(table, tmp_path / "cache")
    assert judge.ask(RUBRIC, FIELDS, RUBRIC.read).value == (0.5,)
    assert judge.ask(RUBRIC, {**FIELDS, "answer": "other"}, RUBRIC.read).value == (0.5,)
    sent = [{name: request.get(name) for name in ("max_tokens", "temperature", "max_completion_tokens")} for request in asked(server)]
    last = {"max_tokens": None, "temperature": None, "max_completion_tokens": 77}
    assert sent == [
        {"max_tokens": 77, "temperature": 0.0, "max_completion_tokens": None},
        {"max_tokens": None, "temperature": 0.0, "max_completion_tokens": 77},
        last,
        last,
    ]
    assert Judge(table, tmp_path / "cache").ask(RUBRIC, FIELDS, RUBRIC.read).value == (0.5,)
    assert len(asked(server)) == 4
    narrow, server = start("narrow")
    with pytest.raises(EvaluateError, match=r"refused \(HTTP 400: .*max_tokens is too large"):
        Judge(narrow, tmp_path / "other").ask(RUBRIC, FIELDS, RUBRIC.read)
    assert len(asked(server)) == 1


def test_what_a_judge_thinks_aloud_is_no_mark(start: Start, tmp_path: Path) -> None:
    """LLaVA-Bench takes the first line with numbers, which stands in the reasoning."""
    table, server = start("thinks", attempts=2)
    judge = Judge(table, tmp_path / "cache")
    mark = judge.ask(RUBRIC, FIELDS, RUBRIC.read)
    assert (mark.value, mark.reply) == ((0.9,), "0.9")
    assert judge.ask(LLAVA, FIELDS, LLAVA.read).value is None
    assert judge.ask(RUBRIC, {**FIELDS, "answer": "a long one"}, RUBRIC.read).reply == ""
    assert len(asked(server)) == 5


def test_half_a_number_at_the_length_limit_is_no_mark(start: Start, tmp_path: Path) -> None:
    """ "0." may have been 0.9; what is whole before the limit counts."""
    table, server = start("cut", attempts=2)
    judge = Judge(table, tmp_path / "cache")
    assert judge.ask(RUBRIC, FIELDS, RUBRIC.read).value == (0.4,)
    assert judge.ask(RUBRIC, {**FIELDS, "answer": "a long one"}, RUBRIC.read).value is None
    assert len(asked(server)) == 3


def test_a_prompt_of_your_own(tmp_path: Path) -> None:
    table = JudgeTable(model="j", prompts="prompts")
    with pytest.raises(RecipeError, match="is not a folder"):
        with_own_prompt(RUBRIC, table, tmp_path, "mmvet")
    (tmp_path / "prompts").mkdir()
    assert with_own_prompt(RUBRIC, table, tmp_path, "mmvet") == RUBRIC
    (tmp_path / "prompts" / "mmvet.txt").write_text("{question}")
    with pytest.raises(RecipeError, match=r"has no \{answer\}"):
        with_own_prompt(RUBRIC, table, tmp_path, "mmvet")
    (tmp_path / "prompts" / "mmvet.txt").write_text("{question} {answer}")
    own = with_own_prompt(RUBRIC, table, tmp_path, "mmvet")
    assert digest(own) != digest(RUBRIC)
    assert judging.settings(own, table)["prompt"] == digest(own)
    # The released evaluation of LLaVA-Bench has a system message of its own.
    (tmp_path / "prompts" / "llava_bench.system.txt").write_text("You are a helpful and precise assistant.\n", encoding="utf-8-sig")
    other = with_own_prompt(LLAVA, table, tmp_path, "llava_bench")
    assert (other.system, other.prompt) == ("You are a helpful and precise assistant.", LLAVA.prompt)
    assert with_own_prompt(RUBRIC, table, tmp_path, "mmvet").system == ""


def test_misspelt_files_and_slots_of_your_own_prompts(tmp_path: Path) -> None:
    """They would leave the judge with another wording than the user believes."""
    table = JudgeTable(model="j", prompts="prompts")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "mm-vet.txt").write_text("{question} {answer}")
    with pytest.raises(RecipeError, match=r"mm-vet\.txt: belongs to no benchmark, did you mean 'mmvet\.txt'\?; known are mmvet\.txt, "):
        with_own_prompt(RUBRIC, table, tmp_path, "mmvet")
    path = (tmp_path / "prompts" / "mm-vet.txt").rename(tmp_path / "prompts" / "mmvet.txt")
    path.write_text("{question} {answer} {referense}")
    with pytest.raises(RecipeError, match=r"unknown slot \{referense\}, did you mean 'reference'\?"):
        with_own_prompt(RUBRIC, table, tmp_path, "mmvet")
    path.write_text('{question} {answer} Reply as {"mark": 0.5}, not {mark}.')
    assert with_own_prompt(RUBRIC, table, tmp_path, "mmvet").prompt == path.read_text()
    path.write_bytes(b"{question} {answer} \xff")
    with pytest.raises(RecipeError, match=r"mmvet\.txt: cannot be read as UTF-8 text"):
        with_own_prompt(RUBRIC, table, tmp_path, "mmvet")
