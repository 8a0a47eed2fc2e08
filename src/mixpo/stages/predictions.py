"""Responses of another tool in place of sampled ones: matched to the questions of an evaluation set and stored like a model's answers.

RUN/answer/<set>/<name>/<mode> also holds `unmatched.jsonl`, the rows that were skipped with the reason, and `given.json`, the short
answers that came with the file. So grading needs the file no longer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixpo import sealed
from mixpo.errors import EvaluateError
from mixpo.plural import amount
from mixpo.recipe import EvaluationSource, PredictionsTable
from mixpo.records import Sampled, write_text
from mixpo.run import Stage
from mixpo.stages.answer import answer_name, source_name
from mixpo.stages.job import Context, Job, Make, Plan
from mixpo.stages.models import ModelRef
from mixpo.stages.question_index import QuestionIndex
from mixpo.stages.responses import check_sampled, count_sampled
from mixpo.types import Question, Response

PREDICTIONS = "predictions "
"""Prefix of the identity of a model that is known by a predictions file only."""
UNMATCHED, GIVEN = "unmatched.jsonl", "given.json"


def prediction_models(context: Context) -> list[ModelRef]:
    """One entry for each predictions file, identified by the digest of the file, or by the last one once the file is gone."""
    table = context.recipe.evaluate
    models = []
    for predictions in table.predictions:
        path = context.recipe_folder / predictions.path
        name = f"answer/{table.set_of(predictions)}/{predictions.name}/{predictions.mode}"
        models.append(ModelRef(name=predictions.name, identity=_identity(path, context.run.stage(name)), predictions=predictions))
    return models


def _identity(path: Path, stage: Stage) -> str:
    if path.is_file():
        return PREDICTIONS + hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    manifest = stage.manifest
    if manifest is None or not manifest.finished:
        raise EvaluateError(f"{path}: no such predictions file; the path is relative to the recipe", code="predictions-missing", path=path)
    return str(manifest.settings["model"])


def predictions_job(
    context: Context, plan: Plan, index: QuestionIndex, name: str, table: EvaluationSource, model: ModelRef, mode: str
) -> Job:
    """The job in the place of `answer_job` for responses that exist already."""
    assert model.predictions is not None
    predictions, source = model.predictions, source_name(name)
    folder = answer_name(name, model, mode)
    stage = context.run.stage(folder)
    facts: dict[str, Any] = {}

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        questions = [question for number in range(len(index.shards)) for question in plan.rows(source, number)]
        responses = _responses(context, predictions, stage, questions, facts)
        yield lambda shard: (_answer(question, responses) for question in plan.rows(source, shard))

    return Job(
        kind="answer",
        name=folder,
        title=f"predictions {name}: {model.name}, {mode}",
        row=Sampled,
        settings={"model": model.identity, "engine": "predictions", "answers": 1, "partial": predictions.partial},
        # A row is matched among all questions of the set.
        inputs=tuple(f"{shard} of {plan.digest(source)}" for shard in plan.shards(source)),
        sizes=index.sizes,
        needs=(source,),
        session=session,
        count=count_sampled,
        check=(lambda manifest: None)
        if predictions.partial
        else (lambda manifest: check_sampled(context, manifest, source, "add them to the file")),
        artifacts=lambda shard: (stage.folder / GIVEN,),
        facts=facts,
    )


def _responses(
    context: Context, table: PredictionsTable, stage: Stage, questions: Sequence[Question], facts: dict[str, Any]
) -> Mapping[str, str]:
    """Response by question id. Raises EvaluateError where too many questions have none."""
    from mixpo.evaluate.predictions import check_complete, match, read_predictions

    path = context.recipe_folder / table.path
    matched = match(read_predictions(path), questions)
    check_complete(path, matched, len(questions), 1.0 if table.partial and matched.rows else context.recipe.max_error_rate)
    write_text(stage.folder / UNMATCHED, "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in matched.skipped))
    given = {question: row.given for question, row in matched.rows.items() if row.given is not None}
    write_text(stage.folder / GIVEN, sealed.dumps(given))
    facts["predictions"] = dict(matched.counts)
    counts = matched.counts
    if counts["unmatched"] or counts["duplicates"] or counts["missing"]:
        context.progress.say(
            f"{path}: {amount(counts['rows'], 'row')}, {counts['unmatched']} unmatched, {amount(counts['duplicates'], 'duplicate')}, "
            f"{amount(counts['missing'], 'question')} without a response (rows are listed in {stage.folder / UNMATCHED})"
        )
    return {question: row.response for question, row in matched.rows.items()}


def _answer(question: Question, responses: Mapping[str, str]) -> Sampled:
    text = responses.get(question.id)
    if text is None:
        from mixpo.evaluate.predictions import NO_ROW

        return Sampled(question=question.id, error=NO_ROW)
    return Sampled(question=question.id, responses=(Response(question=question.id, index=0, text=text, engine="predictions"),))


def given_answers(stage: Stage) -> Mapping[str, str]:
    """Short answers by question id that came with the predictions. Raises EvaluateError when there are none."""
    path = stage.folder / GIVEN
    try:
        given = sealed.load(path) if path.is_file() else {}
    except ValueError as error:
        message = f"{path}: not readable ({error}); delete it and run the same command again"
        raise EvaluateError(message, code="given-broken", path=path) from None
    if not given:
        message = f'{stage.folder}: the predictions have no short answers; use another evaluate.extractor than "given"'
        raise EvaluateError(message, code="given-missing", path=stage.folder)
    return given
