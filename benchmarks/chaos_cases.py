"""What `chaos.py` kills: recipes small enough to be killed often, and servers that are killed and started again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mixpo.engines.openai.server import HOST, TRANSFORMERS, free_port
from mixpo.recipe import ModelTable
from mixpo.vlm.folder import find_model

LLAMA = Path(__file__).with_name("llama_server.py")
START_SECONDS = 120.0


class Server:
    """A real server in a process of its own, always on the same port. begun, ended: what its log holds for each answer, or nothing."""

    def __init__(self, command: list[str], port: int, log: Path, begun: bytes, ended: bytes = b"") -> None:
        self.command, self.log, self.kills = command, log, 0
        self.root = f"http://{HOST}:{port}"
        self._begun, self._ended, self._offset = begun, ended, 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; what it needs to get ready is part of the disturbance."""
        self._offset = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def wait(self) -> None:
        """Wait until it answers. Raises RuntimeError when it does not."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.root}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"{self.command}: does not answer; see {self.log}")

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def begun(self) -> int:
        """Answers begun since the first start, test questions included."""
        return self.log.read_bytes().count(self._begun)

    def under_way(self) -> bool:
        """Whether it is writing an answer now; False where its log does not say."""
        with self.log.open("rb") as log:
            log.seek(self._offset)
            lines = log.read()
        return bool(self._ended) and lines.count(self._begun) > lines.count(self._ended)


@dataclass(frozen=True, kw_only=True)
class Case:
    """command: of mixpo. own: an argument of the servers that mixpo starts itself."""

    name: str
    recipe: Path
    command: str
    server: Server | None = None
    own: str = ""


HEAD = """seed = 0
shard_size = 1
[model]
path = "mixpo:tiny"
device = "cpu"
[train]
learning_rate = 1e-4
"""
BRIEF = '[prompt]\ncot = "brief"\n'
BARE = '[prompt]\ncot = { template = "{question}", style = "whole" }\n'
DIGITS = '[source]\nkind = "digits"\npool = "preference"\ncount = {count}\n'
SUMS = '[source]\nkind = "jsonl"\npath = "questions.jsonl"\n'
TEXT = '[sample]\nengine = "openai"\nn = 2\nmax_new_tokens = 4\n[sample.server]\nsame_model = false\nin_flight = 1\npatience_s = 120\n'


EVERY_STAGE = """seed = 7
shard_size = 4
[model]
path = "mixpo:tiny"
device = "cpu"
[prompt]
cot = "brief"
[source]
kind = "jsonl"
path = "questions.jsonl"
[[preferences]]
kind = "jsonl"
path = "pairs.jsonl"
[sample]
engine = "scripted"
script = "script.jsonl"
n = 4
max_new_tokens = 32
[verify]
workers = 1
[train]
baselines = ["sft"]
learning_rate = 1e-4
batch_size = 8
tokens_per_batch = 2048
save_every = 2
[evaluate]
max_new_tokens = 8
batch_size = 4
[[evaluate.sets]]
name = "held-out"
source = { kind = "jsonl", path = "held_out.jsonl" }
[report]
examples = 2
"""


def sums(folder: Path, count: int) -> None:
    """Questions without an image, for a language model."""
    rows = ({"question": f"{number} + {number % 7}?", "answer": str(number + number % 7)} for number in range(count))
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def stages(folder: Path, count: int) -> Case:
    """Every stage: pictures, scripted responses with formulas, continuations, ready-made pairs, two trainings, an evaluation."""
    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    questions, held_out, script, pairs = [], [], [], []
    for number in range(count):
        picture = f"images/{number}.png"
        Image.new("RGB", (28, 28), ((number * 37) % 256, (number * 91) % 256, (number * 17) % 256)).save(folder / picture)
        text, answer = f"What is {number} times (x + 1)?", f"{number}x + {number}"
        row = {"image": picture, "question": text, "answer": answer}
        if number % 5 == 4:
            held_out.append(row)
        else:
            questions.append(row if number % 4 else {"image": picture, "question": text})
        said = f"${answer}$", "$88$", rf"${number}\left(x + 1\right)$", f"${number}(x - 3)$"
        responses = [f"I look, way {way}. Final answer: {one}" for way, one in enumerate(said)]
        script.append({"question": text, "responses": responses})
        if number % 3 == 0:
            prompt = f"Describe picture {number}."
            pairs.append({"prompt": prompt, "chosen": f"One colour, number {number}.", "rejected": "A dog.", "images": [picture]})
    for name, rows in (("questions", questions), ("held_out", held_out), ("script", script), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.toml"
    recipe.write_text(EVERY_STAGE)
    return Case(name="stages", recipe=recipe, command="run")


def llama(folder: Path, count: int) -> Case:
    """llama.cpp and a language model; the server is killed as well."""
    sums(folder, count)
    port = free_port()
    server = Server([sys.executable, str(LLAMA), str(port)], port, folder / "server.log", b"launch_slot_", b"release:")
    return Case(name="llama", recipe=_write(folder, SUMS + BARE + TEXT + f'urls = ["{server.root}/v1"]\n'), command="sample", server=server)


def own(folder: Path, count: int) -> Case:
    """llama.cpp, started by mixpo itself. The last argument does nothing but name it."""
    sums(folder, count)
    mark = str(folder / "its-server")
    words = json.dumps([sys.executable, str(LLAMA), "{port}", mark])
    return Case(name="own", recipe=_write(folder, SUMS + BARE + TEXT + f"start = {words}\n"), command="sample", own=mark)


def served(folder: Path, count: int) -> Case:
    """`transformers serve` with the bundled model and pictures. It takes no seeds, so nothing is left to draw."""
    port, model = free_port(), str(find_model(ModelTable(), folder))
    values = {"{model}": model, "{host}": HOST, "{port}": str(port)}
    command = [values.get(word, word) for word in TRANSFORMERS] + ["--device", "cpu"]
    sample = (
        '[sample]\nengine = "openai"\nn = 2\ntemperature = 0.00001\nmax_new_tokens = 24\n[sample.server]\nin_flight = 2\npatience_s = 120\n'
    )
    server = Server(command, port, folder / "server.log", b'"POST /v1/')
    recipe = _write(folder, DIGITS.format(count=count) + BRIEF + sample + f'model = "{model}"\nurls = ["{server.root}/v1"]\n')
    return Case(name="served", recipe=recipe, command="sample", server=server)


def transformers(folder: Path, count: int) -> Case:
    """The bundled model with pictures in mixpo's own process: the same seeds give the same answers, bit for bit."""
    sample = '[sample]\nengine = "transformers"\nn = 2\nmax_new_tokens = 24\nbatch_size = 4\n'
    return Case(name="transformers", recipe=_write(folder, DIGITS.format(count=count) + BRIEF + sample), command="sample")


def _write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(HEAD + text)
    return path


CASES: dict[str, tuple[Callable[[Path, int], Case], int]] = {
    "llama": (llama, 2),
    "own": (own, 2),
    "served": (served, 4),
    "transformers": (transformers, 12),
    "stages": (stages, 0),
}
"""By name: what makes it, and how many questions it takes for each kill so that one run lasts; 0 for QUESTIONS in every run."""
QUESTIONS = 20
"""Questions of a case whose kills are spread over many runs."""


def alive(word: str) -> list[int]:
    """Ids of the processes that have `word` among their arguments."""
    found = []
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and word.encode() in Path(entry.path, "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it has just ended
            continue
    return found
