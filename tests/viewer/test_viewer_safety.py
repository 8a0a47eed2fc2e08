"""Who may ask, what may be changed, and which files can be reached."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from mixpo.errors import ImageError, MissingExtra, RunError
from mixpo.images import reference
from mixpo.marks import MARKS, read_marks
from mixpo.pipeline import open_run
from mixpo.progress import Silent
from mixpo.types import ImageRef, content_id
from mixpo.viewer.guard import POLICY, reason_to_refuse
from mixpo.viewer.images import Images

TOKEN = "token of the test"
HOME = "http://127.0.0.1:8765"


def form(number: int = 6, **changed: str) -> dict[str, str]:
    return {
        "token": TOKEN,
        "question": content_id("viewer", number),
        "index": "1",
        "round": "1",
        "outcome": "correct",
        "kind": "random",
        "number": "0",
        **changed,
    }


# --- headers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "localhost", "[::1]:80"])
def test_loopback_names_are_answered(host: str) -> None:
    assert reason_to_refuse("GET", {"host": host}) == ""


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example:8765",
        "10.0.0.1",
        "[::2]",
        "127.0.0.1@evil.example",
        "[",
        "0.0.0.0",
    ],
)
def test_other_names_are_refused(client: TestClient, host: str) -> None:
    assert reason_to_refuse("GET", {"host": host})
    answer = client.get("/pairs", headers={"host": host or "x"})
    assert answer.status_code == 403
    assert "pairs" not in answer.text


@pytest.mark.parametrize("path", ["/", "/static/viewer.js", "/nothing", "/audit/0"])
def test_every_answer_carries_the_policy(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert "unsafe" not in POLICY
    assert "access-control-allow-origin" not in headers


# --- changes -----------------------------------------------------------------------------------------------------------------


def test_a_mark_is_kept(own: Path, own_client: TestClient) -> None:
    answer = own_client.post("/audit/mark", data=form(), headers={"origin": HOME})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/audit/1?kind=random&round=1"
    (line,) = (own / MARKS).read_text().splitlines()
    row = json.loads(line)
    assert row.keys() == {"question", "round", "index", "outcome", "by", "time"}
    assert (row["question"], row["round"], row["index"], row["outcome"]) == (content_id("viewer", 6), 1, 1, "correct")


@pytest.mark.parametrize(
    ("headers", "changed", "status"),
    [
        ({"origin": "http://evil.example"}, {}, 403),
        ({"origin": "null"}, {}, 403),
        ({"origin": "http://localhost:8765"}, {}, 403),
        ({}, {}, 403),
        ({"origin": HOME}, {"token": "another"}, 403),
        ({"origin": HOME}, {"token": ""}, 403),
        ({"origin": HOME}, {"token": "tökén"}, 403),
        ({"origin": HOME}, {"question": "x" * 5000}, 403),
        ({"origin": HOME}, {"question": "none"}, 404),
        ({"origin": HOME}, {"index": "4"}, 404),
        ({"origin": HOME}, {"index": "-1"}, 404),
        ({"origin": HOME}, {"round": "2"}, 404),
        ({"origin": HOME}, {"outcome": "<b>"}, 404),
        ({"origin": HOME}, {"question": content_id("viewer", 5)}, 404),
    ],
)
def test_other_forms_change_nothing(
    own: Path, own_client: TestClient, headers: dict[str, str], changed: dict[str, str], status: int
) -> None:
    assert own_client.post("/audit/mark", data=form(**changed), headers=headers).status_code == status
    assert read_marks(own) == {}


def test_other_methods_are_refused(client: TestClient) -> None:
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/audit/mark", headers={"origin": HOME}).status_code == 403
    assert client.get("/audit/mark").status_code == 404
    assert client.post("/pairs", headers={"origin": HOME, "content-length": "0"}).status_code == 405


def test_the_token_is_only_where_a_form_is(client: TestClient) -> None:
    assert TOKEN in client.get("/audit/0").text
    for path in ("/", "/pairs", "/audit", "/nothing"):
        assert TOKEN not in client.get(path).text


# --- files -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
        "/static/katex/../../views.py",
        "/image/..%2f..%2fetc/0",
    ],
)
def test_no_path_leads_out(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_pictures_are_made_anew(client: TestClient) -> None:
    answer = client.get(f"/image/{content_id('viewer', 0)}/1")
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (480, 320)
    small = Image.open(io.BytesIO(client.get(f"/image/{content_id('viewer', 0)}/1?size=small").content))
    assert small.width * small.height <= 96 * 96
    assert client.get(f"/image/{content_id('viewer', 0)}/2").status_code == 404
    assert client.get(f"/image/{content_id('viewer', 500)}/0").status_code == 404
    assert client.get(f"/image/{content_id('viewer', 500)}/0?set=held-out").status_code == 200


@pytest.fixture
def images(made: Path) -> Images:
    return Images(open_run(made))


def test_images_outside_the_roots_are_not_shown(images: Images, made: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    with pytest.raises(ImageError, match="outside the folders"):
        images.encoded(reference(tmp_path / "secret.png"), "page")
    dotted = made.parent / "pictures" / ".." / ".." / "secret.png"
    assert not images.allowed(dotted)
    link = made.parent / "pictures" / "link.png"
    link.symlink_to(tmp_path / "secret.png")
    try:
        assert not images.allowed(link)
    finally:
        link.unlink()


def test_only_pictures_are_shown_and_only_those_of_the_question(images: Images, made: Path) -> None:
    folder = made.parent / "pictures"
    text = folder / "words.txt"
    text.write_text("secret words")
    try:
        with pytest.raises(ImageError, match="not an image"):
            images.encoded(reference(text), "page")
    finally:
        text.unlink()
    with pytest.raises(ImageError, match="changed since"):
        images.encoded(ImageRef(path=str(folder / "0.png"), digest="0" * 64), "page")


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ({"kind": "jsonl", "path": "q.jsonl", "root": "pictures"}, "pictures"),
        ({"kind": "mmpr", "path": "meta.json", "root": "data"}, "data"),
        ({"kind": "python", "target": "a:b"}, "."),
        ({"kind": "digits"}, None),
    ],
)
def test_the_roots_are_those_of_the_recipe(own: Path, source: dict[str, str], folder: str | None) -> None:
    recipe = json.loads((own / "recipe.json").read_text())
    (own / "recipe.json").write_text(json.dumps({**recipe, "source": source}))
    base = Path(json.loads((own / "command.json").read_text())["base"])
    expected = {(own / "images").resolve(), *([(base / folder).resolve()] if folder else [])}
    assert set(Images(open_run(own)).roots) == expected


# --- the server ----------------------------------------------------------------------------------------------------------------


def test_it_binds_to_loopback_and_says_when_a_port_is_taken(made: Path) -> None:
    import socket

    from mixpo.viewer.serve import HOST, serve

    assert HOST == "127.0.0.1"
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(RunError, match="in use; give another one with --port"):
            serve(open_run(made), taken.getsockname()[1], Silent(), lambda address: None)


def test_without_the_libraries_the_extra_is_named(made: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['duckdb'] = None\n"
        "from pathlib import Path\nfrom mixpo.errors import MissingExtra\nfrom mixpo.progress import Silent\n"
        "from mixpo.pipeline import open_run\n"
        "from mixpo.viewer.serve import serve\n"
        f"try:\n    serve(open_run(Path({str(made)!r})), 0, Silent(), print)\nexcept MissingExtra as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == str(MissingExtra("mixpo view", "viewer"))
