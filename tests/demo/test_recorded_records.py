"""What executors append of a recording, held against a reading of the file that knows nothing of ringlog."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from lane_samples import Drained

from ringlog.demo.executor import Orders, run
from ringlog.demo.feed import survey
from ringlog.demo.processes import Processes
from ringlog.settings import Settings

DATA = Path(__file__).parents[2].parent / "shared" / "data"
NAMES = ("binance-spot-btcusdt-20240808.gz", "binance-usdm-btcusdt-20240808.gz")
pytestmark = pytest.mark.skipif(
    not all((DATA / name).exists() for name in NAMES), reason="the recordings are not beside the checkout"
)
EXECUTORS = 2


class Reading(msgspec.Struct):
    """Of each message with an event time: stream, receive time (us), receive minus event time (us); of each trade:
    receive time, price, quantity."""

    latencies: list[tuple[str, int, int]] = msgspec.field(default_factory=list)
    trades: list[tuple[int, Decimal, Decimal]] = msgspec.field(default_factory=list)


def read(path: Path) -> Reading:
    found = Reading()
    with gzip.open(path, "rt") as lines:
        for line in lines:
            stamp, message = line.split(" ", 1)
            receive_us, envelope = int(stamp) // 1000, json.loads(message)
            data = envelope.get("data", {})  # an answer to a subscription has none
            if "E" in data:
                found.latencies.append((envelope["stream"], receive_us, receive_us - 1000 * data["E"]))
            if data.get("e") == "trade":
                found.trades.append((receive_us, Decimal(data["p"]), Decimal(data["q"])))
    return found


def appended(settings: Settings, path: Path, results: Path) -> Drained:
    """Everything that the demo's executors append of a recording, drained while they do."""
    found = survey(path)
    drained = Drained(settings)
    with Processes() as processes:
        executors = [
            processes.start(
                f"executor {i}", run,
                Orders(
                    index=i, executors=EXECUTORS, runtime_dir=settings.runtime_dir, result_dir=str(results), rate=0.0,
                    seconds=0.0, seed=1, recording=str(path), clock_offset_us=found.clock_offset_us,
                    first_us=found.first_us,
                ),
                processes.is_started, processes.is_stopped,
            )
            for i in range(EXECUTORS)
        ]  # fmt: skip
        processes.is_started.set()
        while any(executor.is_alive() for executor in executors):
            processes.check()
            drained.drain()
        processes.check()
        drained.drain()
    return drained


@pytest.mark.parametrize(
    "lines", [pytest.param(4_000, id="cut"), pytest.param(None, id="whole", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_every_event_time_is_one_latency(instance_dir: Path, tmp_path: Path, name: str, lines: int | None) -> None:
    """Each message with an event time is one LatencySample of its stream, stamped with its receive time: receive minus
    event time, less the smallest such difference of the file. Each trade is one Trade. In count, sum and each value."""
    path = tmp_path / name
    with gzip.open(DATA / name, "rb") as whole, gzip.open(path, "wb", compresslevel=1) as cut:
        cut.writelines(itertools.islice(whole, lines))
    wanted = read(path)
    offset_us = min(latency for _, _, latency in wanted.latencies)
    drained = appended(Settings(runtime_dir=str(instance_dir)), path, tmp_path)
    assert drained.corrupt == []
    latencies = [row for row in drained.rows if "latency_us" in row]
    assert len(latencies) == len(wanted.latencies) > 100
    assert min(row["latency_us"] for row in latencies) == 0
    assert sum(row["latency_us"] for row in latencies) == sum(each[2] - offset_us for each in wanted.latencies)
    assert Counter((row["operation"], row["timestamp"], row["latency_us"]) for row in latencies) == Counter(
        (stream, receive_us, latency - offset_us) for stream, receive_us, latency in wanted.latencies
    )
    assert {row["service"] for row in latencies} == {"exchange-feed"}
    trades = [row for row in drained.rows if "executed_price" in row]
    assert len(trades) == len(wanted.trades) > 100
    assert Counter((row["timestamp"], row["executed_price"], row["base_amount"]) for row in trades) == Counter(
        (receive_us, float(price), float(quantity)) for receive_us, price, quantity in wanted.trades
    )
