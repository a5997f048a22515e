"""Rings: ringlog's two, and what one would write in an afternoon: rows in shared memory, by numpy or by struct."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from bench.peers.contract import FIELDS, Peer, Place, Receive, Send, sending
from bench.stack import wait_for
from ringlog import Producer
from ringlog.decode import Decoder
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneDirectory, remove_instance
from ringlog.records import Kind, Trade, layout_of
from ringlog.settings import Settings
from ringlog.writer.writer import POLL_SECONDS

CAPACITY = 32_768
_NUMPY_TYPES = {Kind.DOUBLE: "f8", Kind.LONG: "i8", Kind.BOOLEAN: "?", Kind.TIMESTAMP: "i8"}
_STRUCT_CODES = {Kind.DOUBLE: "d", Kind.LONG: "q", Kind.BOOLEAN: "?", Kind.TIMESTAMP: "q"}
# Both lay a row out alike: what the one writes, the other's consumer reads.
ROW = struct.Struct("<" + "".join(_STRUCT_CODES.get(field.kind, f"{field.width_bytes}s") for field in FIELDS))
DTYPE = np.dtype([(field.name, _NUMPY_TYPES.get(field.kind, f"S{field.width_bytes}")) for field in FIELDS])


def _settings(place: Place) -> Settings:
    return Settings(runtime_dir=f"{place.directory}/run")


@contextlib.contextmanager
def ringlog_producer(place: Place) -> Iterator[Send]:
    with Producer([Trade], settings=_settings(place)) as producer:
        yield producer.appender(Trade).append


@contextlib.contextmanager
def writer_consumer(place: Place) -> Iterator[Receive]:
    """Takes records when ringlog's writer does: every drain interval, or once a lane is at its high-water mark."""
    settings = _settings(place)
    with _consumer(place, settings.drain_interval_ms / 1000, settings.high_water_ratio, POLL_SECONDS) as receive:
        yield receive


@contextlib.contextmanager
def eager_consumer(place: Place) -> Iterator[Receive]:
    """Takes records as they come, as those of most peers do."""
    with _consumer(place, 0.0, 0.0, 0.0005) as receive:
        yield receive


@contextlib.contextmanager
def _consumer(place: Place, interval_s: float, high_water_ratio: float, poll_s: float) -> Iterator[Receive]:
    instance = Instance(_settings(place)).open()
    lanes = LaneDirectory(instance)
    decoder = Decoder(layout_of(Trade))
    due = 0.0

    def receive(wait_s: float) -> tuple[int, int]:
        nonlocal due
        until = time.monotonic() + wait_s
        while True:
            if not lanes.lanes:
                lanes.refresh()
            is_due = not wait_s or time.monotonic() >= due
            for lane in lanes.lanes.values():
                is_high = lane.head - lane.tail >= lane.capacity * high_water_ratio
                if (is_due or is_high) and (runs := lane.take(10_000)):
                    columns, _, corrupt = decoder.decode(runs)
                    assert not corrupt
                    rows = sum(run.rows for run in runs)
                    lane.advance(runs[0].first_seq + rows)
                    due = time.monotonic() + interval_s
                    return rows, int(np.sum(columns["transaction_fee"]))
            if time.monotonic() >= until:
                return 0, 0
            time.sleep(poll_s)

    yield receive
    lanes.close()
    remove_instance(instance)


def _numpy_ring(memory: SharedMemory) -> tuple[Any, Any]:
    words = np.frombuffer(memory.buf, np.uint64, 32)
    return words, np.frombuffer(memory.buf, DTYPE, CAPACITY, offset=4096)


@contextlib.contextmanager
def numpy_producer(place: Place) -> Iterator[Send]:
    memory = wait_for(lambda: _attached(place), "segment")
    words, rows = _numpy_ring(memory)

    def send(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q):  # type: ignore[no-untyped-def]  # noqa: E741
        head = int(words[0])
        if head - int(words[16]) == CAPACITY:
            return False
        rows[head % CAPACITY] = (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, time.time_ns() // 1000)
        words[0] = head + 1
        return True

    yield send
    words = rows = None


@contextlib.contextmanager
def struct_producer(place: Place) -> Iterator[Send]:
    memory = wait_for(lambda: _attached(place), "segment")
    values = [field.name if field.kind in _STRUCT_CODES else f"{field.name}.encode()" for field in FIELDS[:-1]]
    statements = f"""head = words[0]
if head - words[16] == {CAPACITY}:
    return False
pack_into(memory, 4096 + head % {CAPACITY} * {ROW.size}, {", ".join(values)}, time_ns() // 1000)
words[0] = head + 1
return True"""
    with memory.buf[:256].cast("Q") as words:
        yield sending(statements, words=words, pack_into=ROW.pack_into, memory=memory.buf)


def _attached(place: Place) -> SharedMemory | None:
    with contextlib.suppress(FileNotFoundError):
        return SharedMemory(place.name[-24:])
    return None


@contextlib.contextmanager
def numpy_consumer(place: Place) -> Iterator[Receive]:
    memory = SharedMemory(place.name[-24:], create=True, size=4096 + CAPACITY * DTYPE.itemsize)
    words, rows = _numpy_ring(memory)

    def receive(wait_s: float) -> tuple[int, int]:
        until = time.monotonic() + wait_s
        tail = int(words[16])
        while (head := int(words[0])) == tail:
            if time.monotonic() >= until:
                return 0, 0
            time.sleep(0.0005)
        end = min(head, tail + CAPACITY - tail % CAPACITY)
        part = rows[tail % CAPACITY : tail % CAPACITY + end - tail].copy()
        words[16] = end
        return len(part), int(part["transaction_fee"].sum())

    yield receive
    words = rows = None
    memory.unlink()


PEERS = (
    Peer("ringlog", ringlog_producer, writer_consumer, environment=(("RINGLOG_RING", "c"),)),
    Peer("ringlog, read at once", ringlog_producer, eager_consumer, environment=(("RINGLOG_RING", "c"),)),
    Peer("ringlog, Python ring", ringlog_producer, writer_consumer, environment=(("RINGLOG_RING", "python"),)),
    Peer("a plain numpy ring", numpy_producer, numpy_consumer),
    Peer("a ring by struct.pack_into", struct_producer, numpy_consumer),
)
