"""Digests of everything that small runs produce, to prove that a refactoring changes no result.

    python tools/goldens.py --write /tmp/goldens.json      before
    python tools/goldens.py --check /tmp/goldens.json      after; names every column that differs
    python tools/goldens.py --digest /tmp/kept --write /tmp/goldens.json      the run directories that --keep left, digested again

Six runs reach every stage: digits with baselines, easy-VQA, JSONL with open questions, a served model, adapters over two
rounds, and benchmarks. The digests cover every column of every record, the trained weights and `report.json`. Times,
versions and paths are left out. Weights depend on the processor, so the file is compared on the machine that wrote it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

VOLATILE = re.compile(
    r"second|time|tokens_per_s|version|started|created|memory|path|folder|origin$|code|processor|rate$|hours|date|bytes|digest|made"
)
"""Names of columns and of keys in `report.json` that hold times, versions, sizes or paths."""
RENAMED = {
    "start": "base",
    "the checker could not tell right from wrong": "the verifier could not tell right from wrong",
    "hit the length limit, so it is never chosen": "truncated, so never chosen",
    "the correct final answer stands inside the wrong one": "the correct final answer is contained in the wrong one",
    "thinned out, since its class is larger than its share (pairs.balance)": "its class is larger than its share (pairs.balance)",
    "too short to be cut, or nothing was written without the image": "too short to cut, or nothing was generated without the image",
    "written the same without the image": "generated identically without the image",
    "the continuation speaks of a missing image": "the continuation mentions a missing image",
    "chosen and rejected read the same": "chosen and rejected have the same text",
}
"""Names of values, keys and folders that have changed: the old one -> the new one, under which both are compared.
Run `--digest FOLDER --write FILE` with the kept run directories after adding to it."""

BASE = """
seed = 3
shard_size = 8
[model]
path = "mixpo:tiny"
device = "cpu"
[prompt]
cot = "brief"
[sample]
n = 6
max_new_tokens = 48
[pairs]
max_per_question = 3
entailment = false
[evaluate]
max_new_tokens = 48
samples = 2
"""
TRAIN = "[train]\nlearning_rate = 1e-4\nbatch_size = 16\nweight_decay = 0.0\n"
DIGITS = '[source]\nkind = "digits"\npool = "preference"\ncount = {count}\nopen_share = 0.2\n'
HELD_OUT = '[[evaluate.sets]]\nname = "test"\nsource = {{ kind = "digits", pool = "test", count = {count}, seed = 7 }}\n'

RUNS = {
    "digits": BASE + DIGITS.format(count=32) + TRAIN + 'baselines = ["sft", "dpo"]\n' + HELD_OUT.format(count=16),
    "easy_vqa": BASE + TRAIN + '[source]\nkind = "easy_vqa"\nsplit = "train"\ncount = 24\n'
    '[[evaluate.sets]]\nname = "test"\nsource = { kind = "easy_vqa", split = "test", count = 12 }\n',
    "jsonl": BASE + TRAIN + '[source]\nkind = "jsonl"\npath = "questions.jsonl"\n'
    '[[evaluate.sets]]\nname = "held-out"\nsource = { kind = "jsonl", path = "held_out.jsonl" }\n',
    "served": BASE.replace("[sample]", '[sample]\nengine = "openai"\nserver = { urls = ["SERVER"] }') + TRAIN
    + '[source]\nkind = "jsonl"\npath = "questions.jsonl"\n',
    "lora_rounds": BASE + DIGITS.format(count=24) + TRAIN + "rounds = 2\n[train.lora]\nrank = 4\n" + HELD_OUT.format(count=8),
    "benchmarks": BASE + DIGITS.format(count=16) + TRAIN
    + "".join(f'[[evaluate.sets]]\nname = "{name}"\nsource = {{ kind = "benchmark", name = "{name}", path = "{name}" }}\n'
              for name in ("pope", "mathvista", "m3cot")),
}  # fmt: skip


def write_inputs(folder: Path) -> None:
    """Questions, held-out questions and benchmark files for the runs that read files."""
    from bench_files import b64, png
    from small_run import rows, write_jsonl
    from table_files import parquet, tsv

    write_jsonl(folder / "questions.jsonl", rows(folder, 11, 20, open_every=4))
    write_jsonl(folder / "held_out.jsonl", rows(folder, 501, 8, open_every=0))
    yes_no = [("random", number, f"Is there a cat {number} in the image?", ("yes", "no")[number % 2]) for number in range(6)]
    tsv(folder / "pope/POPE.tsv", [
        {"index": n, "category": c, "image": b64(n), "question": q, "answer": a} for c, n, q, a in yes_no
    ])  # fmt: skip
    meta = {"category": "math-targeted-vqa", "task": "geometry problem solving", "context": "geometry diagram", "skills": ["arithmetic"],
            "source": "X", "language": "english", "grade": "high school", "split": "testmini"}  # fmt: skip
    parquet(folder / "mathvista/testmini-00000.parquet", [
        {"pid": str(n), "question": f"How many dots {n}?", "image": f"images/{n}.jpg", "decoded_image": {"bytes": png(n), "path": None},
         "choices": None, "unit": None, "precision": None, "answer": str(n), "question_type": "free_form", "answer_type": "integer",
         "metadata": meta} for n in range(1, 5)
    ])  # fmt: skip
    parquet(folder / "m3cot/test-00000.parquet", [
        {"id": str(n), "category": "x", "image_id": str(n), "question": f"Which one {n}?", "choices": ["cat", "dog", "fox"], "context": "",
         "answer": "ABC"[n % 3], "rationale": "", "split": "test", "image": {"bytes": png(n), "path": None}, "domain": "science",
         "topic": "natural-science"} for n in range(4)
    ])  # fmt: skip


def run(name: str, folder: Path) -> None:
    """One run through the command line, on one thread so that sums come out the same."""
    recipe = folder / f"{name}.toml"
    text = RUNS[name]
    server = None
    if "SERVER" in text:
        from stub_server import StubServer

        server = StubServer(stub_tokens(folder)).__enter__()
        text = text.replace("SERVER", server.url)
    recipe.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "mixpo", "run", str(recipe), "--dir", str(folder / "runs" / name)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if server is not None:
        server.__exit__(None, None, None)
    if done.returncode:
        sys.exit(f"{name}: exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def stub_tokens(folder: Path) -> Any:
    """The tokens of the bundled model for the stub server."""
    from mixpo.engines.tokens import TokenCodec
    from mixpo.recipe import ModelTable
    from mixpo.vlm.load import load

    return TokenCodec(load(ModelTable(path="mixpo:tiny", device="cpu"), folder))


def digests(root: Path) -> dict[str, str]:
    """`place: digest` for everything in one run directory."""
    found: dict[str, str] = {}
    for folder in sorted({path.parent for path in root.rglob("*.parquet")}):
        columns: dict[str, list[Any]] = {}
        for path in sorted(folder.glob("*.parquet")):
            for column, values in pq.read_table(path).to_pydict().items():
                columns.setdefault(column, []).extend(values)
        for column, values in columns.items():
            if not VOLATILE.search(column):
                found[f"{renamed(str(folder.relative_to(root)))}: {renamed(column)}"] = digest(plain(values, root))
    for weights in sorted((root / "models").glob("*/*.safetensors")):
        found[f"models/{weights.parent.name}/{weights.name}"] = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    for key, value in json.loads((root / "report.json").read_text()).items():
        if not VOLATILE.search(key):
            value = plain(value, root)
            # Timings are in the order of folder names, which a rename may change.
            found[f"report.json: {renamed(key)}"] = digest(sorted(value, key=str) if key == "timings" else value)
    return found


def plain(value: Any, root: Path) -> Any:
    """A value without what is volatile."""
    if isinstance(value, Mapping):
        return {renamed(key): plain(inner, root) for key, inner in value.items() if not VOLATILE.search(str(key))}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(inner, root) for inner in value]
    if isinstance(value, str):
        return renamed(re.sub(r"(/[\w.-]+)*/(runs|golden)[\w./-]*|http://127[\w.:/]*", "<path>", value))
    return value


def renamed(text: str) -> str:
    """A name, or every part of a path."""

    def of(part: str) -> str:
        reason, space, unit = part.rpartition(" (")  # reasons of drops carry their unit, as in "... (pairs)"
        return RENAMED.get(part) or RENAMED.get(reason, reason) + space + unit

    return "/".join(of(part) for part in text.split("/"))


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def collect(names: Sequence[str], folder: Path) -> dict[str, str]:
    """The digests of the runs in a folder."""
    return {f"{name}/{place}": value for name in names for place, value in digests(folder / "runs" / name).items()}


def make(names: Sequence[str], keep: Path | None) -> dict[str, str]:
    """Run everything in a temporary folder and collect the digests."""
    folder = keep or Path(tempfile.mkdtemp(prefix="golden"))
    folder.mkdir(parents=True, exist_ok=True)
    write_inputs(folder)
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        run(name, folder)
    found = collect(names, folder)
    if keep is None:
        shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the digests to this file")
    parser.add_argument("--check", type=Path, help="compare with the digests of this file")
    parser.add_argument("--keep", type=Path, help="leave the run directories in this folder")
    parser.add_argument("--digest", type=Path, help="digest the run directories in this folder instead of making them")
    parser.add_argument("names", nargs="*", help=f"runs to make, all by default: {', '.join(RUNS)}")
    arguments = parser.parse_args()
    names = arguments.names or list(RUNS)
    found = collect(names, arguments.digest) if arguments.digest else make(names, arguments.keep)
    if arguments.write:
        arguments.write.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if arguments.check:
        before = {place: value for place, value in json.loads(arguments.check.read_text()).items() if place.split("/")[0] in names}
        differing = sorted(place for place in {*before, *found} if before.get(place) != found.get(place))
        for place in differing:
            print(f"{place}: {before.get(place, 'absent')} -> {found.get(place, 'absent')}")
        print(f"{len(before)} digests compared, {len(differing)} differ")
        sys.exit(bool(differing))


if __name__ == "__main__":
    main()
