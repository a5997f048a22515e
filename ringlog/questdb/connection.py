"""A connection to QuestDB's PostgreSQL wire on which every call is bounded in time, also by a server that hangs."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from ringlog import libpq
from ringlog.errors import QueryError, ServerRefused, ServerTooOld, ServerUnavailable, one_line
from ringlog.questdb.conf import client_conf
from ringlog.settings import Secret, Settings
from ringlog.transport import is_loopback

_logger = logging.getLogger(__name__)

# Older servers may corrupt storage when identical rows are written again under DEDUP (questdb#6359).
VERSION_MIN = (9, 2, 2)
_VERSION_MIN_TEXT = ".".join(map(str, VERSION_MIN))
DATABASE = "qdb"
# The least that libpq's rules allow for connecting.
CONNECT_TIMEOUT_S = 2


def tls_options(host: str, roots: str) -> dict[str, str]:
    """libpq's options for TLS, verified against the authorities of the file `roots` (`system`: the machine's).

    There is none to this machine itself. QuestDB's own wire has no TLS: elsewhere a proxy stands before it.
    """
    return {"sslmode": "disable"} if is_loopback(host) else {"sslmode": "verify-full", "sslrootcert": roots}


class _Bounded(libpq.Connection):
    """A psycopg connection that gives up waiting for the server at `deadline` (monotonic seconds)."""

    deadline: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        if timeout is None and self.deadline is not None:
            timeout = max(0.0, self.deadline - time.monotonic())
        return super().wait(gen, interval, timeout)


class Connection:
    """One autocommitting connection, opened at first use and again after it broke; safe to share between threads.

    `generation` grows by one with every connection made: what was learned about the server under an older generation
    must be looked at again.
    """

    def __init__(
        self, host: str, port: int, user: str, password: Secret, timeout_ms: int, tls_roots: str = "system"
    ) -> None:
        self.generation = 0
        self._server = f"QuestDB at {host}:{port}"
        self._timeout_s = timeout_ms / 1000
        self._password = password
        self._options: dict[str, Any] = {"host": host, "port": port, "user": user, "dbname": DATABASE}
        self._options |= {**tls_options(host, tls_roots), "connect_timeout": CONNECT_TIMEOUT_S, "autocommit": True}
        self._lock = threading.Lock()
        self._open: _Bounded | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Connection:
        """To the host of `questdb_client_conf` where that is given, else to `questdb_host`; nothing is opened yet."""
        conf = client_conf(settings)
        return cls(
            conf.host,
            settings.questdb_pg_port,
            settings.questdb_user,
            settings.questdb_password,
            settings.request_timeout_ms,
            conf.tls_roots,
        )

    def execute(self, sql: str, parameters: Sequence[Any] = (), *, timeout_s: float | None = None) -> list[Any]:
        """Runs one statement and returns its rows as tuples (none for a command).

        Raises ServerUnavailable where the server cannot be reached or does not answer in time, ServerRefused where it
        refuses the user, ServerTooOld, and QueryError with the server's words where it refuses the statement.
        """
        with self._lock:
            connection = self._connected()
            connection.deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
            try:
                cursor = connection.execute(sql, parameters or None)
                return cursor.fetchall() if cursor.rownumber is not None else []
            except psycopg.Error as error:
                is_broken, reason = connection.closed or _is_broken(error), reason_of(error)
            # Raised out here: psycopg's own error holds the password, and an error keeps the one it was raised under.
            if is_broken:
                self._drop()
                raise ServerUnavailable(f"{self._server}: {reason}")
            raise QueryError(f"{self._server}: {reason}")

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _connected(self) -> _Bounded:
        if self._open is not None and not self._open.closed:
            return self._open
        connection = self._connect()
        connection.deadline = time.monotonic() + self._timeout_s
        build = reason = ""
        try:
            build = str((connection.execute("select build()").fetchone() or [""])[0])
        except psycopg.Error as error:
            reason = reason_of(error)
        if reason or not _is_new_enough(build):
            connection.close()
            if reason:
                raise ServerUnavailable(f"{self._server}: {reason}")
            raise ServerTooOld(f"{self._server}: got {build[:80]!r}, wanted QuestDB {_VERSION_MIN_TEXT} or newer")
        self._open = connection
        self.generation += 1
        _logger.info("connected server=%r generation=%d", self._server, self.generation)
        return connection

    def _connect(self) -> _Bounded:
        try:
            return _Bounded.connect(password=self._password, **self._options)
        except psycopg.Error as error:
            reason = reason_of(error)
        if "password" in reason or "authentication" in reason:
            raise ServerRefused(f"{self._server}: refused user {self._options['user']!r} ({reason})")
        raise ServerUnavailable(unreachable(self._server, reason))

    def _drop(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def _is_new_enough(build: str) -> bool:
    """Whether `build`, the answer of `select build()`, names QuestDB 9.2.2 or newer."""
    found = re.search(r"QuestDB (?:\w+ )?(\d+)\.(\d+)\.(\d+)", build)
    return found is not None and tuple(int(part) for part in found.groups()) >= VERSION_MIN


def _is_broken(error: psycopg.Error) -> bool:
    # An answer of the server carries its diagnostics; without them the way to it failed.
    return isinstance(error, psycopg.OperationalError) and error.diag.message_primary is None


def unreachable(server: str, reason: str) -> str:
    """What is said where no connection is to be had, and what to do about it."""
    return f"{server}: no connection ({reason}): start it, or set RINGLOG_QUESTDB_HOST and RINGLOG_QUESTDB_PG_PORT"


def reason_of(error: psycopg.Error) -> str:
    return one_line(error.diag.message_primary or error)
