"""Foreign input of every kind, made at random: exit status 0 to 3 and one sentence, never a traceback.

MIXPO_FUZZ=100 pytest tests/test_fuzz.py tries a hundred times as many examples.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixpo.cli import main
from mixpo.commands.check import check
from mixpo.engines.openai.protocol import InvalidReplyError, parse_completion
from mixpo.engines.saved import _RowError, parse_row
from mixpo.engines.scripted import _read as read_script
from mixpo.errors import MixpoError
from mixpo.evaluate.judge import completion_text
from mixpo.evaluate.predictions import read_predictions
from mixpo.preferences import read as read_preferences
from mixpo.progress import Silent
from mixpo.recipe import MmprSource, PreferencesTable, load
from mixpo.records import Judged, Paired, Sampled, read_rows
from mixpo.sources.mmpr import read as read_mmpr

TIMES = int(os.environ.get("MIXPO_FUZZ", "1"))


def fuzz(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**310, -(10**310), 2**63, 2**64, 10**18, 0, -1, float("nan"), float("inf"), 1e308])
)
SCALARS = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=20), st.sampled_from(["<image>", "\ud83d", "\0", "A" * 5000, "../x"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=8
)


def dumped(value: object) -> str:
    """JSON with integers of any length, which `json.dumps` refuses to write."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(key))}:{dumped(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumped, value)) + "]"
    if isinstance(value, int) and abs(value) > 10**300:
        return "-" * (value < 0) + "9" * 5000
    return json.dumps(value)


# --- rows -------------------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["question", "answer", "image", "images", "choices", "domain", "source", "rationale", "history", "kind", "extra"])
ROWS = st.fixed_dictionaries({}, optional={"question": VALUES, "image": VALUES}).flatmap(
    lambda row: st.dictionaries(NAMES, VALUES, max_size=6).map(lambda more: {**row, **more})
)
LINES = st.one_of(
    ROWS.map(dumped), VALUES.map(dumped), st.text(max_size=40), st.just("[" * 100_000), st.just('{"question": ' + "9" * 6000 + "}")
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    return small_run.make(tmp_path_factory.mktemp("fuzz"), tiny_folder, count=1)


@pytest.mark.slow
@given(lines=st.lists(LINES, min_size=1, max_size=6))
@fuzz(25)
def test_rows(recipe: Path, capsys: pytest.CaptureFixture[str], lines: list[str]) -> None:
    good = (recipe.parent / "held_out.jsonl").read_text().splitlines()[0]
    content = "\n".join([*lines, good]).encode("utf-8", errors="surrogatepass")
    (recipe.parent / "questions.jsonl").write_bytes(content)
    shutil.rmtree(recipe.parent / "run", ignore_errors=True)
    status = main(["sample", str(recipe), "--dir", str(recipe.parent / "run"), "--set", "max_error_rate=1.0"])
    assert status in (0, 1, 2, 3)
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert len([line for line in shown.splitlines() if line.startswith("mixpo: ")]) == (status != 0)


# --- recipes ----------------------------------------------------------------------------------------------------------------

BASE = small_run.RECIPE.format(model="model").encode()
KEYS = [
    "seed",
    "source.path",
    "sample.n",
    "train.learning_rate",
    "evaluate.sets",
    "verify.workers",
    "image.max_side",
    "model.path",
    "nothing.x",
]


@st.composite
def spoiled(draw: st.DrawFn, base: bytes = BASE) -> bytes:
    """Some bytes changed, removed, repeated or put in."""
    content = bytearray(base)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), at + draw(st.integers(0, 30)))
        content[at:end] = draw(
            st.one_of(st.binary(max_size=20), st.just(bytes(content[at:end] * 3)), st.sampled_from([b"=", b"[[", b"{", b'"']))
        )
    return bytes(content)


@pytest.mark.slow
@given(content=spoiled(), key=st.sampled_from(KEYS), value=st.one_of(st.text(max_size=10), VALUES.map(dumped)))
@fuzz(100)
def test_recipes(tmp_path: Path, content: bytes, key: str, value: str) -> None:
    path = tmp_path / "recipe.toml"
    for written, overrides in ((content, ()), (BASE, (f"{key}={value}",))):
        path.write_bytes(written)
        with suppress(MixpoError):
            load(path, overrides)


# --- model folders ----------------------------------------------------------------------------------------------------------


def leaves(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all values of a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, one in inner for leaf in leaves(one, (*path, key)))]


@pytest.mark.slow
@given(data=st.data(), name=st.sampled_from(["config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"]))
@fuzz(20)
def test_model_configs(recipe: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("spoiled") / "model"))
    document = json.loads((folder / name).read_text())
    *outer, last = data.draw(st.sampled_from([path for path in leaves(document) if path]))
    target = document
    for key in outer:
        target = target[key]
    target[last] = data.draw(VALUES)
    (folder / name).write_bytes(dumped(document).encode("utf-8", errors="surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(recipe.parent / "cache"))
        checked = check(load(recipe, (f'model.path="{folder}"',)), recipe.parent, Silent(), 1)
    assert all("\n" not in finding.problem for finding in checked.findings)
    shutil.rmtree(folder)


# --- files of other tools ---------------------------------------------------------------------------------------------------

PAIRS = st.dictionaries(
    st.sampled_from(["question", "prompt", "chosen", "rejected", "messages", "rejected_response", "text", "images", "responses", "resps"]),
    VALUES,
    min_size=1,
    max_size=5,
)
ENTRIES = st.dictionaries(st.sampled_from(["root", "annotation", "repeat_time", "length", "file_name", "ranking"]), VALUES, max_size=6)


def drained(items: Iterable[object]) -> None:
    """Everything that a reader gives; a MixpoError is one sentence of bearable length."""
    said = ""
    try:
        for _ in items:
            pass
    except MixpoError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 2000


@given(lines=st.lists(st.one_of(LINES, PAIRS.map(dumped)), min_size=1, max_size=5), entry=ENTRIES)
@fuzz(20)
def test_rows_of_other_tools(tmp_path_factory: pytest.TempPathFactory, lines: list[str], entry: dict[str, object]) -> None:
    folder = tmp_path_factory.mktemp("tools")
    (folder / "rows.jsonl").write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    (folder / "rows.json").write_bytes(f"[{','.join(lines)}]".encode(errors="surrogatepass"))
    named = {"root": "", "annotation": "rows.jsonl", "file_name": "rows.jsonl", **entry}
    (folder / "meta.json").write_bytes(dumped({"set": named}).encode(errors="surrogatepass"))
    for name in ("rows.jsonl", "rows.json", "meta.json"):
        drained(read_preferences([PreferencesTable(path=name)], folder, folder / "images"))
    drained(read_mmpr(MmprSource(kind="mmpr", path="meta.json"), folder, folder / "images"))
    for name in ("rows.jsonl", "rows.json"):
        drained(read_predictions(folder / name))
    drained(read_script(folder / "rows.jsonl") for _ in range(1))
    for line in lines:
        with suppress(_RowError):
            parse_row(line.encode(errors="surrogatepass"))
    shutil.rmtree(folder)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".xlsx"])
def test_damaged_tables_of_other_tools(tmp_path: Path, suffix: str) -> None:
    path, rng = tmp_path / f"table{suffix}", random.Random(0)
    write_table(path)
    whole = path.read_bytes()
    for number in range(30 * TIMES):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(content)
        drained(read_predictions(path))
        path.unlink()


def write_table(path: Path) -> None:
    table = pa.table({"question": ["wie groß?"] * 9, "prediction": ["größer"] * 9, "ids": [[1, 2]] * 9})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    else:
        openpyxl = pytest.importorskip("openpyxl")
        book = openpyxl.Workbook()
        for row in (["question", "prediction"], *[["q", "a"]] * 9):
            book.active.append(row)
        book.save(path)


# --- records, server replies ------------------------------------------------------------------------------------------------


@given(data=st.data(), row=st.sampled_from([Sampled, Judged, Paired]))
@fuzz(60)
def test_records(finished_run: Path, tmp_path: Path, data: st.DataObject, row: type) -> None:
    stage = {Sampled: "sample", Judged: "verify", Paired: "pair"}[row]
    shard = sorted((finished_run / "run" / "round-1" / stage).glob("*.parquet"))[0]
    path = tmp_path / "00000-x.parquet"
    path.write_bytes(data.draw(spoiled(shard.read_bytes())))
    said = str(path)
    try:
        read_rows(path, row)
    except MixpoError as error:
        said = str(error)
    assert str(path) in said
    assert "\n" not in said


CHOICES = st.dictionaries(
    st.sampled_from(["index", "message", "text", "finish_reason", "logprobs", "token_ids", "content"]),
    st.one_of(
        VALUES,
        st.sampled_from(["stop", "length"]),
        st.fixed_dictionaries({"content": VALUES}),
        st.fixed_dictionaries({"token_logprobs": VALUES}),
    ),
)
REPLIES = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {"choices": st.one_of(VALUES, st.lists(CHOICES, max_size=3))}, optional={"usage": VALUES, "model": VALUES, "error": VALUES}
    ),
)


@pytest.mark.slow
@given(reply=REPLIES, eval_only=st.booleans())
@fuzz(300)
def test_server_replies(reply: object, eval_only: bool) -> None:
    with suppress(InvalidReplyError):
        parse_completion(reply, eval_only)
    text, model = completion_text(reply)
    assert (text + model).encode() is not None
