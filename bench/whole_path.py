"""The whole path into QuestDB, timed until applied, against the questdb client alone.

ringlog: producer processes append as fast as they go, the writer runs as `ringlog writer`, and the time ends when a
query sees all rows. The client alone: one process sends ready-made frames of as many rows as ringlog's requests had,
over the same HTTP API into a table of the same columns, timed until a query sees all rows. They take turns, and the
server is on the same machine.

    python -m bench.whole_path [--json] [--tiny]
"""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import time
from typing import Any

import pandas as pd
import psycopg

from bench.figures import Figure, Result, interleaved, main, median_ratio
from bench.load import append_all
from bench.stack import connect, count, instance, server, wait_for, wait_until_applied, writer_status
from bench.trades import slots, stamped
from ringlog.decode import Decoder, Slots
from ringlog.questdb.conf import client_conf
from ringlog.questdb.frame import FrameBuilder
from ringlog.questdb.ingress import open_sender
from ringlog.questdb.tables import create_table
from ringlog.records import TIMESTAMP, Trade, layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings
from ringlog.sinks import Batch, Span

ROUNDS = 5
CLIENT_TABLE = "client_trades"


def ringlog(questdb: QuestDBServer, producers: int, rows: int, status: dict[str, Any]) -> float:
    """Trades/s from the first append until all are applied; `status` takes what the writer says of itself."""
    context = multiprocessing.get_context("spawn")
    is_ready, is_started = context.Semaphore(0), context.Event()
    with instance(questdb) as settings, connect(settings) as connection:
        before = count(connection, "trades")
        shares = [(rows + i) // producers for i in range(producers)]
        processes = [
            context.Process(target=append_all, args=(settings.runtime_dir, share, i, {}, is_ready, is_started))
            for i, share in enumerate(shares)
        ]
        for process in processes:
            process.start()
        for _ in processes:
            is_ready.acquire()
        is_started.set()
        began = time.monotonic()
        wait_until_applied(connection, "trades", before + rows)
        seconds = time.monotonic() - began
        for process in processes:
            process.join()
        # It is as old as a second, and looking costs the writer a lock.
        wait_for(lambda: writer_status(settings)["rows"] >= rows, "status of every row", poll_seconds=0.1)
        status.update(writer_status(settings))
        stored = count(connection, "trades") - before
        if stored != rows:
            raise RuntimeError(f"got {stored} rows stored, wanted {rows}")
    return rows / seconds


def frames(rows: int, request_rows: int, seed: int) -> list[pd.DataFrame]:
    """Trades as the frames that the sink sends, `request_rows` rows each, with a lane and seqs of their own."""
    layout = layout_of(Trade)
    decoder, builder = Decoder(layout), FrameBuilder()
    array = slots(request_rows, seed)
    now_us = time.time_ns() // 1000 - rows
    found = []
    for first in range(0, rows, request_rows):
        part = stamped(array, now_us + first)[: rows - first]
        part["seq"] = range(first, first + len(part))
        lane = seed + 1
        columns, _, _ = decoder.decode([Slots(lane, first, len(part), part.view("u1").tobytes())])
        found.append(builder.frame(Batch(layout, (Span(lane, first, len(part)),), len(part), columns)))
    return found


def client(settings: Settings, connection: psycopg.Connection[Any], rows: int, request_rows: int) -> float:
    """Trades/s of the questdb client alone, until all are applied."""
    made = frames(rows, request_rows, seed=time.time_ns())
    before = count(connection, CLIENT_TABLE)
    sender = open_sender(client_conf(settings), 30_000)
    buffer = sender.new_buffer()
    began = time.monotonic()
    for frame in made:
        buffer.dataframe(frame, table_name=CLIENT_TABLE, symbols="auto", at=TIMESTAMP)
        sender.flush(buffer)
    wait_until_applied(connection, CLIENT_TABLE, before + rows)
    seconds = time.monotonic() - began
    sender.close()
    return rows / seconds


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    rows = 4_000 if tiny else 1_000_000  # some 4 s, of which the first batches and the last tick are a small part
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    with server(running) as questdb:
        settings = Settings(**questdb.settings())
        with connect(settings) as connection:
            connection.execute(create_table(layout_of(Trade)).replace("trades", CLIENT_TABLE, 1))
            for producers in (1,) if tiny else (1, 4):
                status: dict[str, Any] = {}
                ringlog(questdb, producers, max(rows // 8, 2_000), status)  # warm, and how many rows a request has
                request_rows = max(int(status["write_ms"]["rows"]), 1)
                client(settings, connection, max(rows // 8, 2_000), request_rows)  # warm
                contenders = {
                    "ringlog": functools.partial(ringlog, questdb, producers, rows, status),
                    "client": functools.partial(client, settings, connection, rows, request_rows),
                }
                found = interleaved(contenders, 1 if tiny else ROUNDS)
                details[f"producers_{producers}"] = {**found, "request_rows": request_rows, "writer": status}
                what = f"{producers} producer{'s' if producers > 1 else ''}"
                figures += [
                    Figure(
                        name=f"{what}, until applied",
                        value=statistics.median(found["ringlog"]),
                        unit="trades/s",
                        at_least=100_000,
                    ),
                    Figure(
                        name=f"{what}, against the client alone",
                        value=100 * median_ratio(found, "ringlog", "client"),
                        unit="%",
                        at_least=90,
                    ),
                    Figure(
                        name=f"client alone, {request_rows:,} rows a request",
                        value=statistics.median(found["client"]),
                        unit="trades/s",
                    ),
                ]
    return Result(benchmark="whole_path", what="append to applied in QuestDB", figures=figures, details=details)


if __name__ == "__main__":
    main(run)
