"""A fuzzer for the C files: any values into append, any bytes into slots and shared words. The seed is printed.

    python tests/rings/fuzzer.py --rounds 20000 [--seed S]

It looks for crashes and for SystemError (a C function that broke the rules of its own API); under the sanitizers for
bad accesses too. What append must do with a value is held by the tests of both rings against each other.
"""

from __future__ import annotations

import argparse
import datetime
import math
import random
import struct
from typing import Any

import numpy as np
from ring_memory import SLOTS_AT, WORDS, Everything, RingUnderTest, module

from ringlog.decode import Decoder, Slots
from ringlog.records import layout_of

WORD_VALUES = (0, 1, 2, 7, 8, 9, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


class Hostile:
    """Answers every conversion with an exception or with nonsense."""

    def __init__(self, chosen: random.Random) -> None:
        self._chosen = chosen

    def _answer(self) -> Any:
        if self._chosen.random() < 0.5:
            raise RuntimeError("hostile")
        return self._chosen.choice([None, "x", 1.5, 2**70])

    __float__ = __index__ = __int__ = __str__ = __bool__ = _answer  # type: ignore[assignment]

    def __hash__(self) -> int:
        raise RuntimeError("hostile")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("hostile")


class Text(str):
    """A str that is none exactly."""

    __slots__ = ()


def value(chosen: random.Random) -> Any:
    """Anything a caller might pass."""
    return chosen.choice([
        lambda: None, lambda: chosen.choice(["left", "right", "SOL", ""]), lambda: "x" * chosen.randrange(60),
        lambda: "".join(chr(chosen.randrange(1, 0x2FFF)) for _ in range(chosen.randrange(20))),
        lambda: chosen.choice(["\ud800", "a\0b", "\U0001f600" * 5, "é" * 20]), lambda: Text("left"),
        lambda: chosen.choice([0.0, -0.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, 0.5]),
        lambda: chosen.choice([0, 1, 50, 95, 2**62, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**200]),
        lambda: chosen.random() * 2, lambda: chosen.random() < 0.5, lambda: np.float32(chosen.random()),
        lambda: np.int64(chosen.randrange(-5, 5)), lambda: {"a": chosen.random()}, lambda: [1, "x"],
        lambda: b"bytes", lambda: Hostile(chosen), lambda: datetime.datetime.now(datetime.UTC),
        lambda: datetime.datetime(1, 1, 1), object,
    ])()  # fmt: skip


def append(ring: RingUnderTest, chosen: random.Random) -> None:
    names = [field.name for field in ring.layout.fields]
    values = [value(chosen) for _ in range(chosen.choice([9, 9, 9, chosen.randrange(14)]))]
    named = {name: value(chosen) for name in chosen.sample([*names, "unknown"], chosen.randrange(4))}
    if chosen.random() < 0.2:
        ring.bind(**{name: value(chosen) for name in chosen.sample(names, 2)})(*values, **named)
    else:
        ring.append(*values, **named)


def append_rows(ring: RingUnderTest, chosen: random.Random) -> None:
    count = chosen.randrange(6)
    memory = np.frombuffer(chosen.randbytes(count * ring.layout.slot_bytes + chosen.choice([0, 0, 1])), np.uint8)
    ring.ring.append_many(memory, chosen.choice([count, count, count + 1, -1, 2**40]))


def disturb(ring: RingUnderTest, chosen: random.Random) -> None:
    """Another process writes into the words that both share."""
    ring.lane.set_word(chosen.choice(WORDS[:4]), chosen.choice(WORD_VALUES))
    ring.lane.refuse(chosen.choice(WORD_VALUES) if chosen.random() < 0.3 else 0)


def decode(ring: RingUnderTest, decoder: Decoder, chosen: random.Random) -> None:
    """Slots as they are, then with bytes changed."""
    slot_bytes = ring.layout.slot_bytes
    memory = bytearray(ring.lane.memory[SLOTS_AT : SLOTS_AT + 8 * slot_bytes])
    for _ in range(chosen.randrange(30)):
        memory[chosen.randrange(len(memory))] = chosen.choice([0, 1, 0x7F, 0x80, 0xC3, 0xFF, chosen.randrange(256)])
    for index in range(8):
        if chosen.random() < 0.8:
            struct.pack_into("=Q", memory, index * slot_bytes, index)
    _, sound, corrupt = decoder.decode([Slots(1, 0, 8, memoryview(memory))])
    assert sum(run.rows for run in sound) + len(corrupt) == 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    chosen = random.Random(given.seed)  # noqa: S311 (replayable, not secret)
    ring, decoder = RingUnderTest(module("_ring")), Decoder(layout_of(Everything))
    raised = 0
    for number in range(given.rounds):
        if number % 50 == 0:
            ring = RingUnderTest(module("_ring"))
        try:
            chosen.choices([append, append_rows, disturb], [80, 8, 4])[0](ring, chosen)
        except SystemError:
            raise
        except Exception:  # noqa: BLE001 (whatever a hostile value raises)
            raised += 1
        if number % 10 == 0:
            decode(ring, decoder, chosen)
    print(f"{given.rounds} rounds, {raised} refused with an exception")


if __name__ == "__main__":
    main()
