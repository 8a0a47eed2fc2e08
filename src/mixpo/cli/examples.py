"""One or two real uses of each command, shown below its help."""

from __future__ import annotations

EXAMPLES = {
    "run": ("mixpo run recipe.toml --limit 64", "mixpo run recipe.toml --set train.learning_rate=1e-6 --force train"),
    "demo": ("mixpo demo", "mixpo demo --dir runs/small --limit 128"),
    "sample": ("mixpo sample recipe.toml --set sample.n=16",),
    "verify": ("mixpo verify recipe.toml",),
    "pair": ("mixpo pair recipe.toml --set pairs.max_per_question=8",),
    "reference": ("mixpo reference recipe.toml",),
    "train": ("mixpo train recipe.toml", "torchrun --nproc_per_node 8 -m mixpo train recipe.toml"),
    "evaluate": ("mixpo evaluate recipe.toml",),
    "report": ("mixpo report recipe.toml",),
    "check": ("mixpo check recipe.toml", "mixpo check recipe.toml --limit 100"),
    "plan": ("mixpo plan recipe.toml", "mixpo plan recipe.toml --questions 3000000 --rate 20000 --devices 8"),
    "doctor": ("mixpo doctor",),
    "status": ("mixpo status runs/recipe", "mixpo status runs/recipe --json"),
    "score": ("mixpo score runs/recipe --set evaluate.extractor=paper",),
    "compare": ("mixpo compare runs/a runs/b", "mixpo compare runs/a/evaluate/test/base/cot runs/a/evaluate/test/mpo/cot"),
    "view": ("mixpo view runs/recipe", "mixpo view runs/recipe --port 0"),
    "retry": ("mixpo retry runs/recipe",),
    "audit": ("mixpo audit runs/recipe --count 50",),
    "export": ("mixpo export runs/recipe --to pairs", "mixpo export runs/recipe --to pairs --format trl"),
    "push": ("mixpo push runs/recipe/models/mpo your-name/model --dry-run",),
}


def examples(command: str) -> str:
    """The text below the help of a command."""
    return "\n".join(("For example:", *(f"  {line}" for line in EXAMPLES[command])))
