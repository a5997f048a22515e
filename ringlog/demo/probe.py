"""The probe: asks QuestDB again and again which records it can see, to say how fresh the data is."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Sequence

import numpy as np

from ringlog.errors import QueryError, ServerError
from ringlog.questdb.connection import Connection
from ringlog.settings import Settings

INTERVAL_SECONDS = 0.02
TIMEOUT_SECONDS = 60.0


def counted(table: str) -> str:
    """The probe's question: lane, its largest seq, its rows."""
    return f"SELECT lane, max(seq), count() FROM {table}"  # noqa: S608 (a record type's own)


class Probe:
    """A thread that notes, for each lane of `tables`, up to which seq a query sees its rows, and when that ended."""

    def __init__(self, settings: Settings, tables: Sequence[str], interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._settings = settings
        self._tables = tables
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._answered = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._seen: dict[tuple[str, int], list[tuple[int, int]]] = {}
        self._counts: dict[str, dict[int, int]] = {table: {} for table in tables}

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def wait(self, timeout_seconds: float) -> bool:
        """Until the next answer of the last table, at most so long; whether it came."""
        self._answered.clear()
        return self._answered.wait(timeout_seconds)

    def stored(self) -> dict[int, int]:
        """How many rows of each lane the latest queries saw."""
        return {lane: rows for counts in self._counts.values() for lane, rows in counts.items()}

    def _run(self) -> None:
        while not self._stop.is_set():
            with (
                contextlib.suppress(ServerError, QueryError),
                contextlib.closing(Connection.from_settings(self._settings)) as connection,
            ):
                self._poll(connection)
            self._stop.wait(self._interval_seconds)

    def _poll(self, connection: Connection) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            for table in self._tables:
                rows = connection.execute(counted(table), timeout_s=TIMEOUT_SECONDS)
                now_ns = time.monotonic_ns()
                self._counts[table] = {lane: count for lane, _, count in rows}
                for lane, seq, _ in rows:
                    seen = self._seen.setdefault((table, lane), [])
                    if not seen or seen[-1][0] < seq:
                        seen.append((seq, now_ns))
            self._answered.set()
            # A query over many rows takes its time: never more than a sixth of a core goes into asking.
            self._stop.wait(max(self._interval_seconds, 5 * (time.monotonic() - began)))

    def freshness_ms(self, samples: Iterable[tuple[str, int, int, int]]) -> list[float]:
        """For each sample (table, lane, seq, appended at in ns) the time until a query saw it; unseen ones left out."""
        found = []
        for table, lane, seq, appended_ns in samples:
            seen = self._seen.get((table, lane), [])
            at = int(np.searchsorted([known for known, _ in seen], seq))
            if at < len(seen):
                found.append((seen[at][1] - appended_ns) / 1e6)
        return found
