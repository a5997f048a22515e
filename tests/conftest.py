"""What every test may use: real servers, started when first asked for, and an instance of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import msgspec
import parts
import pytest
from parts import TIERS

from ringlog.cli import quiet_libraries
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.lanes.segments import unlink_segment
from ringlog.servers import PostgresServer, QuestDBServer, ValkeyServer
from ringlog.settings import PREFIX, Settings

if TYPE_CHECKING:
    from whole_path import WholePath

FAULT_ROW = re.compile(r"::test_(\d\d)_")


def pytest_addoption(parser: pytest.Parser) -> None:
    parts.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Settings in the caller's environment must not reach the tests (RINGLOG_RING picks the ring under test)."""
    for variable in [name for name in os.environ if name.startswith(PREFIX) and name != "RINGLOG_RING"]:
        del os.environ[variable]
    os.environ.pop("QDB_CLIENT_CONF", None)
    # A server of the tests lives for minutes: without the second compiler its start takes 4 s of CPU instead of 7.
    os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
    # The first retry would make a logger on whatever stdout is then, also one that a test soon closes.
    quiet_libraries()
    # Timings are no matter of tests; and a commit passes the fast tier or does not: new examples are for the slow one.
    hypothesis.settings.register_profile("ringlog", deadline=None, derandomize=not config.getoption("--slow"))
    hypothesis.settings.load_profile("ringlog")
    parts.configure(config)


def pytest_report_header() -> str:
    """Which of the two rings runs: the C ring where it was built, unless RINGLOG_RING says otherwise."""
    from ringlog.ring import IMPLEMENTATION

    return f"ring: {IMPLEMENTATION}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tiers that were not asked for, and counts them for the summary."""
    left_out: dict[str, list[pytest.Item]] = {tier: [] for tier in TIERS}
    for item in items:
        for tier in TIERS:
            if item.get_closest_marker(tier) and not config.getoption(f"--{tier}"):
                left_out[tier].append(item)
                break
        else:
            if item.get_closest_marker("root") and os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root: run as root"))
    dropped = [item for tier in TIERS for item in left_out[tier]]
    config.stash[LEFT_OUT] = {tier: len(left_out[tier]) for tier in TIERS}
    if hasattr(config, "workeroutput"):  # with pytest-xdist the tests are collected where they run
        config.workeroutput["left_out"] = config.stash[LEFT_OUT]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]


LEFT_OUT = pytest.StashKey[dict[str, int]]()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker of pytest-xdist has left out: each collects all tests, so any of them knows."""
    node.config.stash[LEFT_OUT] = node.workeroutput.get("left_out", {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for tier, count in config.stash.get(LEFT_OUT, {}).items():
        if count:
            terminalreporter.write_line(f"not run: {count} tests marked {tier} (run them with --{tier})")
    passed = (report.nodeid for report in terminalreporter.getreports("passed"))
    rows = sorted({match[1] for name in passed if (match := FAULT_ROW.search(name))})
    if rows:
        terminalreporter.write_line(f"rows of the fault table with a test that passed ({len(rows)}): {' '.join(rows)}")


@pytest.fixture(scope="session")
def questdb_server() -> Iterator[QuestDBServer]:
    """QuestDB for the whole session: use tables of your own names, and a server of your own for faults."""
    with QuestDBServer() as server:
        yield server


@pytest.fixture(scope="session")
def mortal_server() -> Iterator[QuestDBServer]:
    """A QuestDB to be stopped and killed: a test leaves it running, and brings or empties the tables that it needs.

    In dev mode, so that tables can be suspended by SQL.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QDB_DEV_MODE_ENABLED", "true")
        server = QuestDBServer().start()
    with server:
        with (server.data_dir / "conf" / "server.conf").open("a") as conf:  # for its next lives
            conf.write("\ndev.mode.enabled=true\n")
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """PostgreSQL for the whole session: use a database or schema of your own, and a server of your own for faults."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """Valkey for the whole session: use a key prefix of your own, and a server of your own for faults."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def instance_dir(tmp_path: Path) -> Iterator[Path]:
    """A fresh runtime directory, 0700: lanes, locks, lease and spool of this test alone; its segments go with it."""
    directory = tmp_path / "instance"
    directory.mkdir(mode=0o700)
    yield directory
    instance = Instance(Settings(runtime_dir=str(directory)))
    for name in [instance.board_name, *(card.segment for card in cards(instance))]:
        unlink_segment(name)


@pytest.fixture
def lane_settings(instance_dir: Path) -> Settings:
    """Settings of a fresh instance without any server, its abandoned lanes removed soon."""
    return Settings(runtime_dir=str(instance_dir), lane_bytes_max=4 * 1024 * 1024, lane_linger_ms=50)


@pytest.fixture
def settings(instance_dir: Path, questdb_server: QuestDBServer) -> Settings:
    """Settings of a fresh instance that lead to the session's QuestDB."""
    return Settings(runtime_dir=str(instance_dir), **questdb_server.settings())


@pytest.fixture
def path(questdb_server: QuestDBServer, settings: Settings, tmp_path: Path) -> Iterator[WholePath]:
    """A fresh instance and an empty table on the session's QuestDB, and what leads records through them."""
    from whole_path import WholePath

    # No retention: it would run, or not, by the hour of the day, and take what tests stamp with old times.
    settings = msgspec.structs.replace(settings, lane_bytes_max=8 << 20, lane_linger_ms=50, retention_days=0)
    whole = WholePath(questdb_server, settings, tmp_path / "logs")
    yield whole
    whole.close()


@pytest.fixture
def postgres_settings(instance_dir: Path, postgres_server: PostgresServer) -> Settings:
    """Settings of a fresh instance that lead to the session's PostgreSQL."""
    return Settings(runtime_dir=str(instance_dir), **postgres_server.settings())


@pytest.fixture
def redis_settings(instance_dir: Path, valkey_server: ValkeyServer) -> Settings:
    """Settings of a fresh instance that lead to the session's Valkey."""
    return Settings(runtime_dir=str(instance_dir), **valkey_server.settings())
