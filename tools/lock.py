"""Write `requirements.lock`: the versions of constraints.txt with the SHA-256 of each file, for installations that verify what they get.

    python tools/lock.py            # after constraints.txt has changed; asks the package index, installs nothing
    pip install --require-hashes --no-deps -r requirements.lock && pip install --no-deps -e .

The hashes are those of the files for the Python version and platform on which this runs. `--check` compares the names and versions only.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSTRAINTS, LOCK = ROOT / "constraints.txt", ROOT / "requirements.lock"
LOCAL, BUILDS = "# without hash, its builds differ between machines: ", ("torch", "torchvision")
"""Packages whose file may be a build for this machine only, such as one without CUDA."""


def pins(text: str) -> dict[str, str]:
    """Version by normalized name."""
    lines = (line.removeprefix(LOCAL).split(" --hash")[0].strip() for line in text.splitlines())
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines if line and not line.startswith("#"))}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock() -> str:
    """The content of the lock file, from pip's own report."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-"]
    report = subprocess.run([*command, "-r", str(CONSTRAINTS)], check=True, stdout=subprocess.PIPE, text=True).stdout
    lines, local = [], []
    for entry in json.loads(report)["install"]:
        if normal(entry["metadata"]["name"]) in BUILDS:
            local.append(f"{LOCAL}{normal(entry['metadata']['name'])}=={entry['metadata']['version']}")
            continue
        digest = entry["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{normal(entry['metadata']['name'])}=={entry['metadata']['version']} --hash=sha256:{digest}")
    where = f"Python {sys.version_info.major}.{sys.version_info.minor} on {sys.platform}"
    return f"# constraints.txt with hashes, for {where}. Written by tools/lock.py.\n" + "\n".join((*sorted(local), *sorted(lines))) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        differ = pins(CONSTRAINTS.read_text()).items() ^ pins(LOCK.read_text()).items()
        print("\n".join(sorted(f"{name} {version}" for name, version in differ)) or "the same")
        return 1 if differ else 0
    LOCK.write_text(lock())
    return 0


if __name__ == "__main__":
    sys.exit(main())
