"""The QuestDB sink: batches over HTTP, acknowledged rows followed until they are applied."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from questdb import QuestDBError

from ringlog.errors import QueryError, RinglogError, SchemaMismatch, ServerRefused, ServerUnavailable
from ringlog.questdb import data_dir
from ringlog.questdb.conf import client_conf
from ringlog.questdb.connection import Connection
from ringlog.questdb.frame import FrameBuilder
from ringlog.questdb.ingress import mapped, open_sender
from ringlog.questdb.tables import TableStatus, altered_between, creates_by_itself, quoted, statuses, verify
from ringlog.records import TIMESTAMP, RecordLayout
from ringlog.settings import Settings
from ringlog.sinks.contract import Batch, Receipt, Request

_logger = logging.getLogger(__name__)

REQUESTS_HELD_MAX = 2
# How old a check of a table's schema may be when its next rows are sent.
VERIFY_INTERVAL_S = 2.0
# How often a suspended table is asked to go on.
RESUME_INTERVAL_S = 1.0


@dataclasses.dataclass(slots=True)
class _Verified:
    """A table that was what its layout wants: no schema change up to transaction `sequenced` is unknown to us."""

    layout: RecordLayout
    table_id: int
    sequenced: int
    generation: int
    at_s: float


class QuestdbSink:
    """Sends batches to QuestDB and says when their rows are applied; see `ringlog.sinks.contract.Sink`.

    An acknowledgement alone is not trusted: the rows may have gone into a table that was dropped a moment ago. After
    each one the table must still have the id under which its schema was verified, its sequencer must have moved on,
    and none of the transactions since may have changed its schema; the rows are applied once the table's writer has
    reached the sequencer's transaction seen then, which is ours or a later one.

    Every call is bounded: connecting takes at most 2 s, each question `request_timeout_ms`, a request the same (about
    three times that for 10 MB), waiting for a logged schema change 2 s. `encode` may run on one thread while `send`
    runs on another; `confirm` on any.
    """

    def __init__(self, settings: Settings) -> None:
        """Checks the settings; the server is first asked by `verify` or `send`. Raises ConfigurationError."""
        self._conf = client_conf(settings)
        self._request_timeout_ms = settings.request_timeout_ms
        self._sender = open_sender(self._conf, self._request_timeout_ms)
        self.connection = Connection.from_settings(settings)
        self._frames = FrameBuilder()
        self._unused: list[Any] = [self._sender.new_buffer() for _ in range(REQUESTS_HELD_MAX)]
        self._verified: dict[str, _Verified] = {}
        self._written: dict[
            str, tuple[int, int]
        ] = {}  # by table, what the sender's connections first wrote to: id, txn
        self._resumed_s: dict[str, float] = {}
        self._settings = settings
        self._warned_generation = 0
        self.data_dir: Path | None = None  # where the server keeps its data, if that is on this machine

    def verify(self, layout: RecordLayout) -> None:
        """Holds the server's table against the layout, now.

        Raises SchemaMismatch, ServerUnavailable, ServerRefused (the user), ServerTooOld.
        """
        self._verify(layout)

    def encode(self, batch: Batch) -> Request:
        frame = self._frames.frame(batch)
        body = self._unused.pop() if self._unused else self._sender.new_buffer()
        try:
            body.clear()
            body.dataframe(frame, table_name=batch.layout.table, symbols="auto", at=TIMESTAMP)
        except BaseException:
            self._unused.append(body)
            raise
        return Request(batch.layout, batch.spans, batch.rows, body)

    def release(self, request: Request) -> None:
        body, request.body = request.body, None
        if body is not None and len(self._unused) < REQUESTS_HELD_MAX:
            self._unused.append(body)

    def send(self, request: Request) -> Receipt:
        verified = self._verified_now(request.layout)
        table = request.layout.table
        first = self._written.setdefault(table, (verified.table_id, verified.sequenced))
        if first[0] != verified.table_id:
            # The server keeps a table's writer with each HTTP connection: after the table was dropped and made again
            # it takes the next request on an old connection into the dropped one, and acknowledges it.
            self._renew_sender()
            self._written[table] = verified.table_id, verified.sequenced
        try:
            self._sender.flush(request.body, clear=False)
        except QuestDBError as error:
            # Whether the rows arrived may be unknown: whoever sends them again does so to a table checked anew.
            self._verified.pop(table, None)
            failure: RinglogError = mapped(error, self._conf)
            if isinstance(failure, ServerRefused) and self._is_outdated(table):
                self._renew_sender()
                failure = ServerUnavailable(f"{table}: altered since it was first written to, send again ({failure})")
            raise failure from None
        try:
            status = self._acknowledged(verified)
        except BaseException:
            self._verified.pop(table, None)
            raise
        verified.sequenced = status.sequenced
        return Receipt(status.table, request.rows, status.id, status.sequenced)

    def confirm(self, receipts: Sequence[Receipt]) -> Sequence[bool]:
        if not receipts:
            return []
        try:
            found = statuses(self.connection)
        except QueryError as error:
            raise ServerUnavailable(str(error)) from None
        return [self._is_applied(receipt, found.get(receipt.table)) for receipt in receipts]

    def close(self) -> None:
        self._unused.clear()
        self._sender.close(flush=False)
        self.connection.close()

    def _renew_sender(self) -> None:
        old, self._sender = self._sender, open_sender(self._conf, self._request_timeout_ms)
        old.close(flush=False)
        self._written.clear()

    def _is_outdated(self, table: str) -> bool:
        """Whether a refusal proves nothing, since the table was altered after the connection first wrote to it.

        With the table's writer the server keeps the column types of that moment, and goes on refusing by them.
        """
        status = statuses(self.connection).get(table)
        return status is not None and altered_between(self.connection, table, self._written[table][1], status.sequenced)

    def _verify(self, layout: RecordLayout) -> _Verified:
        self._verified.pop(layout.table, None)
        try:
            status = verify(self.connection, layout)
        except ServerUnavailable:
            # Suspended before a schema change: nothing is sent until that is applied, and so no receipt asks for it.
            seen = statuses(self.connection).get(layout.table)
            if seen is not None and seen.is_suspended:
                self._resume(layout.table)
            raise
        generation = self.connection.generation
        if generation != self._warned_generation:
            self._warned_generation = generation
            if creates_by_itself(self.connection):
                _logger.warning(
                    "QuestDB makes missing tables and columns by itself: a dropped table comes back without DEDUP; "
                    "set QDB_LINE_AUTO_CREATE_NEW_TABLES=false and QDB_LINE_AUTO_CREATE_NEW_COLUMNS=false"
                )
            self._find_data_dir()
        verified = _Verified(layout, status.id, status.sequenced, generation, time.monotonic())
        self._verified[layout.table] = verified
        return verified

    def _find_data_dir(self) -> None:
        """At each new connection: the server may be another one."""
        if self._settings.questdb_data_dir:
            return
        found = data_dir.find(self.connection, self._settings)
        if found.path is None:
            _logger.warning("the disk of QuestDB is not watched: %s", found.trouble)
        elif found.path != self.data_dir:
            _logger.info("the disk of QuestDB is watched path=%s", found.path)
        self.data_dir = found.path

    def _verified_now(self, layout: RecordLayout) -> _Verified:
        verified = self._verified.get(layout.table)
        if (
            verified is None
            or verified.generation != self.connection.generation
            or time.monotonic() - verified.at_s > VERIFY_INTERVAL_S
            or verified.layout != layout
        ):
            verified = self._verify(layout)
        return verified

    def _acknowledged(self, verified: _Verified) -> TableStatus:
        """The table's status after an acknowledgement, if that can be trusted."""
        table = verified.layout.table
        try:
            status = statuses(self.connection).get(table)
            if status is None:
                raise SchemaMismatch(f"{table}: got no such table after writing to it, wanted it verified")
            if status.id != verified.table_id:
                raise SchemaMismatch(f"{table}: got another table of that name after writing (id {status.id})")
            if status.sequenced <= verified.sequenced:
                raise ServerUnavailable(f"{table}: acknowledged, but no transaction followed {verified.sequenced}")
            others = status.sequenced > verified.sequenced + 1
            if others and altered_between(self.connection, table, verified.sequenced, status.sequenced):
                raise ServerUnavailable(f"{table}: altered while rows were written, send them again")
        except QueryError as error:
            raise ServerUnavailable(str(error)) from None
        return status

    def _is_applied(self, receipt: Receipt, status: TableStatus | None) -> bool:
        if status is None or status.id != receipt.table_id:
            if self._verified.pop(receipt.table, None):
                got = status.id if status else "none"
                _logger.error(
                    "table replaced before rows were applied table=%s got_id=%s wanted_id=%d",
                    *(receipt.table, got, receipt.table_id),
                )
            return False
        if status.is_suspended:
            self._resume(receipt.table)
            return False
        return status.applied >= receipt.transaction

    def _resume(self, table: str) -> None:
        """Asks a suspended table to go on with the transaction it stopped at: none is ever skipped."""
        now_s = time.monotonic()
        if now_s - self._resumed_s.get(table, float("-inf")) < RESUME_INTERVAL_S:
            return
        self._resumed_s[table] = now_s
        _logger.warning("table is suspended, resuming table=%s", table)
        try:
            self.connection.execute(f"ALTER TABLE {quoted(table)} RESUME WAL")
        except QueryError as error:
            _logger.error("resuming failed table=%s reason=%r", table, str(error))
