"""The warm-up: a server that has just started interprets its code, and how long that takes is not what is measured.

Rows as the load's go the load's way through the sink, in order and out of order, and are asked for as probe and check
ask. They go into tables of their own, which are dropped: nothing of them is in what is counted, kept or analysed.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import Any

import msgspec
import numpy as np

from ringlog.arrays import rows_of
from ringlog.decode import Decoder, Slots
from ringlog.demo.probe import counted
from ringlog.demo.verification import ranged
from ringlog.errors import ServerUnavailable
from ringlog.questdb import tables
from ringlog.questdb.connection import Connection
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import LatencySample, Record, Trade, layout_of
from ringlog.settings import Settings
from ringlog.sinks import Batch, Receipt, Span

PREFIX = "warm_up_"
WARM_UP_SECONDS = 3.0
WRITES_MIN = 25  # of each table, however slow the machine is: compiled are methods that were called often, not long
REQUEST_ROWS = 500  # of 10,000 records/s, what a tick takes of one table
APPLIED_TIMEOUT_SECONDS = 30.0
EXAMPLES: dict[type[Record], dict[str, Any]] = {
    Trade: {
        "trader_id": "warm-up", "mode": "paper", "action": "buy", "base_token": "SOL", "quote_token": "USDC",
        "base_amount": 1.0, "quote_amount": 150.0, "executed_price": 150.0, "transaction_fee": 5_000,
        "expected_slippage": 0.001, "actual_slippage": 0.001, "mev_status": "protected", "mev_protected": True,
        "metadata": '{"trade_id":1}',
    },
    LatencySample: {"service": "warm-up", "operation": "decide", "latency_us": 10.0},
}  # fmt: skip


def warm_up(settings: Settings) -> list[float]:
    """Writes and reads for WARM_UP_SECONDS; the seconds of each write. Raises RinglogError where the server fails."""
    written = []
    with contextlib.closing(Connection.from_settings(settings)) as connection:
        feeds = [_Feed(record, connection) for record in EXAMPLES]
        try:
            with contextlib.closing(QuestdbSink(settings)) as sink:
                deadline = time.monotonic() + WARM_UP_SECONDS
                for number in itertools.count():
                    if number >= WRITES_MIN and time.monotonic() > deadline:
                        break
                    receipts = []
                    for feed in feeds:
                        began = time.perf_counter()
                        receipts.append(feed.write(sink))
                        written.append(time.perf_counter() - began)
                    _wait_applied(sink, receipts)
                    for feed in feeds:
                        connection.execute(counted(feed.layout.table))
                        connection.execute(ranged(feed.layout.table))
        finally:
            for feed in feeds:
                connection.execute(f"DROP TABLE IF EXISTS {tables.quoted(feed.layout.table)}")
    return written


class _Feed:
    """Rows for a table of the warm-up's own, of two lanes that take turns: each request's rows overlap those before."""

    def __init__(self, record: type[Record], connection: Connection) -> None:
        layout = layout_of(record)
        self.layout = msgspec.structs.replace(layout, table=PREFIX + layout.table)
        self._array = rows_of(record, {name: [value] * REQUEST_ROWS for name, value in EXAMPLES[record].items()})
        self._decoder = Decoder(layout)
        self._count = 0
        tables.apply(connection, self.layout, tables.needed(connection, self.layout, None))

    def write(self, sink: QuestdbSink) -> Receipt:
        lane, first = 1 + self._count % 2, self._count // 2 * REQUEST_ROWS
        self._count += 1
        self._array["seq"] = np.arange(first, first + REQUEST_ROWS)
        self._array["timestamp"] = time.time_ns() // 1_000 - np.arange(REQUEST_ROWS)[::-1] * 200
        columns, _, _ = self._decoder.decode([Slots(lane, first, REQUEST_ROWS, self._array.view(np.uint8))])
        request = sink.encode(Batch(self.layout, (Span(lane, first, REQUEST_ROWS),), REQUEST_ROWS, columns))
        try:
            return sink.send(request)
        finally:
            sink.release(request)


def _wait_applied(sink: QuestdbSink, receipts: list[Receipt]) -> None:
    deadline = time.monotonic() + APPLIED_TIMEOUT_SECONDS
    while not all(sink.confirm(receipts)):
        if time.monotonic() > deadline:
            raise ServerUnavailable(
                f"QuestDB: rows not applied {APPLIED_TIMEOUT_SECONDS:.0f} s after their acknowledgement"
            )
        time.sleep(0.002)
