"""What the PostgreSQL tests share: real mints, and a way to the database past everything that is under test."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ringlog import libpq
from ringlog.postgres.pools import connection_options
from ringlog.settings import Settings

USDC = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
SOL = "So11111111111111111111111111111111111111112"
PYUSD = "2b1kV6DkPAnxd5ixfnxCpjxmKwqjjaYmCZfHsFu24GXo"  # Token-2022, with a transfer fee (of 0) and a hook (of nobody)


def execute(settings: Settings, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """The rows of one statement by bare psycopg, past everything that is under test, its limits of time too."""
    unlimited = {"connect_timeout": 60, "options": ""}  # to make or drop a database takes long on a busy disk
    with libpq.Connection.connect(**{**connection_options(settings), **unlimited}) as connection:
        cursor = connection.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []


def condition(satisfied: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Waits until `satisfied()`, and fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not satisfied():
        assert time.monotonic() < deadline, "the condition was not met in time"
        pause.wait(0.02)


def start_python(settings: Settings, source: str) -> subprocess.Popen[bytes]:
    """Another process that runs `source` with `settings` in it; its stdin is open, after one line with the password."""
    known = {name: getattr(settings, name) for name in ("postgres_port", "postgres_database", "runtime_dir")}
    head = f"""
import sys
from ringlog.settings import Secret, Settings
settings = Settings(postgres_password=Secret(sys.stdin.readline().strip()), **{known!r})
"""
    process = subprocess.Popen([sys.executable, "-c", head + source], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(settings.postgres_password.reveal().encode() + b"\n")
    process.stdin.flush()
    return process
