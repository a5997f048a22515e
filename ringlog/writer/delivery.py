"""Delivery: batches on their way to the sink, and the moment from which their records are safe.

A batch is encoded on the caller's thread and sent on one other thread, so that the next drain overlaps with the
network; at most two are held encoded. What was acknowledged waits for the sink's confirmation, asked for in one
question for all tables. Nothing here retries: a failure gives a table's batches back to where they came from.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ringlog.errors import RinglogError, ServerUnavailable
from ringlog.sinks import Batch, Receipt, Request, Sink
from ringlog.writer.statistics import Statistics

logger = logging.getLogger("ringlog.writer")

REQUESTS_HELD_MAX = 2
CONFIRM_INTERVAL_SECONDS = 0.02
BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 5.0


@dataclasses.dataclass(slots=True)
class _Sent:
    request: Request
    settle: Callable[[RinglogError | None], None]
    future: Future[tuple[Receipt, float]]
    receipt: Receipt | None = None
    acknowledged_at: float = 0.0


@dataclasses.dataclass(slots=True)
class _Backoff:
    failures: int = 0
    not_before: float = 0.0


class Delivery:
    """Sends batches, in order for each table, and settles each exactly once: confirmed, or given back with an error."""

    def __init__(self, sink: Sink, statistics: Statistics, confirm_timeout_seconds: float) -> None:
        self._sink = sink
        self._statistics = statistics
        self._confirm_timeout = confirm_timeout_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ringlog-send")
        self._sent: list[_Sent] = []
        self._backoffs: dict[str, _Backoff] = {}
        self._confirm_at = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether everything sent has been settled."""
        return not self._sent

    @property
    def has_room(self) -> bool:
        """Whether another batch may be encoded now."""
        return sum(not entry.future.done() for entry in self._sent) < REQUESTS_HELD_MAX

    def is_open(self, table: str) -> bool:
        """Whether batches of a table may be sent now, or its last failure is too recent."""
        backoff = self._backoffs.get(table)
        return backoff is None or time.monotonic() >= backoff.not_before

    def submit(self, batch: Batch, settle: Callable[[RinglogError | None], None]) -> None:
        """Encodes a batch and hands it to the sending thread; `settle(None)` once its rows are applied.

        `settle(error)` where they may not be: then every later batch of the same table is given back as well.
        """
        while not self.has_room:
            self.collect(timeout_seconds=0.05)
        request = self._sink.encode(batch)
        self._sent.append(_Sent(request, settle, self._thread.submit(self._send, request)))

    def _send(self, request: Request) -> tuple[Receipt, float]:
        started = time.monotonic()
        receipt = self._sink.send(request)
        return receipt, time.monotonic() - started

    def collect(self, timeout_seconds: float = 0.0) -> None:
        """Waits at most that long for a send to end, then settles what has failed or been confirmed."""
        pending = [entry.future for entry in self._sent if not entry.future.done()]
        if pending and timeout_seconds > 0:
            wait(pending, timeout_seconds, FIRST_COMPLETED)
        now = time.monotonic()
        for entry in list(self._sent):
            if entry.receipt is None and entry.future.done() and entry in self._sent:
                self._collect_one(entry, now)
        if now >= self._confirm_at:
            self._confirm(now)

    def _collect_one(self, entry: _Sent, now: float) -> None:
        try:
            entry.receipt, seconds = entry.future.result()
        except RinglogError as error:
            self._fail(entry.request.layout.table, error)
            return
        except Exception as error:  # a surprise in a client library must not end the writer in a crash loop
            logger.exception("send failed unexpectedly table=%s", entry.request.layout.table)
            self._fail(entry.request.layout.table, ServerUnavailable(f"{type(error).__name__}: {error}"))
            return
        entry.acknowledged_at = now
        self._sink.release(entry.request)
        self._statistics.wrote(entry.request.rows, seconds)
        self._confirm_at = min(self._confirm_at, now)

    def _confirm(self, now: float) -> None:
        entries = [entry for entry in self._sent if entry.receipt is not None]
        if not entries:
            return
        self._confirm_at = now + CONFIRM_INTERVAL_SECONDS
        try:
            answers = self._sink.confirm([entry.receipt for entry in entries if entry.receipt is not None])
        except ServerUnavailable as error:
            logger.debug("confirm failed: %s", error)
            answers = [False] * len(entries)
        held: set[str] = set()
        for entry, applied in zip(entries, answers, strict=True):
            table = entry.request.layout.table
            if table in held or entry not in self._sent:
                continue
            if applied:
                self._sent.remove(entry)
                self._backoffs.pop(table, None)
                entry.settle(None)
                continue
            held.add(table)  # tails move in order
            if now - entry.acknowledged_at > self._confirm_timeout:
                late = f"rows acknowledged but not applied for {self._confirm_timeout:.0f} s"
                self._fail(table, ServerUnavailable(f"table {table}: got {entry.request.rows} {late}"))

    def _fail(self, table: str, error: RinglogError) -> None:
        """Gives all of a table's batches back, once those under way have ended: a late one must not pass a rewind."""
        failed = [entry for entry in self._sent if entry.request.layout.table == table]
        wait([entry.future for entry in failed])
        self._sent = [entry for entry in self._sent if entry not in failed]
        backoff = self._backoffs.setdefault(table, _Backoff())
        backoff.failures += 1
        longest = min(BACKOFF_SECONDS_MIN * 2**backoff.failures, BACKOFF_SECONDS_MAX)
        backoff.not_before = time.monotonic() + longest * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)
        self._statistics.errors += 1
        if backoff.failures & (backoff.failures - 1) == 0:  # 1, 2, 4, 8 ...: an outage is no flood of log lines
            logger.warning("write failed table=%s failures=%d: %s", table, backoff.failures, error)
        for entry in failed:
            if entry.receipt is None:
                self._sink.release(entry.request)
            entry.settle(error)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._sink.close()
