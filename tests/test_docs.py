"""What the documentation says is true: examples run, recipes and commands exist, links lead somewhere, tables are fresh."""

from __future__ import annotations

import doctest
import importlib.util
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import small_run
import typer

from mixpo.cli import app, main
from mixpo.engines.saved import parse_row
from mixpo.pipeline import build_plan
from mixpo.preferences import Imported
from mixpo.preferences import read as read_preferences
from mixpo.recipe import STAGES, load, parse
from mixpo.sources import read
from mixpo.stages.questions import read_sources
from mixpo.study.schema import Study
from mixpo.types import Notice, Question, Skipped

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PENDING = "(not filled in yet)"


class Fence(NamedTuple):
    """A fenced block. name: the file that the line above it gives, as in "`site.toml`:"."""

    page: Path
    line: int
    language: str
    text: str
    name: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def fences_of(page: Path) -> Iterator[Fence]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        before = text[: found.start()].strip().rpartition("\n")[2]
        named = re.match(r"`([\w./]+)`", before)
        yield Fence(page, text.count("\n", 0, found.start()) + 1, found[1], found[2], named[1] if named else "")


FENCES = [fence for page in PAGES for fence in fences_of(page)]


def fences(*languages: str) -> list[Any]:
    """The blocks in these languages, as parameters of a test."""
    return [pytest.param(fence, id=fence.where) for fence in FENCES if fence.language in languages]


def commands(fence: Fence) -> Iterator[list[str]]:
    """The words of each `mixpo ...` line, comments left out."""
    for line in fence.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] == ["mixpo"]:
            yield words[1:]


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    """tools/write_docs.py as a module."""
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "tools" / "write_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documentation_is_found() -> None:
    """Keeps the searches below honest: they would pass on nothing."""
    assert {page.name for page in PAGES} >= {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "quickstart.md", "recipe.md", "report.md"}
    assert sum(fence.language == "toml" for fence in FENCES) >= 4
    assert sum(len([*commands(fence)]) for fence in FENCES) >= 15
    assert {fence.language for fence in FENCES} <= {"bash", "json", "python", "text", "toml"}


def test_generated_tables_are_fresh(writer: ModuleType) -> None:
    stale = [path.name for path in writer.stale()]
    assert not stale, f"{stale} out of date: run .venv/bin/python tools/write_docs.py"


def test_every_generated_table_is_used_once(writer: ModuleType) -> None:
    used = [name for page in PAGES for name in re.findall(r"<!-- generated: (\w+) -->", page.read_text(encoding="utf-8"))]
    assert sorted(used) == sorted(writer.BLOCKS)


def test_a_changed_table_is_noticed(writer: ModuleType) -> None:
    page = "a\n<!-- generated: reasons -->\nold\n<!-- /generated -->\nb\n"
    new = writer.written(page)
    assert new.startswith("a\n<!-- generated: reasons -->\n")
    assert new.endswith("<!-- /generated -->\nb\n")
    assert "over_cap" in new
    assert "old" not in new
    assert writer.written(new) == new
    with pytest.raises(KeyError, match="reasns"):
        writer.written(page.replace("reasons", "reasns"))


@pytest.mark.parametrize("fence", fences("toml"))
def test_recipes_in_the_text_are_valid(fence: Fence) -> None:
    data = tomllib.loads(fence.text)
    if fence.name == "study.toml":
        Study.model_validate(data)
        return
    parse({"source": {"kind": "digits"}, **data}, fence.where, fence.text)


@pytest.mark.parametrize("fence", [p for p in fences("bash", "text", "") if [*commands(p.values[0])]])
def test_commands_and_their_options_exist(fence: Fence, tmp_path: Path) -> None:
    group: Any = typer.main.get_command(app)
    for words in commands(fence):
        assert words[0] in group.commands, f"{fence.where}: no command {words[0]!r}"
        context = group.commands[words[0]].make_context(words[0], words[1:])
        assert set(context.params.get("force") or ()) <= set(STAGES)
        recipe = tmp_path / "recipe.toml"
        recipe.write_text('[source]\nkind = "digits"\n')
        load(recipe, tuple(context.params.get("settings") or ()))
        if (named := context.params.get("recipe")) is not None and "/" in str(named):
            assert (ROOT / named).exists(), f"{fence.where}: no recipe {named}"


def test_commands_of_inline_code_exist() -> None:
    group: Any = typer.main.get_command(app)
    for page in PAGES:
        for name in re.findall(r"`mixpo ([a-z][a-z-]*)", page.read_text(encoding="utf-8")):
            assert name in group.commands, f"{page.name}: no command {name!r}"
        for name, given in re.findall(r"`mixpo ([a-z-]+) (RUN|RECIPE)\b", page.read_text(encoding="utf-8")):
            wanted = group.commands[name].params[0].metavar
            assert wanted.startswith(given), f"{page.name}: mixpo {name} takes {wanted}, not {given}"


def test_every_key_of_a_recipe_has_a_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 150
    assert [key for key, meaning in rows if not meaning.strip()] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for fence in FENCES:
        used = re.findall(r"^make (\w+)", fence.text, re.MULTILINE) if fence.language == "bash" else []
        assert set(used) <= targets, fence.where


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name}: {target} is not there"
        assert not anchor or anchor in anchors(path), f"{page.name}: {target} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    for name in re.findall(r"`((?:src|tests|tools|docs|recipes)/[\w./*-]+)`", _prose(page)):
        assert [*ROOT.glob(name)], f"{page.name} names {name}"


def _prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub makes anchors of them."""
    titles = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("fence", [p for p in fences("python") if ">>>" in p.values[0].text])
def test_sessions_answer_as_shown(fence: Fence) -> None:
    session = doctest.DocTestParser().get_doctest(fence.text, {}, fence.where, str(fence.page), fence.line)
    assert session.examples
    result = doctest.DocTestRunner(verbose=False).run(session)
    assert result.failed == 0, f"{fence.where}: run python -m doctest on the page"


@pytest.mark.parametrize("fence", [p for p in fences("python") if ">>>" not in p.values[0].text])
def test_programs_run(fence: Fence, own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a recipe.toml and a finished run/ of it, which is also runs/site and runs/recipe."""
    monkeypatch.chdir(own_run)
    Path("runs").mkdir()
    for name in ("site", "recipe"):
        Path("runs", name).symlink_to("../run")
    exec(compile(fence.text, fence.where, "exec"), {"__name__": "example"})  # noqa: S102


# --- the quickstart and the source of your own, as a reader would do them ------------------------------------------------


def written_out(page: str, folder: Path) -> None:
    """Put every block that has a file name above it into `folder`, with a picture for each path that it mentions."""
    for fence in fences_of(ROOT / "docs" / page):
        if fence.name and not (folder / fence.name).exists():
            (folder / fence.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / fence.name).write_text(fence.text, encoding="utf-8")
            for number, name in enumerate(sorted(set(re.findall(r"photos/\d+\.jpg", fence.text)))):
                small_run.picture(folder / name, number + 1)


def test_the_quickstart_works(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written_out("quickstart.md", tmp_path)
    held_out = [line for line in (ROOT / "docs" / "quickstart.md").read_text().splitlines() if "photos/5" in line or "photos/6" in line]
    (tmp_path / "held_out.jsonl").write_text("\n".join(held_out))
    for number in (5, 6):
        small_run.picture(tmp_path / "photos" / f"{number}.jpg", number)
    settings = ["--set", f"model.path={tiny_folder}", "--set", "sample.max_new_tokens=32", "--set", "evaluate.max_new_tokens=32"]
    recipe = str(tmp_path / "site.toml")
    assert main(["check", recipe, *settings]) == 0, capsys.readouterr().out
    assert main(["run", recipe, "--dir", str(tmp_path / "run"), "--dry-run", *settings]) == 0
    assert "5 of 5 questions" in capsys.readouterr().out
    with (tmp_path / "questions.jsonl").open("a") as file:
        file.write('{"image": "photos/7.jpg", "question": "What?", "answer": "1"}\n')
        file.write('{"image": "photos/1.jpg", "question": "What now?", "anwser": "1"}\n')
    assert main(["check", recipe, *settings]) == 3
    shown = capsys.readouterr().out
    for line in text_blocks("quickstart.md", "problems found"):
        assert line in shown
    Path(recipe).write_text(Path(recipe).read_text().replace("dtype", "dtyp"))
    assert main(["check", recipe]) == 2
    (line,) = text_blocks("quickstart.md", "unknown key")
    assert line.removeprefix("mixpo: ") in capsys.readouterr().err


def text_blocks(page: str, holding: str) -> list[str]:
    """The lines of the one text block that holds some words."""
    (block,) = [f for f in fences_of(ROOT / "docs" / page) if f.language == "text" and holding in f.text]
    return block.text.splitlines()


DOORS = re.split(r"^## ", (ROOT / "docs" / "preferences.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("section", [s for s in DOORS if "```toml" in s], ids=lambda section: section.partition("\n")[0])
def test_every_format_of_pairs_is_read_as_shown(section: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(section)
    rows = 0
    for fence in fences_of(tmp_path / "page.md"):
        (tmp_path / fence.name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / fence.name).write_text(fence.text, encoding="utf-8")
        rows += fence.text.count("\n") * fence.name.endswith(".jsonl")
        for number, name in enumerate(sorted(set(re.findall(r"photos/\d+\.jpg", fence.text)))):
            small_run.picture(tmp_path / name, number + 1)
    recipe = load(tmp_path / "recipe.toml")
    items = [*read_preferences(recipe.preferences, tmp_path, tmp_path / "images")]
    assert not [item for item in items if isinstance(item, Skipped)]
    assert sum(isinstance(item, Imported) for item in items) == (3 if "VLFeedback" in section else rows)
    (table,) = recipe.preferences
    kinds = re.findall(r'^`kind = "([\w-]+)"', section, re.MULTILINE)
    assert kinds == ([table.kind] if table.kind != "auto" else kinds)
    assert [item.text for item in items if isinstance(item, Notice)] == ([f"read as {kind}" for kind in kinds] or ["read as ms-swift"]) * (
        table.kind == "auto"
    )


def test_rows_of_saved_responses_are_read_as_shown() -> None:
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8").partition("## Saved responses")[2]
    rows = [row.replace("[...]", "[]") for row in re.findall(r"^\| .* \| `(\{.*?\})`", page, re.MULTILINE)]
    assert [parse_row(row.encode()).id for row in rows] == ["q7", "q7", "q7", "", "7"]
    assert all(parse_row(row.encode()).choices[0].text == "..." for row in rows)


def test_a_source_of_your_own_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_out("extending.md", tmp_path)
    monkeypatch.delitem(sys.modules, "shelf", raising=False)
    recipe = load(tmp_path / "shelf.toml")
    assert recipe.source is not None
    found = [*read(recipe.source, recipe_folder=tmp_path, images=tmp_path / "images")]
    assert len(found) == 20
    assert all(isinstance(question, Question) for question in found)
    assert {question.kind for question in found if isinstance(question, Question)} == {"number"}


ONLY_WHERE_NEEDED = (
    "images/",
    "logs/",
    "select/",
    "branch/",
    "value/",
    "sample/attempts.json",
    "audit/labels.jsonl",
    "cache/verdicts.sqlite",
    "cache/fingerprints.sqlite",
)


def test_the_run_directory_is_as_described(finished_run: Path) -> None:
    (tree,) = [f for f in fences_of(ROOT / "docs" / "records.md") if f.text.startswith("runs/site/")]
    folders: list[str] = []
    seen = 0
    for line in tree.text.splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r" {3,}", line.strip())[0].split()
        for name in names:
            path = "/".join([*folders[: depth - 1], name.rstrip("/")])
            if name not in ONLY_WHERE_NEEDED:
                assert [*(finished_run / "run").glob(path)], path
                seen += 1
        folders = [*folders[: depth - 1], names[-1].rstrip("/")]
    assert seen > 15


def test_the_records_of_each_stage_are_as_described(finished_run: Path) -> None:
    text = (ROOT / "docs" / "records.md").read_text()
    described = {kind: row for kinds, row in re.findall(r"^\| ([a-z, ]+) \| \[(\w+)\]", text, re.MULTILINE) for kind in kinds.split(", ")}
    context = small_run.open_small(
        finished_run / "recipe.toml", finished_run / "run", 'pairs.balance=["origin"]', "pairs.branches.continuations=2"
    )
    plan = build_plan(context, read_sources(context))
    found = {planned.job.kind: planned.job.row.__name__ for planned in plan.planned.values()}
    # The run has no text-only tasks, which need an extra.
    assert described == {"source": "Question", "text": "TextScore", **found}


def test_cases_in_contributing_are_rows_of_the_tables() -> None:
    (block,) = [fence for fence in fences_of(ROOT / "CONTRIBUTING.md") if fence.language == "json"]
    rows = [json.loads(line) for line in block.text.splitlines()]
    for row, name in zip(rows, ("check", "extract"), strict=True):
        known = json.loads((ROOT / "tests" / "cases" / f"{name}.jsonl").read_text().splitlines()[0])
        assert row.keys() <= known.keys()


def test_nothing_waits_to_be_filled_in() -> None:
    assert not [page.name for page in PAGES if PENDING in page.read_text(encoding="utf-8")]
