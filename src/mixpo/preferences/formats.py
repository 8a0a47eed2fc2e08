"""The formats of rows of preference pairs: how each is recognised, and how a row of it becomes PreferenceRows.

A format is an entry of FORMATS. Its function raises SourceError with the reason a row is skipped; nothing is read from disk here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, cast

from mixpo.errors import SourceError
from mixpo.preferences.build import PreferenceRow
from mixpo.sources.columns import LOOKALIKES, UNSUPPORTED, refuse_unsupported
from mixpo.sources.messages import common_prompt, history_of, messages_of, parsed, response_text, split_last, turns_in
from mixpo.types import Message

Row = Mapping[str, Any]
Parse = Callable[[Row], Iterable[PreferenceRow]]

OURS = ("id", "question_id", "origin", "domain", "source")
"""Columns of mixpo's own exports that mean the same in each format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """fits: whether a row is of this format. columns: those that it uses; others are listed once as unknown."""

    name: str
    fits: Callable[[Row], bool]
    parse: Parse
    columns: frozenset[str]


def has(row: Row, *names: str) -> bool:
    """Whether all these columns are there."""
    return all(name in row for name in names)


def images_of(row: Row) -> object:
    """The image field of a row, under either of its names. Raises SourceError where both hold something else."""
    image, images = (row.get(name) if row.get(name) not in ("", [], {}) else None for name in ("image", "images"))
    if image is not None and images is not None and images not in (image, [image]):
        raise SourceError("has both image and images, which differ; remove one", code="preference-two-image-fields", key="images")
    return image if images is None else images


def with_system_of(row: Row, prompt: list[Message], column: str | None = "system") -> list[Message]:
    """The prompt after the system message of a column, where it has one."""
    system = row.get(column) if column else None
    return [Message(role="system", text=system), *prompt] if isinstance(system, str) and system else prompt


# --- one question, two texts ---------------------------------------------------------------------------------------------


def question_row(row: Row) -> Iterator[PreferenceRow]:
    """MMPR annotations and RLAIF-V: question, chosen, rejected, and image or images (path, list, bytes or absent)."""
    prompt = with_system_of(row, messages_of(row.get("question"), "question")[0])
    answer = row.get("answer_gt") if row.get("answer_gt") is not None else row.get("answer")
    yield PreferenceRow(
        prompt=prompt,
        chosen=row.get("chosen"),
        rejected=row.get("rejected"),
        images=images_of(row),
        answer=answer,
        domain=row.get("domain"),
    )


def rlhf_v_row(row: Row) -> Iterator[PreferenceRow]:
    """RLHF-V: question, chosen and rejected as JSON in the column `text`."""
    text = _rlhf_v_text(row)
    if text is None:
        raise SourceError("text is no JSON object with question, chosen and rejected", code="preference-wrong-type")
    yield from question_row({**text, "image": images_of(row)})


def _rlhf_v_text(row: Row) -> dict[str, Any] | None:
    value = row.get("text")
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) and has(parsed, "question", "chosen", "rejected") else None


# --- conversations -------------------------------------------------------------------------------------------------------


def trl_row(row: Row) -> Iterator[PreferenceRow]:
    """TRL: prompt (or none: then what both sides begin with), chosen and rejected, as text or as lists of messages."""
    chosen, rejected, inline = parsed(row.get("chosen")), parsed(row.get("rejected")), list[object]()
    if isinstance(chosen, list) or isinstance(rejected, list):
        good, of_good = messages_of(chosen, "chosen", "assistant")
        poor, _ = messages_of(rejected, "rejected", "assistant")
        prompt, inline = messages_of(row.get("prompt"), "prompt") if row.get("prompt") else ([], [])
        if len(good) > 1 or len(poor) > 1:
            shared = common_prompt(good, poor)
            given = isinstance(parsed(row.get("prompt")), list) and shared[: len(prompt)] != prompt
            prompt, inline = [*(prompt if given else ()), *shared], [*(inline if given else ()), *of_good]
        chosen, rejected = response_text(good, "chosen"), response_text(poor, "rejected")
    elif row.get("prompt"):
        prompt, inline = messages_of(row["prompt"], "prompt")
    elif "prompt" in row:
        raise SourceError("prompt is empty", code="preference-no-prompt")
    else:
        begin, chosen, rejected = split_last(chosen, rejected)
        prompt = [Message(role="user", text=begin)]
    if row.get("history"):  # of mixpo's own `datasets` export, whose prompt is one message
        prompt = [*messages_of(row["history"], "history")[0], *prompt]
    prompt, images = with_system_of(row, prompt), inline or images_of(row)
    yield PreferenceRow(prompt=prompt, chosen=chosen, rejected=rejected, images=images, answer=row.get("answer"), domain=row.get("domain"))


def swift_row(row: Row) -> Iterator[PreferenceRow]:
    """ms-swift: messages that end with the chosen response, or query and response; and one of the fields of the rejected side."""
    if row.get("rejected_images"):
        raise SourceError("rejected_images is not supported: both sides must have the same images", code="preference-rejected-images")
    refuse_unsupported(row, ("objects",))
    given = row.get("messages") or row.get("conversations")
    messages, inline = messages_of(given or _query_and_response(row), "messages")
    prompt, chosen = messages[:-1], response_text(messages, "messages")
    other = parsed(next((row[name] for name in ("rejected_response", "rejected_messages", "rejected") if row.get(name)), None))
    poor = messages_of(other, "the rejected side", "assistant")[0] if isinstance(other, (list, dict)) else []
    if len(poor) > 1 and poor[: len(prompt)] != prompt:
        raise SourceError(
            "rejected_messages begins otherwise than messages; only the last turn may differ", code="preference-prompts-differ"
        )
    rejected = response_text(poor, "the rejected side") if poor else other
    rejected = "" if rejected is None else rejected
    yield PreferenceRow(prompt=with_system_of(row, prompt), chosen=chosen, rejected=rejected, images=inline or images_of(row))


def _query_and_response(row: Row) -> list[dict[str, object]]:
    """Messages of ms-swift's older form: query and response, with the earlier ones in history."""
    return turns_in([*history_of(row.get("history")), row.get("query"), row.get("response")])


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaFactoryColumns:
    """What the columns of a LLaMA-Factory file are called: `columns` and `tags` of its entry in dataset_info.json, with their defaults."""

    sharegpt: bool
    names: Mapping[str, str | None]
    tags: Mapping[str, str]

    def get(self, row: Row, name: str) -> Any:
        """The value of a column; None where the entry names none."""
        column = self.names.get(name)
        return row.get(column) if column else None


ALPACA = {"prompt": "instruction", "query": "input", "system": "system", "history": "history", "images": "images"}
SHAREGPT = {"messages": "conversations", "system": "system", "images": "images"}
SIDES = {"chosen": "chosen", "rejected": "rejected"}
TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "system_tag": "system",
}  # fmt: skip


def llama_factory_columns(entry: Mapping[str, Any]) -> LlamaFactoryColumns:
    """The columns of an entry of dataset_info.json."""
    sharegpt = entry.get("formatting", "alpaca") != "alpaca"
    names = {**(SHAREGPT if sharegpt else ALPACA), **SIDES, **(entry.get("columns") or {})}
    return LlamaFactoryColumns(sharegpt=sharegpt, names=names, tags={**TAGS, **(entry.get("tags") or {})})


def llama_factory_row(columns: LlamaFactoryColumns, row: Row) -> Iterator[PreferenceRow]:
    """LLaMA-Factory's ranking data, ShareGPT or Alpaca."""
    tags = columns.tags
    keys = tags["role_tag"], tags["content_tag"]
    roles = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant", tags["system_tag"]: "system"}
    inline: list[object] = []
    if columns.sharegpt:
        prompt, inline = messages_of(columns.get(row, "messages"), str(columns.names["messages"]), keys=keys, roles=roles)
    else:
        parts = [part for name in ("prompt", "query") if isinstance(part := columns.get(row, name), str) and part]
        prompt, inline = messages_of(turns_in([*history_of(columns.get(row, "history")), "\n".join(parts)]), "history")
    refuse_unsupported(row, [column for name in UNSUPPORTED if (column := columns.names.get(name))])
    prompt, sides = with_system_of(row, prompt, columns.names.get("system")), list[object]()
    for name in ("chosen", "rejected"):
        value = columns.get(row, name)
        side = messages_of(value, name, "assistant", keys, roles)[0] if isinstance(value, (list, dict)) else None
        sides.append(value if side is None else response_text(side, name))
    images = inline or columns.get(row, "images") or row.get("image")
    yield PreferenceRow(prompt=prompt, chosen=sides[0], rejected=sides[1], images=images)


# --- ratings -------------------------------------------------------------------------------------------------------------


def vlfeedback_row(row: Row) -> Iterator[PreferenceRow]:
    """VLFeedback: every two completions whose mean ratings differ make a pair, the better one chosen."""
    prompt = messages_of(row.get("prompt"), "prompt")[0]
    rated = [(rating, text) for text, rating in _rated(row.get("completions")) if rating is not None]
    if len(rated) < 2:
        raise SourceError("completions must hold at least two responses with ratings", code="preference-wrong-type")
    images = images_of(row)
    pairs = [(a, b) if a[0] > b[0] else (b, a) for a, b in combinations(rated, 2) if a[0] != b[0] and a[1] != b[1]]
    if not pairs:
        raise SourceError("no two completions differ in both text and rating", code="preference-equal-ratings")
    for better, worse in pairs:
        yield PreferenceRow(prompt=prompt, chosen=better[1], rejected=worse[1], images=images)


def _rated(completions: object) -> Iterator[tuple[object, float | None]]:
    """Responses with their mean rating; None where there is none."""
    if isinstance(completions, dict):  # a sequence of structures, stored column by column
        count = len(next((value for value in completions.values() if isinstance(value, list)), []))
        completions = [{name: value[n] for name, value in completions.items() if isinstance(value, list)} for n in range(count)]
    for one in completions if isinstance(completions, list) else ():
        if isinstance(one, dict):
            yield one.get("response"), _mean_rating(one)


def _mean_rating(completion: Row) -> float | None:
    aspects = completion.get("annotations")
    values = [aspect.get("Rating") for aspect in aspects.values() if isinstance(aspect, dict)] if isinstance(aspects, dict) else []
    values += [completion[name] for name in ("rating", "score") if completion.get(name) is not None]
    try:
        ratings = [float(cast(Any, value)) for value in values if value not in (None, "N/A", "")]
    except (TypeError, ValueError):
        return None
    mean = sum(ratings) / len(ratings) if ratings else None
    return mean if mean is not None and math.isfinite(mean) else None


# --- the table -------------------------------------------------------------------------------------------------------------


def renamed(columns: Mapping[str, str]) -> Parse:
    """`trl_row` of rows whose columns have other names. columns: from our names to theirs."""
    taken = set(columns.values())

    def parse(row: Row) -> Iterable[PreferenceRow]:
        others = {name: value for name, value in row.items() if name not in taken}
        given = {**others, **{ours: row.get(theirs) for ours, theirs in columns.items()}}
        if given.get("prompt") is None and given.get("question") is not None:
            given["prompt"] = given["question"]
        return trl_row(given)

    return parse


def _rlaif_v(row: Row) -> bool:
    image = row.get("image")
    stored = isinstance(image[0] if isinstance(image, list) and image else image, (bytes, dict))
    return has(row, "question", "chosen", "rejected") and (stored or "ds_name" in row)


PROMPTS = (
    "question",
    "conversations",
    "messages",
    "input",
    "user",
    "context",
    *(n for n, ours in LOOKALIKES.items() if ours == "question"),
)
"""Columns that hold a prompt. Next to one of them the sides are not read as TRL's implicit form, which begins with the prompt."""


def _trl(row: Row) -> bool:
    return has(row, "chosen", "rejected") and (has(row, "prompt") or not any(name.casefold() in PROMPTS for name in row))


def _swift(row: Row) -> bool:
    rejected = has(row, "rejected_response") or has(row, "rejected_messages")
    either = has(row, "conversations") or has(row, "query", "response")
    return (has(row, "messages") and (rejected or (has(row, "rejected") and not has(row, "chosen")))) or (rejected and either)


def _alpaca(row: Row) -> bool:
    return has(row, "instruction", "chosen", "rejected")


def _sharegpt(row: Row) -> bool:
    return has(row, "conversations", "chosen", "rejected")


def _llama_factory(row: Row) -> Iterator[PreferenceRow]:
    return llama_factory_row(llama_factory_columns({"formatting": "sharegpt" if _sharegpt(row) else "alpaca"}), row)


def _columns(*names: str) -> frozenset[str]:
    return frozenset((*names, *OURS))


_META = ("answer", "answer_gt", "choices", "rationale", "chosen_meta", "rejected_meta", "chosen_answer", "rejected_answer")
_RLAIF = ("ds_name", "origin_dataset", "origin_split", "idx", "image_path")

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format(
            name="vlfeedback", fits=lambda row: has(row, "prompt", "completions"), parse=vlfeedback_row,
            columns=_columns("prompt", "completions", "image", "images", "models", "critique"),
        ),
        Format(
            name="rlhf-v", fits=lambda row: _rlhf_v_text(row) is not None, parse=rlhf_v_row,
            columns=_columns("text", "image", "images", *_RLAIF),
        ),
        Format(
            name="ms-swift",
            fits=_swift,
            parse=swift_row,
            columns=_columns(
                "messages", "conversations", "query", "response", "history", "system", "objects", "image", "images", "rejected_response",
                "rejected_messages", "rejected", "rejected_images"
            ),
        ),
        Format(
            name="llama-factory", fits=lambda row: _sharegpt(row) or _alpaca(row), parse=_llama_factory,
            columns=_columns("conversations", "instruction", "input", "history", "system", "chosen", "rejected", "image", "images"),
        ),
        Format(
            name="trl",
            fits=_trl,
            parse=trl_row,
            columns=_columns("prompt", "chosen", "rejected", "images", "image", "system", "history", "question", *_META),
        ),
        Format(
            name="rlaif-v", fits=_rlaif_v, parse=question_row,
            columns=_columns("question", "chosen", "rejected", "image", "images", "system", *_META, *_RLAIF),
        ),
        Format(
            name="mmpr", fits=lambda row: has(row, "question", "chosen", "rejected"), parse=question_row,
            columns=_columns("question", "chosen", "rejected", "image", "images", "system", *_META),
        ),
    )
}  # fmt: skip
"""In the order in which a row is tried: the first that fits names it."""


def recognise(row: Row) -> str:
    """The format of a row, or "" where none fits."""
    return next((name for name, form in FORMATS.items() if form.fits(row)), "")


def supported() -> Sequence[str]:
    """The names of the formats."""
    return tuple(FORMATS)
