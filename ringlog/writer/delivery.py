"""Delivery: batches on their way to the sink, and the moment from which their records are safe.

A batch is encoded on the caller's thread, sent on a second and confirmed on a third, so that the caller never waits
for the server: at most two batches are held encoded, and one question asks for all that was acknowledged. The rows at
fault in a refused batch are looked for on the second thread, and nothing else is encoded until they are found. Nothing
here retries: a failure gives a table's batches back to where they came from.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ringlog.errors import RinglogError, ServerRefused, ServerUnavailable
from ringlog.sinks import Batch, Receipt, Request, Sink
from ringlog.sinks.bisection import Bisection, RefusedRow, bisect
from ringlog.writer.part import Part
from ringlog.writer.statistics import Statistics

logger = logging.getLogger("ringlog.writer")

REQUESTS_HELD_MAX = 2
CONFIRM_INTERVAL_SECONDS = 0.01
CONFIRM_SURPRISE_SECONDS = 1.0  # a surprise in a client library is no flood of log lines
# A client bounds each wait for the server, but not their sum: an answer that never ends has ended no wait. A request
# that has not returned after so long never will, and its thread cannot be ended: the process must be.
SEND_SECONDS_MAX = 30.0
SEND_WAITS_MAX = 10  # waits of at most the request's time limit in one sending; where those may take longer, so may it
BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 5.0


class Settled:
    """What became of a batch: with no `error` its rows are applied, but for those of `refused`."""

    def __init__(self, error: RinglogError | None = None, refused: Sequence[RefusedRow] = ()) -> None:
        self.error = error
        self.refused = tuple(refused)


Settle = Callable[[Settled], None]


@dataclasses.dataclass(slots=True, eq=False)
class _Sent:
    batch: Batch
    settle: Settle
    future: Future[tuple[Receipt, float]]
    receipts: list[Receipt] = dataclasses.field(default_factory=list)
    refused: list[RefusedRow] = dataclasses.field(default_factory=list)
    acknowledged_at: float | None = None


class _Search(NamedTuple):
    """For the rows at fault in a refused batch."""

    entry: _Sent
    future: Future[Bisection]
    since: float


@dataclasses.dataclass(slots=True)
class _Backoff:
    failures: int = 0
    not_before: float = 0.0
    error: str = ""


class Delivery:
    """Sends batches, in order for each table, and settles each exactly once: applied, or given back with an error."""

    def __init__(
        self,
        sink: Sink | Future[Sink],
        statistics: Statistics,
        confirm_timeout_seconds: float,
        *,
        request_timeout_seconds: float = 0.0,
        keeps_columns: bool = False,
    ) -> None:
        """`keeps_columns`: a batch has its columns until it is settled, rather than until it is acknowledged."""
        self._sink = Part(sink)
        self._statistics = statistics
        self.confirm_timeout_seconds = confirm_timeout_seconds
        self._keeps_columns = keeps_columns
        self._send_seconds_max = max(SEND_SECONDS_MAX, SEND_WAITS_MAX * request_timeout_seconds)
        self._sender = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ringlog-send")
        self._asker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ringlog-confirm")
        self._sent: list[_Sent] = []
        self._under_way: set[Future[tuple[Receipt, float]]] = set()
        self._asked: tuple[Future[Sequence[bool]], list[_Sent]] | None = None
        self._search: _Search | None = None
        self._backoffs: dict[str, _Backoff] = {}
        self._confirm_at = 0.0
        self._sending_since: float | None = None  # written by the sending thread
        self.is_hung = False

    @property
    def is_ready(self) -> bool:
        """Whether there is a sink yet. Raises what its making raised."""
        return self._sink.is_ready and self._sink.value is not None

    @property
    def is_idle(self) -> bool:
        """Whether everything sent has been settled."""
        return not self._sent

    @property
    def has_room(self) -> bool:
        """Whether another batch may be encoded now."""
        self._under_way = {future for future in self._under_way if not future.done()}
        return self._search is None and len(self._under_way) < REQUESTS_HELD_MAX

    @property
    def silent_seconds(self) -> float:
        """How long the request, or the search for refused rows, under way has gone without an end; 0 where none is."""
        since = self._sending_since if self._search is None else self._search.since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def server_dir(self) -> Path | None:
        """Where the server keeps its data, if that is on this machine and known; asked by whoever has a sink."""
        return getattr(self._sink.value, "data_dir", None) if self.is_ready else None

    def trouble(self, table: str) -> str:
        """Why the last request of a table failed; empty where it did not."""
        backoff = self._backoffs.get(table)
        return backoff.error if backoff is not None else ""

    def is_open(self, table: str) -> bool:
        """Whether batches of a table may be sent now: there is a sink, and its last failure is not too recent."""
        backoff = self._backoffs.get(table)
        return self.is_ready and (backoff is None or time.monotonic() >= backoff.not_before)

    def submit(self, batch: Batch, settle: Settle) -> None:
        """Encodes a batch and hands it to the sending thread; call it where `has_room`.

        `settle` is called by a later `collect`: without error once the rows are applied; with one where they may not
        be, and then every later batch of the same table is given back as well.
        """
        future = self._sender.submit(self._send, self._sink.value.encode(batch))
        self._under_way.add(future)
        self._sent.append(_Sent(batch, settle, future))

    def _send(self, request: Request) -> tuple[Receipt, float]:
        started = self._sending_since = time.monotonic()
        try:
            receipt = self._sink.value.send(request)
        finally:
            self._sending_since = None
            self._sink.value.release(request)
        return receipt, time.monotonic() - started

    def collect(self, timeout_seconds: float = 0.0) -> bool:
        """Waits at most that long for something to end, then settles what has failed or been confirmed.

        False where nothing was under way to wait for. Raises ServerUnavailable where a request never returns: then
        this process must end, and the next one sends everything again.
        """
        self._require_ends()
        # Those of a table that was given up too: while they hold the room, waiting for them is all there is to do.
        pending: list[Future[Any]] = [future for future in self._under_way if not future.done()]
        if self._asked is not None:
            pending.append(self._asked[0])
        if self._search is not None:
            pending.append(self._search.future)
        if pending and timeout_seconds > 0:
            wait(pending, timeout_seconds, FIRST_COMPLETED)
        if self._search is not None and self._search.future.done():
            search, self._search = self._search, None
            if search.entry in self._sent:  # or its table was given up meanwhile
                self._found(search)
        blocked: set[str] = set()
        for entry in list(self._sent):
            table = entry.batch.layout.table
            if entry.acknowledged_at is None and table not in blocked and entry.future.done() and entry in self._sent:
                self._acknowledge(entry)
            if entry.acknowledged_at is None:
                blocked.add(table)  # one whose refused rows are looked for comes before those that were sent after it
        self._confirm()
        return bool(pending)

    def _require_ends(self) -> None:
        now, since = time.monotonic(), self._sending_since
        if since is not None and now - since > self._send_seconds_max:
            self._hang(self._send_seconds_max)

    def _hang(self, seconds: float) -> NoReturn:
        self.is_hung = True
        raise ServerUnavailable(f"got a request that has not returned for {seconds:.0f} s, wanted an answer")

    def _acknowledge(self, entry: _Sent) -> None:
        table = entry.batch.layout.table
        try:
            receipt, seconds = entry.future.result()
            entry.receipts.append(receipt)
            self._statistics.wrote(entry.batch.rows, seconds)
        except ServerRefused as error:
            if self._search is None:
                self._bisect(entry, error)
            return
        except RinglogError as error:
            self._fail(table, error)
            return
        except Exception as error:  # noqa: BLE001 (it is logged there)
            self._surprise(table, error)
            return
        self._await_confirmation(entry)

    def _surprise(self, table: str, error: Exception) -> None:
        """A surprise in a client library must not end the writer in a crash loop."""
        logger.error("send failed unexpectedly table=%s", table, exc_info=error)
        self._fail(table, ServerUnavailable(f"{type(error).__name__}: {error}"))

    def _bisect(self, entry: _Sent, error: ServerRefused) -> None:
        """Has the neighbours of refused rows delivered, on the sending thread's turn and while nothing is encoded."""
        table = entry.batch.layout.table
        logger.warning("refused table=%s rows=%d, looking for the rows at fault: %s", table, entry.batch.rows, error)
        self._search = _Search(entry, self._sender.submit(self._bisected, entry.batch), time.monotonic())

    def _bisected(self, batch: Batch) -> Bisection:
        def begin() -> None:
            self._sending_since = time.monotonic()

        try:
            return bisect(self._sink.value, batch, begin)
        finally:
            self._sending_since = None

    def _found(self, search: _Search) -> None:
        entry, table = search.entry, search.entry.batch.layout.table
        try:
            found = search.future.result()
        except RinglogError as fault:
            self._fail(table, fault)
            return
        except Exception as fault:  # noqa: BLE001
            self._surprise(table, fault)
            return
        entry.receipts += found.receipts
        entry.refused += found.refused
        self._await_confirmation(entry)

    def _await_confirmation(self, entry: _Sent) -> None:
        entry.acknowledged_at = time.monotonic()
        self._confirm_at = 0.0
        if not self._keeps_columns:
            # Those of all that a server is slow to apply would be as much memory as all lanes.
            entry.batch.columns = {}

    def _confirm(self) -> None:
        now = time.monotonic()
        if self._asked is not None:
            future, entries = self._asked
            if not future.done():
                self._expire(now)
                return
            self._asked = None
            self._settle_confirmed(future, entries)
        self._expire(now)
        entries = [entry for entry in self._sent if entry.acknowledged_at is not None]
        if entries and now >= self._confirm_at:
            self._confirm_at = now + CONFIRM_INTERVAL_SECONDS
            receipts = [receipt for entry in entries for receipt in entry.receipts]
            self._asked = self._asker.submit(self._sink.value.confirm, receipts), entries

    def _settle_confirmed(self, future: Future[Sequence[bool]], entries: list[_Sent]) -> None:
        try:
            answers = iter(future.result())
        except RinglogError as error:
            logger.debug("confirm failed: %s", error)
            return
        except Exception:  # as in a send; asked again, and given back where it stays so
            logger.exception("confirm failed unexpectedly")
            self._confirm_at = time.monotonic() + CONFIRM_SURPRISE_SECONDS
            return
        held: set[str] = set()
        for entry in entries:
            applied = [next(answers) for _ in entry.receipts]
            table = entry.batch.layout.table
            if entry not in self._sent or table in held:
                continue
            if not all(applied):
                held.add(table)  # tails move in order
                continue
            self._sent.remove(entry)
            self._backoffs.pop(table, None)
            entry.settle(Settled(refused=entry.refused))

    def _expire(self, now: float) -> None:
        """Rows that were acknowledged and are not applied for too long are given back: the sink folds the copies."""
        for entry in list(self._sent):
            if entry.acknowledged_at is not None and now - entry.acknowledged_at > self.confirm_timeout_seconds:
                table = entry.batch.layout.table
                late = f"{entry.batch.rows} rows acknowledged but not applied for {self.confirm_timeout_seconds:.0f} s"
                self._fail(table, ServerUnavailable(f"table {table}: got {late}"))
                return

    def _fail(self, table: str, error: RinglogError) -> None:
        """Gives all of a table's batches back. One still being sent may yet arrive: it is a copy, and is folded."""
        failed = [entry for entry in self._sent if entry.batch.layout.table == table]
        self._sent = [entry for entry in self._sent if entry not in failed]
        backoff = self._backoffs.setdefault(table, _Backoff())
        backoff.failures += 1
        backoff.error = str(error)
        longest = min(BACKOFF_SECONDS_MIN * 2**backoff.failures, BACKOFF_SECONDS_MAX)
        backoff.not_before = time.monotonic() + longest * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)
        self._statistics.errors += 1
        if backoff.failures & (backoff.failures - 1) == 0:  # 1, 2, 4, 8 ...: an outage is no flood of log lines
            logger.warning("write failed table=%s failures=%d: %s", table, backoff.failures, error)
        for entry in failed:
            entry.settle(Settled(error))

    def close(self) -> None:
        """Ends the threads once what they are doing has ended, then closes the sink; a thread that hangs is left.

        Raises ServerUnavailable where that takes longer than SEND_SECONDS_MAX: then this process must end.
        """
        if self.is_hung:
            return
        for threads in (self._sender, self._asker):
            threads.shutdown(wait=False, cancel_futures=True)
        futures: list[Future[Any]] = [*self._under_way]
        if self._asked is not None:
            futures.append(self._asked[0])
        if self._search is not None:
            futures.append(self._search.future)
        if wait([future for future in futures if not future.done()], SEND_SECONDS_MAX).not_done:
            self._hang(SEND_SECONDS_MAX)
        self._sink.close()
