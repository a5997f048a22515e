"""What an acknowledgement is worth: tables that change between the check, the write and the confirmation."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sink_batches import batch_of, deliver, numbered, stored, wait_until

from ringlog.errors import SchemaMismatch, ServerRefused, ServerUnavailable
from ringlog.questdb import tables
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import RecordLayout
from ringlog.sinks import Receipt, Request

ROWS = list(numbered(20))


@contextlib.contextmanager
def just_before_flush(sink: QuestdbSink, change: Callable[[], Any]) -> Iterator[None]:
    """Runs `change` once, between the sink's own check of the table and the request: the race that a check misses."""
    sender = sink._sender

    class Racing:
        def flush(self, *args: Any, **options: Any) -> None:
            sink._sender = sender
            change()
            sender.flush(*args, **options)

    sink._sender = Racing()  # type: ignore[assignment]
    try:
        yield
    finally:
        sink._sender = sender


def execute(sink: QuestdbSink, *statements: str) -> Callable[[], None]:
    def run() -> None:
        for statement in statements:
            sink.connection.execute(statement)

    return run


def sent(sink: QuestdbSink, layout: RecordLayout) -> tuple[Request, Receipt]:
    request = sink.encode(batch_of(layout, ROWS))
    return request, sink.send(request)


def recreate(layout: RecordLayout) -> tuple[str, str]:
    return f'drop table "{layout.table}"', tables.create_table(layout)


def test_rows_are_confirmed_once_they_can_be_read(sink: QuestdbSink, layout: RecordLayout) -> None:
    """As soon as `confirm` says so, a query on another connection counts every row, for 50 batches in a row."""
    for number in range(50):
        deliver(sink, batch_of(layout, ROWS, first_seq=number * len(ROWS)))
        counted = sink.connection.execute(f'select count() from "{layout.table}"')
        assert counted == [((number + 1) * len(ROWS),)]


def test_one_question_confirms_the_receipts_of_all_tables(sink: QuestdbSink, layout: RecordLayout) -> None:
    """Receipts of several tables are answered in order; one for rows that were never written is not confirmed."""
    _, receipt = sent(sink, layout)
    later = Receipt(layout.table, 1, receipt.table_id, receipt.transaction + 1)
    unknown = Receipt("no_such_table", 1, 1, 1)
    wait_until(lambda: bool(sink.confirm([receipt])[0]), "rows applied")
    assert sink.confirm([later, receipt, unknown]) == [False, True, False]
    assert sink.confirm([]) == []


def test_a_table_replaced_after_the_acknowledgement_is_not_confirmed(sink: QuestdbSink, layout: RecordLayout) -> None:
    """Rows acknowledged into a table that was dropped and made again stay unconfirmed; sent again, they are stored."""
    request, receipt = sent(sink, layout)
    execute(sink, *recreate(layout))()
    # Its transactions pass the old number, so that only the table's id tells the two apart.
    for seq in range(receipt.transaction + 2):
        execute(sink, f'insert into "{layout.table}" (timestamp, lane, seq) values (0, 99, {seq})')()
    wait_until(lambda: tables.statuses(sink.connection)[layout.table].applied > receipt.transaction, "rows applied")
    assert sink.confirm([receipt]) == [False]
    again = sink.send(request)
    wait_until(lambda: all(sink.confirm([again])), "rows applied")
    assert len([row for row in stored(sink, layout) if row["lane"] == 7]) == len(ROWS)


@pytest.mark.parametrize("change", ["drop", "recreate"])
def test_a_table_replaced_under_a_write_is_a_mismatch(sink: QuestdbSink, layout: RecordLayout, change: str) -> None:
    """A table that goes between check and request gives no receipt, though the server acknowledges the rows.

    The server makes a dropped table again by itself, without DEDUP; the next send says so.
    """
    sink.verify(layout)
    request = sink.encode(batch_of(layout, ROWS))
    statements = recreate(layout)[: 1 if change == "drop" else 2]
    with (
        just_before_flush(sink, execute(sink, *statements)),
        pytest.raises((SchemaMismatch, ServerRefused), match=layout.table),
    ):
        sink.send(request)
    if change == "recreate":
        receipt = sink.send(request)
        wait_until(lambda: all(sink.confirm([receipt])), "rows applied")
        assert len(stored(sink, layout)) == len(ROWS)
    else:
        with pytest.raises(SchemaMismatch, match=r"no such table|no DEDUP"):
            sink.send(request)


@pytest.mark.parametrize(
    "off_and_on",
    [False, True],
    ids=["off", "off and on again"],
)
def test_dedup_switched_off_under_a_write_gives_no_receipt(
    sink: QuestdbSink, layout: RecordLayout, off_and_on: bool
) -> None:
    """DEDUP switched off between check and request is seen in the log of transactions, also if it is on again.

    The rows may be stored all the same; sent again under DEDUP they are there once.
    """
    sink.verify(layout)
    request = sink.encode(batch_of(layout, ROWS))
    off, on = (
        f'alter table "{layout.table}" dedup disable',
        f'alter table "{layout.table}" dedup enable upsert keys(timestamp, lane, seq)',
    )
    change = execute(sink, off, on) if off_and_on else execute(sink, off)
    with (
        just_before_flush(sink, change),
        pytest.raises(ServerUnavailable, match=f"{layout.table}: altered while rows were written"),
    ):
        sink.send(request)
    if not off_and_on:
        with pytest.raises(SchemaMismatch, match=f"{layout.table}: got no DEDUP"):
            sink.send(request)
        execute(sink, on)()
    receipt = sink.send(request)
    wait_until(lambda: all(sink.confirm([receipt])), "rows applied")
    assert len(stored(sink, layout)) == len(ROWS)


def test_another_writer_does_not_disturb(sink: QuestdbSink, layout: RecordLayout) -> None:
    """Transactions of others (an INSERT, a dropped partition) between check and request change no verdict."""
    sink.verify(layout)
    request = sink.encode(batch_of(layout, ROWS))
    others = (
        f'insert into "{layout.table}" (timestamp, lane, seq) values (0, 99, 1)',
        f"alter table \"{layout.table}\" drop partition where timestamp < '2000-01-01'",
    )
    with just_before_flush(sink, execute(sink, *others)):
        receipt = sink.send(request)
    wait_until(lambda: all(sink.confirm([receipt])), "rows applied")
    assert len([row for row in stored(sink, layout) if row["lane"] == 7]) == len(ROWS)


def test_an_acknowledgement_without_a_transaction_is_not_believed(sink: QuestdbSink, layout: RecordLayout) -> None:
    """A 200 from something that stored nothing (a proxy, say) gives no receipt: the sequencer has not moved."""
    sink.verify(layout)
    request = sink.encode(batch_of(layout, ROWS))
    sender = sink._sender

    class Swallowing:
        def flush(self, *args: Any, **options: Any) -> None:
            """Answers as the client does after any 2xx."""

    sink._sender = Swallowing()  # type: ignore[assignment]
    with pytest.raises(ServerUnavailable, match="no transaction followed"):
        sink.send(request)
    sink._sender = sender


def test_a_changed_column_type_is_a_mismatch(sink: QuestdbSink, layout: RecordLayout) -> None:
    """A column whose type was changed: the request in flight is refused with the server's reason, the next by name."""
    sink.verify(layout)
    request = sink.encode(batch_of(layout, ROWS))
    change = execute(sink, f'alter table "{layout.table}" alter column whole type boolean')
    with (
        just_before_flush(sink, change),
        pytest.raises((ServerRefused, ServerUnavailable), match=r"column: whole|altered while"),
    ):
        sink.send(request)
    with pytest.raises(SchemaMismatch, match=f"{layout.table}.whole: got BOOLEAN, wanted LONG"):
        sink.send(request)


def test_a_column_added_by_others_changes_nothing(sink: QuestdbSink, layout: RecordLayout) -> None:
    """A column added between check and request costs one repetition; the rows are stored once, it is NULL in them."""
    sink.verify(layout)
    request = sink.encode(batch_of(layout, ROWS))
    with (
        just_before_flush(sink, execute(sink, f'alter table "{layout.table}" add column extra double')),
        pytest.raises(ServerUnavailable, match="send them again"),
    ):
        sink.send(request)
    receipt = sink.send(request)
    wait_until(lambda: all(sink.confirm([receipt])), "rows applied")
    assert len(stored(sink, layout)) == len(ROWS)


def test_a_suspended_table_is_unconfirmed_and_resumed(
    own_sink: QuestdbSink, own_layout: RecordLayout, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows acknowledged into a suspended table are not confirmed; it is resumed where it stopped, and they appear."""
    deliver(own_sink, batch_of(own_layout, ROWS))
    own_sink.connection.execute(f'alter table "{own_layout.table}" suspend wal')
    request = own_sink.encode(batch_of(own_layout, ROWS, first_seq=len(ROWS)))
    receipt = own_sink.send(request)
    assert tables.statuses(own_sink.connection)[own_layout.table].is_suspended
    with caplog.at_level(logging.WARNING, "ringlog"):
        assert own_sink.confirm([receipt]) == [False]
    assert f"table is suspended, resuming table={own_layout.table}" in caplog.text
    wait_until(lambda: all(own_sink.confirm([receipt])), "rows applied")
    assert len(stored(own_sink, own_layout)) == 2 * len(ROWS)
