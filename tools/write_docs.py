"""Write the parts of the documentation that follow from the code: recipe keys, record fields, prompts, what the checks say.

    python tools/write_docs.py            # rewrite what is out of date
    python tools/write_docs.py --check    # only say what is; exit status 1 if anything

A page holds `<!-- generated: NAME -->` and `<!-- /generated -->`; what stands between is replaced. The tables of the recipe and of
the records are in `tables.py` beside this file. Text around the markers is written by people.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

sys.path.insert(0, str(Path(__file__).parent))

from tables import cell, recipe_sections, record_sections, study_sections, table

from mixpo.cli.app import EXAMPLES, app
from mixpo.objectives import OBJECTIVES
from mixpo.pairs.provenance import REASONS
from mixpo.prompts import PROMPTS
from mixpo.sources.digits import POOLS
from mixpo.verify import check, extract

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- generated: ([a-z_]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)

OPTIONS = ["5", "7", "9", "12"]
"""The options (A to D) of the multiple-choice examples."""

ANSWERS: dict[str, tuple[tuple[str, str], ...]] = {
    "choice": (
        ("B", "B"), ("(b)", "B"), ("B. 7", "B"), ("7", "B"), ("14", "B"), ("C", "B"), ("A or B", "B"), ("B. 9", "B"), ("not B", "B"),
    ),
    "number": (
        ("1,234", "1234"), ("seven", "7"), ("0.5", "1/2"), ("3 + 4 = 7", "7"), ("50%", "0.5"), ("0.5%", "0.5"), ("3 m", "300 cm"),
        ("3", "3 cm"), ("3 kg", "3 m"), ("7 or 8", "7"), ("a dozen", "12"), ("1 h 30 min", "90 min"),
        ("at least 7", "7"), ("3.142", "3.14159"), ("3.14", "3.14159"), ("13", "12"),
    ),
    "formula": (
        ("x^2 + 2x + 1", "(x+1)^2"), (r"\frac{1}{2}x", "x/2"), ("sqrt(8)", "2*sqrt(2)"), ("3:4", "6:8"), ("2x+1", "2x+2"),
        ("log(x)", "ln(x)"), ("x", "X"),
    ),
    "text": (("a Red circle.", "red circle"), ("two", "2"), ("ice-cream", "ice cream"), ("red", "red circle"), ("blue", "red")),
    "yes_no": (
        ("Yes, it is.", "yes"), ("是", "yes"), ("It is not.", "no"), ("No", "yes"), ("yes and no", "yes"), ("I cannot tell", "no"),
        ("red", "yes"),
    ),
}  # fmt: skip
"""(answer, ground truth) by kind, for the tables in docs/verification.md."""

RESPONSES = [
    ("3 + 4 = 7. Final answer: 7", "final"),
    ("**Final answer:** B", "final"),
    ("Final answer: 3 No, I misread it. Final answer: 5", "final"),
    ("I think the answer is 7.", "final"),
    ("So that is that.", "final"),
    ("Final answer: ..", "final"),
    ("答案: 12", "final_zh"),
    (r"So it is \boxed{\frac{1}{2}}.", "boxed"),
    (r"<think>2 + 2 = 4</think> \boxed{4}", "think"),
    ("<think>2 + 2 =", "think"),
    ("Seven", "whole"),
    (r"Answer: 3. So \boxed{4}", "auto"),
    ("7", "auto"),
]
"""(response, style)."""


def answers(kind: str) -> str:
    """The verdicts of `check` on the examples of one kind."""
    options = OPTIONS if kind == "choice" else None
    rows = []
    for predicted, gold in ANSWERS[kind]:
        verdict = check(predicted, gold, kind, options)
        rows.append((code(predicted), code(gold), f"**{verdict.outcome}**", verdict.reason))
    return table(("answer", "ground truth", "outcome", "reason"), rows)


def responses() -> str:
    """What `extract` finds in the example responses."""
    found = ((code(style), code(text), extract(text, style)) for text, style in RESPONSES)
    return table(
        ("style", "response", "extracted"), [(style, text, "malformed" if got is None else code(got)) for style, text, got in found]
    )


def prompts() -> str:
    """The built-in prompts, whole."""
    return table(("name", "style", "text"), [(code(name), code(str(p.style)), cell(p.template)) for name, p in PROMPTS.items()])


def objectives() -> str:
    """The training objectives."""
    return table(("name", "definition"), [(code(name), objective.summary) for name, objective in OBJECTIVES.items()])


def reasons() -> str:
    """Reasons for dropping a question, response or pair."""
    return table(("reason", "counts", "meaning"), [(code(name), reason.unit, reason.text) for name, reason in REASONS.items()])


def pools() -> str:
    """How many digit images each pool has."""
    use = {
        "start": "training the base model",
        "preference": "sampling, pairs, training",
        "validation": "choosing settings",
        "test": "the reported results",
    }
    return table(("pool", "digit images", "used for"), [(code(name), str(high - low), use[name]) for name, (low, high) in POOLS.items()])


def shares() -> str:
    """How the base model was trained to answer, by family; read from the script without running it."""
    table_of = _constant(ROOT / "tools" / "tiny_digits.py", "SHARES")
    rows = [(family, *(f"{share:.0%}" for share in parts)) for family, parts in table_of.items()]
    return table(("family", "reads and reasons", "guesses", "reasons without a clear final answer"), rows)


def _constant(path: Path, name: str) -> dict[str, tuple[float, ...]]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name and node.value:
            return dict(ast.literal_eval(node.value))
    raise SystemExit(f"{path}: has no constant {name}; docs/demo.md is made from it")


def commands() -> str:
    """Every command with its arguments and options, from the application itself."""
    group: Any = typer.main.get_command(app)
    parts = []
    for name, command in sorted(group.commands.items()):
        usage = " ".join(["mixpo", name, "[OPTIONS]", *(p.metavar or p.name.upper() for p in _arguments(command))])
        examples = "\n".join(EXAMPLES[name])
        rows = [(code(", ".join(p.opts)), cell(getattr(p, "help", "") or "")) for p in command.params if p not in _arguments(command)]
        text = inspect.cleandoc(command.help or "").partition("\f")[0].strip()
        parts.append(f"## mixpo {name}\n\n{text}\n\n`{usage}`\n\n```bash\n{examples}\n```\n\n{table(('option', 'meaning'), rows)}")
    return "\n\n".join(parts)


def _arguments(command: Any) -> list[Any]:
    return [param for param in command.params if param.param_type_name == "argument"]


def code(text: str) -> str:
    """Text as code inside a table cell."""
    return f"`{cell(text, breaks=' ')}`"


BLOCKS: dict[str, Callable[[], str]] = {
    "recipe": recipe_sections,
    "records": record_sections,
    "study": study_sections,
    "commands": commands,
    "prompts": prompts,
    "objectives": objectives,
    "reasons": reasons,
    "pools": pools,
    "shares": shares,
    "responses": responses,
    **{f"answers_{kind}": lambda kind=kind: answers(kind) for kind in ANSWERS},  # type: ignore[misc]
}
"""What stands between the markers of each name."""


def written(text: str) -> str:
    """A page with its generated parts made anew. Raises KeyError for a name that is not in BLOCKS."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{BLOCKS[match[2]]()}\n\n{match[3]}", text)


def stale() -> dict[Path, str]:
    """The pages that are out of date, with what they should hold."""
    pages = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
    return {path: new for path, old in pages.items() if (new := written(old)) != old}


def main(arguments: Sequence[str]) -> int:
    """Exit status 1 when something was, or is, out of date."""
    found = stale()
    for path, text in found.items():
        print(path.relative_to(ROOT).as_posix(), "is out of date" if "--check" in arguments else "written")
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
    return int("--check" in arguments and bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
