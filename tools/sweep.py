"""Try settings of the demo on the validation pool and print one table row for each; the test pool is never touched.

    python tools/sweep.py --dir runs/sweep

Sampled answers and pairs are made once and shared. Every row is a run directory that can be opened, and running again goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from importlib import resources
from pathlib import Path

from mixpo.cli.boundary import open_progress
from mixpo.pipeline import open_context, run_recipe
from mixpo.recipe import load

VALIDATION = (
    'evaluate.sets=[{name = "validation", source = {kind = "digits", pool = "validation", count = 500, seed = 3}}]',
    "evaluate.samples=4",
    'evaluate.modes=["cot"]',
    "train.baselines=[]",
)
FIRST = ("round-1/sample", "round-1/continue", "round-1/verify", "round-1/pair", "round-1/reference", "source", "images")
TRIED: dict[str, tuple[str, ...]] = {
    "MPO, lr 1e-4": (),
    "MPO, lr 1e-5": ("train.learning_rate=1e-5",),
    "MPO, lr 3e-5": ("train.learning_rate=3e-5",),
    "MPO, lr 3e-4": ("train.learning_rate=3e-4",),
    "MPO, lr 1e-3": ("train.learning_rate=1e-3",),
    "DPO, lr 1e-4": ("train.objective=dpo",),
    "DPO, lr 3e-4": ("train.objective=dpo", "train.learning_rate=3e-4"),
    "SFT on chosen, lr 1e-4": ("train.objective=sft",),
    "SFT on chosen, lr 3e-4": ("train.objective=sft", "train.learning_rate=3e-4"),
    "SFT on chosen, lr 1e-3": ("train.objective=sft", "train.learning_rate=1e-3"),
    "MPO, beta 0.3": ("train.loss.beta=0.3",),
    "MPO, batch 128": ("train.batch_size=128",),
    "MPO, preference 0.2, quality 0.05": ("train.loss.preference=0.2", "train.loss.quality=0.05"),
    "MPO, 1 pair per question": ("pairs.max_per_question=1",),
    "MPO, 8 pairs per question": ("pairs.max_per_question=8",),
    "MPO, without format negatives": ("pairs.format_negatives=false",),
    "MPO, without DropoutNTP pairs": ("pairs.dropout_ntp=false",),
    "MPO, 320 questions": ("source.count=320",),
    "MPO, 640 questions": ("source.count=640",),
    "MPO, 2560 questions": ("source.count=2560",),
    "MPO, 2 epochs": ("train.epochs=2",),
    "MPO, 2 rounds": ("train.rounds=2",),
}


def share(base: Path, folder: Path) -> None:
    """Give a new run the finished first stages of another, as hard links."""
    for name in FIRST:
        if (base / name).is_dir() and not (folder / name).exists():
            shutil.copytree(base / name, folder / name, copy_function=os.link)


def row(name: str, folder: Path) -> str:
    models = json.loads((folder / "report.json").read_text(encoding="utf-8"))["models"]
    start, trained = models["base"], next(model for key, model in models.items() if key != "base")
    cells = [f"{100 * model[mode]['accuracy']:.1f}" for model in (start, trained) for mode in ("cot", "sampled")]
    return f"| {name} | {cells[0]} -> {cells[2]} | {cells[1]} -> {cells[3]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of the settings to try")
    parser.add_argument("--set", action="append", default=[], dest="changes", help="as in mixpo run, for every setting")
    args = parser.parse_args()
    recipe = Path(str(resources.files("mixpo"))) / "assets" / "demo.toml"
    rows, base = [], None
    for number, (name, changes) in enumerate(TRIED.items()):
        if args.only and not any(part in name for part in args.only):
            continue
        folder = args.dir / f"{number:02d}"
        if base is not None:
            share(base, folder)
        base = base or folder
        progress = open_progress()
        run_recipe(open_context(load(recipe, (*VALIDATION, *args.changes, *changes)), recipe.parent, folder, progress))
        progress.close()
        rows.append(row(name, folder))
        print("\n" + "\n".join(["| setting | greedy CoT, % | sampled CoT, % |", "|---|---|---|", *rows]), flush=True)


if __name__ == "__main__":
    main()
