"""Record shards on a bad disk: a flipped bit is refused by name or changes nothing; it is never read as other rows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mixpo.errors import RecordError
from mixpo.records import read_column, read_rows, write_rows
from mixpo.types import ImageRef, Question

ROWS = [
    Question(id=f"{number:016x}", text=f"<image>How many dots are in row {number}?", answer=str(number), kind="number",
             images=(ImageRef(path=f"images/{number}.png", digest=f"{number:064x}"),))
    for number in range(60)
]  # fmt: skip


@pytest.mark.slow
def test_no_flipped_bit_is_read_as_other_rows(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_rows(path, Question, ROWS)
    whole, rng, refused = path.read_bytes(), random.Random(0), list[str]()
    for _ in range(1500):
        place = rng.randrange(len(whole) * 8)
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            rows = read_rows(path, Question)
        except RecordError as error:
            refused.append(str(error))
        else:
            assert rows == ROWS, f"bit {place} changed rows silently"
    assert all(str(path) in message for message in refused)
    assert len(refused) > 750  # most of the file is pages, and every page has a checksum


def test_one_column_is_verified_too(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    write_rows(path, Question, ROWS)
    damaged = bytearray(path.read_bytes())
    damaged[4:2000] = bytes(byte ^ 1 for byte in damaged[4:2000])
    path.write_bytes(damaged)

    def read_all() -> None:
        for name in ("id", "text", "answer"):
            read_column(path, Question, name)

    with pytest.raises(RecordError):
        read_all()
