"""What a sink is: the place where batches go, and what it confirms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ringlog.columns import Column, sliced
from ringlog.records import RecordLayout
from ringlog.spans import Span


@dataclasses.dataclass(slots=True)
class Batch:
    """What one drain took of one record type.

    `columns` maps each field's name, and `lane` and `seq` (int64), to a column of `rows` rows; the rows of `spans`
    follow each other in order.
    """

    layout: RecordLayout
    spans: tuple[Span, ...]
    rows: int
    columns: dict[str, Column]

    def take(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` (exclusive) as a batch over the same memory."""
        columns = {name: sliced(column, start, stop) for name, column in self.columns.items()}
        return Batch(self.layout, _taken(self.spans, start, stop), stop - start, columns)


def _taken(spans: Sequence[Span], start: int, stop: int) -> tuple[Span, ...]:
    taken = []
    position = 0
    for span in spans:
        first, last = max(start, position), min(stop, position + span.rows)
        if first < last:
            taken.append(Span(span.lane, span.first_seq + first - position, last - first))
        position += span.rows
    return tuple(taken)


@dataclasses.dataclass(slots=True)
class Request:
    """A batch in the sink's own encoding, ready to be sent and sent again; `body` is the sink's business."""

    layout: RecordLayout
    spans: tuple[Span, ...]
    rows: int
    body: Any


@dataclasses.dataclass(slots=True, frozen=True)
class Receipt:
    """What a sink said of a request it took: the rows are safe once `Sink.confirm` names this receipt.

    `table_id` and `transaction` are the server's: a table that was dropped and made again has another id.
    """

    table: str
    rows: int
    table_id: int
    transaction: int


class Sink(Protocol):
    """A place for batches. Every call is bounded in time; none retries by itself; a batch may be sent twice."""

    def encode(self, batch: Batch) -> Request:
        """The batch as a request; pure CPU work, no I/O. At most two requests are held at a time."""
        ...

    def release(self, request: Request) -> None:
        """The request will not be sent (again): its memory may serve the next `encode`. Any thread may call it."""
        ...

    def send(self, request: Request) -> Receipt:
        """Sends a request, whole or not at all; may run on another thread than `encode`.

        Raises ServerUnavailable (send it again later), ServerRefused (it will be refused again: a bad row or a table
        fault), SchemaMismatch (the table is not what it must be: send it again once that is mended). After each of
        them rows may have arrived all the same.
        """
        ...

    def confirm(self, receipts: Sequence[Receipt]) -> Sequence[bool]:
        """For each receipt whether its rows are applied: visible to a query, and kept if the server dies.

        False also where a table was replaced or is suspended, so that one table's trouble never holds up another.
        Raises ServerUnavailable where the server cannot be asked.
        """
        ...

    def close(self) -> None: ...


class Cuts(Protocol):
    """Which records come too late to be stored: they would bring back what retention took."""

    @property
    def by_table(self) -> Mapping[str, int] | None:
        """Microseconds since the epoch before which a table's records have expired; a table without a cut has no entry.

        None while it is not known: then nothing may be sent. Never waits.
        """
        ...

    def close(self) -> None:
        """Never waits for what is going on."""
        ...


class Mirror(Protocol):
    """A second place for what is safe already: best effort, never waited for, never part of the promise."""

    def offer(self, batch: Batch, replayed: bool = False) -> None:
        """Takes a batch whose rows are confirmed or spooled; `replayed` where it was offered when it was spooled.

        Never waits and never raises; the batch's columns do not change afterwards.
        """
        ...

    def close(self) -> None: ...
