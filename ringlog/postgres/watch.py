"""Trader configurations in memory, kept current by NOTIFY and by polling, and served while PostgreSQL is away."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import msgspec
import psycopg

from ringlog.errors import PostgresValueError, ServerUnavailable
from ringlog.postgres.last_good import LastGoodFile
from ringlog.postgres.pools import configured_connection, connection_options
from ringlog.postgres.sessions import Connection
from ringlog.postgres.traders import CHANNEL, COLUMNS, TraderConfig, config_of
from ringlog.settings import Settings

log = logging.getLogger(__name__)

STOP_INTERVAL_S = 0.2  # how soon a waiting thread sees stop()
RECONNECT_INTERVAL_S = 0.5
START_TIMEOUT_S = 5.0


class Current(msgspec.Struct, frozen=True):
    """A configuration, and whether the server may know a newer one that could not be read."""

    config: TraderConfig
    stale: bool


class ConfigWatch:
    """Every trader's newest configuration, read in a thread of its own over one connection of its own.

    `current()` answers from memory at once, whatever the server does: after a NOTIFY, after a poll every
    `poll_interval_s` (the only way with `listen=False`, and through a pooler), or, while the server
    is away, with the last good version and `stale` set. That version is also kept in the runtime directory, for a
    start without a server. A version that does not fit (edited by hand) is logged, and the last good one stays.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        poll_interval_s: float = 5.0,
        listen: bool = True,
        on_change: Callable[[TraderConfig], None] | None = None,
    ) -> None:
        connection_options(settings)  # raises ConfigurationError here, and not in the thread
        self._settings = settings
        self._poll_interval_s = poll_interval_s
        self._listen = listen
        self._on_change = on_change
        # Beyond two polls and the time a read may take, silence means that the server is away.
        self._confirmed_for_s = 2 * poll_interval_s + settings.postgres_timeout_ms / 1_000
        self._changed = threading.Condition()
        self._configs: dict[str, TraderConfig] = {}
        self._unfit: set[str] = set()
        self._confirmed_at: float | None = None
        self._known = False  # from the server or from the file
        self._stopping = threading.Event()
        self._settled = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Reads the configurations, from the server or, where it is away, from the last good file; then watches."""
        self._file = LastGoodFile(self._settings)
        with self._changed:
            self._configs = self._file.read()
            self._known = bool(self._configs)
        self._thread = threading.Thread(target=self._run, name="ringlog-config-watch", daemon=True)
        self._thread.start()
        self._settled.wait(START_TIMEOUT_S)
        return self

    def stop(self) -> None:
        """Ends the thread and its connection."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def current(self, trader_id: str) -> Current | None:
        """A trader's configuration, or None where there is no such trader.

        Raises ServerUnavailable where nothing was ever read, neither from the server nor from the last good file.
        """
        with self._changed:
            return self._current(trader_id)

    def all(self) -> dict[str, Current]:
        """Every trader's configuration, by trader_id. Raises ServerUnavailable as `current` does."""
        with self._changed:
            found = {trader_id: self._current(trader_id) for trader_id in sorted(self._configs)}
            if not found:
                self._require_known()
            return {trader_id: current for trader_id, current in found.items() if current is not None}

    @property
    def stale(self) -> bool:
        """Whether the server has not been heard of for longer than two polls, or the connection is lost."""
        confirmed_at = self._confirmed_at
        return confirmed_at is None or time.monotonic() - confirmed_at > self._confirmed_for_s

    def wait_until(self, satisfied: Callable[[Self], bool], timeout_s: float = 10.0) -> bool:
        """Waits until `satisfied(self)`, asked at once and after every read; False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: satisfied(self), timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _require_known(self) -> None:
        if not self._known:
            server = f"{self._settings.postgres_host}:{self._settings.postgres_port}"
            raise ServerUnavailable(
                f"PostgreSQL at {server}: never reached, and {self._file.path} holds no configurations of it"
            )

    def _current(self, trader_id: str) -> Current | None:
        self._require_known()
        config = self._configs.get(trader_id)
        return Current(config, self.stale or trader_id in self._unfit) if config else None

    # The thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with configured_connection(self._settings) as connection:
                    self._follow(connection)
            except psycopg.Error as error:
                self._lost(error)
                self._stopping.wait(RECONNECT_INTERVAL_S)

    def _follow(self, connection: Connection) -> None:
        if self._listen and connection.limits:
            log.warning("trader_configs=polled every_s=%s reason='a pooler in between: LISTEN'", self._poll_interval_s)
        elif self._listen:
            connection.execute(f"listen {CHANNEL}")
        self._read(connection, None)  # after LISTEN: what changes from here on is notified
        polled_at = time.monotonic()
        while not self._stopping.is_set():
            wait_s = min(STOP_INTERVAL_S, self._poll_interval_s)
            notified = {notify.payload for notify in connection.notifies(timeout=wait_s, stop_after=1)}
            if time.monotonic() - polled_at >= self._poll_interval_s:
                self._read(connection, None)
                polled_at = time.monotonic()
            elif notified:
                self._read(connection, sorted(notified))

    def _read(self, connection: psycopg.Connection[Any], trader_ids: list[str] | None) -> None:
        """Reads some or (None) all traders, and serves what fits."""
        where = "" if trader_ids is None else "where trader_id = any(%s)"
        rows = connection.execute(
            f"select {COLUMNS} from trader_configs {where}", None if trader_ids is None else (trader_ids,)
        ).fetchall()
        fit: dict[str, TraderConfig] = {}
        unfit: set[str] = set()
        for row in rows:
            try:
                fit[row[0]] = config_of(row)
            except PostgresValueError as error:
                unfit.add(row[0])
                if row[0] not in self._unfit:
                    log.error("trader_config=unfit served=last_good error=%s", error)
        asked = set(self._configs) | self._unfit if trader_ids is None else set(trader_ids)
        with self._changed:
            changed = [config for name, config in fit.items() if self._configs.get(name) != config]
            gone = asked - set(fit) - unfit
            self._configs = {name: config for name, config in self._configs.items() if name not in gone} | fit
            self._unfit = (self._unfit - asked) | unfit
            if self._confirmed_at is None:
                log.info("trader_configs=current traders=%d", len(self._configs))
            self._confirmed_at = time.monotonic()
            self._known = True
            self._changed.notify_all()
        self._file.write(self._configs)  # outside the lock: nobody who asks waits for the disk
        self._settled.set()
        for config in changed:
            self._tell(config)

    def _tell(self, config: TraderConfig) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(config)
        except Exception:
            log.exception("on_change=failed trader=%s version=%d", config.trader_id, config.version)

    def _lost(self, error: psycopg.Error) -> None:
        with self._changed:
            if self._confirmed_at is not None or not self._settled.is_set():
                log.warning("trader_configs=stale error=%s", str(error).strip())
            self._confirmed_at = None
            self._changed.notify_all()
        self._settled.set()


class AsyncConfigWatch:
    """`ConfigWatch` for asyncio. Answers come from memory, so only starting, stopping and waiting are awaited."""

    def __init__(
        self,
        settings: Settings,
        *,
        poll_interval_s: float = 5.0,
        listen: bool = True,
        on_change: Callable[[TraderConfig], None] | None = None,
    ) -> None:
        self._watch = ConfigWatch(settings, poll_interval_s=poll_interval_s, listen=listen, on_change=on_change)

    async def start(self) -> Self:
        await asyncio.to_thread(self._watch.start)
        return self

    async def stop(self) -> None:
        await asyncio.to_thread(self._watch.stop)

    def current(self, trader_id: str) -> Current | None:
        return self._watch.current(trader_id)

    def all(self) -> dict[str, Current]:
        return self._watch.all()

    @property
    def stale(self) -> bool:
        return self._watch.stale

    async def wait_until(self, satisfied: Callable[[Self], bool], timeout_s: float = 10.0) -> bool:
        return await asyncio.to_thread(self._watch.wait_until, lambda _: satisfied(self), timeout_s)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
