"""After an outage: the spool's replay against the questdb client alone, while 1,000 live trades/s flow; and memory.

Each round spools trades by a writer that cannot reach QuestDB, then a writer that can replays them. The rate is taken
from the first replayed rows that a query sees until all are applied; the client sends the same number of rows of the
same type, as many a request, and is timed until all are applied. The writer's memory is what it does not share, every
100 ms, over what it has when there is nothing to do.

    python -m bench.spool_replay [--json] [--tiny]
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg

from bench.figures import Figure, Result, interleaved, main, median_ratio
from bench.load import REACHED, Reached, append_all, beside
from bench.stack import connect, count, fresh, private_bytes, server, wait_for, writer
from bench.whole_path import CLIENT_TABLE, client
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.questdb.tables import create_table
from ringlog.records import Trade, layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings
from ringlog.spool.reader import READ_BYTES_MAX

ROUNDS = 4
LIVE_RATE = 1_000.0  # trades/s
NOWHERE = {"questdb_http_port": 1, "questdb_pg_port": 1}


@contextlib.contextmanager
def sampled(pid: int, samples: list[int]) -> Iterator[None]:
    """The process's private memory in bytes, every 100 ms while the body runs."""
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(0.1):
            samples.append(private_bytes(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def idle_bytes(questdb: QuestDBServer) -> int:
    """What a writer that has never had a record holds, a few ticks after its start."""
    samples: list[int] = []
    with fresh(questdb) as settings, writer(settings) as process, sampled(process.pid, samples):
        wait_for(lambda: len(samples) >= 10, "samples of an idle writer")
    return min(samples)


def spool(settings: Settings, rows: int, samples: list[int]) -> list[int]:
    """Puts so many trades into the spool; the lanes they came from."""
    context = multiprocessing.get_context("spawn")
    is_ready, is_started = context.Semaphore(0), context.Event()
    with writer(msgspec.structs.replace(settings, **NOWHERE)) as process, sampled(process.pid, samples):
        producer = context.Process(target=append_all, args=(settings.runtime_dir, rows, 1, {}, is_ready, is_started))
        producer.start()
        is_ready.acquire()
        lanes = [card.lane for card in cards(Instance(settings))]
        is_started.set()
        producer.join()
        wait_for(lambda: not cards(Instance(settings)), "empty lane")
    return lanes


def replay(
    questdb: QuestDBServer, connection: psycopg.Connection[Any], rows: int, samples: list[int], live: list[Reached]
) -> float:
    """Replayed trades/s, from the first that a query sees until all are applied; what was appended beside to `live`."""
    with fresh(questdb, spool_bytes_max=16 << 30) as settings:
        lanes = spool(settings, rows, samples)
        before = count(connection, "trades")
        with (
            beside(settings, {"Trade": LIVE_RATE}) as flow,
            writer(settings) as process,
            sampled(process.pid, samples),
        ):
            first = wait_for(lambda: count(connection, "trades") - before, "replayed row")
            began = time.monotonic()
            flow.begin()
            # A file of the spool goes once its rows are applied, and this costs the server no question.
            wait_for(lambda: not [*settings.spool_path.glob("tables/trades/*.spool")], "empty spool")
            seconds = time.monotonic() - began
            live.append(flow.reached())
    query = f"SELECT count() FROM trades WHERE lane IN ({', '.join(map(str, lanes))})"
    (stored,) = connection.execute(query).fetchone() or (0,)
    if stored != rows:
        raise RuntimeError(f"got {stored} replayed rows stored, wanted {rows}")
    return (rows - first) / seconds


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    rows = 30_000 if tiny else 600_000
    request_rows = min(Settings().batch_rows_max, READ_BYTES_MAX // layout_of(Trade).slot_bytes)
    samples: list[int] = []
    live: list[Reached] = []
    with server(running) as questdb:
        settings = Settings(**questdb.settings())
        with connect(settings) as connection:
            connection.execute(create_table(layout_of(Trade)).replace("trades", CLIENT_TABLE, 1))
            idle = idle_bytes(questdb)
            contenders = {
                "replay": functools.partial(replay, questdb, connection, rows, samples, live),
                "client": functools.partial(client, settings, connection, rows, request_rows),
            }
            found = interleaved(contenders, 1 if tiny else ROUNDS)
    ratio = median_ratio(found, "replay", "client")
    appended = Reached.together(live).accepted_per_second
    return Result(
        benchmark="spool_replay",
        what="replay of the spool after an outage",
        figures=[
            Figure(name="replay, 1,000 live trades/s beside", value=statistics.median(found["replay"]), unit="rows/s"),
            Figure(name="appended live", value=appended, unit="rows/s", at_least=REACHED * LIVE_RATE),
            Figure(name="client alone", value=statistics.median(found["client"]), unit="rows/s"),
            Figure(name="replay against it", value=100 * ratio, unit="%", at_least=80),
            Figure(name="writer, idle", value=idle / 1e6, unit="MB"),
            Figure(name="grown, spooling and replaying", value=(max(samples) - idle) / 1e6, unit="MB", at_most=100),
        ],
        details={**found, "samples": len(samples)},
    )  # fmt: skip


if __name__ == "__main__":
    main(run)
