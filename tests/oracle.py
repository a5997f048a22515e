"""An oracle that knows nothing of ringlog's insides: what producers say they did, held against what a table has.

A producer logs what it is about to append (`attempted`) before, and what append returned True for (`accepted`) after
the call, to a file of its own. Whatever is killed in between, accepted ⊆ stored ⊆ attempted must hold, every stored
row must carry the payload that belongs to its number, and no number or key may be stored twice. The payload follows
from the number alone, so that an altered one is seen without believing anything that went through a lane.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 64  # records between two lines of the log: a line is a system call
NUMBERS_PER_PRODUCER = 10**12


def payload(number: int) -> str:
    """The text that belongs to a number: of ever changing length, with a checksum."""
    body = f"{number}:" + "öx"[number % 2] * (number % 61)
    return f"{body}:{zlib.crc32(body.encode()):08x}"


class ProducerLog:
    """Written by one producer, one line a block, with one unbuffered write: a kill loses at most the line under way."""

    def __init__(self, directory: Path, producer: int) -> None:
        self.first = producer * NUMBERS_PER_PRODUCER
        self._file = os.open(directory / f"{producer}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def attempting(self, first: int, last: int) -> None:
        """Before the first append of the block: numbers first to last, both included."""
        os.write(self._file, f"attempting {first} {last}\n".encode())

    def accepted(self, numbers: Iterable[int]) -> None:
        """After the appends: the numbers for which append returned True."""
        os.write(self._file, f"accepted {' '.join(map(str, numbers))}\n".encode())

    def blocks(self, count: int | None = None) -> Iterator[range]:
        """Blocks of numbers, each logged as attempted before it is given out; endless without `count`."""
        number = self.first
        while count is None or number < self.first + count:
            size = BLOCK if count is None else min(BLOCK, self.first + count - number)
            self.attempting(number, number + size - 1)
            yield range(number, number + size)
            number += size


@dataclasses.dataclass
class Verdict:
    """How a table compares with what producers logged; every list must be empty."""

    accepted: int
    stored: int
    lost: list[int]  # accepted, not stored
    invented: list[int]  # stored, never attempted
    altered: list[int]  # stored with a payload that does not belong to the number
    doubled: list[int]  # stored more than once
    doubled_keys: list[tuple[int, int]]  # (lane, seq) that more than one row has

    @property
    def holds(self) -> bool:
        return not (self.lost or self.invented or self.altered or self.doubled or self.doubled_keys)

    def __str__(self) -> str:
        parts = [f"accepted={self.accepted} stored={self.stored}"]
        for name in ("lost", "invented", "altered", "doubled", "doubled_keys"):
            found: list[Any] = getattr(self, name)
            parts.append(f"{name}={len(found)}" + (f" (first {found[:3]})" if found else ""))
        return " ".join(parts)


@dataclasses.dataclass
class Stored:
    """The rows of one table: `number`, `lane` and `seq` (int64, one a row), and the numbers whose payload is wrong."""

    number: NDArray[np.int64]
    lane: NDArray[np.int64]
    seq: NDArray[np.int64]
    altered: list[int]


def judged(accepted: NDArray[np.int64], attempted: NDArray[np.int64], tables: Sequence[Stored]) -> Verdict:
    """What tables hold against the numbers that producers logged.

    Several tables are generations of one that was dropped and made again: a record may be in more than one of them,
    but never twice in the same.
    """
    verdict = Verdict(len(accepted), sum(len(table.number) for table in tables), [], [], [], [], [])
    for table in tables:
        numbers, counts = np.unique(table.number, return_counts=True)
        keys, key_counts = np.unique(np.stack([table.lane, table.seq], 1), axis=0, return_counts=True)
        verdict.doubled += numbers[counts > 1].tolist()
        verdict.doubled_keys += [(lane, seq) for lane, seq in keys[key_counts > 1].tolist()]
        verdict.invented += np.setdiff1d(numbers, attempted).tolist()
        verdict.altered += sorted(table.altered)
    stored = np.concatenate([np.empty(0, np.int64), *(table.number for table in tables)])
    verdict.lost = np.setdiff1d(accepted, stored).tolist()
    return verdict


class Oracle:
    """Reads the producers' logs of a directory and judges rows of (number, text, lane, seq)."""

    def __init__(self, directory: Path) -> None:
        self.attempted: set[int] = set()
        self.accepted: set[int] = set()
        for path in sorted(directory.glob("*.log")):
            for line in path.read_text().split("\n")[:-1]:  # a torn last line says nothing
                word, *numbers = line.split()
                if word == "attempting":
                    self.attempted.update(range(int(numbers[0]), int(numbers[1]) + 1))
                else:
                    self.accepted.update(map(int, numbers))

    def judge(self, rows: Iterable[tuple[int, str, int, int]]) -> Verdict:
        """The verdict on all rows of the table."""
        found = list(rows)
        keys = np.array([(number, lane, seq) for number, _, lane, seq in found], np.int64).reshape(-1, 3)
        altered = [number for number, text, _, _ in found if text != payload(number)]
        table = Stored(keys[:, 0], keys[:, 1], keys[:, 2], altered)
        return judged(_numbers(self.accepted), _numbers(self.attempted), [table])


def _numbers(members: set[int]) -> NDArray[np.int64]:
    return np.fromiter(members, np.int64, len(members))


# What a producing child runs after lane_samples.PRELUDE: arguments are set by `produce`.
def produce(directory: Path, producer: int, count: int | None = None, rest_seconds: float = 0.01) -> str:
    """A script that appends `count` numbered samples (or goes on until it is killed), logging for the oracle.

    It rests after each block, so that a small machine spends its time on recovery rather than on rows.
    """
    return f"""
from pathlib import Path
from oracle import ProducerLog, payload
log = ProducerLog(Path({str(directory)!r}), {producer})
say("go")
for block in log.blocks({count}):
    log.accepted([number for number in block if appender.append(number, payload(number))])
    time.sleep({rest_seconds})
say("done")
"""
