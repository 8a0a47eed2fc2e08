"""Ready-made pairs in. RUN/source gets their questions, RUN/preferences one shard of pairs for each shard of these questions.

Rows are grouped by question on disk, because the pairs of one question may stand anywhere in millions of rows.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mixpo.errors import SourceError
from mixpo.integrity import records_of
from mixpo.recipe import Recipe
from mixpo.records import Drop, Paired, from_plain
from mixpo.run import Manifest, Run, now, versions
from mixpo.stages.job import Context
from mixpo.stages.question_index import QuestionIndex
from mixpo.stages.reading import unusable_image
from mixpo.stages.source import save_skipped, say_skipped, skip_reasons
from mixpo.types import Notice, Pair, Question, Skipped, content_id

if TYPE_CHECKING:
    from mixpo.preferences import Imported
    from mixpo.sources.decontaminate import ContaminationFilter

STAGE = "preferences"
CONTROL_TOKEN = "a side holds a control token"
NOT_TRAINABLE = "the tokenizer makes no token of a side"


class PairImport:
    """Reads every [[preferences]] table of a recipe, once. shards: names of the shards of pairs, known after `blocks`."""

    def __init__(self, context: Context, contamination: ContaminationFilter | None = None) -> None:
        self.context = context
        self.contamination = contamination
        self.skipped: list[Skipped] = []
        self.notices: list[str] = []
        self.shards: list[str] = []
        self.counts: Counter[str] = Counter()
        last = context.run.stage(STAGE).manifest
        self.files = dict(last.files) if last is not None else {}

    def blocks(self) -> Iterator[list[Question]]:
        """The questions with pairs, `shard_size` at a time, in the order of their first row; the pairs of each block are written.

        Raises SourceError when no row is usable.
        """
        root = self.context.run.root
        root.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        with TemporaryDirectory(dir=root, prefix=".pairs-", suffix=".tmp") as folder:
            groups = _Groups(Path(folder) / "groups.sqlite")
            try:
                for item in self._usable():
                    groups.add(item.question, item.pair)
                if not groups.pairs:
                    raise self._nothing()
                rows = groups.read()
                while block := list(islice(rows, self.context.recipe.shard_size)):
                    self._write([paired for _, paired in block])
                    yield [question for question, _ in block]
            finally:
                groups.close()
        self._save(time.monotonic() - begun)

    def items(self) -> Iterator[Imported | Skipped | Notice]:
        """What the tables hold, in order, with images checked but not decoded, and without what evaluation sets hold."""
        from mixpo.preferences import Imported, read

        context = self.context
        for item in read(context.recipe.preferences, context.recipe_folder, context.run.images):
            if isinstance(item, Imported) and (reason := self._unusable(item.question)):
                yield Skipped(where=item.where, reason=reason)
            else:
                yield item

    def _usable(self) -> Iterator[Imported]:
        """The pairs to train on, of at most `context.limit` questions; the rest is noted."""
        questions, limit = set[str](), self.context.limit
        for item in self.items():
            if isinstance(item, Notice):
                self.notices.append(f"{item.where}: {item.text}")
            elif isinstance(item, Skipped):
                self.skipped.append(replace(item, stage=STAGE))
            else:
                if limit is not None:
                    if len(questions) == limit and item.question.id not in questions:
                        return
                    questions.add(item.question.id)
                yield item

    def _unusable(self, question: Question) -> str | None:
        """Why the pairs of a question cannot be used, or None."""
        return unusable_image(question, self.context.recipe.image) or contaminated(self.contamination, question)

    def _write(self, rows: Sequence[Paired]) -> None:
        stage = self.context.run.stage(STAGE)
        shard = f"{len(self.shards):05d}-{content_id([[pair.id, pair.repeat] for row in rows for pair in row.pairs])}"
        self.files |= stage.rewrite(shard, Paired, rows, self.files, self.context.progress.say)
        self.shards.append(shard)
        self.counts.update(questions=len(rows), pairs=sum(len(row.pairs) for row in rows))

    def _save(self, seconds: float) -> None:
        """Write the manifest and what was skipped, and say so."""
        context, stage = self.context, self.context.run.stage(STAGE)
        save_skipped(stage, self.skipped)
        self.counts["skipped"] = len(self.skipped)
        stage.save_manifest(
            Manifest(
                stage=STAGE, settings=settings(context), inputs=[], shards=list(self.shards), finished=True, counts=dict(self.counts),
                seconds=seconds, started=now(), versions=versions(), facts={"notices": self.notices},
                files=stage.kept(self.files, self.shards) | records_of(stage.folder, stage.lists()),
            )
        )  # fmt: skip
        if context.limit is None:
            stage.prune(self.shards)
        for notice in self.notices:
            context.progress.say(f"{STAGE}: {notice}")
        say_skipped(context, stage, self.skipped)

    def _nothing(self) -> SourceError:
        if not self.skipped:
            return SourceError("preferences: the files hold no rows", code="preferences-no-rows", key=STAGE)
        return SourceError(
            f"preferences: none of the rows ({len(self.skipped)}) is usable: {skip_reasons(self.skipped)}; correct them, "
            "or run `mixpo check` for the whole list",
            code="preferences-nothing-usable",
            key=STAGE,
        )


class _Groups:
    """Pairs by question, in the order in which the questions came first. What is in memory is a number for each question."""

    def __init__(self, path: Path) -> None:
        self.pairs = 0
        self._numbers: dict[int, int] = {}
        self._store = sqlite3.connect(path)
        self._store.execute("PRAGMA journal_mode = OFF")
        self._store.execute("PRAGMA synchronous = OFF")
        self._store.execute("CREATE TABLE question (number INTEGER PRIMARY KEY, row TEXT)")
        self._store.execute("CREATE TABLE pair (question INTEGER, number INTEGER, row TEXT, PRIMARY KEY (question, number)) WITHOUT ROWID")

    def add(self, question: Question, pair: Pair) -> None:
        identity = int(question.id, 16)
        if identity not in self._numbers:
            self._numbers[identity] = len(self._numbers)
            self._store.execute("INSERT INTO question VALUES (?, ?)", (self._numbers[identity], _json(question)))
        self._store.execute("INSERT INTO pair VALUES (?, ?, ?)", (self._numbers[identity], self.pairs, _json(pair)))
        self.pairs += 1

    def read(self) -> Iterator[tuple[Question, Paired]]:
        pairs = self._store.execute("SELECT question, row FROM pair ORDER BY question, number")
        following = next(pairs, None)
        for number, text in self._store.execute("SELECT number, row FROM question ORDER BY number"):
            question, own = from_plain(Question, json.loads(text)), []
            while following is not None and following[0] == number:
                own.append(from_plain(Pair, json.loads(following[1])))
                following = next(pairs, None)
            yield question, Paired(question=question.id, pairs=tuple(own))

    def close(self) -> None:
        self._store.close()


def _json(row: Question | Pair) -> str:
    return json.dumps(asdict(row), ensure_ascii=False)


def contaminated(contamination: ContaminationFilter | None, question: Question) -> str | None:
    """Why evaluation sets keep the pairs of a question out of training, or None."""
    from mixpo.sources.mmpr import bare_question

    # Released data has its prompt around the question, evaluation sets have not.
    return contamination.reason(replace(question, text=bare_question(question.text))) if contamination is not None else None


def settings(context: Context) -> dict[str, Any]:
    """What decides the pairs that are imported, apart from the files."""
    tables = [table.deciding("source") for table in context.recipe.preferences]
    return dict(json.loads(json.dumps({"preferences": tables, "limit": context.limit})))


def imported_shards(run: Run, recipe: Recipe) -> tuple[str, ...]:
    """The names of the shards of imported pairs, as they were when last read."""
    manifest = run.stage(STAGE).manifest if recipe.preferences else None
    return tuple(manifest.shards) if manifest is not None else ()


def sampled_part(index: QuestionIndex, imported: Sequence[str]) -> QuestionIndex:
    """The index of the questions that are sampled; those of imported pairs come after them."""
    kept = len(index.shards) - len(imported)
    return QuestionIndex(**{name: getattr(index, name)[:kept] for name in QuestionIndex.__dataclass_fields__})


def tokenized(row: Paired, codec: Any) -> Paired:
    """The pairs with the token ids of both sides, ends of turn included, under the model's own template. codec: a `TokenCodec`."""
    pairs, drops = [], Counter[str]()
    for pair in row.pairs:
        try:
            chosen, rejected = codec.encode(pair.chosen), codec.encode(pair.rejected)
        except SourceError:
            drops[CONTROL_TOKEN] += 1
            continue
        if min(len(chosen), len(rejected)) < 2:  # the end of turn alone
            drops[NOT_TRAINABLE] += 1
            continue
        pairs.append(replace(pair, chosen_ids=chosen, rejected_ids=rejected))
    dropped = tuple(Drop(reason=reason, count=count) for reason, count in sorted(drops.items()))
    return replace(row, pairs=tuple(pairs), dropped=dropped)
