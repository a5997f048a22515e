"""Prometheus metrics of an instance, from one look at its shared memory: what `ringlog top` shows, for machines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ringlog.errors import ConfigurationError
from ringlog.monitor.snapshot import LaneFigures, Observer, Snapshot
from ringlog.ring import IMPLEMENTATION
from ringlog.settings import Settings

LOOK_SECONDS_MIN = 0.5  # scrapes within it are answered from the look before: they cannot keep the writer busy


class InstanceCollector(Collector):
    """Collects from an Observer of its own; nothing of the writer's is touched, so a scrape can meet no lock of it."""

    def __init__(self, settings: Settings) -> None:
        self._observer = Observer(settings)
        self._lock = threading.Lock()
        self._found: tuple[float, list[Metric]] = (float("-inf"), [])

    def describe(self) -> Iterable[Metric]:
        return ()  # registering must not look

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            now = time.monotonic()
            if now - self._found[0] >= LOOK_SECONDS_MIN:
                snapshot = self._observer.look()
                self._found = now, [*_instance(snapshot), *_writer(snapshot), *_lanes(snapshot.lanes)]
            yield from self._found[1]


def _instance(snapshot: Snapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily("ringlog_accepting", "1 while the board lets producers append.", snapshot.accepting)
    ring = GaugeMetricFamily("ringlog_ring_info", "1 for the ring that this interpreter runs.", labels=["ring"])
    ring.add_metric([IMPLEMENTATION], 1)
    yield ring
    yield GaugeMetricFamily("ringlog_lane_bytes", "Shared memory of all lanes.", snapshot.lane_bytes)
    yield GaugeMetricFamily("ringlog_spool_bytes", "Bytes of the spool's files.", snapshot.spool.bytes)
    disks = GaugeMetricFamily("ringlog_disk_free_bytes", "Free space, by what lies on the disk.", labels=["disk"])
    for disk in snapshot.disks:
        disks.add_metric([disk.what], disk.free_bytes)
    yield disks


def _writer(snapshot: Snapshot) -> Iterator[Metric]:
    writer, said = snapshot.writer, snapshot.writer.figures
    yield GaugeMetricFamily("ringlog_writer_up", "1 while a writer runs and ticks.", writer.state == "running")
    yield GaugeMetricFamily("ringlog_writer_lag_seconds", "Age of the oldest unconfirmed record.", writer.lag_s)
    yield GaugeMetricFamily("ringlog_writer_beat_age_seconds", "Time since the last tick.", writer.beat_age_s or 0.0)
    if not said:
        return
    counts = (
        ("rows", "Rows written to the server."),
        ("writes", "Requests that the server took."),
        ("errors", "Requests that failed."),
        ("spooled", "Rows put into the spool."),
        ("replayed", "Rows delivered from the spool."),
        ("dead_letters", "Rows that the server refused."),
        ("expired", "Rows that came after retention had cut their day."),
    )
    for name, text in counts:
        yield CounterMetricFamily(f"ringlog_writer_{name}", text, said[name])
    quarantined = "Accepted records in quarantine that nobody has settled."
    yield GaugeMetricFamily("ringlog_quarantined_records", quarantined, said.get("quarantined", 0))
    yield GaugeMetricFamily("ringlog_writer_resident_bytes", "Resident memory.", said["rss_bytes"])
    for name, text in (("tick", "Time between ticks"), ("write", "Time of a request")):
        family = Metric(f"ringlog_writer_{name}_seconds", f"{text}; quantiles are of ten minutes.", "summary")
        for quantile, key in (("0.5", "p50"), ("0.99", "p99")):
            family.add_sample(family.name, {"quantile": quantile}, said[f"{name}_ms"][key] / 1e3)
        family.add_sample(f"{family.name}_sum", {}, said[f"{name}_ms"]["sum"] / 1e3)
        family.add_sample(f"{family.name}_count", {}, said[f"{name}_ms"]["count"])
        yield family
    yield GaugeMetricFamily("ringlog_writer_batch_rows", "Median rows of a request.", said["write_ms"]["rows"])


def _lanes(lanes: list[LaneFigures]) -> Iterator[Metric]:
    """One series a lane that is there now; `record` has as many values as there are record types."""
    labels = ["lane", "record"]
    accepted = CounterMetricFamily("ringlog_lane_accepted_records", "Records accepted into the lane.", labels=labels)
    confirmed = CounterMetricFamily("ringlog_lane_confirmed_records", "Of them, safe elsewhere.", labels=labels)
    waiting = GaugeMetricFamily("ringlog_lane_waiting_records", "Records only in the lane.", labels=labels)
    fill = GaugeMetricFamily("ringlog_lane_fill_ratio", "Part of the lane's slots that wait.", labels=labels)
    dead = GaugeMetricFamily("ringlog_lane_orphaned", "1 where the owner died.", labels=labels)
    refused = CounterMetricFamily("ringlog_lane_refused_records", "Appends refused.", labels=[*labels, "reason"])
    for lane in lanes:
        if lane.trouble:
            continue
        values = [lane.lane, lane.record]
        accepted.add_metric(values, lane.accepted)
        confirmed.add_metric(values, lane.confirmed)
        waiting.add_metric(values, lane.waiting)
        fill.add_metric(values, lane.fill)
        dead.add_metric(values, lane.owner in ("dead", "adopted"))
        for reason, count in lane.refused.items():
            refused.add_metric([*values, reason], count)
    yield from (accepted, confirmed, waiting, fill, dead, refused)


class MetricsServer:
    """The endpoint on 127.0.0.1, on daemon threads of its own. Raises ConfigurationError where the port is taken."""

    def __init__(self, settings: Settings, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(InstanceCollector(settings))
        try:
            self._server: Any
            self._server, self._thread = start_http_server(port, "127.0.0.1", registry)
        except OSError as error:
            raise ConfigurationError(
                f"RINGLOG_METRICS_PORT: got {port} ({error.strerror}), wanted a free port of 127.0.0.1"
            ) from None
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
