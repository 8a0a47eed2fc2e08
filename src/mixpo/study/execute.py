"""Runs a study: every run up to its validation results, then the choice, then the test sets for the chosen variants.

    STUDY/runs/<variant>-seed-<n>/      ordinary run directories
    STUDY/choice.json                   which variants were chosen, written before a test set is opened; never changed
    STUDY/study.json, .html, .md, .tex  the results so far
    STUDY/logs/                         output of runs side by side, and tracebacks

Everything that is finished is on disk, so the same command resumes after a kill at any point.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from mixpo import sealed
from mixpo.errors import MixpoError, RecipeError, RunError, UnfinishedError
from mixpo.pipeline import open_context, run_recipe, run_stage
from mixpo.plural import amount
from mixpo.progress import Progress
from mixpo.recipe import STAGES, did_you_mean
from mixpo.records import from_plain, write_text
from mixpo.run import now
from mixpo.stages.job import Context
from mixpo.stages.store import StageStore
from mixpo.study.schema import LoadedStudy, StudyRun

CHOICE, LOGS = "choice.json", "logs"
POLL_SECONDS = 0.2
"""How often runs side by side are checked, and runs that another process works in."""

Failures = dict[str, str]
"""By the name of a run, why it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the validation sets chose. ranking: (variant, accuracy), best first; without those that had not finished.

    opened: when, UTC. digests: what decided the results of each tested variant. mode, seeds: as they were.
    """

    opened: str
    mode: str
    seeds: tuple[int, ...]
    tested: tuple[str, ...]
    ranking: tuple[tuple[str, float], ...]
    missing: tuple[str, ...]
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ClosedTo:
    """The names of all jobs but those on some evaluation sets."""

    sets: tuple[str, ...]

    def __contains__(self, name: object) -> bool:
        kind, _, rest = str(name).partition("/")
        return not (kind in ("answer", "evaluate") and rest.partition("/")[0] in self.sets)


def open_study_run(study: LoadedStudy, run: StudyRun, root: Path, progress: Progress) -> Context:
    """The context of one run, which shares stages with all others of the study."""
    context = open_context(run.recipe, study.recipe_folder, root / "runs" / run.name, progress, study.limit)
    return replace(context, sharing=StageStore(runs=root.absolute() / "runs", locks=root.absolute() / "locks"))


def run_study(
    study: LoadedStudy,
    root: Path,
    progress: Progress,
    score: Callable[[], Sequence[tuple[str, float]]],
    *,
    jobs: int = 1,
    despite_failures: bool = False,
) -> Failures:
    """Do everything that is not done; returns what failed. score: the finished variants with their accuracy on the validation sets.

    Raises RecipeError where the study is another one than the one whose test sets were opened.
    """
    choice = read_choice(study, root)
    failures = _run_all(study, study.runs, root, progress, jobs)
    if choice is None and study.table.test:
        if failures and not despite_failures:
            return failures
        choice = _choose(study, root, score())
        if choice is not None:
            progress.say(f"test sets opened for {', '.join(choice.tested)}")
            failures |= _run_all(study, [run for run in study.runs if run.variant.name in choice.tested], root, progress, jobs)
    return failures


def perform(study: LoadedStudy, run: StudyRun, root: Path, progress: Progress) -> None:
    """Do one run: up to its validation results, or all of it where its variant is tested. Waits for a process that works in it."""
    choice, waits = read_choice(study, root), False
    while True:
        context = open_study_run(study, run, root, progress)
        try:
            if not study.table.test or (choice is not None and run.variant.name in choice.tested):
                run_recipe(context)
            else:
                run_stage(
                    context, [kind for kind in STAGES if kind not in ("source", "text", "report")], names=_ClosedTo(sets=study.test_names)
                )
            return
        except RunError as error:
            if error.code != "run-locked":
                raise
        if not waits:
            progress.say(f"{run.name}: waiting for the process that works in it")
        waits = True
        time.sleep(POLL_SECONDS)


# --- all runs ------------------------------------------------------------------------------------------------------------


def _run_all(study: LoadedStudy, runs: Sequence[StudyRun], root: Path, progress: Progress, jobs: int) -> Failures:
    """Do these runs one after another, or `jobs` side by side; one that fails does not stop the others."""
    (root / "runs").mkdir(parents=True, exist_ok=True)
    if jobs > 1:
        return _side_by_side(study, runs, root, progress, jobs)
    failures: Failures = {}
    for number, run in enumerate(runs, start=1):
        progress.say(f"[{number}/{len(runs)}] {run.name}")
        try:
            perform(study, run, root, progress)
        except MixpoError as error:
            failures[run.name] = str(error)
        except Exception as error:  # out of memory, or a bug: the other runs may do without it
            write_text(_log(root, run), traceback.format_exc())
            failures[run.name] = f"{type(error).__name__}: {error} (traceback in {_log(root, run)})"
        if run.name in failures:
            progress.say(f"{run.name}: failed: {failures[run.name]}")
    return failures


def _side_by_side(study: LoadedStudy, runs: Sequence[StudyRun], root: Path, progress: Progress, jobs: int) -> Failures:
    """One process for each run, `jobs` at a time. They are ended with this one."""
    waiting, working, failures = deque(runs), dict[int, tuple[StudyRun, subprocess.Popen[bytes]]](), Failures()
    progress.start("study", len(runs), "runs")
    try:
        while waiting or working:
            for slot in range(jobs):
                if slot not in working and waiting:
                    run = waiting.popleft()
                    working[slot] = (run, _start(study, run, root, slot, jobs))
            time.sleep(POLL_SECONDS)
            for slot, (run, process) in [*working.items()]:
                if process.poll() is None:
                    continue
                del working[slot]
                progress.advance(1)
                if process.returncode:
                    failures[run.name] = _last_line(_log(root, run), process.returncode)
                    progress.say(f"{run.name}: failed: {failures[run.name]}")
    finally:
        for _, process in working.values():
            process.terminate()
        for _, process in working.values():
            process.wait()
        progress.finish()
    return failures


def _start(study: LoadedStudy, run: StudyRun, root: Path, slot: int, jobs: int) -> subprocess.Popen[bytes]:
    limit = [] if study.limit is None else ["--limit", str(study.limit)]
    settings = [part for setting in study.settings for part in ("--set", setting)]
    words = ["study", str(study.path), "--dir", str(root), "--only", run.name, *limit, *settings]
    log = _log(root, run)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return _popen([sys.executable, "-m", "mixpo", *words], output, _environment(slot, jobs))


def _popen(command: Sequence[str], output: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment)


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """That of this process, with a share of the cores, and one of the GPUs that CUDA_VISIBLE_DEVICES names."""
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
    if devices := [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device.strip()]:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return environment


def _log(root: Path, run: StudyRun) -> Path:
    return root / LOGS / f"{run.name}.log"


def _last_line(log: Path, status: int) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ended = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
    return f"{lines[-1].removeprefix('mixpo: ')} ({ended}, log in {log})" if lines else f"{ended}, log in {log}"


# --- the choice ----------------------------------------------------------------------------------------------------------


def _choose(study: LoadedStudy, root: Path, ranking: Sequence[tuple[str, float]]) -> Opening | None:
    """Record the best variants on the validation sets, and the baseline; None where no variant has finished."""
    table = study.table
    best = sorted((row for row in ranking if row[0] != table.compare.baseline), key=lambda row: -row[1])
    chosen = [name for name, _ in best[: table.compare.tested]]
    if not chosen:
        return None
    finished = {name for name, _ in ranking}
    tested = [v.name for v in table.variants if v.name in chosen or (v.name == table.compare.baseline and v.name in finished)]
    choice = Opening(
        opened=now(),
        mode=table.compare.mode,
        seeds=table.seeds,
        tested=tuple(tested),
        ranking=tuple(sorted(ranking, key=lambda row: -row[1])),
        missing=tuple(v.name for v in table.variants if v.name not in finished),
        digests={name: study.digest(name) for name in tested},
    )
    write_text(root / CHOICE, sealed.dumps(asdict(choice), indent=2))
    return choice


def read_choice(study: LoadedStudy, root: Path) -> Opening | None:
    """The choice that was made, or None. Raises RecipeError where a tested variant is another one now: its test set has been seen."""
    path = root / CHOICE
    try:
        choice = from_plain(Opening, sealed.load(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        message = f"{path}: not readable ({error}); the test sets were opened, so begin the study in another --dir"
        raise RunError(message, code="choice-broken", path=path) from None
    names = {variant.name for variant in study.table.variants}
    changed = [name for name in choice.tested if name not in names or study.digest(name) != choice.digests[name]]
    if changed or choice.seeds != study.table.seeds or choice.mode != study.table.compare.mode:
        what = f"variant {changed[0]!r}" if changed else "seeds" if choice.seeds != study.table.seeds else "compare.mode"
        raise RecipeError(
            f"{study.path}: {what} changed after the test sets were opened ({choice.opened}); restore it, or begin a study in another "
            "--dir, with test questions that nobody has seen results on",
            code="test-opened",
            path=study.path,
            key=changed[0] if changed else None,
        )
    return choice


def unfinished(study: LoadedStudy, failures: Failures) -> UnfinishedError:
    """The error at the end of a study in which runs failed."""
    first, why = next(iter(failures.items()))
    closed = "; the test sets stay closed until they finish, or until --despite-failures" if study.table.test else ""
    return UnfinishedError(
        f"{amount(len(failures), 'run')} of {len(study.runs)} failed, the first is {first}: {why}{closed}; the same command retries them",
        code="study-unfinished",
    )


def named(study: LoadedStudy, only: Iterable[str]) -> list[StudyRun]:
    """The runs of these names: of a run, or of a variant with all its seeds. Raises RecipeError for an unknown one."""
    runs: dict[str, StudyRun] = {}
    for name in only:
        chosen = [run for run in study.runs if name in (run.name, run.variant.name)]
        if not chosen:
            known = [*dict.fromkeys(run.variant.name for run in study.runs), *(run.name for run in study.runs)]
            message = f"--only {name}: no such variant or run{did_you_mean(name, known)}; `--dry-run` lists them"
            raise RecipeError(message, code="study-run-unknown", key=name)
        runs |= {run.name: run for run in chosen}
    return [*runs.values()]
