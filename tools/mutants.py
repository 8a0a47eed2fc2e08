"""Break the code in one place at a time and see whether the tests notice. Run by hand; takes about half an hour.

    python tools/mutants.py                 # all mutants; exit status 1 if one survives
    python tools/mutants.py --only clip     # those whose name contains a text
    python tools/mutants.py --check         # only say whether every place is still there, once

Each mutant is a text of the package, what to put in its place, and the tests that should fail then. The text is searched in all
files, so that modules may move; one that is missing, or stands twice, stops the script. Works on a copy of src and tests.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutant:
    """name: what is broken. tests: files or folders below tests/, the first failure is enough."""

    name: str
    old: str
    new: str
    tests: tuple[str, ...]


LOSSES, PAIRS, VERIFY = ("train/test_losses.py",), ("pairs",), ("verify/test_case_tables.py", "verify/test_rules.py")
HOLD = ("train/test_hold.py",)

MUTANTS = (
    Mutant("bco: sign of the rejected reward", "F.logsigmoid(-(reward_rejected - delta))", "F.logsigmoid(reward_rejected - delta)", LOSSES),
    Mutant("bco: shift of the chosen reward", "good = -F.logsigmoid(reward_chosen - delta)", "good = -F.logsigmoid(reward_chosen)", LOSSES),
    Mutant("dpo: beta", "return -F.logsigmoid(beta * margin)", "return -F.logsigmoid(margin)", LOSSES),
    Mutant("cdpo: smoothing", "(1 - smoothing) * dpo(margin, beta) + smoothing", "(1 + smoothing) * dpo(margin, beta) + smoothing", LOSSES),
    Mutant("robust dpo: normalization", "/ (1 - 2 * smoothing)", "/ (1 - smoothing)", LOSSES),
    Mutant("aot: shift", "return dpo(margin + shift, beta)", "return dpo(margin - shift, beta)", LOSSES),
    Mutant("hold: forks held", "held[list(group.forks[number])] = False", "pass", HOLD),
    Mutant("hold: DropoutNTP pairs held", "return [pair not in dropout for pair in pairs]", "return [True for pair in pairs]", HOLD),
    Mutant("hold: width", 'reduction="none", delta=width)', 'reduction="none", delta=1.0)', HOLD),
    Mutant("hold: common beginnings shifted", "shared * STORED.itemsize] + packed", "0] + packed", HOLD),
    Mutant("pairs: undecided as rejected", '    if outcome == "undecided":\n        return "undecided"\n', "", PAIRS),
    Mutant("pairs: chosen cut at the length limit", 'outcome == "correct" and response.finish != "stop"', 'outcome == "correct" and False', PAIRS),
    Mutant("pairs: malformed as rejected", '"malformed" and not table.format_negatives', '"malformed" and False', PAIRS),
    Mutant("pairs: rationale although one is right", "and not any(verdict.outcome", "and any(verdict.outcome", PAIRS),
    Mutant("dropout: prefix of the chosen", "continuation.token_ids[:kept] != chosen.token_ids[:kept]", "False", PAIRS),
    Mutant("dropout: cut without a token left", "if 0 < length < len(response.token_ids):", "if 0 <= length:", PAIRS),
    Mutant("dropout: says that the image is missing", "if table.drop_blind and missing_image_phrase(", "if False and missing_image_phrase(", PAIRS),
    Mutant("verifier: unsure is wrong", 'UNSURE = Judgement("undecided", "says that it cannot tell")', 'UNSURE = Judgement("wrong", "says")', VERIFY),
    Mutant("verifier: yes and no", 'return Judgement("undecided", "yes and no in one answer")', 'return Judgement("correct", "")', VERIFY),
    Mutant("verifier: empty answer", "if not predicted.strip() and outcome", "if False and outcome", VERIFY),
    Mutant("extract: unfinished thinking", 'return rest if "<think>" not in rest and (closed or not opened) else None', "return rest", ("verify",)),
    Mutant("statistics: Wilson without successes", "low = 0.0 if correct == 0 else", "low = 0.1 if correct == 0 else", ("evaluate/test_statistics.py",)),
    Mutant("statistics: p value above one", "(beyond + 1) / (drawn + 1)", "(beyond + 2) / (drawn + 1)", ("evaluate/test_statistics.py",)),
    Mutant("statistics: one-sided McNemar", "min(1.0, 2 * float(bdtr(", "min(1.0, float(bdtr(", ("evaluate/test_statistics.py", "evaluate/test_score.py")),
    Mutant("images: changed bytes", "if hashlib.sha256(content).hexdigest() != ref.digest:", "if False:", ("test_images.py",)),
    Mutant("images: transparency on black", "if not image.has_transparency_data:", "if True:", ("test_images.py",)),
    Mutant("check: token counts cached for other images", "for m in question.history), *pixels])", "for m in question.history)])", ("test_checked_model.py",)),
    Mutant("images: longest side", "if max(width, height) > table.max_side:", "if False:", ("test_images.py",)),
    Mutant("digits: pools overlap", '"validation": (1350, 1500)', '"validation": (1340, 1500)', ("sources/test_digits.py",)),
    Mutant("digits: compare", 'answer = "yes" if a > b else "no"', 'answer = "yes" if a >= b else "no"', ("sources/test_digits.py",)),
    Mutant("cli: exit status of a recipe error", "    exit_code = 2\n\n\nclass MissingExtra", "    exit_code = 1\n\n\nclass MissingExtra", ("test_cli.py",)),
    Mutant("cli: control characters reach the terminal", 'category(letter) not in ("Cc", "Cs")', "True", ("test_cli.py",)),
    Mutant("errors: pickling", "return _unpickled, (type(self), str(self)), self.__dict__", "return type(self), (str(self),)", ("test_errors.py",)),
)  # fmt: skip


def place(mutant: Mutant, package: Path) -> Path:
    """The file that holds the text. Ends the script where it is not in exactly one place."""
    counts = {path: path.read_text(encoding="utf-8").count(mutant.old) for path in package.rglob("*.py")}
    holders = [path for path, count in counts.items() if count]
    if len(holders) != 1 or counts[holders[0]] != 1:
        names = ", ".join(str(path.relative_to(package)) for path in holders) or "no file"
        sys.exit(f"{mutant.name}: {mutant.old!r} must stand in one place, but stands in {names} ({sum(counts.values())} times)")
    return holders[0]


def survives(mutant: Mutant, copy: Path) -> bool:
    """Whether its tests pass on the broken code."""
    path = place(mutant, copy / "src" / "mixpo")
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in mutant.tests)]
        environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(whole, encoding="utf-8")
    if done.returncode not in (0, 1):
        sys.exit(f"{mutant.name}: the tests did not run\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main() -> None:
    """Run the mutants and report those that no test notices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if args.only in mutant.name]
    for mutant in mutants:
        place(mutant, ROOT / "src" / "mixpo")
    if args.check:
        print(f"{len(mutants)} mutants, each in one place")
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("src", "tests", "benchmarks", "tools", "docs"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy(path, copy)
        survivors = []
        for mutant in mutants:
            alive = survives(mutant, copy)
            print(f"{'SURVIVES' if alive else 'caught  '}  {mutant.name}", flush=True)
            survivors += [mutant.name] if alive else []
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} caught")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
