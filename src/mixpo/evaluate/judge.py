"""A language model that marks free answers, or finds the short answer in a long one: one client for any OpenAI-compatible endpoint.

It works through the `openai` SDK (imported here only).

Every reply is kept on disk under a digest of what was asked, so that marking again costs nothing and gives the same. A reply that cannot
be read is asked for again, and in the end left out and counted; it never becomes a mark. Knows nothing about particular benchmarks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import ipaddress
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from mixpo.errors import EvaluateError, MissingExtra, RecipeError
from mixpo.evaluate.benchmarks.base import Extraction, Rubric
from mixpo.recipe import EXTRACTED_BENCHMARKS, JUDGED_BENCHMARKS, JudgeTable, did_you_mean
from mixpo.records import write_text
from mixpo.types import content_id

SLOTS = ("question", "reference", "answer", "context")
"""What is put into a judge's prompt."""
_SLOT = re.compile(rf"\{{({'|'.join(SLOTS)})\}}")
OTHERWISE = {"max_tokens": "max_completion_tokens", "temperature": ""}
"""What a field is called by endpoints of models that reason before they answer; "" is left out."""
WARMER = 0.5
"""How much the temperature rises with every further attempt, as the benchmarks' own evaluators do."""


Found = TypeVar("Found")
Wording = TypeVar("Wording", Rubric, Extraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Generic[Found]):
    """What a judge said. found: what its reply means, None when none could be read. judge: name and version as the endpoint gave them."""

    reply: str
    judge: str
    found: Found | None


class Kept(NamedTuple):
    """A reply on disk. model: as the endpoint named it. again: how often it had been asked anew (`mixpo retry`)."""

    reply: str
    model: str
    again: int


def ready(table: JudgeTable) -> str:
    """The key of the endpoint. Raises MissingExtra or RecipeError where the judge cannot be asked; nothing is sent."""
    if importlib.util.find_spec("openai") is None:
        raise MissingExtra("evaluate.judge", "judge")
    parts = urlsplit(table.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(f"evaluate.judge.url = {table.url!r} is no address; write it as http://host:port/v1")
    key = os.environ.get(table.key, "")
    if not key and not _is_local(parts.hostname):
        raise RecipeError(f"evaluate.judge: the environment variable {table.key} is not set; put the endpoint's key into it")
    return key or "none"


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def with_own_prompt(wording: Wording, table: JudgeTable, base: Path, name: str) -> Wording:
    """The same with the user's texts for benchmark `name`, where there are some: NAME.txt, and NAME.system.txt for the system message.

    Raises RecipeError for a prompt without its slots, and for a file that belongs to no benchmark.
    """
    if not table.prompts:
        return wording
    folder = base / table.prompts
    if not folder.is_dir():
        raise RecipeError(f"evaluate.judge.prompts: {folder} is not a folder; the path is relative to the recipe")
    known = [f"{of}{end}" for of in (*JUDGED_BENCHMARKS, *EXTRACTED_BENCHMARKS) for end in (".txt", ".system.txt")]
    for path in sorted(folder.glob("*.txt")):
        if path.name not in known:
            raise RecipeError(f"{path}: belongs to no benchmark{did_you_mean(path.name, known)}; known are {', '.join(known)}")
    prompt, system = folder / f"{name}.txt", folder / f"{name}.system.txt"
    if prompt.is_file():
        wording = dataclasses.replace(wording, prompt=_prompt(prompt))
    return dataclasses.replace(wording, system=_text(system).strip()) if system.is_file() else wording


def _prompt(path: Path) -> str:
    text = _text(path)
    missing = [slot for slot in ("question", "answer") if f"{{{slot}}}" not in text]
    if missing:
        raise RecipeError(f"{path}: has no {{{missing[0]}}}; a judge prompt needs {{question}} and {{answer}}")
    # Other words in braces may be meant, as in an example of JSON, unless they look like a slot.
    for name in re.findall(r"\{(\w+)\}", text):
        if name not in SLOTS and (meant := did_you_mean(name, SLOTS)):
            raise RecipeError(f"{path}: nothing is put into {{{name}}}{meant}")
    return text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def digest(wording: Rubric | Extraction) -> str:
    """Eight digits that stand for the wording put before the judge."""
    return content_id(wording.system, wording.prompt)[:8]


def settings(wording: Rubric | Extraction, table: JudgeTable) -> dict[str, Any]:
    """What decides a reply besides the answer. Where the model is served does not."""
    return {**table.model_dump(include={"model", "temperature", "max_tokens", "attempts"}), "prompt": digest(wording)}


class Judge:
    """Asks the endpoint, from several threads if need be. cache: folder of the replies."""

    def __init__(self, table: JudgeTable, cache: Path) -> None:
        self._table = table
        self._cache = cache
        self._key = ready(table)
        self._client: Any = None
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}

    def ask(
        self, wording: Rubric | Extraction, fields: Mapping[str, str], read: Callable[[str], Found | None], again: int = 0
    ) -> Reply[Found]:
        """What `read` makes of the first reply that it can read.

        fields: question, reference, answer, context. again: how often the judge is asked anew where a kept reply cannot be read.
        Raises EvaluateError when the endpoint cannot be used.
        """
        prompt = _SLOT.sub(lambda slot: fields.get(slot.group(1), ""), wording.prompt)
        messages = [*([{"role": "system", "content": wording.system}] if wording.system else []), {"role": "user", "content": prompt}]
        reply, name = "", self._table.model
        for attempt in range(self._table.attempts):
            request = {
                "model": self._table.model,
                "messages": messages,
                "temperature": self._table.temperature + WARMER * attempt,
                "max_tokens": self._table.max_tokens,
            }
            kept = self._kept(request, again, lambda said: read(said) is not None)
            reply, name = kept.reply, kept.model
            found = read(reply)
            if found is not None:
                return Reply(reply=reply, judge=f"{name} #{digest(wording)}", found=found)
        return Reply(reply=reply, judge=f"{name} #{digest(wording)}", found=None)

    def _kept(self, request: Mapping[str, Any], again: int, readable: Callable[[str], bool]) -> Kept:
        """The reply on disk, or a new one, which is then kept."""
        name = hashlib.sha256(json.dumps(request, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
        path = self._cache / name[:2] / f"{name}.json"
        kept = _load(path)
        if kept is None or (kept.again < again and not readable(kept.reply)):
            reply, model = self._send(request)
            kept = Kept(reply=reply, model=model, again=again)
            write_text(path, json.dumps(kept._asdict(), ensure_ascii=False) + "\n")
        return kept

    def _send(self, request: Mapping[str, Any]) -> tuple[str, str]:
        """One request; the SDK repeats it after time-outs, lost connections and answers 408, 409, 429 and 5xx, with growing pauses."""
        import openai

        with self._lock:
            if self._client is None:
                self._client = openai.OpenAI(
                    base_url=self._table.url, api_key=self._key, timeout=self._table.timeout_s, max_retries=self._table.retries
                )
        try:
            completion = self._create(request)
        except openai.APIStatusError as error:
            raise EvaluateError(f"the judge at {self._table.url} refused ({error.status_code}): {_short(error.message)}; {_KEPT}") from None
        except (openai.OpenAIError, ValueError) as error:
            cause = f"{error} {error.__cause__ or ''}".strip()
            raise EvaluateError(f"the judge at {self._table.url} cannot be asked: {_short(cause)}; {_KEPT}") from None
        return _reply(completion), _whole(getattr(completion, "model", None) or self._table.model)

    def _create(self, request: Mapping[str, Any]) -> Any:
        """A completion. An endpoint that supports a field under another name, or not at all, is asked so from then on."""
        import openai

        while True:
            names = {field: self._names.get(field, field) for field in request}
            body = {names[field]: value for field, value in request.items() if names[field]}
            try:
                return self._client.chat.completions.create(**body)
            except openai.BadRequestError as error:
                refused = next((field for field in OTHERWISE if field in body and field in error.message), None)
                if refused is None or "support" not in error.message:
                    raise
                self._names[refused] = OTHERWISE[refused]


_KEPT = "the replies so far are kept; run the same command again when it is up"


def _load(path: Path) -> Kept | None:
    """A reply from the cache; a torn or foreign file is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Kept(reply=str(data["reply"]), model=str(data["model"]), again=int(data.get("again", 0)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reply(completion: Any) -> str:
    """The text of a completion; "" where an endpoint sent something else, which then cannot be read as a mark."""
    choice = (getattr(completion, "choices", None) or [None])[0]
    said = _spoken(_whole(getattr(getattr(choice, "message", None), "content", None) or ""))
    # "0." that the length limit cut may have been 0.9.
    return re.sub(r"[\d.]+\Z", "", said) if getattr(choice, "finish_reason", None) == "length" else said


def _spoken(text: str) -> str:
    """A reply without the reasoning before it, whose numbers are no marks; "" where the reasoning never ends."""
    _, closed, rest = text.rpartition("</think>")
    return rest.strip() if closed else "" if "<think>" in text else text


def _whole(value: object) -> str:
    """Text that a file can hold: JSON can name half of a character."""
    return str(value).encode(errors="replace").decode()


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
