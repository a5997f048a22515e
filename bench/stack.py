"""The real thing around a benchmark: QuestDB with tables, an instance, and the writer in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from ringlog.lanes.claims import cards, open_board
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import remove_instance
from ringlog.lanes.views import LaneView, MappedLane
from ringlog.questdb.migrations import migrate
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

TIMEOUT_SECONDS = 120.0


def wait_for(condition: Callable[[], Any], what: str, poll_seconds: float = 0.01) -> Any:
    """The condition's value as soon as it is true. Raises TimeoutError."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"got no {what} within {TIMEOUT_SECONDS:.0f} s")
        time.sleep(poll_seconds)
    return value


def environment(settings: Settings) -> dict[str, str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RINGLOG_")}
    environment = {**outside, **settings.to_environment()}
    if "RINGLOG_RING" in os.environ:
        environment["RINGLOG_RING"] = os.environ["RINGLOG_RING"]
    return environment


@contextlib.contextmanager
def server(running: QuestDBServer | None = None) -> Iterator[QuestDBServer]:
    """QuestDB with the platform's tables, in a directory of its own, unless one that runs is given."""
    with contextlib.nullcontext(running) if running else QuestDBServer() as questdb:
        made = migrate(
            Settings(**questdb.settings(), request_timeout_ms=60_000),
            [layout_of(record) for record in PLATFORM_RECORDS],
        )
        problems = [migration.problem for migration in made if migration.problem]
        assert not problems, problems
        yield questdb


def start_writer(settings: Settings, log: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """`ringlog writer`, which may not be ready yet."""
    return subprocess.Popen(
        [sys.executable, "-m", "ringlog", "writer"], env=environment(settings), stdout=log, stderr=log,
        start_new_session=True,  # Ctrl-C in a terminal is the benchmark's to handle
    )  # fmt: skip


@contextlib.contextmanager
def writer(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """The instance's writer as `ringlog writer`, once it says how it is; ended by SIGTERM."""
    with tempfile.TemporaryFile() as log:
        known = writer_status(settings).get("epoch")

        def is_new(status: dict[str, Any]) -> bool:
            return status.get("epoch") != known and status["state"] == "running"

        process = start_writer(settings, log)
        try:
            wait_for(lambda: process.poll() is not None or is_new(writer_status(settings)), "status of the writer")
            yield process
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"the writer ended with status {process.returncode}: {log.read().decode()}")
        finally:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
            process.wait(TIMEOUT_SECONDS)


@contextlib.contextmanager
def fresh(questdb: QuestDBServer, **options: Any) -> Iterator[Settings]:
    """Settings of a fresh instance, which is removed in the end."""
    with tempfile.TemporaryDirectory(prefix="ringlog-bench-") as directory:
        settings = Settings(runtime_dir=str(Path(directory) / "run"), **{**questdb.settings(), **options})
        try:
            yield settings
        finally:
            remove_instance(Instance(settings))


@contextlib.contextmanager
def instance(questdb: QuestDBServer, **options: Any) -> Iterator[Settings]:
    """Settings of a fresh instance, and the writer draining it until the end."""
    with fresh(questdb, **options) as settings, writer(settings):
        yield settings


def writer_status(settings: Settings) -> dict[str, Any]:
    """What the writer last wrote on the board, or nothing yet."""
    status = open_board(Instance(settings).open()).read_status()
    return dict(msgspec.json.decode(status)) if status else {}


def lanes(settings: Settings, held: contextlib.ExitStack) -> list[LaneView]:
    """The lanes there are now, mapped until `held` ends; one that goes this very moment is left out."""
    views: list[LaneView] = []
    for card in cards(Instance(settings)):
        with contextlib.suppress(FileNotFoundError):
            view = MappedLane(card.segment, card.lane)
            held.callback(view.close)
            views.append(view)
    return views


def lane_bytes(settings: Settings) -> int:
    return sum(card.size_bytes for card in cards(Instance(settings)))


def private_bytes(pid: int) -> int:
    """Memory of a process that no other shares, its shared memory left out."""
    found = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            found += int(line.split()[1]) * 1024
    return found


def connect(settings: Settings, **options: Any) -> psycopg.Connection[Any]:
    """A bare connection to QuestDB, for what a benchmark compares ringlog with."""
    return psycopg.connect(**connection_options(settings), **options)


def connection_options(settings: Settings) -> dict[str, Any]:
    return {
        "host": settings.questdb_host,
        "port": settings.questdb_pg_port,
        "user": settings.questdb_user,
        "password": settings.questdb_password.reveal(),
        "dbname": "qdb",
        "autocommit": True,
    }


def wait_until_applied(connection: psycopg.Connection[Any], table: str, rows: int) -> None:
    """Returns once a query sees `rows` rows in all. Polls the log's positions, which costs the server little."""

    def is_applied() -> bool:
        found = connection.execute(f"SELECT count() FROM {table}").fetchone()
        return found is not None and found[0] >= rows

    wait_for(is_applied, f"{rows} rows in {table}")


def count(connection: psycopg.Connection[Any], table: str) -> int:
    found = connection.execute(f"SELECT count() FROM {table}").fetchone()
    return int(found[0]) if found else 0
