"""What `ringlog doctor` asks the three servers: whether they answer, let us in, and have what ringlog needs."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ringlog.errors import RinglogError, SchemaMismatch
from ringlog.monitor.finding import Finding
from ringlog.monitor.probes import probed, targets
from ringlog.questdb import data_dir
from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import migrate
from ringlog.questdb.rollups import ROLLUPS
from ringlog.questdb.tables import creates_by_itself, statuses
from ringlog.questdb.views import rows_left_out
from ringlog.records import RecordLayout
from ringlog.settings import Settings

CLOCK_SECONDS_MAX = 1.0


def servers(settings: Settings, layouts: Sequence[RecordLayout], environ: Collection[str]) -> Iterator[Finding]:
    """QuestDB, and PostgreSQL and Redis where the environment names them or the writer publishes to Redis."""
    impatient = msgspec.structs.replace(settings, postgres_retry_timeout_ms=1, redis_retry_timeout_ms=0)
    for server in probed(targets(settings, environ)):
        if not server.answers:
            fix = f"start {server.name}, or mend RINGLOG_{server.name.upper()}_HOST and its port"
            yield Finding(server.name, "fail", f"{server.address}: {server.trouble}", fix)
            if server.name != "questdb":
                continue
        else:
            yield Finding(server.name, "ok", f"{server.address} answers in {server.answer_ms:.1f} ms")
        match server.name:
            case "questdb":
                yield from _questdb_or_trouble(impatient, layouts)
            case "postgres":
                yield from _postgres(impatient)
            case "redis":
                yield from _redis(impatient)


def _questdb_or_trouble(settings: Settings, layouts: Sequence[RecordLayout]) -> Iterator[Finding]:
    connection = Connection.from_settings(settings)
    try:
        yield from _questdb(settings, layouts, connection)
    except RinglogError as error:
        yield Finding("questdb", "fail", str(error), "look at the server's log, its version, and RINGLOG_QUESTDB_USER")
    finally:
        connection.close()


def _questdb(settings: Settings, layouts: Sequence[RecordLayout], connection: Connection) -> Iterator[Finding]:
    before = time.time()
    server_us = connection.execute("select cast(systimestamp() as long)")[0][0]
    after = time.time()
    apart = server_us / 1e6 - (before + after) / 2
    # Anywhere between question and answer the server may have looked: a slow answer is no wrong clock.
    wrong = abs(apart) > CLOCK_SECONDS_MAX + (after - before) / 2
    fix = "synchronise both clocks (chrony, systemd-timesyncd): timestamps decide what retention keeps" if wrong else ""
    yield Finding("clocks", "fail" if wrong else "ok", f"QuestDB's clock is {apart:+.2f} s from this machine's", fix)
    if not settings.questdb_data_dir and (trouble := data_dir.find(connection, settings).trouble):
        fix = "set RINGLOG_QUESTDB_DATA_DIR to where its disk is mounted here, or watch that disk by other means"
        yield Finding("disks", "warn", f"the disk of QuestDB is not watched: {trouble}", fix)
    if creates_by_itself(connection):
        fix = "set line.auto.create.new.tables and line.auto.create.new.columns to false"
        yield Finding("questdb", "warn", "a write to a dropped table would make one without DEDUP", fix)
    for status in statuses(connection).values():
        if status.is_suspended:
            behind = status.sequenced - status.applied
            text = f"{status.table}: suspended, {behind} acknowledged transactions are not applied"
            fix = f"free the server's disk, then ALTER TABLE {status.table} RESUME WAL (never FROM a later transaction)"
            yield Finding("tables", "fail", text, fix)
    for found in migrate(settings, layouts, check=True):
        if found.problem:
            yield Finding(
                "tables", "fail", found.problem, "mend the table by hand: `ringlog migrate` must not touch it"
            )
        elif found.statements:
            yield Finding("tables", "fail", f"{found.name}: not as wanted", "run `ringlog migrate`")
        else:
            yield Finding("tables", "ok", f"{found.name}: columns and DEDUP keys as wanted")
    for rollup in ROLLUPS:
        if rows := rows_left_out(connection, rollup):
            text = f"{rollup.view}: no longer refreshed, {rows:,} rows of {rollup.table} are read raw, which is slow"
            fix = f"DROP MATERIALIZED VIEW {rollup.view}, then run `ringlog migrate`: the server fills it anew"
            yield Finding("tables", "warn", text, fix)


def _postgres(settings: Settings) -> Iterator[Finding]:
    """Whether it lets us in, and every revision of its schema is there."""
    from ringlog.postgres import migrations

    try:
        found = migrations.migrate(settings, check=True)
    except SchemaMismatch as error:
        yield Finding("postgres", "fail", str(error), "install the newer ringlog")
        return
    except RinglogError as error:
        fix = "mend RINGLOG_POSTGRES_USER, _PASSWORD and _DATABASE, or what the server's log says"
        yield Finding("postgres", "fail", str(error), fix)
        return
    for one in found:
        if one.problem:
            fix = f"restore it from schemas/postgres/{one.name}.sql: `ringlog migrate` does not apply a revision twice"
            yield Finding("postgres", "fail", f"{one.name}: {one.problem}", fix)
        elif one.statements:
            yield Finding("postgres", "fail", f"{one.name}: not applied", "run `ringlog migrate --only postgres`")
    if not any(one.problem or one.statements for one in found):
        yield Finding("postgres", "ok", f"schema at {found[-1].name}")


def _redis(settings: Settings) -> Iterator[Finding]:
    """Whether it lets us in, and keeps streams when its memory runs out."""
    from ringlog.redis.connection import Connection as RedisConnection
    from ringlog.redis.connection import one

    def asked() -> Any:
        replies = yield one("INFO", "memory")
        return replies[0]

    try:
        with RedisConnection(settings) as connection:
            memory: Mapping[str, Any] = connection.run(asked)
    except RinglogError as error:
        fix = "mend RINGLOG_REDIS_USER and _PASSWORD, and let that user run INFO"
        yield Finding("redis", "fail", str(error), fix)
        return
    policy = str(memory.get("maxmemory_policy", ""))
    text = f"{memory.get('used_memory', 0)} bytes used of {memory.get('maxmemory', 0) or 'no limit'}, {policy}"
    if policy.startswith("allkeys"):
        fix = "CONFIG SET maxmemory-policy noeviction: eviction takes whole streams"
        yield Finding("redis", "fail" if memory.get("maxmemory") else "warn", text, fix)
    else:
        yield Finding("redis", "ok", text)
