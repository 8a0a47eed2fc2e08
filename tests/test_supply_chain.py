"""Every shipped asset of others is named with its license, and the lock file has the versions of constraints.txt."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import mixpo

ROOT = Path(__file__).parent.parent
PACKAGE = Path(mixpo.__file__).parent
OWN = {"assets/demo.toml", "viewer/static/viewer.css", "viewer/static/viewer.js", "viewer/static/icon.svg"}
"""Files among the assets that are works of this project."""


def test_every_shipped_asset_is_in_the_notice() -> None:
    files = re.findall(r"^  Files: +(.+)$", (ROOT / "NOTICE").read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for line in files for name in line.split(", ")]
    for name in named:
        assert (ROOT / name).exists(), f"{name} is in NOTICE and gone"
    for folder in ("assets", "viewer/static"):
        for path in (path for path in (PACKAGE / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            relative = path.relative_to(PACKAGE).as_posix()
            shipped = f"src/mixpo/{relative}"
            covered = any(shipped == name or (name.endswith("/") and shipped.startswith(name)) for name in named)
            assert covered or relative in OWN or path.name == "LICENSE", f"{relative} is in no entry of NOTICE"


def test_the_notice_has_the_versions_and_licenses_of_the_files() -> None:
    notice, katex = (ROOT / "NOTICE").read_text(encoding="utf-8"), PACKAGE / "viewer/static/katex"
    (version,) = set(re.findall(r'version:"([\d.]+)"', (katex / "katex.min.js").read_text(encoding="utf-8")))
    assert f"KaTeX {version}\n" in notice
    assert "The MIT License" in (katex / "LICENSE").read_text(encoding="utf-8")
    assert "CC BY 4.0" in (PACKAGE / "assets/digits/SOURCE.txt").read_text(encoding="utf-8")
    assert "license: apache-2.0" in (PACKAGE / "assets/tiny/README.md").read_text(encoding="utf-8")
    assert 'license-files = ["LICENSE", "NOTICE"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_fonts_state_their_license() -> None:
    brotli = pytest.importorskip("brotli")
    for path in (PACKAGE / "viewer/static/katex/fonts").iterdir():
        content = path.read_bytes()
        size = int.from_bytes(content[20:24], "big")
        # The one compressed stream of a WOFF2 file begins behind the table directory, whose length varies.
        for start in range(48, 400):
            try:
                tables = brotli.decompress(content[start : start + size])
                break
            except brotli.error:
                continue
        assert "SIL Open Font License, Version 1.1" in tables.replace(b"\0", b"").decode("latin-1"), path.name


def test_the_lock_file_has_the_tested_versions() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from lock import CONSTRAINTS, LOCAL, LOCK, pins
    finally:
        sys.path.pop(0)
    assert pins(LOCK.read_text()) == pins(CONSTRAINTS.read_text()), "run tools/lock.py"
    lines = LOCK.read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines[1:] if not line.startswith(LOCAL))
    assert "://" not in LOCK.read_text()
