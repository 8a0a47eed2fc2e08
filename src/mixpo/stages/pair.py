"""Preference pairs from verified responses and continuations, with the verdicts as people have corrected them; and, where the recipe
asks for it, the balance of classes over the whole data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from mixpo.engines.tokens import TokenCodec
from mixpo.errors import TrainError
from mixpo.human_labels import HumanLabel, read_labels
from mixpo.pairs.balance import Class, class_of, rates, thin
from mixpo.pairs.build import build
from mixpo.pairs.provenance import RATIONALE
from mixpo.plural import amount
from mixpo.recipe import PairsTable, Recipe, is_listed
from mixpo.records import Judged, Paired, read_column
from mixpo.run import Manifest
from mixpo.stages import prompting
from mixpo.stages.imported import STAGE, tokenized
from mixpo.stages.job import Context, Job, Make, Plan, title
from mixpo.stages.question_index import QuestionIndex
from mixpo.stages.verify import UNDECIDED
from mixpo.types import Question, content_id


def pair_job(context: Context, plan: Plan, index: QuestionIndex, number: int) -> Job:
    """Round `number`: the pairs of every question, and what was filtered."""
    recipe = context.recipe
    sampled, verified, continued = (f"round-{number}/{kind}" for kind in ("sample", "verify", "continue"))
    labels, base = labels_of(context.run.root, number), context.models.base_model()
    only_dropout = recipe.pairs.model_copy(update={"correctness": False})
    branches = [f"round-{number}/branch", f"round-{number}/value"] if recipe.pairs.branches is not None else []
    first_imported = len(plan.shards(verified))
    parts = [plan.shards(verified), plan.shards(continued), label_digests(plan, labels)[:first_imported]]
    parts += [plan.shards(name) for name in branches[1:]]
    if recipe.pairs.correctness_except:
        parts += [index.domains[:first_imported], index.sources[:first_imported]]

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        def make(shard: int) -> Iterator[Paired]:
            if shard >= first_imported:
                codec = TokenCodec(context.models.words(base))
                yield from (tokenized(row, codec) for row in plan.rows(STAGE, shard - first_imported))
                return
            rows = zip(*(plan.rows(name, shard) for name in ("source", sampled, verified, continued, *branches)), strict=True)
            for question, answers, judged, cut, *branched in rows:
                verdicts, marked = corrected(judged, labels)
                table = only_dropout if without_correctness(recipe.pairs, question) else recipe.pairs
                asked, steps = partial(prompting.number_of, recipe, question), (branched[0], branched[1]) if branched else None
                yield replace(build(question, answers, verdicts, cut, table, recipe.seed, asked, steps), marked=marked)

        yield make

    return Job(
        kind="pair",
        name=f"round-{number}/pair",
        title=title(context, number, "pair"),
        row=Paired,
        settings=recipe.deciding("pair"),
        inputs=(
            *(content_id(row) for row in zip(*parts, strict=True)),
            *(content_id(name, base.identity) for name in plan.shards(STAGE)),
        ),
        sizes=index.sizes,
        needs=("source", sampled, verified, continued, *branches),
        session=session,
        count=count_paired,
        check=lambda manifest: check_pairs(context, manifest, number),
    )


def without_correctness(table: PairsTable, question: Question) -> bool:
    """Whether the recipe leaves a question out of correctness pairs because of its source or domain."""
    return is_listed(question, table.correctness_except)


def count_paired(rows: Sequence[Paired]) -> Mapping[str, int]:
    """Pairs by origin, with rationales and from marked verdicts; questions that gave any; and what was dropped by reason."""
    counts: Counter[str] = Counter(questions=len(rows), pairs=0, with_pairs=sum(bool(row.pairs) for row in rows))
    for row in rows:
        counts["pairs"] += len(row.pairs)
        counts["marked"] += row.marked
        counts["with_rationale"] += sum(pair.chosen_index == RATIONALE and pair.origin != "imported" for pair in row.pairs)
        counts.update(f"origin: {pair.origin}" for pair in row.pairs)
        for drop in row.dropped:
            counts[f"dropped: {drop.reason}"] += drop.count
    return counts


def check_pairs(context: Context, manifest: Manifest, number: int) -> None:
    """Raise TrainError when there is not one pair, with what is known of why."""
    if manifest.counts.get("pairs", 0):
        return
    dropped = [f"{name.removeprefix('dropped: ')} {count}" for name, count in manifest.counts.items() if name.startswith("dropped: ")]
    if context.recipe.source is None:
        raise TrainError(
            f"no imported pair can be trained on ({', '.join(dropped)}); is [model] the model that the pairs are meant for?",
            code="no-imported-pairs",
        )
    judged = context.run.stage(f"round-{number}/verify").manifest
    counts = judged.counts if judged is not None else {}
    right, wrong, total = counts.get("all_right", 0), counts.get("all_wrong", 0), manifest.counts.get("questions", 0)
    where = f"round {number}: " if context.recipe.train.rounds > 1 else ""
    raise TrainError(
        f"{where}no pairs: of {amount(total, 'question')} {right} {'has' if right == 1 else 'have'} all answers right and {wrong} all wrong"
        + (f"; filtered: {', '.join(dropped)}" if dropped else "")
        + (f"; undecided: {', '.join(undecided)}" if (undecided := _undecided(counts)) else "")
        + f"; {_remedy(right, wrong, counts)}"
        + ("; `mixpo evaluate` still measures the base model" if context.recipe.evaluate.sets else ""),
        code="no-pairs",
    )


def _undecided(counts: Mapping[str, int]) -> list[str]:
    """The most frequent reasons of undecided verdicts, with their counts."""
    reasons = {name.removeprefix(UNDECIDED): count for name, count in counts.items() if name.startswith(UNDECIDED)}
    return [f"{reason} ({reasons[reason]})" for reason in sorted(reasons, key=lambda reason: -reasons[reason])[:3]]


def _remedy(right: int, wrong: int, counts: Mapping[str, int]) -> str:
    if counts.get("undecided") and not any(counts.get(outcome) for outcome in ("correct", "wrong", "malformed")):
        return "no verdict is decided: correct verify.custom or verify.judge, or set verify.rules or the answer_kind of the source"
    if right > wrong:
        return "take harder questions, or raise sample.temperature or sample.n"
    if wrong > right:
        return "take easier questions or a stronger model, and read the answers with `mixpo view`: do they end as the prompt asks?"
    return "take more questions, or raise sample.n"


Labels = dict[str, dict[int, HumanLabel]]
"""By question and index of the answer."""


def labels_of(root: Path, number: int) -> Labels:
    """The labels of people for round `number`; empty without a file. Raises RecordError naming the line that is no label."""
    labels: Labels = {}
    for (of_round, question, index), label in read_labels(root).items():
        if of_round == number:
            labels.setdefault(question, {})[index] = label
    return labels


def label_digests(plan: Plan, labels: Labels) -> tuple[str, ...]:
    """For each question shard a digest of the labels in it, "" for none; so a label makes stale only its own shard."""
    shards = plan.shards("source")
    if not labels:
        return ("",) * len(shards)
    stage = plan.run.stage("source")
    digests = []
    for shard in shards:
        path = stage.path(shard)
        names = read_column(path, Question, "id") if path.exists() else []
        of_shard = [[name, *_plain(labels[name])] for name in names if name in labels]
        digests.append(content_id(of_shard) if of_shard else "")
    return tuple(digests)


def corrected(judged: Judged, labels: Labels) -> tuple[Judged, int]:
    """The verdicts as the labels have them, and how many responses have one."""
    of_question = labels.get(judged.question)
    if not of_question:
        return judged, 0
    verdicts = tuple(
        replace(verdict, outcome=label.outcome, reason=f"marked by {label.by or 'a person'}")
        if (label := of_question.get(verdict.index)) is not None
        else verdict
        for verdict in judged.verdicts
    )
    return replace(judged, verdicts=verdicts), sum(verdict.index in of_question for verdict in verdicts)


def _plain(labels: Mapping[int, HumanLabel]) -> list[list[object]]:
    """What decides the pairs; who marked when does not."""
    return [[index, label.outcome] for index, label in sorted(labels.items())]


def kind_of_pairs(recipe: Recipe) -> str:
    """The kind of stage whose pairs are trained on."""
    return "select" if recipe.pairs.balance else "pair"


def pairs_of(recipe: Recipe, number: int) -> str:
    """The stage whose pairs round `number` is trained on."""
    return f"round-{number}/{kind_of_pairs(recipe)}"


def _with_verdicts(plan: Plan, names: tuple[str, str, str], shard: int) -> Iterator[tuple[Question, Judged, Paired]]:
    """Questions, verdicts and pairs of one shard; imported pairs have no verdicts."""
    source, verified, paired = names
    questions, pairs = plan.rows(source, shard), plan.rows(paired, shard)
    if shard < len(plan.shards(verified)):
        return zip(questions, plan.rows(verified, shard), pairs, strict=True)
    return zip(questions, (Judged(question=question.id) for question in questions), pairs, strict=True)


def select_job(context: Context, plan: Plan, index: QuestionIndex, number: int) -> Job:
    """Round `number`: the pairs that are kept of each class."""
    recipe, table = context.recipe, context.recipe.pairs
    names = ("source", f"round-{number}/verify", f"round-{number}/pair")

    @contextmanager
    def session(numbers: Sequence[int]) -> Iterator[Make]:
        sizes: Counter[Class] = Counter()
        for shard in range(len(plan.shards(names[2]))):
            for question, judged, paired in _with_verdicts(plan, names, shard):
                sizes.update(class_of(question, judged, pair, table.balance) for pair in paired.pairs)
        kept = rates(sizes, table.balance_to)

        def make(shard: int) -> Iterator[Paired]:
            rows = _with_verdicts(plan, names, shard)
            return (thin(question, judged, paired, table.balance, kept, recipe.seed) for question, judged, paired in rows)

        yield make

    return Job(
        kind="select",
        name=f"round-{number}/select",
        title=title(context, number, "select"),
        row=Paired,
        settings={**recipe.deciding("select"), "from": plan.digest(names[2])},
        inputs=tuple(" ".join(row) for row in zip(plan.shards(names[2]), index.domains, index.sources, strict=True)),
        sizes=index.sizes,
        needs=names,
        session=session,
        count=count_paired,
        check=lambda manifest: check_pairs(context, manifest, number),
    )
