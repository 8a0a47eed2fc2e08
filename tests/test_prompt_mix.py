"""Several prompts for one question, and DropoutNTP from questions with an answer: from the request to the training group."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import small_run

from mixpo.errors import RecipeError
from mixpo.export.run import pair_rows, renderer
from mixpo.pairs.build import build
from mixpo.pairs.provenance import rebuild
from mixpo.pipeline import run_recipe
from mixpo.recipe import PairsTable, Recipe, parse
from mixpo.records import Drop, Judged, Sampled, Scored
from mixpo.stages import prompting
from mixpo.stages.reference import groups_file
from mixpo.stages.responses import joined
from mixpo.stages.sample import requests_for
from mixpo.train.group_data import open_groups
from mixpo.train.groups import join_records, split_record
from mixpo.types import Question, Response, Verdict

SHARES = [{"name": "brief", "share": 0.75}, {"name": "boxed", "share": 0.25}]
OWN = {"template": "{question}!", "style": "final"}
MIX = '[{name = "brief", share = 0.5}, {name = "boxed", share = 0.5}]'


def recipe_of(n: int = 8, **tables: object) -> Recipe:
    return parse({"source": {"kind": "digits"}, "prompt": {"cot": SHARES}, "sample": {"n": n}, **tables}, "r.toml")


def asked(number: int, answer: str | None = "1") -> Question:
    return Question(id=f"{number:016x}", text="How many?", answer=answer, kind="number" if answer else "none")


@pytest.mark.parametrize(("n", "expected"), [(8, {(6, 2)}), (4, {(3, 1)}), (2, {(2, 0), (1, 1)}), (1, {(1, 0), (0, 1)})])
def test_each_question_gets_its_shares(n: int, expected: set[tuple[int, int]]) -> None:
    recipe, seen, total = recipe_of(n), set[tuple[int, int]](), Counter[int]()
    for number in range(1000):
        counts = Counter(prompting.number_of(recipe, asked(number), index) for index in range(n))
        seen.add((counts[0], counts[1]))
        total += counts
    assert seen == expected
    assert total[1] / total.total() == pytest.approx(0.25, abs=0.03)


def test_the_seed_and_the_question_decide() -> None:
    first, again, other = ([prompting.number_of(recipe_of(1, seed=seed), asked(q), 0) for q in range(50)] for seed in (0, 0, 1))
    assert first == again != other
    assert prompting.number_of(recipe_of(), asked(1, None), 5) == 0


def test_evaluation_uses_the_largest_share() -> None:
    recipe = parse({"source": {"kind": "digits"}, "prompt": {"cot": [*reversed(SHARES)]}}, "r.toml")
    assert prompting.prompt_for(recipe.prompt, asked(1)).style == "final"
    assert prompting.styles(recipe.prompt)["cot"] == ["boxed", "final"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"cot": [{"name": "brief", "share": 0.5}]}, "prompt: the shares of a list of prompts must add up to 1, not 0.5"),
        ({"by_domain": {"chart": [*SHARES[:1], {"name": "bref", "share": 0.25}]}}, "unknown prompt 'bref', did you mean 'brief'?"),
        ({"cot": [{"name": "brief", "share": 0.5}] * 2}, "a list of prompts names 'brief' twice; add up its shares"),
        ({"cot": [{"name": "brief", "share": 0.75}, {"name": "brief", "share": 0.25}]}, "names 'brief' twice"),
        ({"cot": [{"name": OWN, "share": 0.75}, {"name": OWN, "share": 0.25}]}, "names '{question}!' twice"),
        ({"cot": [{"name": "brief"}]}, "missing key 'share'"),
        ({"cot": [{"nmae": "brief", "share": 1}]}, "unknown key 'nmae', did you mean 'name'?"),
        (
            {"by_domain": {"chart": {"template": "{question}"}}},
            "prompt.by_domain: chart: say how the final answer is marked with one of style, marker and pattern",
        ),
    ],
)
def test_a_wrong_mix_is_refused(prompt: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse({"source": {"kind": "digits"}, "prompt": prompt}, "r.toml")
    assert message in str(caught.value)
    assert str(caught.value).count("\n") <= 1


@pytest.mark.parametrize("tables", [{}, {"prompt": {}, "pairs": {"dropout_from": "all"}}])
def test_saved_responses_have_one_prompt(tables: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        recipe_of(**{"sample": {"engine": "file", "responses": "x.jsonl"}, **tables})  # type: ignore[arg-type]


def said(index: int, text: str) -> Response:
    return Response(question=asked(1).id, index=index, text=text, token_ids=tuple(text.encode()))


def judged(*outcomes: str) -> Judged:
    verdicts = (Verdict(question=asked(1).id, index=i, outcome=o, extracted=str(i)) for i, o in enumerate(outcomes))  # type: ignore[arg-type]
    return Judged(question=asked(1).id, verdicts=tuple(verdicts))


def test_only_responses_to_the_same_prompt_make_a_pair() -> None:
    sampled = Sampled(question=asked(1).id, responses=tuple(map(said, range(4), ("yes", "no", "yes", "not"))))
    verdicts = judged("correct", "wrong", "correct", "wrong")
    paired = build(asked(1), sampled, verdicts, None, PairsTable(), 0, lambda index: index // 2)
    assert [(pair.chosen_index, pair.rejected_index) for pair in paired.pairs] == [(0, 1), (2, 3)]
    assert paired.dropped == (Drop(reason="other_prompt", count=2),)
    across = build(asked(1), sampled, verdicts, None, PairsTable(across_prompts=True), 0, lambda index: index // 2)
    assert [(pair.chosen_index, pair.rejected_index) for pair in across.pairs] == [(0, 1), (0, 3)]
    assert across.dropped == (Drop(reason="duplicate", count=1),)


def test_records_of_several_prompts_join_and_split() -> None:
    one = Scored(question="q", responses=((1,), (2,)), logps=(-1.0, -2.0), chosen=(0,), rejected=(1,), dropped=(Drop(reason="x", count=1),))
    two = Scored(question="q", responses=((2,), (1,), (3,)), logps=(-3.0, -4.0, -5.0), chosen=(1, 1), rejected=(0, 2))
    both = join_records({0: one, 2: two})
    assert both.responses == ((1,), (2,), (2,), (1,), (3,))
    assert (both.chosen, both.rejected, both.prompts) == ((0, 3, 3), (1, 2, 4), (0, 0, 2, 2, 2))
    parts = split_record(both)
    assert (parts[0].responses, parts[0].logps, parts[2]) == (one.responses, one.logps, two)
    assert join_records({0: one}) is one
    assert split_record(Scored(question="q")) == {}


def test_the_responses_of_all_requests_are_joined() -> None:
    parts = [Sampled(question="q", responses=(said(2, "c"),)), Sampled(question="q", responses=(said(0, "a"), said(1, "b")))]
    assert [response.index for response in joined(parts).responses] == [0, 1, 2]
    assert joined([parts[0], Sampled(question="q", error="no")]) == Sampled(question="q", error="no")


def test_a_run_with_two_prompts(tmp_path: Path, tiny_folder: Path) -> None:
    """Each response is verified in the style of its prompt, and trained on under that prompt."""
    recipe = small_run.make(tmp_path, tiny_folder, count=4)
    rows = []
    for number in range(11, 15):
        boxed, final = f"So \\boxed{{{number}}}", f"Final answer: {number}"
        responses = [final, "Final answer: 88", boxed, f"I see. {boxed}", boxed, "So \\boxed{88}", final, f"I see. {final}"]
        rows.append({"question": f"What is number {number}?", "responses": responses})
    small_run.write_jsonl(tmp_path / "script.jsonl", [*rows, *small_run.script(range(501, 507))])
    context = small_run.open_small(recipe, tmp_path / "run", f"prompt.cot={MIX}", "sample.n=8", "train.baselines=[]")
    plan = run_recipe(context)
    settings, pairs = context.recipe, 0
    for question, sampled, verdicts in zip(*(plan.rows(name, 0) for name in ("source", "round-1/sample", "round-1/verify")), strict=True):
        assert [response.index for response in sampled.responses] == list(range(8))
        assert [verdict.index for verdict in verdicts.verdicts] == list(range(8))
        styles = [prompting.prompts_of(settings, question)[prompting.number_of(settings, question, i)].style for i in range(8)]
        assert styles.count("boxed") == 4
        for response, verdict, style in zip(sampled.responses, verdicts.verdicts, styles, strict=True):
            marker = "boxed" if "boxed" in response.text else "final"
            assert (verdict.outcome == "malformed") == (marker != style), (response.text, style)
        assert {prompt.prompt for prompt in requests_for(context.recipe, question, 1)} == {
            p.render(question.text) for p in prompting.prompts_of(settings, question)
        }
    render = renderer(context)
    texts = {(question.id, pair.id): render(question, pair) for question, pair in pair_rows(context)}
    groups = open_groups(groups_file(context, 1))
    for group in groups:
        pairs += len(group.pairs)
        assert group.reference is not None
        assert len(group.reference) == len(group.responses)
        assert group.prompt in {text for (question, _), text in texts.items() if question == group.question.id}
    assert pairs == len(texts) > 0
    assert len({(group.question.id, group.prompt) for group in groups}) == len(groups)


@pytest.mark.slow
def test_dropout_from_questions_with_an_answer(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = small_run.make(tmp_path, tiny_folder, count=6)
    overrides = ("pairs.dropout_from=all", "pairs.max_dropout_per_question=2", "train.baselines=[]")
    context = small_run.open_small(recipe, tmp_path / "run", *overrides)
    plan = run_recipe(context)
    render, origins = renderer(context), Counter[tuple[bool, str]]()
    for shard in range(2):
        names = ("source", "round-1/sample", "round-1/verify", "round-1/continue", "round-1/pair")
        for question, sampled, verdicts, continued, paired in zip(*(plan.rows(name, shard) for name in names), strict=True):
            known = question.answer is not None
            assert len(sampled.responses) == (6 if known else 4)
            assert len(verdicts.verdicts) == (4 if known else 0)
            for pair in paired.pairs:
                origins[known, pair.origin] += 1
                assert rebuild(pair, sampled, verdicts, continued, question) == pair
                if pair.origin == "dropout_ntp":
                    assert render(question, pair) == question.text
                    assert pair.chosen_index >= 4 or not known
    assert origins[True, "correctness"] > 0
    assert origins[True, "dropout_ntp"] > 0
    assert origins[False, "dropout_ntp"] > 0
    assert any(len(split_record(row)) == 2 for row in plan.rows("round-1/reference", 0))


@pytest.mark.slow
def test_sources_without_correctness_pairs(tmp_path: Path, tiny_folder: Path) -> None:
    """They give DropoutNTP pairs only; the other questions of the same shard are not touched."""
    recipe = small_run.make(tmp_path, tiny_folder, count=4)
    rows = small_run.rows(tmp_path, 11, 4)
    small_run.write_jsonl(
        tmp_path / "questions.jsonl", [{**row, "domain": "general" if place < 2 else "math"} for place, row in enumerate(rows)]
    )
    overrides = ("pairs.dropout_from=all", 'pairs.correctness_except=["gen*"]', "train.baselines=[]")
    context = small_run.open_small(recipe, tmp_path / "run", *overrides)
    plan = run_recipe(context)
    origins = {
        (q.domain, pair.origin) for q, row in zip(plan.rows("source", 0), plan.rows("round-1/pair", 0), strict=True) for pair in row.pairs
    }
    assert origins == {("general", "dropout_ntp"), ("math", "dropout_ntp"), ("math", "correctness")}
