"""Flips random bits in every kind of file of a finished run and of one that was killed while it trained, and looks at what comes of it.

python benchmarks/chaos_flips.py [--flips 20000] [--commands 100] [--seed 0] [--dir FOLDER] [--json]

Most flips are read back in this process by the functions that the commands use; --commands more go through whole commands on a copy of
the run. Each flip is one of: refused (one sentence), rebuilt (logged, or a cache's miss), no effect, SILENT (other values, records,
weights or scores, exit status 0), TRACEBACK. Exit status 1 if any is one of the last two. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chaos_cases import Case, stages
from chaos_compare import CLOCKS, plan_of, rows_of
from chaos_readers import Changed, readers

from mixpo.cli import main as mixpo_main
from mixpo.errors import MixpoError
from mixpo.evaluate.judge import CachedReply
from mixpo.human_labels import HumanLabel, append_label
from mixpo.images import save_bytes
from mixpo.pipeline import open_run
from mixpo.records import write_text
from mixpo.run import ATTEMPTS, Run
from mixpo.sealed import dumps
from mixpo.stages.attempts import raise_attempts
from mixpo.stages.models import check_trained
from mixpo.stages.repair import REMADE
from mixpo.train.metrics import read_metrics
from mixpo.viewer.index import RunIndex
from mixpo.vlm.hashes import FileHash
from mixpo.vlm.hashes import _write as remember

QUESTIONS = 20
SLOW = ("viewer index", "checkpoint", "model weights", "other model files", "report.html")
BAD = ("SILENT", "TRACEBACK")


def make_runs(folder: Path) -> tuple[Path, Path]:
    """A finished run and one that was killed in its second training, both with everything that a run may hold."""
    case = stages(folder, QUESTIONS)
    killed, finished = folder / "killed", folder / "finished"
    raise_attempts(Run(killed).stage("round-1/sample"), [0])
    _kill_in_training(case, killed)
    shutil.copytree(killed, finished, symlinks=True)
    if status := mixpo_main(["run", str(case.recipe), "--dir", str(finished)]):
        raise RuntimeError(f"a run that nobody disturbed ended with status {status}")
    remember({"/models/model.safetensors": FileHash(1, 2, "ab" * 32)})
    for root in (killed, finished):
        sample = Run(root).stage("round-1/sample")
        append_label(root, HumanLabel(question="0" * 16, index=0, outcome="correct", by="somebody", time="2026-01-01T00:00:00Z"))
        write_text(root / "judged/ab" / f"{'ab' * 32}.json", dumps(CachedReply(reply="Score: 0.5", model="judge", again=0)._asdict()))
        save_bytes(next((folder / "images").glob("*.png")).read_bytes(), Run(root).images, "picture.png")
        assert (sample.folder / ATTEMPTS).exists()
        RunIndex(Run(root)).close()
    return finished, killed


def _kill_in_training(case: Case, root: Path) -> None:
    if pid := os.fork():
        while not any(root.glob("round-1/train/mpo/work-*/checkpoints/step-000002/state.json")):
            if os.waitpid(pid, os.WNOHANG)[0]:
                raise RuntimeError("the run ended before it was killed")
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return
    try:
        os._exit(mixpo_main(["run", str(case.recipe), "--dir", str(root)]))
    finally:
        os._exit(70)


@contextlib.contextmanager
def flipped(path: Path, rng: random.Random) -> Iterator[int]:
    """One bit of a file is another one within the block; gives the number of the bit."""
    bit = rng.randrange(path.stat().st_size * 8)
    _flip(path, bit)
    try:
        yield bit
    finally:
        with contextlib.suppress(FileNotFoundError, IndexError):  # a cache that was replaced; `Reader.own` puts it back
            _flip(path, bit)


def _flip(path: Path, bit: int) -> None:
    with path.open("r+b") as handle:
        handle.seek(bit // 8)
        byte = handle.read(1)[0]
        handle.seek(bit // 8)
        handle.write(bytes([byte ^ 1 << bit % 8]))


def outcome_of(read: Callable[[], Any], whole: Any, same: Callable[[Any, Any], bool]) -> str:
    """What comes of reading a file again."""
    try:
        value = read()
    except MixpoError as error:
        return "rebuilt" if error.code in REMADE else "refused"
    except Changed:
        return "rebuilt"
    except Exception as error:  # what would be a traceback
        return f"TRACEBACK {type(error).__name__}: {str(error)[:100]}"
    return "no effect" if value == whole else "rebuilt" if same(value, whole) else "SILENT"


def in_process(roots: tuple[Path, ...], flips: int, rng: random.Random, told: list[str]) -> dict[str, Counter[str]]:
    """Flips by kind of file; kinds that take long to read get a tenth of what the others get. told: what to look into."""
    by_kind: dict[str, list[Any]] = {}
    for root in roots:
        for reader in readers(root):
            by_kind.setdefault(reader.kind, []).append(reader)
    counts: dict[str, Counter[str]] = {}
    share = flips / sum(0.1 if kind.startswith(SLOW) else 1 for kind in by_kind)
    for kind, known in sorted(by_kind.items()):
        counts[kind] = Counter()
        values = [reader.read() for reader in known]
        for _ in range(round(share * (0.1 if kind.startswith(SLOW) else 1))):
            number = rng.randrange(len(known))
            reader = known[number]
            with reader.own() as path, flipped(path, rng) as bit:
                outcome = outcome_of(reader.read, values[number], reader.same)
            counts[kind][outcome.split(" ")[0] if outcome.startswith("TRACEBACK") else outcome] += 1
            if outcome.startswith(BAD):
                told.append(f"{reader.path}, bit {bit}: {outcome}")
        print(f"{kind}: {dict(counts[kind])}", file=sys.stderr, flush=True)
    return counts


# --- whole commands ----------------------------------------------------------------------------------------------------------


def through_commands(
    folder: Path, finished: Path, killed: Path, wanted: int, rng: random.Random, told: list[str]
) -> dict[str, Counter[str]]:
    """Each flip in a copy of a run, then one command, whose result is held against that on the undisturbed run."""
    recipe, counts = folder / "recipe.toml", dict[str, Counter[str]]()
    commands: dict[str, Callable[[Path], list[str]]] = {
        "run": lambda root: ["run", str(recipe), "--dir", str(root)],
        "report": lambda root: ["report", str(recipe), "--dir", str(root), "--force", "report"],
        "evaluate": lambda root: ["evaluate", str(recipe), "--dir", str(root), "--force", "evaluate"],
        "score": lambda root: ["score", str(root)],
        "export": lambda root: ["export", str(root), "--to", str(root / "exported")],
        "status": lambda root: ["status", str(root)],
        "push --dry-run": lambda root: ["push", str(root / "models/mpo"), "a/b", "--dry-run"],
        "verify-run": lambda root: ["verify-run", str(root)],
        "run, killed": lambda root: ["run", str(recipe), "--dir", str(root)],
    }
    expected = {}
    for name, command in commands.items():
        root = _copy(killed if name == "run, killed" else finished, folder / "copy")
        assert _command(command(root))[0] == 0, name
        expected[name] = _result(root)
    for number in range(wanted):
        name = list(commands)[number % len(commands)]
        origin = killed if name == "run, killed" else finished
        root = _copy(origin, folder / "copy")
        path = rng.choice(_files(root))
        _flip(path, bit := rng.randrange(path.stat().st_size * 8))
        status, output = _command(commands[name](root))
        outcome = _judge(name, status, output, lambda root=root, name=name: _agree(_result(root), expected[name]))  # type: ignore[misc]
        counts.setdefault(name, Counter())[outcome] += 1
        if outcome in BAD:
            told.append(f"{name}: {path.relative_to(root)}, bit {bit}: {outcome}, exit status {status}: {output[-400:]}")
        print(f"{number + 1} commands", file=sys.stderr, flush=True) if (number + 1) % 10 == 0 else None
    return counts


def _files(root: Path) -> list[Path]:
    """All files of a run but the viewer's index, which no other command reads."""
    files = (path for path in sorted(root.rglob("*")) if path.parent.name != ".view")
    return [path for path in files if path.is_file() and not path.is_symlink() and path.stat().st_size]


def _copy(origin: Path, root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    return Path(shutil.copytree(origin, root, symlinks=True))


def _command(arguments: list[str]) -> tuple[int, str]:
    """Exit status and all output of a command; -1 for a traceback."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = mixpo_main(arguments)
        except Exception as error:
            return -1, f"{output.getvalue()}\n{type(error).__name__}: {error}"
    return status, output.getvalue()


def _judge(name: str, status: int, output: str, same: Callable[[], bool]) -> str:
    if status == -1 or "Traceback" in output:
        return "TRACEBACK"
    if name == "verify-run":  # it has to find every flip in what a run is made of
        return "refused" if status == 3 else "SILENT"
    if status:
        return "refused"
    if not same():
        return "SILENT"
    return "rebuilt" if any(word in output for word in ("rebuilding", "redone", "rebuilt", "taking the one before")) else "no effect"


TIMED = CLOCKS | {"checksum", "created", "timings", "bytes"}
"""Keys of the report, on any level, that hold times or follow from them."""


def _result(root: Path) -> dict[str, Any]:
    """What a run says in the end: the scores and counts of its report, records without clocks, weights; and what was exported."""
    result: dict[str, Any] = {}
    with contextlib.suppress(MixpoError):  # what is damaged and was not read by the command is refused by whoever reads it
        plan = plan_of(root)
        for name, planned in plan.planned.items():
            if planned.job.kind != "report":
                with contextlib.suppress(MixpoError):
                    result[name] = rows_of(plan, name)
    for model in root.glob("models/*"):
        with contextlib.suppress(MixpoError):
            check_trained(model.resolve())
            result[f"weights of {model.name}"] = hash((model / "model.safetensors").read_bytes())
    for path in (root / "exported").rglob("*"):
        if path.is_file():
            result[str(path.relative_to(root))] = hash(path.read_bytes())
    report = json.loads((root / "report.json").read_text()) if (root / "report.json").exists() else {}
    return result | {"report": _without_clocks(report)}


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clocks(inner) for key, inner in value.items() if key not in TIMED}
    return [_without_clocks(inner) for inner in value] if isinstance(value, list) else value


def _agree(result: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether everything that can be read is as expected; what is damaged and was of no use to a command is refused when it is read."""
    return all(value == expected.get(name) for name, value in result.items())


def main() -> int:
    """See the top."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--flips", type=int, default=20_000)
    parser.add_argument("--commands", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="keep everything here; by default a temporary folder that goes in the end")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng, told, begun = random.Random(options.seed), list[str](), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.dir or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        finished, killed = (folder / "finished", folder / "killed")
        if not finished.exists():
            finished, killed = make_runs(folder)
        # Both as they are read: nothing may be missing.
        assert open_run(finished).recipe == open_run(killed).recipe
        assert all(read_metrics(path) for path in killed.glob("round-1/train/*/work-*/metrics.jsonl"))
        counts = in_process((finished, killed), options.flips, rng, told)
        commands = through_commands(folder, finished, killed, options.commands, rng, told) if options.commands else {}
    total = sum(counts.values(), Counter[str]())
    figures = {
        "seed": options.seed,
        "flips": sum(total.values()),
        "outcomes": dict(total),
        "by kind of file": {kind: dict(count) for kind, count in counts.items()},
        "whole commands": {name: dict(count) for name, count in commands.items()},
        "must be 0": {name: total[name] + sum(count[name] for count in commands.values()) for name in BAD},
        "details": told,
        "seconds": round(time.monotonic() - begun),
    }
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name}: {value}")
    return int(any(figures["must be 0"].values()))


if __name__ == "__main__":
    sys.exit(main())
