"""The patterns of docs/integrations.md, as they stand, against all three servers and a real writer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lane_samples import eventually
from test_examples import python_blocks

from ringlog.demo.writer_process import running_writer
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import remove_instance
from ringlog.postgres import migrations as postgres_migrations
from ringlog.questdb import migrations as questdb_migrations
from ringlog.questdb.queries import Queries
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.redis import Connection
from ringlog.servers import PostgresServer, QuestDBServer, ValkeyServer
from ringlog.settings import Settings


def stored(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query as soon as there are any."""
    deadline = time.monotonic() + 60
    with Queries(settings) as queries:
        while not (rows := list(map(tuple, queries.execute_query(sql, timeout_ms=30_000)))):
            assert time.monotonic() < deadline, sql
        return rows


def published(settings: Settings) -> None:
    """Waits for the trade in the stream that the writer puts it into: a consumer waits for five seconds at most."""
    with Connection(settings) as connection:
        eventually(lambda: connection.client.xlen("stream:trade-events"), "the trade in the stream")


@pytest.mark.slow
def test_the_patterns_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of the page runs, in order; its trade, position, latency and MEV metric are stored once."""
    blocks = python_blocks("docs/integrations.md")
    assert len(blocks) == 5
    # And its watch has to have read the configurations once it is started.
    monkeypatch.setattr("ringlog.postgres.pools.CONNECT_TIMEOUT_S", 30)
    monkeypatch.setattr("ringlog.postgres.watch.START_TIMEOUT_S", 60.0)
    with QuestDBServer() as questdb, PostgresServer() as postgres, ValkeyServer() as valkey:
        ways = {**questdb.settings(), **postgres.settings(), **valkey.settings()}
        patience = {"query_timeout_ms": 30_000, "redis_timeout_ms": 10_000, "postgres_retry_timeout_ms": 60_000}
        # The executor has to find the price fresh that the line before has set, however long the machine stands still.
        patience["redis_fresh_ttl_ms"] = 600_000
        settings = Settings(runtime_dir=str(tmp_path / "run"), redis_sink=True, **ways, **patience)
        for name, text in settings.to_environment().items():
            monkeypatch.setenv(name, text)
        patient = msgspec.structs.replace(settings, request_timeout_ms=60_000)
        questdb_migrations.migrate(patient, [layout_of(record) for record in PLATFORM_RECORDS])
        postgres_migrations.migrate(settings)
        names: dict[str, Any] = {}
        with running_writer(settings, tmp_path / "writer.log"):
            for number, block in enumerate(blocks):
                exec(compile(block, f"docs/integrations.md example {number}", "exec"), names)  # noqa: S102
                if number == 1:  # the blocks after it read the executor's records: a table each, and a stream
                    stored(settings, "SELECT * FROM latencies WHERE service = 'executor'")
                    stored(settings, "SELECT * FROM trades")
                    published(settings)
            # While the writer runs: at its end it has a few seconds for what is left, and a busy server needs more.
            trades = stored(settings, "SELECT trader_id, base_amount, transfer_fees FROM trades")
            assert trades == [("t1", 0.005, 0.000001)]
            assert stored(settings, "SELECT quantity FROM positions") == [(0.004999,)]
            assert stored(settings, "SELECT trade_size, protection_used FROM mev_metrics") == [(0.005, True)]
            assert ("executor.decide", 50) in stored(settings, "SELECT operation, percentile FROM performance_metrics")
        assert list(names["frame"]["trader_id"]) == ["t1"]
        assert names["refused"]["performance_metrics"]["full"] == 0
        remove_instance(Instance(settings))
