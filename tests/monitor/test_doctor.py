"""`ringlog doctor` and `ringlog validate`: what is wrong is found and named with its fix; looking changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
import redis
from click.testing import CliRunner
from lane_samples import Sample, child, eventually
from psycopg import sql
from writer_thread import writing

from ringlog import Producer, libpq
from ringlog.cli import ringlog
from ringlog.lanes.claims import cards, open_board
from ringlog.lanes.instance import Instance
from ringlog.lanes.segments import create_segment, unlink_segment
from ringlog.monitor import probes, snapshot
from ringlog.monitor.finding import Finding
from ringlog.monitor.findings import diagnosed, validated
from ringlog.postgres import migrations as postgres_migrations
from ringlog.postgres.pools import connection_options
from ringlog.questdb import views
from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import migrate
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.servers import PostgresServer, ValkeyServer
from ringlog.settings import Secret, Settings
from ringlog.sinks.memory import MemorySink

LAYOUTS = [layout_of(record) for record in PLATFORM_RECORDS]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine holds up a sound server or writer for seconds: only what gives no sign at all is in trouble."""
    monkeypatch.setattr(probes, "TIMEOUT_SECONDS", 30.0)
    monkeypatch.setattr(snapshot, "STALLED_SECONDS", 30.0)


def failed(found: list[Finding]) -> list[Finding]:
    assert all(finding.fix for finding in found if finding.level != "ok"), found
    return [finding for finding in found if finding.level == "fail"]


def test_a_sound_system_has_nothing_to_do(settings: Settings) -> None:
    """With a writer, migrated tables and a server that answers, no finding fails."""
    settings = msgspec.structs.replace(settings, request_timeout_ms=15_000)
    migrate(settings, LAYOUTS)
    with writing(settings, MemorySink()):
        board = open_board(Instance(settings).open())
        eventually(board.read_status, "the writer's first tick")
        found = list(diagnosed(settings, LAYOUTS, {}))
    assert [finding for finding in failed(found) if finding.check != "tables" or "suspended" not in finding.text] == []
    assert {"settings", "shared memory", "writer", "lanes", "disks", "questdb", "clocks", "tables"} <= {
        finding.check for finding in found
    }


def test_what_is_wrong_is_named(settings: Settings) -> None:
    """A dead owner without a writer, an open directory, a table without DEDUP and small shared memory: each found."""
    settings = msgspec.structs.replace(settings, request_timeout_ms=15_000, lane_bytes_max=1 << 50)
    with child(settings, "say('ready')\nsys.stdin.readline()") as process:
        assert process.line() == "ready"
        process.kill()
    os.chmod(settings.runtime_dir, 0o755)  # noqa: S103
    connection = Connection.from_settings(settings)
    connection.execute("drop table if exists samples")
    connection.execute(
        "create table samples (timestamp timestamp, lane long) timestamp(timestamp) partition by day wal"
    )
    found = failed(list(diagnosed(settings, [layout_of(Sample)], {})))
    connection.execute("drop table samples")
    connection.close()
    texts = {finding.check: finding.text for finding in found}
    assert {"directories", "shared memory", "writer", "lanes", "tables"} <= texts.keys()
    assert "0755" in texts["directories"]
    assert "dead" in texts["lanes"]
    assert any("DEDUP" in finding.text for finding in found if finding.check == "tables")


def test_what_a_lane_refused_is_named(lane_settings: Settings) -> None:
    """Finding 11: records that were refused and never will be stored are a finding, each reason with what to do."""
    with Producer([Sample], settings=lane_settings, on_invalid="refuse") as producer:
        appender = producer.appender(Sample)
        assert not appender.append("no number", "")
        while appender.append(1, ""):
            pass
        found = {each.text: each for each in diagnosed(lane_settings, [], {}) if " refused " in each.text}
    assert len(found) == 2, found
    full, invalid = sorted(found)
    assert full.endswith("refused 1 appends so far as full")
    assert invalid.endswith("refused 1 appends so far as invalid")
    assert {found[full].level, found[invalid].level} == {"warn"}
    assert "RINGLOG_LANE_BYTES_MAX" in found[full].fix
    assert "the caller" in found[invalid].fix


def test_a_view_that_is_no_longer_refreshed_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that a view left out are counted and warned of; what is proposed mends it."""
    monkeypatch.setattr(views, "REFRESHES_MISSED", 0)
    connection = Connection.from_settings(settings)
    connection.execute("DROP MATERIALIZED VIEW IF EXISTS mev_minutes")
    migrate(settings, LAYOUTS)  # fills it with what others have written: it lacks nothing

    def warned() -> list[Finding]:
        found = diagnosed(settings, LAYOUTS, {})
        return [finding for finding in found if finding.level != "ok" and "mev_minutes" in finding.text]

    try:
        connection.execute("ALTER MATERIALIZED VIEW mev_minutes SET REFRESH MANUAL")
        connection.execute("INSERT INTO mev_metrics (timestamp, lane, seq) VALUES (now(), 1, 1)")
        [found] = eventually(warned, "the row being applied")
        text = "mev_minutes: no longer refreshed, 1 rows of mev_metrics are read raw, which is slow"
        assert (found.level, found.text) == ("warn", text)
        statement, _, _ = found.fix.partition(",")
    finally:
        connection.execute("DROP MATERIALIZED VIEW mev_minutes")
        migrate(settings, LAYOUTS)
    connection.close()
    assert statement == "DROP MATERIALIZED VIEW mev_minutes"
    assert warned() == []


def test_a_server_that_is_down(lane_settings: Settings) -> None:
    """A closed port is named with the setting to mend; no exception, no password."""
    settings = msgspec.structs.replace(lane_settings, questdb_http_port=1, questdb_pg_port=1)
    found = [finding for finding in failed(list(diagnosed(settings, LAYOUTS, {}))) if finding.check == "questdb"]
    assert "Connection refused" in found[0].text
    assert "RINGLOG_QUESTDB_HOST" in found[0].fix


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"drain_interval_ms": 0}, "drain_interval_ms: got 0"),
        ({"high_water_ratio": 2.0}, "high_water_ratio: got 2.0"),
        ({"query_pool_size_max": 1}, "query_pool_size_max: got 1"),
        ({"questdb_client_conf": "tcp::addr=x:1;"}, "got scheme 'tcp'"),
    ],
)
def test_wrong_settings(changes: dict[str, object], text: str) -> None:
    """Values that no part could work with are found without any system."""
    (finding,) = failed(list(validated(msgspec.structs.replace(Settings(), **changes), LAYOUTS)))
    assert text in finding.text


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`validate` exits 0 and makes nothing, 1 for an unknown variable; `doctor` exits 1 where nothing runs."""
    monkeypatch.setenv("RINGLOG_RUNTIME_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("RINGLOG_QUESTDB_HTTP_PORT", "1")
    monkeypatch.setenv("RINGLOG_QUESTDB_PG_PORT", "1")
    sound = CliRunner().invoke(ringlog, ["validate", "--json"])
    assert (sound.exit_code, json.loads(sound.output)["healthy"]) == (0, True)
    ill = CliRunner().invoke(ringlog, ["doctor"])
    assert ill.exit_code == 1
    assert "fix: start `ringlog writer`" in ill.output
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RINGLOG_LANE_BITES_MAX", "1")
    wrong = CliRunner().invoke(ringlog, ["validate"])
    assert wrong.exit_code == 1
    assert "RINGLOG_LANE_BITES_MAX: got an unknown option" in wrong.output


def test_segments_that_nobody_drains(lane_settings: Settings) -> None:
    """A lane whose card was removed is found by its segment, with how many records only it has; one that was drained,
    and a claim that was never complete, only need removing. A lane with its card is no orphan."""
    instance = Instance(lane_settings)
    with child(lane_settings, "appender.append(1, text_of(1))\nsay('ready')\nsys.stdin.readline()") as process:
        assert process.line() == "ready"
        (card,) = cards(instance)
        assert [finding for finding in diagnosed(lane_settings, [], {}) if finding.check == "orphans"] == []
        instance.card_path(card.lane).unlink()
        blank = f"{instance.board_name.removesuffix('board')}{1:016x}"
        create_segment(blank, 4096).close()
        try:
            found = [finding for finding in diagnosed(lane_settings, [], {}) if finding.check == "orphans"]
            assert (
                [finding.level for finding in found] == ["warn", "fail"] if blank < card.segment else ["fail", "warn"]
            )
            texts = {finding.level: finding for finding in found}
            assert "1 unconfirmed records" in texts["fail"].text
            assert f"ringlog dump {card.segment}" in texts["fail"].fix
            assert f"rm /dev/shm/{card.segment}" in texts["fail"].fix
            assert texts["warn"].fix == f"rm /dev/shm/{blank}"
        finally:
            unlink_segment(blank)
            unlink_segment(card.segment)


def of(check: str, found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.check == check]


def test_postgres_is_looked_into(lane_settings: Settings, postgres_server: PostgresServer, tmp_path: Path) -> None:
    """Missing revisions, what was dropped from an applied one, and a password that is not taken, each with its fix."""
    database = f"doctor_{tmp_path.name}_{os.getpid()}"[:60]
    admin = Settings(**postgres_server.settings())
    with libpq.Connection.connect(**connection_options(admin)) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(database)))
    settings = msgspec.structs.replace(
        lane_settings,
        questdb_http_port=1,
        postgres_timeout_ms=15_000,
        **{**postgres_server.settings(), "postgres_database": database},
    )
    environ = {"RINGLOG_POSTGRES_HOST": settings.postgres_host}
    missing = of("postgres", list(diagnosed(settings, [], environ)))
    assert [finding.level for finding in missing] == ["ok", *["fail"] * len(postgres_migrations.scripts())]
    assert missing[1].fix == "run `ringlog migrate --only postgres`"
    postgres_migrations.migrate(settings)
    assert [finding.level for finding in of("postgres", list(diagnosed(settings, [], environ)))] == ["ok", "ok"]
    with libpq.Connection.connect(**connection_options(settings)) as connection:
        connection.execute("drop table node_health")
    (dropped,) = of("postgres", failed(list(diagnosed(settings, [], environ))))
    assert "0004_nodes: applied, but got no table node_health" in dropped.text
    assert "schemas/postgres/0004_nodes.sql" in dropped.fix
    wrong = msgspec.structs.replace(settings, postgres_password=Secret("canary"))
    (refused,) = of("postgres", failed(list(diagnosed(wrong, [], environ))))
    assert "canary" not in refused.text
    assert "RINGLOG_POSTGRES_USER" in refused.fix
    with libpq.Connection.connect(**connection_options(admin)) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(database)))


def test_redis_is_looked_into(lane_settings: Settings, valkey_server: ValkeyServer) -> None:
    """A password that is not taken, and a policy that would evict whole streams, each with its fix."""
    settings = msgspec.structs.replace(
        lane_settings, questdb_http_port=1, redis_timeout_ms=15_000, **valkey_server.settings()
    )
    environ = {"RINGLOG_REDIS_HOST": settings.redis_host}
    assert [finding.level for finding in of("redis", list(diagnosed(settings, [], environ)))] == ["ok", "ok"]
    wrong = msgspec.structs.replace(settings, redis_password=Secret("canary"))
    (refused,) = of("redis", failed(list(diagnosed(wrong, [], environ))))
    assert "canary" not in refused.text
    assert "RINGLOG_REDIS_USER" in refused.fix
    with redis.Redis(port=settings.redis_port, password=settings.redis_password.reveal()) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", "1gb")
        try:
            (evicting,) = of("redis", failed(list(diagnosed(settings, [], environ))))
        finally:
            client.config_set("maxmemory", "0")
            client.config_set("maxmemory-policy", "noeviction")
    assert "allkeys-lru" in evicting.text
    assert "noeviction" in evicting.fix
