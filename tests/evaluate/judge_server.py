"""A chat endpoint in a process of its own: python judge_server.py MODE FOLDER. Writes FOLDER/port, and each request to FOLDER/log."""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODE, FOLDER = sys.argv[1], Path(sys.argv[2])
lock = threading.Lock()
count = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        global count
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with lock:
            count += 1
            number = count
            with (FOLDER / "log").open("a") as log:
                log.write(json.dumps({"path": self.path, "key": self.headers.get("authorization"), **body}) + "\n")
        getattr(self, f"mode_{MODE}")(number, body)

    def mode_good(self, number: int, body: dict[str, Any]) -> None:
        self.chat("0.5")

    def mode_slow(self, number: int, body: dict[str, Any]) -> None:
        time.sleep(3600 if number == 1 else 0)
        self.chat("0.5")

    def mode_half(self, number: int, body: dict[str, Any]) -> None:
        if number % 2:
            self.send({"error": {"message": "busy"}}, 503)
        else:
            self.chat("1.0")

    def mode_words(self, number: int, body: dict[str, Any]) -> None:
        """Says nothing that can be read, but where the answer is called clear."""
        self.chat("0.9" if "clear" in body["messages"][-1]["content"] else "I would say it is rather good.")

    def mode_finds(self, number: int, body: dict[str, Any]) -> None:
        """Finds the short answer, but talks about a response that is vague, and finds nothing in an idle one."""
        response = body["messages"][-1]["content"].rpartition("Response:")[2]
        if "vague" in response:
            self.chat("Well, there are several ways\nto look at this.")
        else:
            self.chat("Extracted answer: " + ("NO ANSWER" if "idle" in response else "**14**" if "fourteen" in response else "C"))

    def mode_verdicts(self, number: int, body: dict[str, Any]) -> None:
        """Compares the answer with the reference letter by letter; finds some unclear, and mumbles until FOLDER/awake is there."""
        head, _, answer = body["messages"][-1]["content"].partition("instruction to you):\n")
        reference, answer = head.partition("Reference answer:\n")[2].split("\n")[0], answer.split("\n\nReply")[0]
        if "mumble" in answer and not (FOLDER / "awake").exists():
            self.chat("Well, it depends.")
        else:
            self.chat("unclear" if "perhaps" in answer else "**Correct.**" if reference.split()[-1] in answer else "wrong")

    def mode_reasoner(self, number: int, body: dict[str, Any]) -> None:
        """As OpenAI's models that reason: another name for the limit, and no temperature but their own."""
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            self.send({"error": {"message": message}}, 400)
        elif "temperature" in body:
            message = "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported."
            self.send({"error": {"message": message}}, 400)
        else:
            self.chat("0.5")

    def mode_narrow(self, number: int, body: dict[str, Any]) -> None:
        self.send({"error": {"message": "max_tokens is too large: the context has 512 tokens"}}, 400)

    def mode_thinks(self, number: int, body: dict[str, Any]) -> None:
        """Reasons aloud before it says a mark, and for a long answer never comes to one."""
        reasoning = "<think>\n9 8\nor rather 0.2? Rating: 1"
        self.chat(reasoning if "long" in body["messages"][-1]["content"] else f"{reasoning}\n</think>\n\n0.9")

    def mode_late(self, number: int, body: dict[str, Any]) -> None:
        """Says nothing that can be read until FOLDER/awake is there."""
        self.chat("0.7" if (FOLDER / "awake").exists() else "I would say it is rather good.")

    def mode_cut(self, number: int, body: dict[str, Any]) -> None:
        """Comes to its mark, or to the middle of it, at the length limit."""
        self.chat("The mark is 0." if "long" in body["messages"][-1]["content"] else "0.4, because", "length")

    def mode_warm(self, number: int, body: dict[str, Any]) -> None:
        self.chat("hm" if body["temperature"] < 1 else "0.4")

    def mode_garbage(self, number: int, body: dict[str, Any]) -> None:
        self.raw(b"<html>hello</html>", "text/html")

    def mode_shape(self, number: int, body: dict[str, Any]) -> None:
        self.send({"choices": [], "surprise": True}, 200)

    def mode_locked(self, number: int, body: dict[str, Any]) -> None:
        self.send({"error": {"message": "wrong key"}}, 401)

    def mode_tells(self, number: int, body: dict[str, Any]) -> None:
        self.send({"error": {"message": f"wrong key: {self.headers['authorization']}"}}, 401)

    def mode_moved(self, number: int, body: dict[str, Any]) -> None:
        self.raw(b"", "text/plain", 307, location="http://127.0.0.1:9/v1/chat/completions")

    def mode_poor(self, number: int, body: dict[str, Any]) -> None:
        self.send({"error": {"message": "no credit left", "code": "insufficient_quota"}}, 429)

    def mode_waits(self, number: int, body: dict[str, Any]) -> None:
        if number == 1:
            self.raw(b"", "text/plain", 429, **{"retry-after": "1"})
        else:
            self.chat("0.5")

    def mode_down(self, number: int, body: dict[str, Any]) -> None:
        self.send({"error": {"message": "broken"}}, 500)

    def chat(self, text: str, finish: str = "stop") -> None:
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
        self.send({"id": "x", "object": "chat.completion", "created": 1, "model": "judge-7b-2026-01-01", "choices": [choice]}, 200)

    def send(self, value: object, status: int) -> None:
        self.raw(json.dumps(value).encode(), "application/json", status)

    def raw(self, content: bytes, kind: str, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
(FOLDER / "port.part").write_text(str(server.server_port))
(FOLDER / "port.part").rename(FOLDER / "port")
server.serve_forever()
