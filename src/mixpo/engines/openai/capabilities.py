"""What a server can do, as it was seen, and how an answer that has begun is continued on it. Asks nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mixpo.engines.openai.protocol import Dialect
from mixpo.engines.tokens import Words
from mixpo.errors import EngineError

Route = Literal["ids", "prefix", "text", ""]
"""How an answer that has begun is continued: prompt ids, the assistant's message left open, rendered text, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What was seen. n: answers that one request gives. images: "yes", "no: why" or "not asked". notes: for people.

    bias: by token id, what keeps control tokens out of the answers; empty where the server does not heed it.
    """

    model: str
    dialect: Dialect = "plain"
    n: int = 1
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: bool | None = None
    logprobs: bool = False
    ids_out: bool = False
    continuation: Route = ""
    images: str = "not asked"
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "bias": len(self.bias), "notes": list(self.notes)}

    def said(self) -> str:
        """One line for the user."""
        ways = {"ids": "from token ids", "prefix": "by an open assistant turn", "text": "from rendered text", "": "no"}
        can = {
            "answers a request": str(self.n),
            "seed": _yes(self.seed),
            "log-probs": _yes(self.logprobs),
            "token ids": _yes(self.ids_out),
            "control tokens kept out": _yes(bool(self.bias)),
            "continuing": ways[self.continuation],
            "images": self.images,
        }
        return ", ".join(f"{name}: {value}" for name, value in can.items()) + "".join(f"; {note}" for note in self.notes)


def _yes(value: bool | None) -> str:
    return "not asked" if value is None else "yes" if value else "no"


def together(found: Sequence[Capabilities], where: str) -> Capabilities:
    """What all servers can do. Raises EngineError when they do not take the same requests. where: the table that names them."""
    first = found[0]
    if len(names := sorted({other.model for other in found})) > 1:
        raise EngineError(
            f"the servers in {where}.urls list different models ({', '.join(names)}); use servers of one model, or say the name that all "
            f"of them know it by in {where}.model"
        )
    if any((other.dialect, other.logprobs, other.ids_out) != (first.dialect, first.logprobs, first.ids_out) for other in found):
        raise EngineError(f"the servers in {where}.urls are of different kinds; use equal ones in one run")
    routes = {other.continuation for other in found}
    return replace(
        first,
        n=min(other.n for other in found),
        bias=first.bias if all(other.bias for other in found) else {},
        seed=first.seed if first.seed is None else all(other.seed for other in found),
        continuation=first.continuation if len(routes) == 1 else "",
        images=next((other.images for other in found if other.images != "yes"), "yes") if first.images != "not asked" else first.images,
        notes=tuple(dict.fromkeys(note for other in found for note in other.notes)),
    )


def continuation(words: Words, route: Route, prompt: str, prefix: Sequence[int]) -> tuple[str, dict[str, Any], int]:
    """Path, body and the number of prompt tokens that the server must count when an answer that begins with `prefix` arrives whole."""
    if route == "ids":
        ids = [*words.prompt_ids(prompt), *prefix]
        return "/completions", {"prompt": ids}, len(ids)
    begun = words.decode(prefix)
    rendered = words.prompt_text(prompt) + begun
    if route == "text":
        return "/completions", {"prompt": rendered}, len(words.raw_ids(rendered))
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": begun}]
    body = {"messages": turns, "add_generation_prompt": False, "continue_final_message": True}
    return "/chat/completions", body, len(words.raw_ids(rendered))
