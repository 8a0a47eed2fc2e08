"""Memory and time of reading large images, one process for each kind, as every stage reads them.

    python benchmarks/large_images.py [--side 10000] [--json]

Peak memory is that of the process above what it needs for a small image.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

KINDS = {"jpeg": ("RGB", ".jpg"), "png": ("RGB", ".png"), "transparent": ("RGBA", ".png"), "deep": ("I;16", ".png"), "gray": ("L", ".png")}

CHILD = """
import resource, sys, time
from pathlib import Path
from mixpo.images import open_image, reference
from mixpo.recipe import ImageTable
small, path = map(Path, sys.argv[1:])
open_image(reference(small), ImageTable())
before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
size = open_image(reference(path), ImageTable()).size
print(size[0] * size[1], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, time.process_time() - begun)
"""


def make(folder: Path, kind: str, side: int) -> Path:
    """An image of `side` x `side` pixels with some structure."""
    mode, suffix = KINDS[kind]
    path = folder / f"{kind}-{side}{suffix}"
    tile = Image.effect_noise((256, 256), 60) if mode != "I;16" else Image.new("I;16", (256, 256), 40_000)
    tile = tile.convert(mode) if mode != "I;16" else tile
    image = Image.new(mode, (side, side))
    for x in range(0, side, 256):
        image.paste(tile, (x, x % 3))
    options: dict[str, Any] = {"compress_level": 1} if suffix == ".png" else {"quality": 80}
    image.save(path, **options)
    return path


def measure(folder: Path, kind: str, side: int) -> dict[str, Any]:
    """Pixels that come out, peak memory in MB, processor seconds, and what the process printed as a warning."""
    command = [sys.executable, "-c", CHILD, str(make(folder, kind, 64)), str(make(folder, kind, side))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    pixels, megabytes, seconds = done.stdout.split()
    return {"pixels": int(pixels), "peak_mb": int(megabytes), "cpu_s": round(float(seconds), 2), "warnings": done.stderr}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = {kind: measure(Path(folder), kind, args.side) for kind in KINDS}
    print(json.dumps(figures, indent=2) if args.json else "\n".join(f"{kind}: {row}" for kind, row in figures.items()))


if __name__ == "__main__":
    main()
