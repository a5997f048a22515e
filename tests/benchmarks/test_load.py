"""The loads of benchmarks: what they say was reached is what went through the lanes, and refusals are no appends."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from bench.load import Flow, Reached
from bench.producers import AppendTimes, Load, producing
from bench.stack import lanes, wait_for
from bench.trades import trades
from ringlog import Producer
from ringlog.records import Trade
from ringlog.settings import Settings


def test_a_load_is_what_went_through_the_lanes(lane_settings: Settings) -> None:
    """Accepted, written and refused are counted from the beginning asked for, and no rate is what was wanted."""
    (record,) = trades(1)
    with contextlib.ExitStack() as held, Producer([Trade], settings=lane_settings) as producer:
        append = producer.appender(Trade).append
        assert append(*record)
        (view,) = views = lanes(lane_settings, held)
        flow = Flow(views)
        accepted = sum(append(*record) for _ in range(view.capacity + 10))
        found = flow.reached()
    assert (found.accepted, found.written, found.refused) == (accepted, 0, 11)
    assert accepted == view.capacity - 1
    assert found.accepted_per_second == accepted / found.seconds
    both = Reached.together([Reached(1.0, 10, 5, 0), Reached(3.0, 10, 15, 1)])
    assert (both.accepted_per_second, both.written_per_second, both.refused) == (5.0, 5.0, 1)


def test_a_refused_append_is_no_sample(lane_settings: Settings, tmp_path: Path) -> None:
    """A producer whose lane nobody drains leaves a time for each append that was accepted, and none for a refusal."""
    load = Load(rate=100_000, producers=1, types=1, lane_bytes=1 << 18)
    with contextlib.ExitStack() as held, producing(lane_settings, str(tmp_path), load):
        (view,) = views = lanes(lane_settings, held)
        flow = Flow(views)
        wait_for(lambda: flow.reached().refused > 1000, "refusals")
        times_ns = AppendTimes(str(tmp_path), 1).latest()
        assert len(times_ns) == view.head == view.capacity
        assert np.all(times_ns > 0)
