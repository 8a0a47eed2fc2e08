"""From the raw fields of a row to a Question, whatever file the row came from. Raises SourceError with the reason a row is unusable.

The conventions are those of MMPR: `<image>` marks inside the question, options as lettered lines, answers as text or numbers.
Knows nothing about files; images arrive as references.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeGuard, TypeVar

from mixpo.errors import SourceError
from mixpo.plural import amount
from mixpo.records import storable
from mixpo.types import IMAGE_TOKEN, AnswerKind, ImageRef, Message, Question, Skipped, content_id
from mixpo.verify.kinds import fits, guess_kind

Kind = str
"""An AnswerKind, or "auto"."""


class Placed(Protocol):
    """What has a place in a file."""

    @property
    def where(self) -> str: ...


Item = TypeVar("Item", bound=Placed)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """A question with its location in the source."""

    where: str
    question: Question


def without_duplicates(items: Iterable[Item], identity: Callable[[Item], str], reason: str) -> Iterator[Item | Skipped]:
    """The items, with a Skipped in place of one whose content came before. identity: its hexadecimal id, "" for what has none."""
    seen = FirstPlaces()
    for item in items:
        name = identity(item)
        first = seen.add(name, item.where) if name else ""
        yield Skipped(where=item.where, reason=reason, repeats=first) if first else item


class FirstPlaces:
    """Where each id came first. Numbers, not strings: a third of the memory for millions of rows."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._names: list[str] = []
        self._seen: dict[int, int] = {}

    def add(self, name: str, where: str) -> str:
        """The place of the row that had this hexadecimal id first; "" when it is this one."""
        file, _, line = where.rpartition(":")
        file, position = (file, int(line)) if file and line.isascii() and line.isdigit() else (where, -1)
        number = self._files.setdefault(file, len(self._files))
        if number == len(self._names):
            self._names.append(file)
        first = self._seen.setdefault(int(name, 16), packed := (number << 40) + position + 1)
        if first == packed:
            return ""
        file, position = self._names[first >> 40], (first & ((1 << 40) - 1)) - 1
        return f"{file}:{position}" if position >= 0 else file


def make_question(
    *,
    text: object,
    images: Sequence[ImageRef] = (),
    answer: object = None,
    choices: object = None,
    rationale: object = None,
    kind: Kind = "auto",
    domain: str = "",
    source: str = "",
    row_id: object = None,
    history: Sequence[Message] = (),
) -> Question:
    """Normalise the fields of one row.

    text: without `<image>` marks the images go first, each on a line; with marks, their number must be that of the images.
    answer: text or a number, or a list of them of which each is right (ten people's answers, repetitions included); None and
        blank text mean that the question is open. rationale: a reference answer with its reasoning.
    choices: options in letter order (list, or object with keys A, B, ...); added to a text that does not show them. Without
        it, lettered lines in the text are the options, provided that the answer is one of their letters or equals one of them.
    history: the messages before the question; its user turns may hold `<image>` marks too.
    kind: "auto" guesses; "none" makes the question open; another kind must fit the answer.
    """
    *history, last = with_tokens([*history, Message(role="user", text=_text(text))], len(images))
    body = last.text
    golds = [] if kind == "none" else _answers(answer)
    options = _choices(choices)
    if options:
        _refuse_codes(answer, options)
        body = body if shows(body, options) else f"{body}\n{lettered(options)}"
        golds = [letter for gold in golds if (letter := _letter(gold, options)) is not None]
    elif kind in ("auto", "choice") and golds:
        golds, options = _embedded(golds, body)
    gold = max(golds, key=golds.count, default=None)
    several = tuple(golds) if len(set(golds)) > 1 else ()
    if kind not in ("auto", "choice", "none") and options:
        raise SourceError(
            f'has choices, but answer_kind is {kind!r}; use answer_kind = "auto" or "choice"', code="choices-not-used", key="answer_kind"
        )
    return Question(
        id=identity(body, images, sorted(several) or gold, options, history),
        text=body,
        images=tuple(images),
        answer=gold,
        answers=several,
        kind=_kind(kind, gold, several, options),
        choices=options,
        rationale=_rationale(rationale),
        domain=whole(domain, "domain"),
        source=whole(source, "the name of its source"),
        row_id=whole(str(row_id), "id") if isinstance(row_id, (str, int)) else "",
        history=tuple(history),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise SourceError(f"question must be text, not {described(value)}", code="field-not-text", key="question")
    body = whole(value, "question").replace("\r\n", "\n").strip()
    if not body.replace(IMAGE_TOKEN, "").strip():
        raise SourceError("question is empty", code="question-empty", key="question")
    return body


def whole(text: str, what: str) -> str:
    """The text itself. Raises SourceError where no file can hold it."""
    if not storable(text):
        raise SourceError(f"{what} holds half of a surrogate pair, which is not text; repair the row", code="text-surrogate", key=what)
    return text


def identity(
    text: str, images: Sequence[ImageRef], gold: list[str] | str | None, options: Sequence[str], history: Sequence[Message] = ()
) -> str:
    """The id of a question: a hash of its content. gold: the answer, or all of several in order."""
    turns = [[message.role, message.text] for message in history]
    return content_id(text, [image.digest for image in images], gold, list(options), *([turns] if turns else []))


def with_tokens(messages: Sequence[Message], images: int) -> list[Message]:
    """The messages with one `<image>` per image: without any, in front of the first user turn. Raises SourceError for other counts."""
    tokens = sum(message.text.count(IMAGE_TOKEN) for message in messages if message.role == "user")
    made = list(messages)
    if tokens == 0 and images:
        first = next(number for number, message in enumerate(made) if message.role == "user")
        made[first] = replace(made[first], text=f"{IMAGE_TOKEN}\n" * images + made[first].text)
    elif tokens != images:
        raise SourceError(
            f"the prompt has {amount(tokens, f'{IMAGE_TOKEN} token')} but {amount(images, 'image')}",
            code="image-count-mismatch",
            key="image",
        )
    return made


def _answers(value: object) -> list[str]:
    """The right answers, as given; one for a single value."""
    items = value if isinstance(value, (list, tuple)) else (value,)
    return [answer for item in items if (answer := _answer(item)) is not None]


def _rationale(value: object) -> str:
    if value is not None and not isinstance(value, str):
        raise SourceError(f"rationale must be text, not {described(value)}", code="field-not-text", key="rationale")
    return whole(value or "", "rationale").strip()


def _answer(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        raise SourceError(f'answer is {str(value).lower()}; write it as text, "yes" or "no"', code="answer-is-boolean", key="answer")
    if isinstance(value, float) and not math.isfinite(value):
        raise SourceError(f"answer is {value}, not a number that can be compared", code="answer-not-finite", key="answer")
    if isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise SourceError(f"answer must be text or a number, not {described(value)}", code="answer-type", key="answer")
    return whole(value, "answer").strip() or None


def _choices(value: object) -> tuple[str, ...]:
    if value is None or value == [] or value == {}:
        return ()
    if isinstance(value, Mapping):
        if list(value) != list(string.ascii_uppercase[: len(value)]):
            raise SourceError(
                f"choices must have the keys A, B, ... in order, not {', '.join(map(repr, value))}", code="choices-keys", key="choices"
            )
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        raise SourceError(f"choices must be a list, not {described(value)}", code="choices-type", key="choices")
    texts = [_answer(option) for option in value]
    if not 2 <= len(texts) <= 26 or None in texts:
        raise SourceError(f"choices must be 2 to 26 options that are not empty (got {len(texts)})", code="choices-count", key="choices")
    return tuple(text for text in texts if text is not None)


def _refuse_codes(value: object, options: Sequence[str]) -> None:
    """Raise SourceError for a number that may be an option's text or the position of another one, counted from 0 or from 1."""
    for number in value if isinstance(value, (list, tuple)) else (value,):
        if (
            isinstance(number, int)
            and str(number) in options
            and {options.index(str(number))}
            != {place for place in (number, number - 1, options.index(str(number))) if 0 <= place < len(options)}
        ):
            raise SourceError(
                f"answer is the number {number}, which may be a choice or the position of one; write the choice as text, or its letter",
                code="answer-is-a-code",
                key="answer",
            )


def _letter(answer: str | None, options: Sequence[str]) -> str | None:
    """The letter of the answer: given as one (A, (A), A.), or as the text of exactly one option. A letter comes first."""
    if answer is None:
        return None
    letters = string.ascii_uppercase[: len(options)]
    bare = re.fullmatch(r"\(?\s*([A-Za-z])\s*[).:]?", answer)
    if bare and bare[1].upper() in letters:
        return bare[1].upper()
    same = [letter for letter, option in zip(letters, options, strict=True) if option.casefold() == answer.casefold()]
    if len(same) == 1:
        return same[0]
    how = "equals several of" if same else "is not among"
    raise SourceError(
        f"answer {short(answer)} {how} the {amount(len(options), 'choice')}; give the letter of one (A to {letters[-1]})",
        code="answer-not-a-choice",
        key="answer",
    )


def _embedded(answers: list[str], text: str) -> tuple[list[str], tuple[str, ...]]:
    """Answers and options where the text shows lettered options that fit all answers, else the answers as they are."""
    options = parse_options(text)
    if not options:
        return answers, ()
    try:
        letters = [letter for answer in answers if (letter := _letter(answer, options)) is not None]
    except SourceError:
        return answers, ()
    return letters, options


_OPTION = re.compile(r"(?:\(([A-Z])\)|([A-Z])\s*[.):：、．])\s*(\S.*)")


def parse_options(text: str) -> tuple[str, ...]:
    """The options of the last run of lines "A. ..", "B. ..", in letter order (also "(A) ..", "A) ..", "A: .."); () without one."""
    best: list[str] = []
    for run in _runs(text.splitlines()):
        best = run if len(run) >= 2 else best
    return tuple(best)


def _runs(lines: Sequence[str]) -> Iterator[list[str]]:
    run: list[str] = []
    for line in lines:
        match = _OPTION.fullmatch(line.strip())
        letter = match and (match[1] or match[2])
        if match and letter == string.ascii_uppercase[len(run) % 26]:
            run.append(match[3])
        elif match and letter == "A":
            yield run
            run = [match[3]]
        elif line.strip():
            yield run
            run = []
    yield run


def lettered(options: Sequence[str], form: str = "{letter}. {option}") -> str:
    """One line for each option, "A. ...", "B. ...", in the given form."""
    return "\n".join(form.format(letter=letter, option=option) for letter, option in zip(string.ascii_uppercase, options, strict=False))


def shows(text: str, options: Sequence[str]) -> bool:
    """Whether a text already shows these options with their letters, as lines or within a line."""
    if parse_options(text) == tuple(options):
        return True
    rest = text
    for letter, option in zip(string.ascii_uppercase, options, strict=False):
        match = re.search(rf"(?<!\w)\(?{letter}\s*[.):：、．]\s*{re.escape(option)}", rest)
        if match is None:
            return False
        rest = rest[match.end() :]
    return True


def _kind(kind: Kind, answer: str | None, several: Sequence[str], options: Sequence[str]) -> AnswerKind:
    guesses = {guess_kind(each, options) for each in several or (answer,)}
    # People who answer the same question with "2", "two" and "a few" are compared as text, which also knows numbers.
    guessed = guesses.pop() if len(guesses) == 1 else "text"
    if kind == "auto" or answer is None:
        return guessed
    if not options and not fits(kind, answer):
        lacking = "there are no choices and no lettered options that fit the answer" if kind == "choice" else "the answer is"
        raise SourceError(f'answer_kind is "{kind}", but {lacking} {short(answer)}', code="answer-kind-mismatch", key="answer_kind")
    return _KINDS[kind]


_KINDS: dict[str, AnswerKind] = {"choice": "choice", "number": "number", "formula": "formula", "text": "text", "yes_no": "yes_no"}


def described(value: object) -> str:
    """What a value is, in the words of JSON."""
    names: dict[type, str] = {
        str: "text",
        dict: "an object",
        list: "a list",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def can_be_path(value: object) -> TypeGuard[str]:
    """Whether a file system can be asked for it: text without NUL and half characters, no part of it too long."""
    return isinstance(value, str) and "\0" not in value and storable(value) and all(len(part.encode()) < 256 for part in value.split("/"))


def short(value: object) -> str:
    """A value as a message shows it."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:37]}...")
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
