"""A producer under torture: appends numbered trades until killed or told to stop."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from ringlog import Producer, Settings
from ringlog.records import Trade
from torture.attempts import (
    ACCEPTED,
    ATTEMPTED,
    ENTRIES_MAX,
    ENTRY_WORDS,
    HEADER_WORDS,
    LONGEST_NS,
    REASONS,
    REFUSED,
    REFUSED_DELIBERATE,
    Attempts,
    payload,
)
from torture.planted import plant_in_producer

STOP, DELIBERATE = 0, 1
LAG_SECONDS_MAX = 0.25  # what a process that stood still for longer would have attempted meanwhile is not made up for


def run(runtime_dir: str, log: str, flags_path: str, producer: int, rate: float, plant: str) -> None:
    words = Attempts(Path(log), create=True).words
    flags = np.memmap(flags_path, np.int64, "r")
    trades = Producer([Trade], settings=Settings(runtime_dir=runtime_dir)).open().appender(Trade)
    reuse = plant_in_producer(plant, trades)
    started = time.monotonic()
    number = accepted = 0
    while not flags[STOP] and accepted < ENTRIES_MAX:
        values = payload(producer, number)
        words[ATTEMPTED] = number + 1
        began = time.perf_counter_ns()
        is_accepted = trades.append(*values)
        taken = time.perf_counter_ns() - began
        words[LONGEST_NS] = max(words[LONGEST_NS], taken)
        if is_accepted:
            at = HEADER_WORDS + ENTRY_WORDS * accepted
            words[at : at + ENTRY_WORDS] = (trades.lane, trades.accepted - 1, number)
            accepted += 1
            words[ACCEPTED] = accepted
        else:
            reason = REASONS.index(trades.refused_reason())
            words[(REFUSED_DELIBERATE if flags[DELIBERATE] else REFUSED) + reason] += 1
        number += 1
        reuse(number)
        if number % 16 == 0:
            ahead = started + number / rate - time.monotonic()
            if ahead > 0.0005:
                time.sleep(ahead)
            elif ahead < -LAG_SECONDS_MAX:
                started -= ahead


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), sys.argv[6])
