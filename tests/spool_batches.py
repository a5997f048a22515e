"""Small batches for spool tests: records of one narrow type with payloads that say whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from ringlog.records import Record, Symbol, layout_of
from ringlog.spans import Span
from ringlog.spool import Damage, Spool


class Tick(Record):
    """A narrow record: one slot is 64 bytes."""

    __table__ = "ticks"

    venue: Annotated[str, Symbol(8)]
    price: float


class Quote(Record):
    """Another table's record."""

    __table__ = "quotes"

    bid: float


TICK = layout_of(Tick)
QUOTE = layout_of(Quote)
SPOOL_BYTES_MAX = 64 * 1024 * 1024


def slots_of(span: Span, layout=TICK) -> NDArray[np.uint8]:
    """Raw slots whose every byte depends on lane and seq."""
    slots = np.zeros(span.rows, layout.dtype)
    slots["seq"] = np.arange(span.first_seq, span.first_seq + span.rows)
    slots["timestamp"] = slots["seq"].astype(np.int64) * 1_000_003 + span.lane
    last = layout.fields[-2].name
    slots[last] = slots["seq"] * 0.5 + span.lane
    return slots.view(np.uint8)


def append(spool: Spool, *spans: Span, layout=TICK) -> None:
    spool.append(layout, spans, [slots_of(span, layout) for span in spans])


def keys(*spans: Span) -> list[tuple[int, int]]:
    return [(span.lane, seq) for span in spans for seq in range(span.first_seq, span.first_seq + span.rows)]


def open_spool(path: Path, **options) -> Spool:
    options = {"bytes_max": SPOOL_BYTES_MAX, "reserve_bytes": 4096, **options}
    return Spool(path, **options)


def drain(spool: Spool, table: str = "ticks", rows_max: int = 1000) -> tuple[list[tuple[int, int]], list[Damage]]:
    """All that the spool has, read and confirmed: keys in order (payloads checked byte by byte) and damages."""
    seen: list[tuple[int, int]] = []
    damages: list[Damage] = []
    while (replay := spool.read(table, rows_max)) is not None:
        for span, memory in replay.runs():
            assert np.array_equal(memory, slots_of(span, replay.layout)), f"altered payload in {span}"
            seen += keys(span)
        damages += replay.damages
        spool.confirm(replay)
    return seen, damages
