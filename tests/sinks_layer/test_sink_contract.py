"""One suite for every sink: the same claims over the one in memory and the one on a real QuestDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from sink_batches import Everything, batch_of, deliver, fresh_layout, numbered, wait_until

from ringlog.errors import RinglogError, SchemaMismatch, ServerRefused
from ringlog.questdb import tables
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import RecordLayout
from ringlog.settings import Settings
from ringlog.sinks import Batch, MemorySink, Receipt, Sink
from ringlog.sinks.bisection import PROBES, Bisection, RefusedRow, bisect

# What both sinks refuse: QuestDB because the column was made to hold an IPv4 address, memory by the same rule.
REFUSED = "no address"


class Place:
    """A sink with a table of its own, and a way to read back the texts that are in it, by seq."""

    def __init__(self, sink: Sink, layout: RecordLayout, read: Callable[[], dict[int, str]]) -> None:
        self.sink = sink
        self.layout = layout
        self.read = read

    def batch(self, texts: list[str], first_seq: int = 0) -> Batch:
        return batch_of(self.layout, [{"choice": "left", "text": text} for text in texts], first_seq=first_seq)


def memory_place() -> Place:
    sink, layout = MemorySink(), fresh_layout()

    def refuse(row: dict[str, Any]) -> str | None:
        return f"cast error: {row['text']}" if row["text"] == REFUSED else None

    sink.refuse = refuse
    return Place(sink, layout, lambda: {row["seq"]: row["text"] for row in sink.rows(layout.table)})


def questdb_place(sink: QuestdbSink, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A table whose column `text` is an IPv4 behind the sink's back: texts that are no address are truly refused."""
    layout = fresh_layout()
    sql = tables.create_table(layout).replace('"text" VARCHAR', '"text" IPV4')
    sink.connection.execute(sql)
    actual = tables.columns

    def as_declared(connection: Any, table: str) -> tuple[tables.ServerColumn, ...]:
        return tuple(
            column._replace(type="VARCHAR") if table == layout.table and column.name == "text" else column
            for column in actual(connection, table)
        )

    monkeypatch.setattr(tables, "columns", as_declared)

    def read() -> dict[int, str]:
        rows = sink.connection.execute(f'select seq, cast(text as varchar) from "{layout.table}"')
        return {row[0]: row[1] for row in rows}

    return Place(sink, layout, read)


@pytest.fixture(params=["memory", "questdb"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "memory":
        yield memory_place()
        return
    settings: Settings = request.getfixturevalue("settings")
    sink = QuestdbSink(msgspec.structs.replace(settings, request_timeout_ms=15_000))
    made = questdb_place(sink, monkeypatch)
    yield made
    sink.connection.execute(f'drop table if exists "{made.layout.table}"')
    sink.close()


def addresses(rows: int) -> list[str]:
    return [f"10.0.{row // 250}.{row % 250}" for row in range(rows)]


def test_rows_are_there_once_confirmed(place: Place) -> None:
    """A batch that was sent and confirmed can be read, each row once; the request's memory may be given back."""
    texts = addresses(30)
    receipt = deliver(place.sink, place.batch(texts))
    assert (receipt.table, receipt.rows) == (place.layout.table, 30)
    assert place.read() == dict(enumerate(texts))


def test_a_request_sent_twice_is_folded(place: Place) -> None:
    """The same request sent again, and its rows in another request, change nothing."""
    texts = addresses(10)
    request = place.sink.encode(place.batch(texts))
    receipts = [place.sink.send(request), place.sink.send(request)]
    place.sink.release(request)
    receipts.append(deliver(place.sink, place.batch(texts).take(3, 7)))
    wait_until(lambda: all(place.sink.confirm(receipts)), "rows applied")
    assert place.read() == dict(enumerate(texts))


def test_confirm_answers_each_receipt_in_order(place: Place) -> None:
    """Receipts are answered one by one; one that no send gave is not confirmed; none asked, none answered."""
    receipt = deliver(place.sink, place.batch(addresses(3)))
    ahead = Receipt(receipt.table, 1, receipt.table_id, receipt.transaction + 1)
    assert list(place.sink.confirm([ahead, receipt])) == [False, True]
    assert list(place.sink.confirm([])) == []


def test_two_requests_may_be_held(place: Place) -> None:
    """Two requests encoded one after the other keep their own rows, whichever is sent first."""
    texts = addresses(20)
    batch = place.batch(texts)
    first, second = place.sink.encode(batch.take(0, 10)), place.sink.encode(batch.take(10, 20))
    receipts = [place.sink.send(second), place.sink.send(first)]
    wait_until(lambda: all(place.sink.confirm(receipts)), "rows applied")
    assert place.read() == dict(enumerate(texts))


def test_a_request_with_a_bad_row_stores_nothing(place: Place) -> None:
    """One refused row refuses its whole request, naming the row and the reason; the neighbours are not stored."""
    texts = [*addresses(9), REFUSED]
    with pytest.raises(ServerRefused, match="cast error") as found:
        place.sink.send(place.sink.encode(place.batch(texts)))
    assert found.value.line == 10
    deliver(place.sink, place.batch(addresses(1), first_seq=100))
    assert set(place.read()) == {100}


@pytest.mark.parametrize(
    "bad", [[0], [99], [50], [0, 1, 2], [31, 32, 33, 77], list(range(0, 100, 10)), list(range(1, 60))]
)
def test_bisection_delivers_every_neighbour_of_a_bad_row(place: Place, bad: list[int]) -> None:
    """Exactly the bad rows come back, with lane, seq and reason; every other row is stored once."""
    texts = [REFUSED if row in bad else text for row, text in enumerate(addresses(100))]
    found = bisect(place.sink, place.batch(texts, first_seq=500))
    assert [(row.row, row.lane, row.seq) for row in found.refused] == [(row, 7, 500 + row) for row in bad]
    assert all("cast error" in row.reason for row in found.refused)
    assert sum(receipt.rows for receipt in found.receipts) == 100 - len(bad)
    wait_until(lambda: all(place.sink.confirm(found.receipts)), "rows applied")
    assert place.read() == {500 + row: text for row, text in enumerate(texts) if row not in bad}


@pytest.mark.parametrize("rows", [1, 2, PROBES - 1])
def test_a_small_batch_of_bad_rows_is_their_fault(place: Place, rows: int) -> None:
    """Fewer rows than it takes to blame a table are refused one by one."""
    found = bisect(place.sink, place.batch([REFUSED] * rows))
    assert found.receipts == []
    assert [row.seq for row in found.refused] == list(range(rows))


def test_a_table_that_takes_no_row_is_at_fault(place: Place) -> None:
    """Where no row that is tried from all over a batch is taken, no row is blamed: the table is."""
    with pytest.raises(SchemaMismatch, match=f"{place.layout.table}: got {PROBES} rows of 200 refused"):
        bisect(place.sink, place.batch([REFUSED] * 200))


def test_a_refusal_that_names_no_row_blames_none() -> None:
    """A sink that refuses without naming a row (no table, no right to write) leads to no dead letter."""

    class Refusing(MemorySink):
        def send(self, request: Any) -> Receipt:
            raise ServerRefused("the table is closed")

    with pytest.raises(SchemaMismatch, match="names no row"):
        bisect(Refusing(), memory_place().batch(addresses(3)))


def test_a_changed_column_is_found_before_a_row_is_blamed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch refused because its table drifted is a SchemaMismatch that names the column, and no refused row."""
    monkeypatch.setattr(tables, "SETTLE_TIMEOUT_S", 15.0)  # a busy machine may take long to apply the change below
    sink = QuestdbSink(msgspec.structs.replace(settings, request_timeout_ms=15_000))
    layout = fresh_layout()
    sink.connection.execute(tables.create_table(layout))
    sink.verify(layout)
    sink.connection.execute(f'alter table "{layout.table}" alter column whole type boolean')
    batch = batch_of(layout, list(numbered(50)))
    with pytest.raises(RinglogError):
        sink.send(sink.encode(batch))
    with pytest.raises(SchemaMismatch, match=f"{layout.table}.whole: got BOOLEAN, wanted LONG"):
        bisect(sink, batch)
    sink.connection.execute(f'drop table "{layout.table}"')
    sink.close()


def test_wrong_hints_cost_requests_and_no_row() -> None:
    """A sink that names the wrong row is still bisected to the right one."""

    class Misleading(MemorySink):
        def send(self, request: Any) -> Receipt:
            try:
                return super().send(request)
            except ServerRefused as error:
                error.line = 1 + (error.line or 0) % request.rows
                raise

    sink, layout = Misleading(), fresh_layout(Everything)
    sink.refuse = lambda row: "bad" if row["text"] == REFUSED else None
    texts = [REFUSED if row in (4, 17) else text for row, text in enumerate(addresses(40))]
    batch = batch_of(layout, [{"choice": "left", "text": text} for text in texts])
    found = bisect(sink, batch)
    assert isinstance(found, Bisection)
    assert [row.row for row in found.refused if isinstance(row, RefusedRow)] == [4, 17]
    assert len(sink.rows(layout.table)) == 38
