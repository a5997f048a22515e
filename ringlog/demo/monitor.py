"""The performance monitor: once a second latencies and throughput of every part, appended as performance_metrics.

What executors measure of themselves it reads back from QuestDB as percentiles; what the servers take it asks them
itself; how much goes through lanes it reads from the lanes, which costs their owners nothing.
"""

from __future__ import annotations

import contextlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import msgspec

from ringlog.demo.heads import Heads
from ringlog.demo.orphans import end_with_parent
from ringlog.demo.plan import Plan
from ringlog.demo.results import Result, counts_of, write
from ringlog.errors import RinglogError
from ringlog.lanes.instance import Instance
from ringlog.postgres import Nodes, Pool
from ringlog.producer import Producer
from ringlog.questdb.queries import Queries
from ringlog.records import LatencySample, PerformanceMetric
from ringlog.redis import Cache, Connection

RECORDS = (PerformanceMetric, LatencySample)
INTERVAL_S = 1.0
WINDOW_S = 600.0  # the whole session, which is shorter
PERCENTILES = (50, 95, 99)
NODE_TIMEOUT_S = 0.5


class Throughput:
    """Records accepted and refused by table since the latest look, read from the lanes.

    What lanes held before the first look is of an earlier stage, whose lanes the writer may not have removed yet.
    """

    def __init__(self, instance: Instance) -> None:
        self._heads = Heads(instance)
        self._seen = self._heads.by_table()
        self._seen_s = time.monotonic()

    def look(self) -> tuple[float, dict[str, tuple[int, int]]]:
        """Seconds since the latest look, and table to records accepted and refused in them."""
        now_s, by_table = time.monotonic(), self._heads.by_table()
        found = {}
        for table, (accepted, refused) in by_table.items():
            accepted_before, refused_before = self._seen.get(table, (0, 0))
            found[table] = max(0, accepted - accepted_before), max(0, refused - refused_before)
        seconds = now_s - self._seen_s
        self._seen, self._seen_s = by_table, now_s
        return seconds, found

    def close(self) -> None:
        self._heads.close()


class Monitor:
    """One look at everything is a `round`."""

    def __init__(self, plan: Plan, producer: Producer, queries: Queries, cache: Cache, database: Pool) -> None:
        self._plan = plan
        self._metric = producer.appender(PerformanceMetric).append
        self._latency = producer.appender(LatencySample).append
        self._queries, self._cache, self._nodes = queries, cache, Nodes(database)
        self._lanes = Throughput(Instance(plan.settings()))

    def round(self) -> None:
        """Probes the servers, then appends what is known. A server that is away costs its figures, not the round."""
        for service, probe in (
            ("redis", lambda: self._cache.price(self._plan.base)),
            ("postgres", self._nodes.health),
            ("questdb", lambda: self._queries.execute_query("SELECT count() FROM trades")),
        ):
            with contextlib.suppress(RinglogError):
                self._timed(service, "probe", probe)
        with contextlib.suppress(RinglogError):
            self._probe_nodes()
        self._throughput()
        with contextlib.suppress(RinglogError):
            self._percentiles()

    def close(self) -> None:
        self._lanes.close()

    def _timed(self, service: str, operation: str, call: Callable[[], Any]) -> float:
        began_ns = time.perf_counter_ns()
        call()
        latency_us = (time.perf_counter_ns() - began_ns) / 1e3
        self._latency(service, operation, latency_us)
        return latency_us

    def _probe_nodes(self) -> None:
        """Calls every RPC node whose breaker lets it, and tells all processes how that went."""
        for name in self._nodes.get_all():
            choice = self._nodes.choose(name)
            if choice is None:
                continue
            url = choice.node.url.reveal()
            try:
                latency_us = self._timed("rpc", name, lambda url=url: _called(url))  # type: ignore[misc]
            except (OSError, urllib.error.URLError):
                self._nodes.record_failure(name, choice.trial)
            else:
                self._nodes.record_success(name, latency_us, choice.trial)

    def _throughput(self) -> None:
        """Records/s and the share of refused appends, table by table, since the last round."""
        seconds, by_table = self._lanes.look()
        for table, (accepted, refused) in by_table.items():
            self._metric("throughput", f"append.{table}", accepted / seconds)
            self._metric("error_rate", f"append.{table}", refused / max(1, accepted + refused))

    def _percentiles(self) -> None:
        """p50, p95 and p99 of every operation that any process measured."""
        found = self._queries.get_latency_percentiles(None, None, WINDOW_S, percentiles=PERCENTILES)
        for row in found:
            operation = f"{row.service}.{row.operation}"[:48]
            self._metric("latency", operation, row.latency_us, int(row.percentile), {"samples": row.samples})


def _called(url: str) -> None:
    with urllib.request.urlopen(url, timeout=NODE_TIMEOUT_S) as answer:  # noqa: S310 - http, from our own table
        answer.read()


def run(plan: Plan, is_finishing: Any, is_stopped: Any) -> None:
    """The process's main: a round a second until `is_finishing`, and one for the whole session."""
    end_with_parent()
    settings = plan.settings()
    small = msgspec.structs.replace(settings, postgres_pool_size_max=1, query_pool_size_min=1, query_pool_size_max=1)
    with (
        Connection(settings) as connection,
        Pool(small) as database,
        Queries(small) as queries,
        plan.producer(RECORDS, settings) as producer,
    ):
        monitor = Monitor(plan, producer, queries, Cache(connection), database)
        while not is_finishing.wait(INTERVAL_S) and not is_stopped.is_set():
            monitor.round()
        if not is_stopped.is_set():
            monitor.round()
        monitor.close()
        counts = counts_of(producer, RECORDS)
    write(plan.result_dir, "monitor", Result(**counts))
