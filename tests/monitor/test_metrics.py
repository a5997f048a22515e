"""The Prometheus endpoint of a running writer, and the dashboard: every name and every statement in it is real."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import msgspec
import pytest
from lane_samples import Child, Sample, eventually, text_of
from prometheus_client.parser import text_string_to_metric_families as families

from ringlog import Producer
from ringlog.errors import ConfigurationError
from ringlog.monitor.metrics import MetricsServer
from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import migrate
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.servers.embedded import free_socket
from ringlog.settings import Settings

DASHBOARD = json.loads((Path(__file__).parents[2] / "schemas" / "grafana" / "ringlog.json").read_text())
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]


def scraped(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name, as Prometheus itself reads them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in families(answer.read().decode()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def free_port() -> int:
    """A free port that nobody who asks for any is given before the writer has it."""
    with free_socket() as held:
        return int(held.getsockname()[1])


def test_a_running_writer_serves_every_metric_of_the_dashboard(settings: Settings) -> None:
    """The endpoint of a real writer has every name that the dashboard asks for, with the lane's own figures."""
    settings = msgspec.structs.replace(settings, lane_bytes_max=4 << 20, metrics_port=free_port())
    environment = {**Child.environment(settings), **settings.to_environment()}
    with Producer([Sample], settings=settings, lane_bytes={Sample: 64 * 256}) as producer:
        for number in range(70):
            producer.appender(Sample).append(number, text_of(number))
        writer = subprocess.Popen(
            [sys.executable, "-m", "ringlog", "writer"], env=environment, stdout=subprocess.DEVNULL
        )
        try:

            def answered() -> dict[str, list[tuple[dict[str, str], float]]]:
                try:
                    found = scraped(settings.metrics_port)
                except OSError:
                    return {}
                # A busy machine holds up ticks for seconds, and a writer without them does not count as up.
                is_whole = "ringlog_writer_rows_total" in found and found["ringlog_writer_up"] == [({}, 1.0)]
                return found if is_whole else {}

            found = eventually(answered, "the writer's figures")
        finally:
            writer.send_signal(signal.SIGTERM)
            assert writer.wait(60) == 0
    ((labels, accepted),) = found["ringlog_lane_accepted_records_total"]
    assert (labels["record"], accepted) == ("Sample", 64)
    assert [(each["reason"], count) for each, count in found["ringlog_lane_refused_records_total"]] == [("full", 6)]
    assert found["ringlog_writer_up"] == [({}, 1.0)]
    asked = {name for target in TARGETS for name in re.findall(r"ringlog_[a-z_]+", target.get("expr", ""))}
    assert len(asked) > 15
    assert asked - found.keys() == set()


def test_every_statement_of_the_dashboard_runs(settings: Settings) -> None:
    """QuestDB takes each statement, with the time filter that its data source puts in."""
    settings = msgspec.structs.replace(settings, request_timeout_ms=15_000)
    migrate(settings, [layout_of(record) for record in PLATFORM_RECORDS])
    connection = Connection.from_settings(settings)
    statements = [target["rawSql"] for target in TARGETS if "rawSql" in target]
    assert len(statements) == 4
    for statement in statements:
        span = r"\1 >= '2026-01-01T00:00:00Z' AND \1 <= '2026-01-02T00:00:00Z'"
        connection.execute(re.sub(r"\$__timeFilter\((\w+)\)", span, statement))
    connection.close()


def test_a_taken_port_is_named_and_nothing_but_loopback_is_bound(lane_settings: Settings) -> None:
    """The endpoint listens on 127.0.0.1; a port that is taken is an error that names the setting."""
    server = MetricsServer(lane_settings, 0)
    try:
        assert scraped(server.port)["ringlog_writer_up"] == [({}, 0.0)]
        with pytest.raises(ConfigurationError, match=f"RINGLOG_METRICS_PORT: got {server.port} .*wanted a free port"):
            MetricsServer(lane_settings, server.port)
        if os.uname().sysname == "Linux":
            tables = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
            bound = [
                line.split()[1] for line in tables.splitlines() if f":{server.port:04X} " in line and " 0A " in line
            ]
            assert bound == [f"0100007F:{server.port:04X}"]
    finally:
        server.close()
