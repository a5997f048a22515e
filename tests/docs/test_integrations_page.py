"""The patterns of docs/integrations.md, as they stand, against all three servers and a real writer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_examples import python_blocks

from ringlog.demo.writer_process import running_writer
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import remove_instance
from ringlog.postgres import migrations as postgres_migrations
from ringlog.questdb import migrations as questdb_migrations
from ringlog.questdb.queries import Queries
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.servers import PostgresServer, QuestDBServer, ValkeyServer
from ringlog.settings import Settings


def stored(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query as soon as there are any."""
    deadline = time.monotonic() + 60
    with Queries(settings) as queries:
        while not (rows := list(map(tuple, queries.execute_query(sql, timeout_ms=30_000)))):
            assert time.monotonic() < deadline, sql
        return rows


def test_the_patterns_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of the page runs, in order; its trade, position, latency and MEV metric are stored once."""
    blocks = python_blocks("docs/integrations.md")
    assert len(blocks) == 5
    with QuestDBServer() as questdb, PostgresServer() as postgres, ValkeyServer() as valkey:
        ways = {**questdb.settings(), **postgres.settings(), **valkey.settings()}
        settings = Settings(runtime_dir=str(tmp_path / "run"), redis_sink=True, **ways)
        for name, text in settings.to_environment().items():
            monkeypatch.setenv(name, text)
        patient = msgspec.structs.replace(settings, request_timeout_ms=60_000)
        questdb_migrations.migrate(patient, [layout_of(record) for record in PLATFORM_RECORDS])
        postgres_migrations.migrate(settings)
        names: dict[str, Any] = {}
        with running_writer(settings, tmp_path / "writer.log"):
            for number, block in enumerate(blocks):
                exec(compile(block, f"docs/integrations.md example {number}", "exec"), names)  # noqa: S102
                if number == 1:
                    stored(settings, "SELECT * FROM latencies WHERE service = 'executor'")
        assert stored(settings, "SELECT trader_id, base_amount, transfer_fees FROM trades") == [("t1", 0.005, 0.000001)]
        assert stored(settings, "SELECT quantity FROM positions") == [(0.004999,)]
        assert stored(settings, "SELECT trade_size, protection_used FROM mev_metrics") == [(0.005, True)]
        assert list(names["frame"]["trader_id"]) == ["t1"]
        assert names["refused"]["performance_metrics"]["full"] == 0
        assert ("executor.decide", 50) in stored(settings, "SELECT operation, percentile FROM performance_metrics")
        remove_instance(Instance(settings))
