"""A language model as a judge: grades free answers, or finds the short answer in a long one, at any OpenAI-compatible endpoint.

Replies are cached on disk by a digest of the request, so that grading again costs nothing and gives the same. A reply that cannot be read
is requested again, in the end excluded and counted; it never becomes a grade. Knows nothing about particular benchmarks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import json
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from mixpo import sealed
from mixpo.engines import api_key, require_served_extra
from mixpo.engines.openai.client import Client, Limits, RequestError, ServerLostError
from mixpo.engines.openai.client_thread import ClientThread
from mixpo.engines.openai.protocol import one_line
from mixpo.errors import EngineError, EvaluateError, RecipeError
from mixpo.evaluate.benchmarks.base import Extraction, Rubric, without_reasoning
from mixpo.recipe import EXTRACTED_BENCHMARKS, JUDGED_BENCHMARKS, JudgeEndpoint, JudgeTable, did_you_mean
from mixpo.records import write_text
from mixpo.types import content_id

SLOTS = ("question", "reference", "answer", "context")
"""Placeholders of a judge prompt."""
_SLOT = re.compile(rf"\{{({'|'.join(SLOTS)})\}}")
RENAMED_FIELDS = {"max_tokens": "max_completion_tokens", "temperature": ""}
"""Fields under the names of endpoints of reasoning models; "" is not sent."""
TEMPERATURE_STEP = 0.5
"""Added to the temperature with every further attempt, as the benchmarks' own evaluators do."""
WHERE = "evaluate.judge"

Value = TypeVar("Value")
Wording = TypeVar("Wording", Rubric, Extraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReply(Generic[Value]):
    """A judge's reply. value: what was read from it, None when it cannot be read. judge: name and version as the endpoint gave them."""

    reply: str
    judge: str
    value: Value | None


class CachedReply(NamedTuple):
    """A reply on disk. model: as the endpoint named it. again: the number of the `mixpo retry` that it comes from."""

    reply: str
    model: str
    again: int


def ready(table: JudgeEndpoint, where: str = WHERE) -> str:
    """The key of the endpoint. Raises MissingExtra or RecipeError where the judge cannot be asked; nothing is sent. where: its table."""
    require_served_extra(where)
    return api_key(table, where, required=not all(_is_local(urlsplit(url).hostname or "") for url in table.urls))


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def with_own_prompt(wording: Wording, table: JudgeTable, base: Path, name: str) -> Wording:
    """`wording` with the user's own texts for benchmark `name`, if any: NAME.txt, and NAME.system.txt for the system message.

    Raises RecipeError for a prompt with missing slots, and for a file that belongs to no benchmark.
    """
    if not table.prompts:
        return wording
    folder = base / table.prompts
    if not folder.is_dir():
        message = f"evaluate.judge.prompts: {folder} is not a folder; the path is relative to the recipe"
        raise RecipeError(message, code="judge-prompts-folder", path=folder, key="evaluate.judge.prompts")
    known = [f"{of}{end}" for of in (*JUDGED_BENCHMARKS, *EXTRACTED_BENCHMARKS) for end in (".txt", ".system.txt")]
    for path in sorted(folder.glob("*.txt")):
        if path.name not in known:
            message = f"{path}: belongs to no benchmark{did_you_mean(path.name, known)}; known are {', '.join(known)}"
            raise RecipeError(message, code="judge-prompt-unknown", path=path)
    prompt, system = folder / f"{name}.txt", folder / f"{name}.system.txt"
    if prompt.is_file():
        wording = dataclasses.replace(wording, prompt=read_prompt(prompt))
    return dataclasses.replace(wording, system=_text(system).strip()) if system.is_file() else wording


def read_prompt(path: Path) -> str:
    """A judge prompt of the user's own. Raises RecipeError when it cannot be read, or lacks a slot."""
    text = _text(path)
    missing = [slot for slot in ("question", "answer") if f"{{{slot}}}" not in text]
    if missing:
        message = f"{path}: has no {{{missing[0]}}}; a judge prompt needs {{question}} and {{answer}}"
        raise RecipeError(message, code="judge-prompt-slot-missing", path=path, key=missing[0])
    # Other words in braces are kept, as in an example of JSON, unless they resemble a slot.
    for name in re.findall(r"\{(\w+)\}", text):
        if name not in SLOTS and (meant := did_you_mean(name, SLOTS)):
            raise RecipeError(f"{path}: unknown slot {{{name}}}{meant}", code="judge-prompt-slot-unknown", path=path, key=name)
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text ({error})", code="judge-prompt-unreadable", path=path) from None


def digest(wording: Rubric | Extraction) -> str:
    """Eight hexadecimal digits that identify a judge's prompt."""
    return content_id(wording.system, wording.prompt)[:8]


def settings(wording: Rubric | Extraction, table: JudgeEndpoint) -> dict[str, Any]:
    """What decides a reply other than the response; the address of the endpoint does not."""
    return {**table.deciding("evaluate"), "prompt": digest(wording)}


class Judge:
    """Asks the endpoint; may be used from several threads, such as its own `threads`, which are as many as requests may be in flight.

    cache: folder of the replies. notify: receives messages for the user. where: its table in the recipe.
    """

    def __init__(self, table: JudgeEndpoint, cache: Path, notify: Callable[[str], None] = lambda text: None, where: str = WHERE) -> None:
        self._table, self._cache, self._notify, self._where = table, cache, notify, where
        self._key = ready(table, where)
        self.threads = ThreadPoolExecutor(table.in_flight, thread_name_prefix="mixpo-judge")
        self._thread: ClientThread | None = None
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}
        self._valid = self._closed = False

    def close(self) -> None:
        """Cancel open requests and close the connections; requests of other threads that come later are cancelled too."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            if self._thread is not None:
                self._thread.close()
                self._thread = None
        self.threads.shutdown()

    def ask(
        self, wording: Rubric | Extraction, fields: Mapping[str, str], read: Callable[[str], Value | None], again: int = 0
    ) -> JudgeReply[Value]:
        """The first reply that `read` can read, or the last one.

        fields: question, reference, answer, context. again: cached replies of earlier retries that cannot be read are requested again.
        Raises EvaluateError when the endpoint cannot be used.
        """
        prompt = _SLOT.sub(lambda slot: fields.get(slot.group(1), ""), wording.prompt)
        messages = [*([{"role": "system", "content": wording.system}] if wording.system else []), {"role": "user", "content": prompt}]
        reply, name = "", self._table.model
        for attempt in range(self._table.attempts):
            request = {
                "model": self._table.model,
                "messages": messages,
                "temperature": self._table.temperature + TEMPERATURE_STEP * attempt,
                "max_tokens": self._table.max_tokens,
            }
            reply, name, _ = self._cached(request, again, lambda text: read(text) is not None)
            value = read(reply)
            if value is not None:
                return JudgeReply(reply=reply, judge=f"{name} #{digest(wording)}", value=value)
        return JudgeReply(reply=reply, judge=f"{name} #{digest(wording)}", value=None)

    def _cached(self, request: Mapping[str, Any], again: int, readable: Callable[[str], bool]) -> CachedReply:
        """The reply on disk, or a new one, which is then cached."""
        name = hashlib.sha256(json.dumps(request, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
        path = self._cache / name[:2] / f"{name}.json"
        cached = _load(path)
        if cached is None or (cached.again < again and not readable(cached.reply)):
            reply, model = self._send(request)
            cached = CachedReply(reply=reply, model=model or self._table.model, again=again)
            write_text(path, sealed.dumps(cached._asdict()))
        return cached

    def _send(self, request: Mapping[str, Any]) -> tuple[str, str]:
        """Reply and model. An endpoint that supports a field under another name only, or not at all, gets it so from then on."""
        thread = self._open()
        while True:
            names = {field: self._names.get(field, field) for field in request}
            body = {names[field]: value for field, value in request.items() if names[field]}
            try:
                reply = thread.run(thread.client.post("/chat/completions", body, completion_text))
                self._valid = True
                return reply
            except RequestError as error:
                if error.kind == "invalid reply":
                    if self._valid:
                        return "", ""
                    message = f"{self._table.urls[0]} does not answer as a judge does ({one_line(str(error))}); check {self._where}.urls"
                    raise EvaluateError(message, code="judge-not-compatible", key=f"{self._where}.urls") from None
                refused = next((field for field in RENAMED_FIELDS if field in body and field in str(error)), None)
                if error.status != 400 or refused is None or "support" not in str(error):
                    message = f"the judge at {self._table.urls[0]} refused ({one_line(str(error))}); {_CACHED}"
                    raise EvaluateError(message, code="judge-refused", key=self._where) from None
                self._names[refused] = RENAMED_FIELDS[refused]
            except (EngineError, ServerLostError) as error:
                # A server that is down comes with its own remedy.
                kept = "" if isinstance(error, EngineError) and error.code == "server-down" else f"; {_CACHED}"
                raise EvaluateError(f"the judge cannot be asked: {error}{kept}", code="judge-unavailable", key=self._where) from None

    def _open(self) -> ClientThread:
        with self._lock:
            if self._closed:
                raise CancelledError
            if self._thread is None:
                table = self._table
                self._thread = ClientThread(
                    # Unlike orjson, json reads half of a surrogate pair, which `_whole` then replaces.
                    Client(
                        urls=table.urls, key=self._key, limits=Limits.of(table), where=self._where, notify=self._notify, loads=json.loads
                    )
                )
            return self._thread


_CACHED = "replies so far are cached, run the same command again when it is up"


def _load(path: Path) -> CachedReply | None:
    """A reply from the cache; None where the file is missing, torn or something else."""
    try:
        data = sealed.load(path)
        return CachedReply(reply=str(data["reply"]), model=str(data["model"]), again=int(data.get("again", 0)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def completion_text(data: object) -> tuple[str, str]:
    """Text and model of a chat completion; text "", which no rubric reads as a grade, where the endpoint sent something else."""
    if not isinstance(data, Mapping):
        return "", ""
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    message = choice.get("message")
    text = without_reasoning(_whole((message.get("content") if isinstance(message, Mapping) else "") or ""))
    # "0." at the length limit may have been 0.9.
    text = re.sub(r"[\d.]+\Z", "", text) if choice.get("finish_reason") == "length" else text
    return text, _whole(data.get("model") or "")


def _whole(value: object) -> str:
    """Text that a file can hold: JSON may contain half of a surrogate pair."""
    return str(value).encode(errors="replace").decode()
