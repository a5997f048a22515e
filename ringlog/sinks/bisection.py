"""Finds the rows for which a server refuses a batch, and delivers their neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ringlog.errors import SchemaMismatch, ServerRefused
from ringlog.records import LANE, SEQ
from ringlog.sinks.contract import Batch, Receipt, Sink

# So many rows, spread over the batch, are tried alone before it is believed that rows are at fault at all.
PROBES = 8


class RefusedRow(NamedTuple):
    """Row `row` of the batch (from 0), which the server refuses even alone, and its reason."""

    row: int
    lane: int
    seq: int
    reason: str


class Bisection(NamedTuple):
    """What became of a refused batch: receipts to confirm for the rows that were taken, and the refused rows.

    Every row of the batch is in one or the other.
    """

    receipts: list[Receipt]
    refused: list[RefusedRow]


def bisect(sink: Sink, batch: Batch, on_request: Callable[[], None] = lambda: None) -> Bisection:
    """Delivers all rows of a batch that the server takes, and names the others; about three requests a refused row.

    `on_request` is called before each of them.

    Raises SchemaMismatch where the table is at fault and not the rows: it differs from the layout (the sink looks
    before it sends again), or none of PROBES rows spread over the batch is taken, or a refusal names no row. Raises
    ServerUnavailable where the server goes away meanwhile. After either the whole batch may be sent again: what was
    taken by then is folded by its keys.
    """
    if batch.rows >= PROBES:
        _require_rows_at_fault(sink, batch, on_request)
    found = Bisection([], [])
    pieces = [(0, batch.rows)]
    while pieces:
        start, stop = pieces.pop()
        answer = _tried(sink, batch, start, stop, on_request)
        if isinstance(answer, Receipt):
            found.receipts.append(answer)
        elif stop - start > 1:
            pieces.extend(reversed(_split(start, stop, answer.line)))
        elif answer.line is None:
            raise SchemaMismatch(f"{batch.layout.table}: got a refusal that names no row ({answer})")
        else:
            lane, seq = (int(batch.columns[name][start]) for name in (LANE, SEQ))  # type: ignore[index]
            found.refused.append(RefusedRow(start, lane, seq, str(answer)))
    return found


def _require_rows_at_fault(sink: Sink, batch: Batch, on_request: Callable[[], None]) -> None:
    """Tries single rows from the first to the last, evenly spread, until one is taken: most often the first."""
    answer: Receipt | ServerRefused | None = None
    for probe in range(PROBES):
        row = probe * (batch.rows - 1) // (PROBES - 1)
        answer = _tried(sink, batch, row, row + 1, on_request)
        if isinstance(answer, Receipt):
            return
    raise SchemaMismatch(
        f"{batch.layout.table}: got {PROBES} rows of {batch.rows} refused, wanted one taken ({answer})"
    )


def _split(start: int, stop: int, line: int | None) -> list[tuple[int, int]]:
    """At the row the server named, where it named one of these, else in halves."""
    if line is not None and 1 <= line <= stop - start:
        row = start + line - 1
        pieces = [(start, row), (row, row + 1), (row + 1, stop)]
        return [piece for piece in pieces if piece[0] < piece[1]]
    middle = (start + stop) // 2
    return [(start, middle), (middle, stop)]


def _tried(sink: Sink, batch: Batch, start: int, stop: int, on_request: Callable[[], None]) -> Receipt | ServerRefused:
    on_request()
    request = sink.encode(batch.take(start, stop))
    try:
        return sink.send(request)
    except ServerRefused as error:
        return error
    finally:
        sink.release(request)
