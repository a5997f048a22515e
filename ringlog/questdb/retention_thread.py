"""Retention inside a process that has other work: on a thread of its own, which nobody ever waits for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from ringlog.errors import RetentionRunning, RinglogError, ServerUnavailable
from ringlog.questdb.retention import Retention
from ringlog.questdb.retention_window import run_if_due
from ringlog.settings import Settings

_logger = logging.getLogger(__name__)

# How often the executed cuts are asked for (cron, or another writer, may have made one), and how often while they are
# not known because the server is away.
CUTS_INTERVAL_S = 5.0
CUTS_RETRY_S = 0.5
# So many failures for want of a server are not told of: some ten seconds.
QUIET_FAILURES = 16
# How often it is looked whether a run is due: the window is open for two hours.
RUN_INTERVAL_S = 600.0
# An idle thread ends at once; one in the middle of a run is left to the process's end. The next run resolves it.
STOP_TIMEOUT_S = 0.1


class RetentionThread:
    """Runs retention once a day, and knows the cuts: what the writer takes as `ringlog.sinks.Cuts`."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationError for `retention_days` below 1; asks nothing before `start`."""
        self._settings = settings
        self._retention = Retention(settings)
        self._by_table: Mapping[str, int] | None = None
        self._run_at = 0.0
        self._failures = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="ringlog-retention", daemon=True)

    def start(self) -> RetentionThread:
        self._thread.start()
        return self

    @property
    def by_table(self) -> Mapping[str, int] | None:
        """Microseconds since the epoch before which a table's records have expired; None until the server answered."""
        return self._by_table

    def close(self) -> None:
        self._stop.set()
        self._thread.join(STOP_TIMEOUT_S)

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                self._step()
                self._failures = 0
            except RetentionRunning as error:
                _logger.info("retention is run by another process: %s", error)
            except RinglogError as error:
                self._failed(error)
            except Exception as error:  # a surprise in a client library must not end retention for good
                _logger.exception("retention failed unexpectedly")
                self._failed(error)
            self._stop.wait(CUTS_RETRY_S if self._by_table is None else CUTS_INTERVAL_S)
        self._retention.close()

    def _step(self) -> None:
        self._by_table = self._retention.expiry_cuts()
        if time.monotonic() >= self._run_at:
            self._run_at = time.monotonic() + RUN_INTERVAL_S
            try:
                ran = run_if_due(self._settings, self._on_cut)
            except ServerUnavailable:
                self._run_at = 0.0  # whether a run was due is still not known
                raise
            if ran is not None:
                self._by_table = self._retention.expiry_cuts()

    def _on_cut(self, table: str, cut_us: int) -> None:
        """Known before the cut is made; what came of it is asked of the audit when the run has ended."""
        self._by_table = {**(self._by_table or {}), table: cut_us}

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if isinstance(error, ServerUnavailable) and self._failures < QUIET_FAILURES:
            return  # the writer tells of the server itself
        if self._failures & (self._failures - 1) == 0:  # 1, 2, 4, 8 ...: an outage is no flood of log lines
            _logger.warning("retention cannot be looked after failures=%d: %s", self._failures, error)
