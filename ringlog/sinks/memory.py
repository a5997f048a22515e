"""A sink in memory, for the tests of code that appends: it keeps rows as a table with DEDUP keys does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from ringlog.columns import to_list
from ringlog.errors import ServerRefused, ServerUnavailable
from ringlog.records import LANE, SEQ, TIMESTAMP, Record
from ringlog.sinks.contract import Batch, Receipt, Request

Row = dict[str, Any]


class MemorySink:
    """Keeps every row in the process; a row that is sent again replaces itself.

    Set `available` to False to have every call answered by ServerUnavailable. `refuse` is asked for each row on every
    send: a text it returns is the reason for which the whole request is refused, as a server does.
    """

    def __init__(self, refuse: Callable[[Row], str | None] | None = None) -> None:
        self.available = True
        self.refuse = refuse
        self._tables: dict[str, dict[tuple[int, int, int], Row]] = {}
        self._transactions: dict[str, int] = {}
        self._lock = threading.Lock()

    def rows(self, record_type: type[Record] | str) -> list[Row]:
        """The rows of a record type (or of a table by name), oldest first.

        Each is a dict of the fields, `lane` and `seq`; NULL is None, `timestamp` integer microseconds since the epoch.
        """
        table = record_type if isinstance(record_type, str) else record_type.__table__
        with self._lock:
            rows = self._tables.get(table, {})
            return [dict(rows[key]) for key in sorted(rows)]

    def encode(self, batch: Batch) -> Request:
        names = list(batch.columns)
        columns = [to_list(column) for column in batch.columns.values()]
        body = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        return Request(batch.layout, batch.spans, batch.rows, body)

    def release(self, request: Request) -> None:
        request.body = None

    def send(self, request: Request) -> Receipt:
        self._require_available()
        if self.refuse is not None:
            for line, row in enumerate(request.body, start=1):
                reason = self.refuse(row)
                if reason is not None:
                    error = ServerRefused(f"error in line {line}: {reason}")
                    error.line = line
                    raise error
        table = request.layout.table
        with self._lock:
            rows = self._tables.setdefault(table, {})
            rows.update({(row[TIMESTAMP], row[LANE], row[SEQ]): row for row in request.body})
            transaction = self._transactions[table] = self._transactions.get(table, 0) + 1
        return Receipt(table, request.rows, table_id=1, transaction=transaction)

    def confirm(self, receipts: Sequence[Receipt]) -> Sequence[bool]:
        self._require_available()
        with self._lock:
            return [receipt.transaction <= self._transactions.get(receipt.table, 0) for receipt in receipts]

    def close(self) -> None:
        """Nothing is held; the rows can still be read."""

    def _require_available(self) -> None:
        if not self.available:
            raise ServerUnavailable("the memory sink is set to be unavailable")
