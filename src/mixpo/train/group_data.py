"""Training groups that are read when a step needs them; only an index of their sizes is in memory, mapped from the file.

FILE: the rows, the index (one INDEX entry per group), one line of JSON that says where the index is.

A row is one line of JSON, the tokens of all responses (int32) and, where stored, their log-probs (see `mixpo.train.hold`). Rows are
read, not mapped: a disk that fails is an error, no signal, and pages of the file do not count as memory of the process. Each row is
compared with its checksum when it is read, so that opening a file takes the same time whatever its size.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, chain, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from mixpo import sealed
from mixpo.records import atomic, broken_record, from_plain
from mixpo.train.groups import data_digest, repeated
from mixpo.train.hold import pack, unpack
from mixpo.train.layout_check import different
from mixpo.types import Group, Question

INDEX = np.dtype(
    [
        ("start", "<u8"), ("bytes", "<u4"), ("crc", "<u4"),  # of the row in the file
        ("turn", "<u4"),  # 1, or the number of the repetition in an epoch
        ("pairs", "<u4"), ("responses", "<u4"), ("tokens", "<u4"), ("images", "<u4"),  # tokens: of all responses
        ("unscored", "?"), ("empty", "?"),  # without reference log-probs; with a response that has no tokens
        ("forked", "?"), ("tokenless", "?"),  # with forks; without the log-probs of single tokens
    ]
)  # fmt: skip
"""What the index says of a group."""
FOOTER_BYTES = 4096
"""The last line of a file is shorter."""


class GroupRow(NamedTuple):
    """A group as stored. repeats: how often an epoch trains on each pair; empty for once."""

    group: Group
    repeats: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Groups(Sequence[Group]):
    """Groups by number, read when asked for. digest: of all that they are made from."""

    length: int
    get: Callable[[int], Group]
    digest: str

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, number: int) -> Group: ...

    @overload
    def __getitem__(self, number: slice) -> list[Group]: ...

    def __getitem__(self, number: int | slice) -> Group | list[Group]:
        if isinstance(number, slice):
            return [self.get(place) for place in range(*number.indices(self.length))]
        if not 0 <= number < self.length:
            raise IndexError(number)
        return self.get(number)


NO_GROUPS = Groups(0, lambda number: Group(question=Question(id="", text=""), prompt="", responses=(), pairs=()), "")


@dataclass(frozen=True, eq=False)
class PairedGroups(Groups):
    """Groups with pairs. sizes: (length,) of INDEX. sample: numbers of groups that differ most (see `layout_check.different`)."""

    sizes: NDArray[Any]
    sample: tuple[int, ...]

    def smallest_prompts(self, most: int) -> list[int]:
        """Up to `most` groups with pairs and the fewest images, but at least one if any group has some."""
        usable = np.flatnonzero((self.sizes["pairs"] > 0) & (self.sizes["responses"] > 0))
        images = self.sizes["images"][usable]
        if images.any():
            usable, images = usable[images > 0], images[images > 0]
        return [int(number) for number in usable[np.argsort(images, kind="stable")[:most]]]


def in_memory(groups: Sequence[Group]) -> PairedGroups:
    """Groups that are in memory already."""
    index = np.array([(0, 0, 0, 1, *_sizes(group)) for group in groups], dtype=INDEX)
    return PairedGroups(len(groups), groups.__getitem__, data_digest(groups), index, _sample(enumerate(groups)))


def _sizes(group: Group) -> tuple[int, int, int, int, bool, bool, bool, bool]:
    """The last eight fields of INDEX."""
    unscored = group.reference is None or len(group.reference) != len(group.responses)
    lengths = [*map(len, group.responses)]
    of_tokens = group.forks is not None, group.token_reference is None
    return len(group.pairs), len(lengths), sum(lengths), len(group.question.images), unscored, 0 in lengths, *of_tokens


def _sample(groups: Iterable[tuple[int, Group]]) -> tuple[int, ...]:
    paired = (item for item in groups if item[1].pairs)
    chosen = different(paired, lambda item: item[1].question, lambda item: max(map(len, item[1].responses)))
    return tuple(sorted(number for number, _ in chosen))


# --- files -------------------------------------------------------------------------------------------------------------


def write_groups(path: Path, rows: Iterable[GroupRow], digest: str) -> None:
    """Write a file atomically; memory grows by the index only. digest: of what the rows are made from."""
    index = bytearray()
    with atomic(path) as temporary, temporary.open("wb") as file:

        def written() -> Iterable[tuple[int, Group]]:
            for row in rows:
                content = _encoded(row)
                place = (file.tell(), len(content), zlib.crc32(content))
                file.write(content)
                for turn, group in enumerate(repeated(row.group, row.repeats), start=1):
                    yield len(index) // INDEX.itemsize, group
                    index.extend(np.array((*place, turn, *_sizes(group)), dtype=INDEX).tobytes())

        sample = _sample(written())
        footer = {"start": file.tell(), "index": hashlib.sha256(index).hexdigest(), "digest": digest, "sample": sample}
        file.write(index)
        file.write(b"\n" + sealed.dumps({**footer, "groups": len(index) // INDEX.itemsize}).encode())


def _encoded(row: GroupRow) -> bytes:
    group = row.group
    header = {
        "question": asdict(group.question),
        "prompt": group.prompt,
        "prompt_tokens": group.prompt_tokens,
        "lengths": [*map(len, group.responses)],
        "pairs": group.pairs,
        "reference": group.reference,
        "repeats": row.repeats,
        "origins": group.origins,
        "forks": group.forks,
        "token_reference": group.token_reference is not None,
    }
    packed = b"" if group.token_reference is None else pack(group.responses, group.token_reference)
    return json.dumps(header, ensure_ascii=False).encode() + b"\n" + array("i", chain.from_iterable(group.responses)).tobytes() + packed


def _decoded(content: bytes) -> GroupRow:
    line, _, tail = content.partition(b"\n")
    header = json.loads(line)
    ends = [*accumulate(header["lengths"], initial=0)]
    end_of_tokens = ends[-1] * array("i").itemsize
    tokens = array("i", tail[:end_of_tokens])
    responses = tuple(tuple(tokens[start:end]) for start, end in pairwise(ends))
    group = Group(
        question=from_plain(Question, header["question"]),
        prompt=header["prompt"],
        prompt_tokens=header["prompt_tokens"],
        responses=responses,
        pairs=tuple((chosen, rejected) for chosen, rejected in header["pairs"]),
        reference=None if header["reference"] is None else tuple(header["reference"]),
        origins=tuple(header["origins"]),
        forks=None if header["forks"] is None else tuple(map(tuple, header["forks"])),
        token_reference=unpack(responses, tail[end_of_tokens:]) if header["token_reference"] else None,
    )
    return GroupRow(group, tuple(header["repeats"]))


def stored_digest(path: Path) -> str | None:
    """The digest that a file was written with; None where there is no intact file."""
    try:
        with path.open("rb") as file:
            return str(_footer(file)["digest"])
    except (OSError, ValueError, KeyError):
        return None


def open_groups(path: Path) -> PairedGroups:
    """The groups of a file. Raises RecordError, as reading a group does, where it is missing or damaged."""
    try:
        file = path.open("rb", buffering=0)
        footer = _footer(file)
        index = np.memmap(path, INDEX, "r", footer["start"], (footer["groups"],)) if footer["groups"] else np.zeros(0, INDEX)
        if hashlib.sha256(index.data).hexdigest() != footer["index"]:
            raise ValueError("its index fails its checksum")
    except (OSError, ValueError, KeyError) as error:
        raise broken_record(path, error) from None

    def get(number: int) -> Group:
        entry = index[number]
        try:
            content = os.pread(file.fileno(), int(entry["bytes"]), int(entry["start"]))
        except OSError as error:
            raise broken_record(path, error) from error
        if zlib.crc32(content) != entry["crc"]:
            raise broken_record(path, ValueError(f"row {number} fails its checksum"))
        group, repeats = _decoded(content)
        return next(islice(repeated(group, repeats), int(entry["turn"]) - 1, None))

    return PairedGroups(len(index), get, footer["digest"], index, tuple(footer["sample"]))


def _footer(file: BinaryIO) -> dict[str, Any]:
    """The last line. Raises ValueError where it is not intact, and OSError."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - FOOTER_BYTES))
    return sealed.loads(file.read().rstrip(b"\n").rpartition(b"\n")[2].decode("utf-8", "replace"))
