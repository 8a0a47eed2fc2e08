"""Saved responses: formats, matching, and what is counted and listed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small_run

from mixpo.commands.check import check
from mixpo.engines import Request, SamplingParams
from mixpo.engines.saved import FileEngine, SavedResponses
from mixpo.errors import RecipeError, SourceError
from mixpo.pipeline import run_recipe, run_stage
from mixpo.progress import Silent
from mixpo.recipe import load
from mixpo.records import Paired, Sampled
from mixpo.types import ImageRef, Question

PARAMS = SamplingParams(temperature=1.0, max_new_tokens=100)


def asked(name: str, text: str, *images: str, row_id: str = "") -> Question:
    found = tuple(ImageRef(path=f"/data/images/{image}", digest=f"digest-{image}") for image in images)
    return Question(id=name, text="<image>\n" * len(images) + text, images=found, row_id=row_id)


QUESTIONS = [
    asked("q1", "Which digit is shown?", "one.png", row_id="a"),
    asked("q2", "Which digit is shown?", "two.png", row_id="b"),
    asked("q3", "How many?", "one.png", row_id="7"),
]


def saved(folder: Path, rows: Sequence[object], wanted: int = 4) -> SavedResponses:
    small_run.write_jsonl(folder / "saved.jsonl", rows)
    return SavedResponses(folder / "saved.jsonl", ((q, f"Answer this: {q.text}") for q in QUESTIONS), wanted)


def texts(found: SavedResponses, question: str) -> list[str]:
    return [choice.text for choice in found.choices(question)]


def test_every_format_is_read(tmp_path: Path) -> None:
    found = saved(
        tmp_path,
        [
            {"id": "a", "responses": ["one", {"text": "two", "finish": "length", "token_ids": [5, 6]}]},
            {
                "request_id": "b",
                "prompt": "USER: Which digit is shown? A:",
                "outputs": [{"text": "x", "token_ids": [1], "finish_reason": "stop"}],
            },
            {"doc_id": 7, "doc": {"question": "How many?"}, "resps": [["r1", "r2"]], "filter": "strict"},
            {"doc_id": 7, "doc": {"question": "How many?"}, "resps": [["r1", "r2"]], "filter": "flexible"},
            {"custom_id": "a", "response": {"body": {"choices": [{"message": {"content": "three"}, "finish_reason": "stop"}]}}},
        ],
    )
    assert [texts(found, name) for name in ("q1", "q2", "q3")] == [["one", "two", "three"], ["x"], ["r1", "r2"]]
    assert [(c.stopped, c.ids) for c in found.choices("q1")] == [(True, ()), (False, (5, 6)), (True, ())]
    assert found.counts["repeated"] == 1
    assert found.summary == ""


def test_one_response_a_line(tmp_path: Path) -> None:
    """As `swift infer` writes them, and in their simplest form."""
    turns = [{"role": "user", "content": "<image>Which digit is shown?"}, {"role": "assistant", "content": "two"}]
    rows = [
        {"response": "two", "labels": None, "logprobs": None, "messages": turns, "images": [{"bytes": None, "path": "two.png"}]},
        {"response": "2", "messages": turns, "images": ["two.png"]},
        {"question": "How many?", "image": "one.png", "answer": "7", "response": "Seven.", "finish_reason": "length"},
        {"id": "a", "response": ["no text"]},
    ]
    found = saved(tmp_path, rows)
    assert [texts(found, name) for name in ("q1", "q2", "q3")] == [[], ["two", "2"], ["Seven."]]
    assert not found.choices("q3")[0].stopped
    assert found.counts["broken"] == 1


def test_sample_files_of_lmms_eval(tmp_path: Path) -> None:
    """As they are written now: no row of the data set, and no `resps` where the filters changed nothing."""
    common = {"target": "1", "token_counts": [None], "doc_hash": "ab12", "exact_match": 1.0}
    short = "\nAnswer the question using a single word or phrase."
    found = saved(
        tmp_path,
        [
            {"doc_id": 7, **common, "filtered_resps": "one", "input": f"How many?{short}"},
            {"doc_id": 0, **common, "filtered_resps": "Three", "resps": ["three", "3"], "input": "How many?"},
            {"doc_id": 1, **common, "filtered_resps": "two", "resps": "<think>2</think> two", "input": f"How many?{short}"},
            {"doc_id": 2, **common, "filtered_resps": [["a"], ["b"]], "input": f"Which digit is shown?{short}"},
            {"doc_id": 3, **common, "filtered_resps": [], "input": "How many?"},
        ],
        wanted=9,
    )
    assert texts(found, "q3") == ["one"]
    assert (found.counts["repeated"], found.counts["ambiguous"], found.counts["broken"]) == (2, 1, 1)


def test_output_files_of_vllm(tmp_path: Path) -> None:
    """RequestOutput of `LLM.generate`, and lines of `vllm run-batch`, failed ones among them."""
    output = {"cumulative_logprob": None, "logprobs": None, "routed_experts": None, "stop_reason": None, "lora_request": None}
    request = {"prompt_token_ids": [1, 2], "prompt_logprobs": None, "finished": True, "metrics": None, "num_cached_tokens": 0}
    usage = {"prompt_tokens": 1, "total_tokens": 2, "completion_tokens": 1}
    message: dict[str, Any] = {"role": "assistant", "reasoning": None, "content": "w", "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length", "stop_reason": None, "token_ids": [8]}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage, "prompt_logprobs": None}
    failed = {"id": "vllm-2", "custom_id": "a", "response": {"status_code": 400, "request_id": "r", "body": None}, "error": {"code": 400}}
    found = saved(
        tmp_path,
        [
            {
                "request_id": "0",
                "prompt": "<|im_start|>user\n<image>Answer this: How many?<|im_end|>",
                "outputs": [{"index": 0, "text": "x", "token_ids": [5], "finish_reason": "stop", **output}],
                **request,
            },
            {
                "request_id": "7",
                "prompt": "<|im_start|>user\nAnswer this: How many?<|im_end|>",
                "outputs": [{"index": n, "text": t, "token_ids": [n], "finish_reason": "stop", **output} for n, t in enumerate("yz")],
                **request,
            },
            {"id": "vllm-1", "custom_id": "b", "response": {"status_code": 200, "request_id": "r", "body": body}, "error": None},
            failed,
            {**failed, "response": None, "error": "timed out"},
        ],
    )
    assert [texts(found, name) for name in ("q1", "q2", "q3")] == [[], ["w"], ["y", "z"]]
    assert [(c.stopped, c.ids) for c in found.choices("q2")] == [(False, (8,))]
    assert [row.reason for row in found.unmatched] == [
        "no question of this run has the id '0'",
        "the request failed or has no choices ({'code': 400})",
        "the request failed (timed out)",
    ]


@pytest.mark.parametrize(
    "row", [{"id": "q1"}, {"question": "Which digit\nis shown?", "image": "images/one.png"}, {"id": "a", "question": "other"}]
)
def test_a_row_by_id_or_by_text_and_image(tmp_path: Path, row: dict[str, object]) -> None:
    found = saved(tmp_path, [{**row, "responses": ["r"]}])
    if row.get("question") == "other":
        assert (texts(found, "q1"), found.counts["ambiguous"]) == ([], 1)
    else:
        assert texts(found, "q1") == ["r"]
        assert texts(found, "q2") == []


def test_text_alone_is_not_enough_for_two_images(tmp_path: Path) -> None:
    rows = [{"question": "Which digit is shown?", "responses": ["r"]}, {"prompt": "Answer this: How many?", "responses": ["s"]}]
    found = saved(tmp_path, rows)
    assert [texts(found, name) for name in ("q1", "q2", "q3")] == [[], [], ["s"]]
    assert "stands 2 times" in found.unmatched[0].reason
    assert found.unmatched[0].where.endswith("saved.jsonl:1")


def test_what_is_left_over_is_counted_and_listed(tmp_path: Path) -> None:
    broken = ["no object", {"id": "a"}, {"id": "a", "responses": []}, {"id": "a", "responses": [3]}]
    rows = [{"id": "a", "responses": list("12345")}, {"id": "z", "responses": ["r"]}, {"responses": ["r"]}, *broken]
    found = saved(tmp_path, rows)
    assert texts(found, "q1") == list("1234")
    assert found.counts == {
        "rows": 7, "matched": 1, "ambiguous": 1, "superfluous": 1, "broken": 4, "missing questions": 2, "superfluous responses": 1,
    }  # fmt: skip
    assert len(found.unmatched) == 6
    assert found.summary == (
        "2 questions without saved responses, 1 ambiguous row, 1 row for no question, 4 broken rows, 1 response beyond sample.n"
    )


@pytest.mark.parametrize(
    ("content", "code"), [(None, "saved-responses-missing"), ("[]\n", "saved-responses-unusable"), ("", "saved-responses-unusable")]
)
def test_a_file_that_is_none(tmp_path: Path, content: str | None, code: str) -> None:
    path = tmp_path / "saved.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SourceError) as caught:
        SavedResponses(path, (), 4)
    assert caught.value.code == code


def test_the_engine_gives_what_there_is(tmp_path: Path) -> None:
    engine = FileEngine(saved(tmp_path, [{"id": "a", "responses": ["one", "two"]}]), None)
    requests = [Request(key=key, prompt="p", images=(), seeds=(1, 2, 3), indices=(0, 1, 2)) for key in ("q1", "q2")]
    first, second = engine.sample(requests, PARAMS)
    assert [(r.index, r.text, r.engine) for r in first.responses] == [(0, "one", "file"), (1, "two", "file")]
    assert second == Sampled(question="q2", error="no saved responses for this question")


def recipe_with(folder: Path, model: Path, rows: Sequence[object]) -> Path:
    recipe = small_run.make(folder, model, count=6)
    small_run.write_jsonl(folder / "saved.jsonl", rows)
    text = recipe.read_text().replace('engine = "scripted"', 'engine = "file"\nresponses = "saved.jsonl"')
    recipe.write_text(text.replace("[evaluate]\n", '[evaluate]\nengine = "scripted"\n'))
    return recipe


@pytest.mark.slow
def test_saved_responses_give_the_pairs_of_a_sampled_run(tmp_path: Path, tiny_folder: Path) -> None:
    """The same responses by both doors: equal pairs, continuations included; evaluation asks its own engine."""
    numbers = range(11, 17)
    rows = [{"question": row["question"], "responses": row["responses"]} for row in small_run.script(numbers)]
    contexts = []
    for name, recipe in (
        ("file", recipe_with(tmp_path / "a", tiny_folder, rows)),
        ("script", small_run.make(tmp_path / "b", tiny_folder, count=6)),
    ):
        contexts.append(small_run.open_small(recipe, tmp_path / name, "train.baselines=[]"))
    plans = [run_recipe(context) for context in contexts]
    pairs = [[row for shard in range(2) for row in plan.rows("round-1/pair", shard)] for plan in plans]
    assert pairs[0] == pairs[1]
    assert any(row.pairs for row in pairs[0] if isinstance(row, Paired))
    manifest = contexts[0].run.stage("round-1/sample").manifest
    assert manifest is not None
    assert manifest.facts["saved"]["matched"] == 6
    assert plans[0].rows("answer/held-out/base/cot", 0)[0].responses[0].engine == "scripted"


def test_rows_that_are_left_over_stand_beside_the_records(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [
        *({"question": row["question"], "responses": row["responses"]} for row in small_run.script(range(11, 17))),
        {"id": "z", "responses": ["r"]},
    ]
    context = small_run.open_small(recipe_with(tmp_path / "a", tiny_folder, rows), tmp_path / "run")
    run_stage(context, ("sample",))
    listed = (tmp_path / "run" / "round-1" / "sample" / "unmatched.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in listed] == ["no question of this run has the id 'z'"]
    assert any("1 row for no question in saved.jsonl" in line for line in small_run.said(context))


def test_the_check_matches_rows_and_questions(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [*({"question": row["question"], "responses": row["responses"]} for row in small_run.script(range(11, 16))), {"id": "z"}]
    recipe = recipe_with(tmp_path, tiny_folder, rows)
    checked = check(load(recipe, ("max_error_rate=0.1",)), tmp_path, Silent())
    assert checked.counts["sample.responses: rows"] == 6
    assert [(Path(finding.where).name, finding.problem[:13]) for finding in checked.notices] == [("saved.jsonl:6", "has none of r")]
    (missing,) = checked.findings
    assert missing.where == "sample.responses"
    assert missing.problem.startswith("no responses to 1 of 6 questions (")
    allowed = check(load(recipe, ("max_error_rate=0.5",)), tmp_path, Silent())
    assert not allowed.findings
    assert missing in allowed.notices


@pytest.mark.parametrize("change", ["train.rounds=2", "sample.responses=", "evaluate.engine=openai", "sample.engine=transformers"])
def test_what_does_not_fit_is_refused(tmp_path: Path, change: str) -> None:
    recipe = recipe_with(tmp_path, Path("model"), [])
    text = recipe.read_text()
    if change == "sample.responses=":
        recipe.write_text(text.replace('responses = "saved.jsonl"', ""))
    with pytest.raises(RecipeError):
        load(recipe, () if change == "sample.responses=" else (change,))
