"""mixpo from Python: `run`, `pairs`, `train` and `score`, and `RunResult`, what they return. Thin, like the commands of the terminal.

Data from Python goes into RUN/data as JSONL and from there through the ordinary pipeline, so that resume, the viewer, the report and the
export work as for a recipe.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from mixpo.distributed import ranks_from_env
from mixpo.errors import ImageError, RunError, SourceError
from mixpo.progress import Progress, Silent
from mixpo.recipe import Recipe, load, parse
from mixpo.recipe.load import override, put
from mixpo.records import atomic
from mixpo.sources.images import Pictures
from mixpo.stages.job import Context

Directory = str | Path
Rows = Iterable[Mapping[str, Any]]
"""A `datasets.Dataset`, a list of dictionaries, or anything that yields mappings from column to value."""


class RunResult:
    """A run directory and what is in it: `report`, `models`, `recipe` and `pairs()`. Reads files when asked; holds nothing open.

    directory: an existing run, also one made by `mixpo run`. Raises RunError when it is none.
    """

    def __init__(self, directory: Directory) -> None:
        self.directory = Path(directory)
        self._open()

    def __repr__(self) -> str:
        return f"RunResult({str(self.directory)!r})"

    def _open(self) -> Context:
        from mixpo.pipeline import open_run

        return open_run(self.directory)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the last command in this directory."""
        return self._open().recipe

    @property
    def report(self) -> dict[str, Any]:
        """The report as data (`report.json`, see docs/report.md). Raises RunError when the run has none yet."""
        from mixpo.stages.report import load_report

        report = load_report(self.directory)
        if report is None:
            raise RunError(
                f"{self.directory}: no report yet; run the whole recipe, or `mixpo report`", code="report-missing", path=self.directory
            )
        return report

    @property
    def models(self) -> dict[str, Path]:
        """Folders of the trained models by name, such as "mpo"; `transformers` loads them."""
        return {path.name: path for path in sorted((self.directory / "models").glob("*")) if path.is_dir()}

    def pairs(self, round: int = 1) -> list[dict[str, Any]]:
        """The preference pairs of a round, one dictionary each; `datasets.Dataset.from_list` and pandas take the list as it is.

        question: as in the source, with `<image>` where an image goes. prompt: the message that was sampled, instruction included.
        history: the messages before it, where there are any. images: paths. chosen, rejected: the responses; chosen_answer,
        rejected_answer: their final answers. origin: "correctness", "format", "dropout_ntp", "branch" or "imported". answer: the ground
        truth or None. id, question_id: stable names.
        Raises RunError when the round has no finished pairs.
        """
        from mixpo.export.run import pair_rows, renderer

        context = self._open()
        render = renderer(context)
        return [
            {
                "id": pair.id,
                "question_id": question.id,
                "question": question.text,
                "prompt": render(question, pair),
                "images": [image.path for image in question.images],
                "answer": question.answer,
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "chosen_answer": pair.chosen_answer,
                "rejected_answer": pair.rejected_answer,
                "origin": pair.origin,
                **({"history": [{"role": turn.role, "content": turn.text} for turn in question.history]} if question.history else {}),
            }
            for question, pair in pair_rows(context, round)
        ]


def run(
    recipe: Directory,
    *,
    directory: Directory | None = None,
    set: Mapping[str, Any] | None = None,
    limit: int | None = None,
    force: Sequence[str] = (),
    until: str = "",
    quiet: bool = False,
) -> RunResult:
    """Run a recipe, as `mixpo run` does: finished stages are reused.

        result = mixpo.run("recipe.toml", set={"train.learning_rate": 1e-6})

    directory: of the run; default: `runs/<name of the recipe>`. set: recipe keys to override, "table.key" to value. limit: use only
    the first questions of each source. force: stages to do again, with all after them. until: the last stage to run, such as "pair".
    quiet: print no progress. Raises a subclass of MixpoError as the command would print it.
    """
    path = Path(recipe)
    loaded = load(path, tuple(override(key, value) for key, value in (set or {}).items()))
    return _run(loaded, path.parent, directory or Path("runs") / path.stem, limit=limit, force=force, until=until, quiet=quiet)


def pairs(
    data: Rows, *, model: Directory = "mixpo:tiny", directory: Directory = "runs/pairs", quiet: bool = False, **settings: Any
) -> RunResult:
    """Sample responses to the questions in `data`, verify them and build preference pairs; trains nothing.

        made = mixpo.pairs(rows, model="OpenGVLab/InternVL3-1B-hf", sample={"n": 8})

    data: a `datasets.Dataset` or an iterable of dictionaries with the fields of a JSONL source: "question", "image" (a path, Pillow image,
    encoded bytes, or a list of them), "answer" (none for open questions), "choices", "rationale", "domain".
    model: folder or Hub id. settings: tables of the recipe, such as `sample={"n": 8}` or `seed=1`; `source={"answer_kind": "number"}`
    adds to how rows are read. Raises SourceError, naming the row, for a row that is no dictionary or whose image cannot be used.
    """
    root = Path(directory)
    path = _write_rows(data, root, "questions.jsonl")
    source = {"kind": "jsonl", "path": str(path), "root": "/", **settings.pop("source", {})}
    return _run(_recipe({"source": source, **settings}, model), Path(), root, until="pair", quiet=quiet)


def train(
    pairs: Rows, *, model: Directory = "mixpo:tiny", directory: Directory = "runs/train", quiet: bool = False, **settings: Any
) -> RunResult:
    """Train on preference pairs that you have; with `evaluate={"sets": [...]}` also evaluate before and after.

        trained = mixpo.train(made.pairs(), model="OpenGVLab/InternVL3-1B-hf", train={"learning_rate": 1e-6})

    pairs: a `datasets.Dataset` or an iterable of dictionaries with "prompt", "chosen", "rejected" and "images" (or "image"): what
    `RunResult.pairs` returns, or the rows of a format that `[[preferences]]` recognises, such as TRL's. model, settings: as for `pairs`.
    Raises SourceError as `pairs` does, and TrainError when no pair can be used.
    """
    root = Path(directory)
    path = _write_rows(pairs, root, "pairs.jsonl", _pair_fields)
    with path.open(encoding="utf-8") as stream:
        plain = isinstance(json.loads(stream.readline() or "{}").get("prompt"), str)
    preferences = [{"kind": "jsonl" if plain else "auto", "path": str(path), "root": "/"}]
    return _run(_recipe({"preferences": preferences, **settings}, model), Path(), root, quiet=quiet)


def score(directory: Directory, *, set: Mapping[str, Any] | None = None, quiet: bool = False) -> RunResult:
    """Grade the saved answers of a run again under other settings and rewrite its report, as `mixpo score`. Samples nothing.

        mixpo.score("runs/recipe", set={"evaluate.extractor": "paper"})

    Raises RunError when there are no saved answers.
    """
    from mixpo.pipeline import open_run, rescore

    with _progress(quiet) as progress:
        rescore(open_run(Path(directory), tuple(override(key, value) for key, value in (set or {}).items()), progress))
    return RunResult(directory)


# --- parts -----------------------------------------------------------------------------------------------------------


def _run(
    recipe: Recipe,
    base: Path,
    directory: Directory,
    *,
    limit: int | None = None,
    force: Sequence[str] = (),
    until: str = "",
    quiet: bool = False,
) -> RunResult:
    from mixpo.pipeline import open_context, run_recipe, run_until

    ranks = ranks_from_env(os.environ)
    with _progress(quiet or not ranks.main) as progress:
        context = open_context(recipe, base.absolute(), Path(directory), progress, limit, ranks)
        if until:
            run_until(context, until, force)
        else:
            run_recipe(context, force)
    ranks.close()
    return RunResult(directory)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """Bars in a terminal or notebook, lines elsewhere, as the commands print them to standard error."""
    if quiet:
        yield Silent()
        return
    from mixpo.cli.boundary import open_progress

    with closing(open_progress()) as progress:
        yield progress


def _recipe(tables: Mapping[str, Any], model: Directory) -> Recipe:
    """The recipe of these tables. Keys may be dotted ("train.learning_rate"); an existing model folder becomes absolute."""
    data: dict[str, Any] = {}
    for key, value in tables.items():
        put(data, key, value)
    folder = Path(model).expanduser()
    put(data, "model.path", str(folder.absolute()) if folder.is_dir() else str(model))
    return parse(data, "settings")


def _question_fields(row: Mapping[str, Any], images: list[str]) -> dict[str, Any]:
    return {"image": images, **row} if images else {**row}


def _pair_fields(row: Mapping[str, Any], images: list[str]) -> dict[str, Any]:
    """With a plain prompt only what a pair needs; other formats keep their columns."""
    wanted = ("prompt", "chosen", "rejected", "system", "history", "answer", "domain")
    plain = isinstance(row.get("prompt"), str)
    return {"images": images, **{key: value for key, value in row.items() if not plain or key in wanted}}


def _write_rows(
    data: Rows, root: Path, name: str, fields: Callable[[Mapping[str, Any], list[str]], dict[str, Any]] = _question_fields
) -> Path:
    """RUN/data/<name>: the rows as JSON lines. Images without a file of their own go to RUN/images; paths become absolute."""
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise SourceError(
            f"rows: must be a datasets.Dataset or a list of dictionaries, not {type(data).__name__}", code="rows-of-another-type"
        )
    path = root.absolute() / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(Path("/"), root.absolute() / "images")
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for number, row in enumerate(data):
            if not isinstance(row, Mapping):
                raise SourceError(f"row {number}: must be a dictionary, not {type(row).__name__}", code="row-not-a-dictionary", line=number)
            try:
                stream.write(json.dumps(_plain_row(row, pictures, fields), ensure_ascii=False) + "\n")
            except (ImageError, SourceError, TypeError, ValueError) as error:
                raise SourceError(f"row {number}: {error}", code="row-unusable", line=number) from error
    return path


def _plain_row(
    row: Mapping[str, Any], pictures: Pictures, fields: Callable[[Mapping[str, Any], list[str]], dict[str, Any]]
) -> dict[str, Any]:
    images = [_image_path(image, pictures) for field in ("image", "images") for image in _listed(row.get(field))]
    rest = {str(key): value for key, value in row.items() if key not in ("image", "images") and value is not None}
    return fields(rest, images)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _image_path(image: Any, pictures: Pictures) -> str:
    """Where an image lies. A missing file stays what it is: the source stage lists its row."""
    if isinstance(image, Mapping) and not image.get("bytes"):
        image = image.get("path")
    if isinstance(image, (str, Path)):
        return str(Path(image).expanduser().absolute())
    return pictures.one(image).path
