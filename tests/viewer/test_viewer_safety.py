"""Who may ask, what may be changed, and which files can be reached."""

from __future__ import annotations

import io
import json
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import viewer_run
from browsing import Server
from failures import fails
from PIL import Image
from starlette.testclient import TestClient

from mixpo import sealed
from mixpo.errors import ImageError, MissingExtra, RunError
from mixpo.human_labels import LABELS, read_labels
from mixpo.images import open_image, reference, save_content
from mixpo.pipeline import open_run
from mixpo.progress import Silent
from mixpo.recipe import ImageTable
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
        "127.0.0.1:8765, evil.example",
        "127.0.0.1:8765@evil.example",
        "127.0.0.1:8765/evil.example",
        "127.0.0.1:",
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
    answer = own_client.post("/audit/label", data=form(), headers={"origin": HOME})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/audit/1?kind=random&round=1"
    (line,) = (own / LABELS).read_text().splitlines()
    row = json.loads(line)
    assert row.keys() == {"question", "round", "index", "outcome", "by", "time", "checksum"}
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
    assert own_client.post("/audit/label", data={**form(), **changed}, headers=headers).status_code == status
    assert read_labels(own) == {}


def test_other_methods_are_refused(client: TestClient) -> None:
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/audit/label", headers={"origin": HOME}).status_code == 403
    assert client.get("/audit/label").status_code == 404
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


def test_one_image_is_decoded_once_however_often_it_is_asked_for_at_once(
    images: Images, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list asks for all its pictures together; decoding a large one as often as it stands there would take all memory."""
    decoded: list[str] = []

    def slowly(ref: ImageRef, table: ImageTable) -> Image.Image:
        decoded.append(ref.path)
        time.sleep(0.05)
        return open_image(ref, table)

    monkeypatch.setattr("mixpo.viewer.images.open_image", slowly)
    refs = [reference(made.parent / "pictures" / f"{number}.png") for number in range(2)]
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda ref: images.encoded(ref, "small"), refs * 8))
    assert sorted(decoded) == [ref.path for ref in refs]
    assert found[:2] * 8 == found


def test_a_run_that_was_moved_finds_the_images_that_it_keeps(tmp_path: Path) -> None:
    run = viewer_run.write(tmp_path / "before")
    kept = save_content(Image.new("RGB", (9, 7), (1, 2, 3)), run / "images")
    outside = reference(tmp_path / "before" / "pictures" / "0.png")
    moved = Path(shutil.move(run, tmp_path / "after"))
    shutil.rmtree(tmp_path / "before")
    images = Images(open_run(moved))
    assert Image.open(io.BytesIO(images.encoded(kept, "page")[0])).getpixel((0, 0)) == (1, 2, 3)
    with pytest.raises(ImageError):
        images.encoded(outside, "page")
    # What is kept is still checked: another picture under the name, and a link that leads out.
    own = next((moved / "images").rglob(f"{kept.digest}.*"))
    own.unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    own.symlink_to(tmp_path / "secret.png")
    with pytest.raises(ImageError, match="outside the folders"):
        Images(open_run(moved)).encoded(kept, "page")


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
    (own / "recipe.json").write_text(sealed.dumps({**recipe, "source": source}))
    base = Path(json.loads((own / "command.json").read_text())["recipe_folder"])
    expected = {(own / "images").resolve(), *([(base / folder).resolve()] if folder else [])}
    assert set(Images(open_run(own)).roots) == expected


@pytest.mark.parametrize(
    ("more", "folder"),
    [({"path": "vet"}, "vet"), ({"path": "vet/mm-vet.json"}, "vet"), ({"path": "vet", "root": "coco"}, "coco")],
)
def test_the_images_of_a_benchmark_are_shown(own: Path, more: dict[str, str], folder: str) -> None:
    """Those that it has as files of their own: they lie where it says."""
    recipe, base = json.loads((own / "recipe.json").read_text()), Path(json.loads((own / "command.json").read_text())["recipe_folder"])
    (base / "vet").mkdir(exist_ok=True)
    sets = [{"name": "vet", "source": {"kind": "benchmark", "name": "mmvet", **more}}]
    evaluated = {**recipe["evaluate"], "sets": sets, "judge": {"model": "j", "urls": ["http://127.0.0.1:9/v1"]}}
    (own / "recipe.json").write_text(sealed.dumps({**recipe, "evaluate": evaluated}))
    assert (base / folder).resolve() in Images(open_run(own)).roots


# --- a running server, asked by hand ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The viewer in a process of its own, on a copy of the run."""
    copy = Path(shutil.copytree(made, tmp_path_factory.mktemp("attacked") / "run"))
    shutil.rmtree(copy / ".view", ignore_errors=True)
    found = Server(copy)
    yield found
    found.stop()


def asked(server: Server, line: str, *headers: str, body: bytes = b"") -> tuple[int, bytes]:
    """(status, body) of a request written byte by byte, as no client would write it."""
    port = int(server.home.rpartition(":")[2])
    text = "\r\n".join([f"{line} HTTP/1.1", *(headers or (f"Host: 127.0.0.1:{port}",)), "Connection: close", "", ""])
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(text.encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../../../../../../../etc/passwd",
        "/static/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/static/%2e%2e/%2e%2e/viewer/app.py",
        "/static/....//....//....//etc/passwd",
        "/static/katex/..\\..\\..\\etc\\passwd",
        "//etc/passwd",
        "/static/viewer.css%00.png",
        "/image/..%2f..%2f..%2fetc%2fpasswd/0",
        "/image/x/0?set=../../source",
        "/image/x/-1",
        "/image/x/99999999999999999999999",
        "/evaluation/..%2f..%2fsource",
        "/evaluation/%2e%2e/source",
        "/report/../recipe.json",
        "/recipe.json",
        "/.view/index.duckdb",
        "/openapi.json",
        "/docs",
        "/audit/label?question=x&outcome=wrong",
        "/audit/99999999999999999999999",
        "/pairs/%3Cscript%3Ealert(1)%3C%2fscript%3E",
        "/x%0d%0aX-Evil:%201",
    ],
)
def test_strange_paths_find_nothing(running: Server, path: str) -> None:
    status, body = asked(running, f"GET {path}")
    assert status == 404
    assert b"root:" not in body
    assert b"<script>alert" not in body


@pytest.mark.parametrize(
    "query", ["after=9" * 9, "round=-1", "round=99999999999999999999", "text=%00%ff", "domain=%27;DROP+TABLE+pair;--", "outcome=1%3d1"]
)
def test_strange_filters_are_only_filters(running: Server, query: str) -> None:
    assert asked(running, f"GET /pairs?{query}")[0] == 200
    assert b"115 pairs" in asked(running, "GET /pairs")[1]


@pytest.mark.parametrize(
    "headers",
    [
        ("Host: evil.example",),
        ("Host: 127.0.0.1.evil.example",),
        ("Host: 127.0.0.1", "Host: evil.example"),
        ("Host: evil.example", "Host: 127.0.0.1"),
        ("Host: localhost@evil.example",),
        ("Host: evil.example#127.0.0.1",),
        ("Host: 127.1",),
        ("Host: 2130706433",),
        ("Host: ",),
        ("X-Forwarded-Host: 127.0.0.1", "Host: evil.example"),
    ],
)
def test_other_hosts_are_refused(running: Server, headers: tuple[str, ...]) -> None:
    status, body = asked(running, "GET /pairs", *headers)
    assert (status, body) == (403, b"refused: this server answers to localhost only\n")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ((), b"a=b", 403),
        (("Origin: http://evil.example",), b"a=b", 403),
        (("Origin: https://{host}",), b"a=b", 403),
        (("Origin: http://{host}", "Origin: http://evil.example"), b"a=b", 403),
        (("Origin: http://{host}",), b"a=b", 403),
        (("Origin: http://{host}",), b"a=b&" * 40, 403),
        (("Origin: http://{host}",), b"\xff\xfe\x00=", 403),
        (("Origin: http://{host}",), b"a" * 5000, 403),
    ],
)
def test_foreign_forms_are_refused(running: Server, headers: tuple[str, ...], body: bytes, status: int) -> None:
    host = running.home.removeprefix("http://")
    sent = (f"Host: {host}", f"Content-Length: {len(body)}", *(header.format(host=host) for header in headers))
    assert asked(running, "POST /audit/label", *sent, body=body)[0] == status
    chunked = (f"Host: {host}", "Transfer-Encoding: chunked", *(header.format(host=host) for header in headers))
    assert asked(running, "POST /audit/label", *chunked, body=b"3\r\na=b\r\n0\r\n\r\n")[0] == 403
    assert not (running.root / LABELS).exists()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_no_other_method_is_known(running: Server, method: str) -> None:
    assert asked(running, f"{method} /audit/label") == (403, b"refused: no such method\n")


# --- the server ----------------------------------------------------------------------------------------------------------------


def test_it_binds_to_loopback_and_says_when_a_port_is_taken(made: Path) -> None:
    from mixpo.viewer.app import HOST, serve

    assert HOST == "127.0.0.1"
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with fails("port-unavailable", RunError) as failure:
            serve(open_run(made), taken.getsockname()[1], Silent(), lambda address: None)
        assert failure.parts == (str(taken.getsockname()[1]), "in use")


def test_without_the_libraries_the_extra_is_named(made: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['duckdb'] = None\n"
        "from pathlib import Path\nfrom mixpo.errors import MissingExtra\nfrom mixpo.progress import Silent\n"
        "from mixpo.pipeline import open_run\n"
        "try:\n    from mixpo.viewer.app import serve\n"
        f"    serve(open_run(Path({str(made)!r})), 0, Silent(), print)\n"
        "except MissingExtra as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.strip() == str(MissingExtra("mixpo view", "viewer"))
