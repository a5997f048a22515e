"""What a producer attempted and what was accepted: a mapped file that outlives kill -9, and the payload of a number.

Attempt n of producer p has a payload that follows from (p, n) alone, so that a stored row can be judged without
having kept it. Word 0 counts attempts (written before the append), word 1 acceptances (written after), word 2 and 3
refusals while faults were deliberate and while not, word 4 the longest append in nanoseconds; then (lane, seq, n) of
each acceptance.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringlog.layout import BoardReason, Refused

HEADER_WORDS = 32
ENTRY_WORDS = 3
ENTRIES_MAX = 2_000_000
ATTEMPTED, ACCEPTED, LONGEST_NS = range(3)
OTHERS = (reason.name.lower() for reason in Refused if reason not in (Refused.FULL, Refused.BOARD))
REASONS = ("full", *(f"board: {reason.name.lower()}" for reason in BoardReason), *OTHERS)
REFUSED_DELIBERATE, REFUSED = 3, 3 + len(REASONS)  # the first of so many words each


class Attempts:
    """One producer process's log: `words` is int64, mapped, at most ENTRIES_MAX acceptances."""

    def __init__(self, path: Path, *, create: bool) -> None:
        shape = (HEADER_WORDS + ENTRY_WORDS * ENTRIES_MAX,)
        # Under its name only once it has its size: the torture looks at logs of producers that start, or died in it.
        made = path.with_suffix(".new") if create else path
        self.words: NDArray[np.int64] = np.memmap(made, np.int64, "w+" if create else "r", shape=shape)
        if create:
            made.rename(path)

    @property
    def entries(self) -> NDArray[np.int64]:
        """(lane, seq, n) of every acceptance: int64 (accepted, 3)."""
        count = int(self.words[ACCEPTED])
        return self.words[HEADER_WORDS : HEADER_WORDS + ENTRY_WORDS * count].reshape(-1, ENTRY_WORDS)


def signature(producer: int, number: int) -> str:
    """88 characters that follow from producer and number: what an altered or mixed record would break."""
    digest = zlib.crc32(b"%d:%d" % (producer, number))
    return f"{producer:08d}{number:012d}{digest:010d}".ljust(88, "x")


def payload(producer: int, number: int) -> tuple[Any, ...]:
    """The fields of a Trade in order, the timestamp left out."""
    return (
        f"torture-{producer}", "paper", ("buy", "sell", "swap")[number % 3], "SOL", "USDC",
        float(number), number * 1.5, 100.0 + number % 1000, number, None if number % 2 else number % 5000,
        0.001, 0.002, "protected", number % 2 == 0, None, signature(producer, number), f'{{"n":{number}}}',
    )  # fmt: skip
