"""Trader configurations: versions, history, conflicts, and what watching processes see, server or no server."""

from __future__ import annotations

import os
import stat
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from postgres_platform import condition, execute

from ringlog.errors import LaneError, PostgresValueError, ServerUnavailable, VersionConflict
from ringlog.postgres import (
    AsyncConfigWatch,
    AsyncPool,
    AsyncTraderConfigs,
    ConfigWatch,
    Current,
    Limits,
    MevProtection,
    Pool,
    TraderConfig,
    TraderConfigs,
    traders,
)
from ringlog.servers import PostgresServer
from ringlog.settings import Settings

LIMITS = Limits(position_max=Decimal("1000.5"), trade_max=Decimal(100), daily_loss_max=Decimal("0.000001"))
CONFIG = TraderConfig(
    trader_id="t1",
    limits=LIMITS,
    mev_protection=MevProtection(route="private_rpc", tip_max_lamports=5, sandwich_probability_max=0.25),
    settings={"pairs": ["SOL/USDC"], "note": None, "ratio": 0.5},
)


def replaced(config: TraderConfig, **fields: Any) -> TraderConfig:
    return msgspec.structs.replace(config, **fields)


def version_of(watch: Any, trader_id: str = "t1") -> int:
    current = watch.current(trader_id)
    return current.config.version if current else 0


def test_every_save_is_a_version_and_every_version_is_kept(pool: Pool) -> None:
    """What is saved comes back equal but for version, author and time; the history holds all of it, newest first."""
    configs = TraderConfigs(pool)
    assert configs.get("t1") is None
    first = configs.save(CONFIG, changed_by="ann")
    assert first == replaced(CONFIG, version=1, changed_by="ann", changed_at=first.changed_at)
    second = configs.save(replaced(first, enabled=False, mode="live"), changed_by="bob")
    assert (second.version, second.enabled, second.mode, second.changed_by) == (2, False, "live", "bob")
    assert second.changed_at > first.changed_at
    assert configs.get("t1") == second
    assert configs.history("t1") == [second, first]
    assert configs.history("t1", limit=1) == [second]
    assert configs.get_all() == {"t1": second}


def test_a_version_is_written_by_one_of_many(pool: Pool) -> None:
    """Of ten writers that read the same version one succeeds, the others are told; the same for a new trader."""
    configs = TraderConfigs(pool)

    def save(config: TraderConfig, author: int) -> int:
        try:
            configs.save(config, changed_by=f"writer-{author}")
        except VersionConflict:
            return 0
        return 1

    with ThreadPoolExecutor(10) as writers:
        assert sum(writers.map(save, [CONFIG] * 10, range(10))) == 1
        current = configs.get("t1")
        assert sum(writers.map(save, [replaced(current, enabled=False)] * 10, range(10))) == 1
    assert [config.version for config in configs.history("t1")] == [2, 1]
    with pytest.raises(VersionConflict, match="'t1': got version 1, the database has version 2"):
        configs.save(current, changed_by="late")
    with pytest.raises(VersionConflict, match="got version 7, the database has no such trader"):
        configs.save(replaced(CONFIG, trader_id="t2", version=7), changed_by="ann")


def test_a_save_whose_answer_was_lost_is_recognised(pool: Pool) -> None:
    """The same change sent again after it committed returns what it wrote, and makes no second version."""
    change_id = uuid.uuid4()
    first = pool.run(traders.save(CONFIG, "ann", change_id))
    assert pool.run(traders.save(CONFIG, "ann", change_id)) == first
    later = replaced(first, enabled=False)
    change_id = uuid.uuid4()
    second = pool.run(traders.save(later, "ann", change_id))
    pool.run(traders.save(second, "bob", uuid.uuid4()))
    assert pool.run(traders.save(later, "ann", change_id)) == second, "even when others went on since"
    assert len(TraderConfigs(pool).history("t1")) == 3


def test_a_change_by_hand_is_versioned_kept_and_never_reuses_a_version(database: Settings, pool: Pool) -> None:
    """UPDATE, DELETE and INSERT in psql count on, under the role's name."""
    configs = TraderConfigs(pool)
    first = configs.save(CONFIG, changed_by="ann")
    execute(database, "update trader_configs set enabled = false, version = 77")
    assert [(c.version, c.enabled, c.changed_by) for c in configs.history("t1")] == [
        (2, False, database.postgres_user),
        (1, True, "ann"),
    ]
    execute(database, "delete from trader_configs")
    assert configs.get("t1") is None
    assert configs.save(CONFIG, changed_by="ann").version == 3
    assert configs.history("t1")[-1] == first


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"trader_id": ""}, "config.trader_id"),
        ({"trader_id": "x" * 33}, "config.trader_id.*1 to 32 bytes"),
        ({"trader_id": None}, "trader_id"),
        ({"mode": "demo"}, "mode"),
        ({"enabled": 1}, "enabled"),
        ({"limits": {}}, "limits"),
        ({"limits": msgspec.structs.replace(LIMITS, trade_max=Decimal("NaN"))}, "limits.trade_max"),
        ({"limits": msgspec.structs.replace(LIMITS, position_max=Decimal("Infinity"))}, "limits.position_max"),
        ({"limits": msgspec.structs.replace(LIMITS, daily_loss_max=Decimal(0))}, "limits.daily_loss_max"),
        ({"limits": msgspec.structs.replace(LIMITS, position_max="many")}, "limits.position_max"),
        ({"limits": msgspec.structs.replace(LIMITS, trade_max=Decimal(2000))}, "trade_max.*at most position_max"),
        ({"limits": msgspec.structs.replace(LIMITS, slippage_max_bps=10_001)}, "slippageMaxBps|slippage_max_bps"),
        ({"mev_protection": MevProtection(route="magic")}, "route"),
        ({"mev_protection": MevProtection(sandwich_probability_max=1.5)}, "sandwich_probability_max"),
        ({"mev_protection": MevProtection(tip_max_lamports=-1)}, "tip_max_lamports"),
        ({"settings": [1]}, "settings"),
        ({"settings": {"key": object()}}, "config"),
        ({"settings": {"key": "x" * 70_000}}, "config.settings.*65536"),
        ({"settings": {"key": "nul \0"}}, "config.settings.*NUL"),
    ],
)
def test_bad_configurations_are_named_before_anything_is_sent(fields: dict[str, Any], names: str) -> None:
    """Each bad part raises PostgresValueError naming it, without a server: the pool was never opened."""
    configs = TraderConfigs(Pool(Settings(postgres_port=1)))
    with pytest.raises(PostgresValueError, match=names):
        configs.save(replaced(CONFIG, **fields), changed_by="ann")


def test_json_in_the_database_that_does_not_fit_is_named_and_the_watch_keeps_the_last_good(
    database: Settings, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit edited by hand into nonsense raises in get(), and is never served by the watch."""
    configs = TraderConfigs(pool)
    good = configs.save(CONFIG, changed_by="ann")
    with ConfigWatch(database, poll_interval_s=0.1) as watch:
        assert watch.current("t1") == Current(good, stale=False)
        execute(database, """update trader_configs set limits = '{"position_max": "lots"}'""")
        with pytest.raises(PostgresValueError, match=r"'t1' version 2 in the database: limits.*position_max"):
            configs.get("t1")
        assert watch.wait_until(lambda watch: watch.current("t1").stale)
        assert watch.current("t1") == Current(good, stale=True)
        assert not watch.stale, "the server is there: only this trader's newest version is unusable"
        execute(database, "update trader_configs set limits = %s", [msgspec.json.encode(LIMITS).decode()])
        assert watch.wait_until(lambda watch: version_of(watch) == 3 and not watch.current("t1").stale)
    assert caplog.text.count("trader_config=unfit") == 1, "once, not with every poll"


def test_a_change_reaches_running_processes_by_notify(database: Settings, pool: Pool) -> None:
    """With polling as good as off, saves, edits by hand and deletes are seen, in order, by a callback too."""
    configs = TraderConfigs(pool)
    seen: list[int] = []
    first = configs.save(CONFIG, changed_by="ann")
    with ConfigWatch(database, poll_interval_s=3_600, on_change=lambda config: seen.append(config.version)) as watch:
        assert watch.current("t1") == Current(first, stale=False)
        configs.save(replaced(first, enabled=False), changed_by="bob")
        assert watch.wait_until(lambda watch: version_of(watch) == 2)
        execute(database, "update trader_configs set mode = 'live'")
        assert watch.wait_until(lambda watch: version_of(watch) == 3)
        execute(database, "delete from trader_configs")
        assert watch.wait_until(lambda watch: watch.current("t1") is None)
        assert watch.all() == {}
    assert seen == [1, 2, 3]


def test_a_change_is_seen_by_polling_where_no_notification_arrives(database: Settings, pool: Pool) -> None:
    """Without LISTEN (a transaction pooler in between), and with notifications lost, polling sees every change."""
    configs = TraderConfigs(pool)
    configs.save(CONFIG, changed_by="ann")
    with (
        ConfigWatch(database, poll_interval_s=0.1, listen=False) as deaf,
        ConfigWatch(database, poll_interval_s=0.1) as unnotified,
    ):
        execute(database, "alter table trader_configs disable trigger trader_config_recorded")
        execute(database, "update trader_configs set mode = 'live'")
        for watch in (deaf, unnotified):
            assert watch.wait_until(lambda watch: version_of(watch) == 2)
        execute(database, "delete from trader_configs")
        for watch in (deaf, unnotified):
            assert watch.wait_until(lambda watch: watch.current("t1") is None)


def test_a_callback_that_raises_does_not_end_the_watch(database: Settings, pool: Pool) -> None:
    """A caller's mistake is logged; the next change is seen all the same."""
    configs = TraderConfigs(pool)
    first = configs.save(CONFIG, changed_by="ann")
    with ConfigWatch(database, poll_interval_s=0.1, on_change=lambda _: 1 / 0) as watch:
        configs.save(replaced(first, enabled=False), changed_by="ann")
        assert watch.wait_until(lambda watch: version_of(watch) == 2)


def test_the_last_good_version_is_served_stale_while_the_server_is_away(
    own_server: PostgresServer, own_settings: Settings
) -> None:
    """Killed under the watch: the last version at once, flagged; fresh again after the restart, with what changed."""
    with Pool(own_settings) as pool, ConfigWatch(own_settings, poll_interval_s=0.2) as watch:
        good = TraderConfigs(pool).save(CONFIG, changed_by="ann")
        assert watch.wait_until(lambda watch: version_of(watch) == 1)
        own_server.kill()
        assert watch.wait_until(lambda watch: watch.stale)
        assert watch.current("t1") == Current(good, stale=True)
        assert watch.all() == {"t1": Current(good, stale=True)}
        assert watch.current("unknown") is None
        own_server.start()
        second = TraderConfigs(pool).save(replaced(good, enabled=False), changed_by="bob")
        assert watch.wait_until(lambda watch: watch.current("t1") == Current(second, stale=False))


def test_54_a_start_without_a_server_serves_the_last_good_file(
    own_server: PostgresServer, own_settings: Settings, instance_dir: Path
) -> None:
    """Down at start: what an earlier process last read, flagged stale, from a private file; fresh once it is up.

    Defence: the last good configurations are kept in a file.
    """
    with Pool(own_settings) as pool, ConfigWatch(own_settings, poll_interval_s=0.2):
        good = TraderConfigs(pool).save(CONFIG, changed_by="ann")
        path = instance_dir / "trader-configs.json"
        condition(lambda: path.exists() and b"t1" in path.read_bytes())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    own_server.kill()
    with ConfigWatch(own_settings, poll_interval_s=0.2) as watch:
        assert watch.current("t1") == Current(good, stale=True)
        own_server.start()
        assert watch.wait_until(lambda watch: watch.current("t1") == Current(good, stale=False))


def test_a_hanging_server_makes_answers_stale(own_server: PostgresServer, own_settings: Settings) -> None:
    """SIGSTOP: nothing fails, nothing answers; the flag is raised by the clock, and lowered after SIGCONT."""
    settings = msgspec.structs.replace(own_settings, postgres_timeout_ms=300)
    with Pool(settings) as pool, ConfigWatch(settings, poll_interval_s=0.1) as watch:
        assert watch.wait_until(lambda watch: not watch.stale, 60), "a read that took over 300 ms is made again"
        TraderConfigs(pool).save(CONFIG, changed_by="ann")
        assert watch.wait_until(lambda watch: version_of(watch) == 1)
        own_server.stop_signal()
        try:
            condition(lambda: watch.stale)
            assert watch.current("t1").config.version == 1
        finally:
            own_server.continue_signal()
        assert watch.wait_until(lambda watch: not watch.stale, 60)


def without_server(instance_dir: Path, **fields: Any) -> Settings:
    return Settings(**{"runtime_dir": str(instance_dir), "postgres_port": 1, "postgres_database": "d"} | fields)


def last_good(settings: Settings, configs: list[TraderConfig]) -> bytes:
    database = f"{settings.postgres_host}:{settings.postgres_port}/{settings.postgres_database}"
    return msgspec.json.encode({"database": database, "configs": configs})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"{"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes().replace(b"1000.5", b"lots")),
        lambda path: path.write_bytes(path.read_bytes().replace(b"/d", b"/other")),
        lambda path: path.chmod(0o644),
        lambda path: (path.rename(path.with_suffix(".real")), path.symlink_to(path.with_suffix(".real"))),
        lambda path: (path.unlink(), os.mkfifo(path, 0o600)),
    ],
    ids=["missing", "torn", "empty", "unfit", "other-database", "open-to-others", "symlink", "fifo"],
)
def test_a_last_good_file_that_cannot_be_trusted_is_not_served(instance_dir: Path, spoil: Any) -> None:
    """With neither server nor usable file, asking raises ServerUnavailable: never None, never another's limits."""
    settings = without_server(instance_dir)
    path = instance_dir / "trader-configs.json"
    path.touch(0o600)
    path.write_bytes(last_good(settings, [replaced(CONFIG, version=4)]))
    with ConfigWatch(settings) as watch:
        assert version_of(watch) == 4, "the unspoilt file is served"
    spoil(path)
    with ConfigWatch(settings) as watch:
        for ask in (lambda: watch.current("t1"), watch.all):
            with pytest.raises(ServerUnavailable, match="never reached"):
                ask()


def test_a_runtime_directory_open_to_others_is_refused(instance_dir: Path) -> None:
    """Limits are not read from where anybody may write."""
    instance_dir.chmod(0o777)
    with pytest.raises(LaneError, match="wanted 0700"):
        ConfigWatch(without_server(instance_dir)).start()


async def test_async_traders_and_watch_answer_the_same(database: Settings) -> None:
    """AsyncTraderConfigs and AsyncConfigWatch: the same names, awaited."""
    async with AsyncPool(database) as pool, AsyncConfigWatch(database, poll_interval_s=3_600) as watch:
        configs = AsyncTraderConfigs(pool)
        first = await configs.save(CONFIG, changed_by="ann")
        assert await watch.wait_until(lambda watch: version_of(watch) == 1)
        assert watch.all() == {"t1": Current(first, stale=False)}
        assert (await configs.get("t1"), await configs.get_all()) == (first, {"t1": first})
        assert await configs.history("t1") == [first]
        assert not watch.stale


def test_stopping_leaves_no_thread_and_no_connection(database: Settings) -> None:
    """Five watches come and go; what they opened is closed."""
    for _ in range(5):
        with ConfigWatch(database):
            pass
    assert not [thread for thread in threading.enumerate() if thread.name == "ringlog-config-watch"]
    count = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    condition(lambda: execute(database, count) == [(0,)])
