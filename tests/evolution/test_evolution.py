"""A record type that changes while lanes and spool files of the older one live: nothing lost, or a clear refusal."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import Annotated, Any

import msgspec
import pytest
from lane_samples import Child, Sample, child, eventually
from oracle import payload
from whole_path import TABLE, WholePath
from writer_thread import writing

from ringlog import Producer
from ringlog.dead_letters import DeadLetters, Refused
from ringlog.disk import Directory
from ringlog.errors import SchemaMismatch, SegmentRefused
from ringlog.lanes import board, claims
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.lanes.segments import attach_segment
from ringlog.layout import LAYOUT_VERSION
from ringlog.questdb import tables
from ringlog.questdb.connection import Connection
from ringlog.records import LatencySample, Record, Symbol, Varchar, layout_of

LATENCIES = layout_of(LatencySample).table


class Newer(Record):
    """`Sample` with a field added."""

    __table__ = TABLE

    number: int
    text: Annotated[str, Varchar(200)]
    mood: Annotated[str | None, Symbol(32)] = None


class Retyped(Record):
    """`Sample` with a field of another type."""

    __table__ = TABLE

    number: float
    text: Annotated[str, Varchar(200)]


class Shorter(Record):
    """`Sample` without one of its fields."""

    __table__ = TABLE

    number: int


def migrate(path: WholePath, record_type: type[Record]) -> None:
    """What `ringlog migrate` does for a table whose record type changed."""
    connection = Connection.from_settings(msgspec.structs.replace(path.settings, request_timeout_ms=15_000))
    layout = layout_of(record_type)
    try:
        with pytest.MonkeyPatch.context() as patient:  # a busy machine may take long to apply the change
            patient.setattr(tables, "SETTLE_TIMEOUT_S", 15.0)
            tables.apply(connection, layout, tables.needed(connection, layout))
    finally:
        connection.close()


def append(producer: Producer, record_type: type[Record], numbers: range) -> None:
    appender = producer.appender(record_type)
    last = {Newer: ("calm",)}.get(record_type, ())
    for number in numbers:
        assert appender.append(number, payload(number), *last)


def stored(path: WholePath, columns: str = "number, text, mood") -> list[tuple[Any, ...]]:
    return sorted(path.query(f"select {columns} from {TABLE}"))


def spool(path: WholePath, record_type: type[Record], numbers: range) -> None:
    """Records of a producer that ended while the server could not be reached."""
    outage = msgspec.structs.replace(path.settings, questdb_pg_port=1, questdb_http_port=1)
    with writing(outage) as writer:
        with Producer([record_type], settings=path.settings) as producer:
            append(producer, record_type, numbers)
        eventually(lambda: writer._refuge.spooled_rows == len(numbers), "the records to be spooled")


def test_a_field_is_added_while_old_lanes_and_spool_files_are_alive(path: WholePath) -> None:
    """Old records from spool and lane, and new ones, all arrive: the added column is NULL in the old.

    Defence: segments and spool files carry their own layout (read with the newest one, old records are refused).
    """
    spool(path, Sample, range(100))
    with Producer([Sample], settings=path.settings) as old:
        append(old, Sample, range(100, 150))
        migrate(path, Newer)
        with writing(path.settings), Producer([Newer], settings=path.settings) as new:
            append(new, Newer, range(200, 250))
            append(old, Sample, range(150, 200))
            eventually(lambda: path.stored() == 250, "all records")
    moods = [(number, payload(number), "calm" if number >= 200 else None) for number in range(250)]
    assert stored(path) == moods
    assert path.proof().is_exact


def test_newer_records_wait_for_the_migration(path: WholePath) -> None:
    """A newer producer before its migration: its table's records are spooled, other tables go on, nothing is lost.

    The log names the column that is missing; with the migration everything arrives, the older producer's records too.
    Defence: a batch that the schema refuses is put away (sent all the same, every row is a dead letter).
    """
    if not path.query(f"select count() from tables() where table_name = '{LATENCIES}'")[0][0]:
        path.query(tables.create_table(layout_of(LatencySample)))
    before = path.query(f"select count() from {LATENCIES}")[0][0]
    path.start_writer()  # a process of its own: it has never seen any of these classes
    with Producer([Newer, LatencySample], settings=path.settings) as new:
        append(new, Newer, range(100))
        latency = new.appender(LatencySample).append
        eventually(lambda: f"{TABLE}.mood: got no such column" in path.log_text(), "the complaint")
        eventually(lambda: path.proof().tables[TABLE].spooled == 100, "the newer records to be spooled")
        with Producer([Sample], settings=path.settings) as old:
            append(old, Sample, range(100, 150))
            eventually(lambda: path.proof().tables[TABLE].spooled == 150, "the older ones behind them")
        assert all(latency("s", "o", float(number)) for number in range(50))
        eventually(lambda: path.query(f"select count() from {LATENCIES}")[0][0] == before + 50, "the other table")
        report = path.proof()
        assert report.is_exact, report
        # The older ones fit: they may arrive behind the newer, in a request that was under way when those came back.
        assert path.query(f"select count() from {TABLE} where number < 100")[0][0] == 0
        migrate(path, Newer)
        eventually(lambda: path.stored() == 150, "everything")
    assert stored(path) == [(number, payload(number), "calm" if number < 100 else None) for number in range(150)]
    eventually(lambda: path.proof().tables[TABLE].confirmed == 150, "the confirmation")
    assert path.proof().is_exact
    assert list((path.settings.spool_path / "dead_letters").glob("*.ndjson")) == []


def test_a_field_that_is_gone(path: WholePath) -> None:
    """A record type that lost a field still writes: the column stays, and is NULL in its rows."""
    with writing(path.settings), Producer([Shorter, Sample], settings=path.settings) as producer:
        assert producer.appender(Shorter).append(1)
        append(producer, Sample, range(2, 3))
        eventually(lambda: path.stored() == 2, "both records")
    assert stored(path, "number, text") == [(1, None), (2, payload(2))]


def test_a_field_of_another_type_is_refused(path: WholePath) -> None:
    """A field whose type changed is refused by name, by migration and writer; its records are kept unaltered."""
    with pytest.raises(SchemaMismatch, match=rf"{TABLE}.number: got LONG, wanted DOUBLE"):
        migrate(path, Retyped)
    path.start_writer()
    with Producer([Retyped], settings=path.settings) as producer:
        assert producer.appender(Retyped).append(1.5, "a half")
        eventually(lambda: f"{TABLE}.number: got LONG, wanted DOUBLE" in path.log_text(), "the complaint")
        eventually(lambda: path.proof().tables[TABLE].spooled == 1, "the record to be spooled")
    assert path.proof().is_exact
    assert path.stored() == 0


def test_a_dead_letter_of_the_older_type(path: WholePath) -> None:
    """A dead letter that was kept before a field was added is delivered after it, by the command."""
    layout = layout_of(Sample)
    with writing(path.settings):
        pass
    directory = Directory.open(path.settings.spool_path)
    letters_directory = directory.subdirectory("dead_letters")
    letters = DeadLetters(letters_directory)
    slot = bytearray(layout.slot_bytes)
    with Producer([Sample], settings=path.settings) as producer:
        append(producer, Sample, range(7, 8))
        (card,) = cards(producer.instance)
        segment = attach_segment(card.segment)
        at = 4096 * -(-(1024 + len(layout.to_json())) // 4096)
        slot[:] = segment.memory[at : at + layout.slot_bytes]
        segment.close()
    letters.keep(layout, [Refused(4711, 0, "a reason", bytes(slot))])
    migrate(path, Newer)
    settings = path.with_settings(request_timeout_ms=15_000)  # a busy server may answer after more than a second
    done = subprocess.run(
        [sys.executable, "-m", "ringlog", "dead-letters", "retry", "--json"],
        env={**Child.environment(settings), **settings.to_environment()},
        capture_output=True,
        check=True,
    )
    assert msgspec.json.decode(done.stdout) == {"delivered": 1, "refused": []}
    assert path.query(f"select number, text, mood, lane, seq from {TABLE} where lane = 4711") == [
        (7, payload(7), None, 4711, 0)
    ]
    letters_directory.close()
    directory.close()


def test_a_producer_of_a_newer_layout_version_is_refused(path: WholePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer whose segments would be of another layout version than the writer's is told so when it opens.

    The writer goes on with the others. Defence: the board carries the version, and is read before a lane is made.
    """
    with writing(path.settings), Producer([Sample], settings=path.settings) as producer:
        with monkeypatch.context() as newer:
            newer.setattr(board, "LAYOUT_VERSION", LAYOUT_VERSION + 1)
            newer.setattr(claims, "LAYOUT_VERSION", LAYOUT_VERSION + 1)
            with pytest.raises(
                SegmentRefused, match=rf"version {LAYOUT_VERSION} .*wanted .* version {LAYOUT_VERSION + 1}"
            ):
                Producer([Sample], settings=path.settings).open()
        assert len(cards(producer.instance)) == 1
        append(producer, Sample, range(10))
        eventually(lambda: path.stored() == 10, "the records of the others")


def test_a_lane_of_a_newer_layout_version_waits_for_the_upgrade(path: WholePath) -> None:
    """An older writer leaves a newer lane as it is, says so once, and the upgraded writer delivers all of it.

    Defence: a lane that cannot be attached is kept (removed as an abandoned one, its records are lost).
    """
    with child(path.settings, "for n in range(100): assert appender.append(n, text_of(n))") as producer:
        producer.ended()
    (card,) = cards(Instance(path.settings))
    segment = attach_segment(card.segment)
    segment.memory[8:12] = struct.pack("=I", LAYOUT_VERSION + 1)
    path.start_writer()
    eventually(lambda: "lane refused, left untouched" in path.log_text(), "the complaint")
    assert f"version {LAYOUT_VERSION + 1}" in path.log_text()
    with path.producing() as produce:
        produce(64)
        eventually(lambda: path.stored() == 64, "the lanes of others")
        assert any(card.segment in text for text in path.proof().unproved)
    assert path.end_writer(15) == 0
    segment.memory[8:12] = struct.pack("=I", LAYOUT_VERSION)  # what the upgraded writer understands
    segment.close()
    path.start_writer()
    eventually(lambda: path.stored() == 164, "everything")
    eventually(lambda: not cards(Instance(path.settings)), "the lanes to be removed")
    assert path.proof().is_exact
