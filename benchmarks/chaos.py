"""One run, killed with SIGKILL again and again at random moments, and the server it asks as well; then held against an undisturbed run.

python benchmarks/chaos.py [--case llama|own|served|transformers | --recipe FILE] [--kills 200] [--seed 0] [--dir FOLDER] [--json]

--recipe kills `mixpo run` on any recipe, the cases kill `mixpo sample`. Exit status 1 unless every answer is there exactly once, as in the
undisturbed run, no finished shard was written twice, and nothing was left behind. Linux only. Samplers are forked from a process that
has imported everything, so that a moment is a moment of work and not of imports.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from chaos_cases import CASES, QUESTIONS, Case, alive
from chaos_compare import MUST_BE_0, compare
from chaos_watch import Shards, Writes

import mixpo.engines.openai.engine
import mixpo.engines.openai.server
import mixpo.engines.scripted
import mixpo.engines.transformers
import mixpo.pairs.dropout_ntp
import mixpo.stages.train
import mixpo.train.loop
import mixpo.vlm.tokenizer_only  # noqa: F401
from mixpo.cli import main as mixpo_main
from mixpo.recipe import load
from mixpo.vlm.load import load as load_model

SPAN = 1.5
"""A kill at any time comes within so many times what the first shard takes, or a third of the whole run (of all stages: a twelfth)."""
LONGER, SHORTER, SHORTEST_S = 1.2, 0.9, 0.2
"""How that time follows the machine when all stages run: after a kill that found nothing written since the start, and after others."""
WINDOW_S = 0.0015
"""A kill while a shard is written comes within this time after its temporary file appears."""
ORPHAN_S = 30.0
"""A server that mixpo started must have ended this long after mixpo was killed."""
EVENTS = {"any time": 5, "writing": 3, "server": 1, "both": 1}
"""What happens next, by weight: kill the sampler at any time or while it writes a shard, its server under it, or both at once."""


class Chaos:
    """Kills one case. counts: everything that was seen, by name."""

    def __init__(self, case: Case, folder: Path, seed: int) -> None:
        self.case, self.folder, self.rng = case, folder, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.slowest_end, self.born, self.span = 0.0, 0, 0.0
        self.log = folder / "sampler.log"

    # --- the sampler -------------------------------------------------------------------------------------------------------

    def start(self, root: Path) -> int:
        """Fork a process that is `mixpo COMMAND RECIPE --dir ROOT`; returns its id."""
        self.counts["starts"] += 1
        self.log.unlink(missing_ok=True)
        self.born = time.time_ns()
        if pid := os.fork():
            return pid
        try:
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os._exit(mixpo_main([self.case.command, str(self.case.recipe), "--dir", str(root)]))
        finally:
            os._exit(70)

    def whole(self, root: Path) -> float:
        """Run to the end; returns the seconds until the first shard of answers. Raises RuntimeError when it fails."""
        begun, first, pid = time.monotonic(), 0.0, self.start(root)
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if not first and any((root / "round-1/sample").glob("*.parquet")):
                first = time.monotonic() - begun
            time.sleep(0.01)
        if ended[1]:
            raise RuntimeError(f"a run that nobody killed ended with status {ended[1]}: {self.log.read_text()[-2000:]}")
        return min(first * SPAN, (time.monotonic() - begun) / (12 if self.case.command == "run" else 3))

    # --- killing -----------------------------------------------------------------------------------------------------------

    def kill(self, wanted: int, span: float) -> list[Path]:
        """Kill `wanted` samplers; returns the runs that were begun. span: seconds within which a kill at any time comes at first."""
        self.span = span
        roots, server = [self.folder / "killed-0"], self.case.server
        names = [name for name in EVENTS if server is not None or name in ("any time", "writing")]
        shards, pid = Shards(roots[0]), self.start(roots[0])
        while self.counts["kills"] < wanted:
            event = self.rng.choices(names, [EVENTS[name] for name in names])[0]
            self._wait(event, roots[-1])
            if event == "server":
                assert server is not None
                self._kill_server()
                time.sleep(self.rng.uniform(0, 1))
                server.start()
                continue
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                if event == "both":
                    self._kill_server()
                busy = server is not None and server.under_way()
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self._killed(roots[-1], shards, busy)
                if event == "both" and server is not None:
                    self.counts["both"] += 1
                    server.start()
            elif "Traceback" in (said := self.log.read_text()) or "mixpo: " in said:
                raise RuntimeError(f"the sampler ended by itself: {said[-2000:]}")
            else:
                roots.append(self.folder / f"killed-{len(roots)}")
                shards.look()
                self._add(shards)
                shards = Shards(roots[-1])
            pid = self.start(roots[-1])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self._add(shards)
        return roots

    def _wait(self, event: str, root: Path) -> None:
        if event == "writing":
            with Writes(root) as writes:
                writes.next(2 * self.span)
            time.sleep(self.rng.uniform(0, WINDOW_S))
        else:
            time.sleep(self.rng.uniform(0, self.span))

    def _kill_server(self) -> None:
        assert self.case.server is not None
        self.counts["server kills"] += 1
        self.counts["server kills, an answer under way"] += self.case.server.under_way()
        self.case.server.kill()

    def _killed(self, root: Path, shards: Shards, busy: bool) -> None:
        """Look at what a killed sampler left."""
        self.counts["kills"] += 1
        if self.counts["kills"] % 10 == 0:
            print(f"{self.counts['kills']} kills, {self.counts['starts']} starts", file=sys.stderr, flush=True)
        self.counts["kills, an answer under way"] += busy
        left = shards.look()
        manifest = root / "round-1/sample/manifest.json"
        if self.case.command == "run":
            stage = last_stage(root, self.born)
            self.moments[stage or "before anything is written"] += 1
            self.span = max(SHORTEST_S, self.span * (SHORTER if stage else LONGER))
        elif left.shards:
            self.moments["writing a shard"] += 1
        elif left.others:
            self.moments["writing another file"] += 1
        elif not manifest.exists() or manifest.stat().st_mtime_ns < self.born:
            self.moments["before the stage"] += 1
        elif self.case.server is not None and "server: " not in self.log.read_text():
            self.moments["probing the server"] += 1
        elif left.new:
            self.moments["between shards"] += 1
        else:
            self.moments["before its first shard"] += 1
        self.counts["temporary files left"] += left.shards + left.others
        self.counts["of them torn"] += left.torn
        if self.case.own:
            self._outlived()

    def _outlived(self) -> None:
        begun = time.monotonic()
        while alive(self.case.own) and time.monotonic() < begun + ORPHAN_S:
            time.sleep(0.02)
        self.slowest_end = max(self.slowest_end, time.monotonic() - begun)
        self.counts["servers that outlived mixpo"] += bool(alive(self.case.own))

    def _add(self, shards: Shards) -> None:
        self.counts.update({"shards written twice": shards.changed, "shards that went": shards.gone, "shards that are torn": shards.torn})


def last_stage(root: Path, since: int) -> str:
    """The stage that wrote the newest file of a run, or "" where none is as new as `since`, a time in ns."""
    times = [
        (path.stat().st_mtime_ns, path.relative_to(root).parts) for path in root.rglob("*") if path.is_file() and not path.is_symlink()
    ]
    stages = [(written, parts) for written, parts in times if written >= since and len(parts) > 1 and not parts[0].startswith(".")]
    folders = max(stages, default=(0, ()))[1][:-1]
    inner = next((n for n, part in enumerate(folders) if part.startswith((".", "work-", "model-")) or part == "checkpoints"), len(folders))
    return "/".join(folders[:inner])


def run(case: Case, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """All figures of one case."""
    chaos, server, begun = Chaos(case, folder, seed), case.server, time.monotonic()
    asked = 0
    try:
        if server is not None:
            server.start()
            server.wait()
        span = chaos.whole(folder / "undisturbed")
        undisturbed, asked = time.monotonic() - begun, server.begun() if server is not None else 0
        roots = chaos.kill(kills, span)
        for root in roots:
            chaos.whole(root)
        answers = server.begun() - asked if server is not None else 0
    finally:
        if server is not None:
            server.kill()
    found = sum((compare(root, folder / "undisturbed") for root in roots), Counter[str]())
    counts = {**chaos.counts, **found}
    return {
        "case": case.name,
        "seed": seed,
        "runs": len(roots),
        "shards": sum(1 for root in roots for _ in (root / "round-1/sample").glob("*.parquet")),
        "moments": dict(chaos.moments.most_common()),
        "counts": {name: count for name, count in counts.items() if name not in MUST_BE_0},
        "must be 0": {name: counts.get(name, 0) for name in MUST_BE_0},
        "answers begun by the server": {"undisturbed": asked, "killed": answers},
        "slowest end of a server, s": round(chaos.slowest_end, 2),
        "seconds": {"undisturbed": round(undisturbed, 1), "all": round(time.monotonic() - begun, 1)},
    }


def main() -> int:
    """See the top."""
    parser = argparse.ArgumentParser()
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--case", choices=tuple(CASES), default="llama")
    which.add_argument("--recipe", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--questions", type=int, default=0, help="of one run; by default enough for all kills, or 20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="keep everything here; by default a temporary folder that goes in the end")
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (told.dir or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        make, for_each = CASES[told.case]
        if told.recipe is not None:
            case = Case(name="recipe", recipe=told.recipe.absolute(), command="run")
        else:
            case = make(folder, told.questions or for_each * told.kills or QUESTIONS)
        # Whatever a model needs is imported now, and not by every sampler.
        load_model(load(case.recipe).model, case.recipe.parent)
        gc.freeze()  # so that forked samplers do not copy it
        figures = run(case, folder, told.kills, told.seed)
    if told.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name}: {', '.join(f'{key} {count}' for key, count in value.items()) if isinstance(value, dict) else value}")
    return int(any(figures["must be 0"].values()))


if __name__ == "__main__":
    sys.exit(main())
