"""What training holds and how long it takes to the first step as the data grows, on generated groups of three pairs and about 800 tokens.

    python benchmarks/train_scale.py [--groups 10000 100000 1000000] [--json]

For each number of groups three processes: one writes the groups (in a run the reference stage does this, once), one starts a training on
them, one resumes it from its first checkpoint. Printed of the last two: seconds from the start of the training to the end of its first
step, and the memory of the process above what it held with the model loaded. "own" memory is what the system cannot drop; pages of the
index are mapped from the file and shared by all ranks of a machine. Targets for a million groups: 30 s and 400 MB.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from history import emit

from mixpo.train.group_data import GroupRow, write_groups
from mixpo.types import Group, Question

SECONDS, MEGABYTES = 30.0, 400.0
"""Targets."""
RESPONSES, TOKENS = 4, 200
"""Of each group."""


def rows(count: int, again: int) -> Iterator[GroupRow]:
    """Groups without images, each of them `again` times. Tokens are random; few are trained on, so that only their number matters."""
    rng = random.Random(0)
    pool = [tuple(rng.randrange(300) for _ in range(TOKENS)) for _ in range(1000)]
    for number in range(count // again):
        asked = Question(id=f"{number:016x}", text=f"What is number {number} of all? " * 4, source=f"source {number % 5}")
        responses = tuple(rng.sample(pool, RESPONSES))
        pairs = tuple((0, other) for other in range(1, RESPONSES))
        yield GroupRow(Group(question=asked, prompt=asked.text, responses=responses, pairs=pairs, prompt_tokens=100), (again,) * len(pairs))


def own_mb() -> float:
    """Memory of this process that belongs to no file, in MB; where the system does not say, the most it ever had."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


class Stopped(Exception):  # noqa: N818
    """The step that is measured is done."""


def write(path: Path, count: int, again: int) -> dict[str, float]:
    """Seconds and megabytes of the file with so many groups."""
    begun = time.monotonic()
    write_groups(path, rows(count, again), "generated")
    return {"seconds": time.monotonic() - begun, "processor": time.process_time(), "megabytes": path.stat().st_size / 1e6}


def train(path: Path) -> dict[str, float]:
    """Seconds until the first step is done, of them the processor's, and memory above the model; stops after it."""
    from mixpo.progress import Silent
    from mixpo.recipe import ImageTable, ModelTable, TrainTable
    from mixpo.train import loop
    from mixpo.train.group_data import open_groups
    from mixpo.train.session import Session, TrainJob
    from mixpo.vlm.load import load

    vlm = load(ModelTable(path="mixpo:tiny", device="cpu"), path.parent)
    before, figures = own_mb(), dict[str, float]()

    class Watching(Silent):
        def advance(self, count: int, note: str = "") -> None:
            used = time.process_time() - processor
            figures.update(
                seconds=time.monotonic() - begun, processor=used, megabytes=max(own_mb() - before, figures.get("megabytes", 0.0))
            )

        def say(self, message: str) -> None:
            figures["megabytes"] = max(own_mb() - before, figures.get("megabytes", 0.0))

    def save(session: Session) -> None:
        real_save(session)
        raise Stopped

    real_save, loop._save = loop._save, save
    begun, processor = time.monotonic(), time.process_time()
    # Without reference log-probs of its own the first step would be refused.
    table = TrainTable(batch_size=16, save_every=1, learning_rate=1e-6, reference="online", tokens_per_batch=4096)
    job = TrainJob(
        vlm=vlm, groups=open_groups(path), table=table, objective="mpo", images=ImageTable(), folder=path.parent / "work",
        output=path.parent / "model", logs=path.parent / "logs",
    )  # fmt: skip
    with suppress(Stopped):
        loop.train(job, Watching())
    return figures


def measured(action: str, path: Path, count: int, again: int) -> dict[str, float]:
    """The figures that this program prints in a process of its own."""
    command = [sys.executable, __file__, "--action", action, "--path", str(path), "--groups", str(count), "--repeat", str(again)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeat", type=int, default=1, help="repetitions of a group, which makes the file smaller and not the index")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--action", choices=("write", "train"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.action:
        print(json.dumps(write(args.path, args.groups[0], args.repeat) if args.action == "write" else train(args.path)))
        return
    figures = {}
    print(f"{'groups':>10} {'':8} {'seconds':>9} {'processor':>10} {'MB':>8}")
    for count in args.groups:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "groups.rows"
            for name, action in (("written", "write"), ("started", "train"), ("resumed", "train")):
                one = figures[f"{name} {count}"] = measured(action, path, count, args.repeat)
                print(f"{count:10,} {name:8} {one['seconds']:9.1f} {one['processor']:10.1f} {one['megabytes']:8.0f}", flush=True)
    last = [one for name, one in figures.items() if not name.startswith("written")][-2:]
    for name, target, unit in (("seconds", SECONDS, "s"), ("megabytes", MEGABYTES, "MB")):
        worst = max(one[name] for one in last)
        print(
            f"{name} at {args.groups[-1]:,} groups: {worst:.0f} {unit}, target {target:.0f} {unit}: {'pass' if worst <= target else 'FAIL'}"
        )
    emit("train_scale", {name: {key: round(value, 2) for key, value in one.items()} for name, one in figures.items()}, show=args.json)


if __name__ == "__main__":
    main()
