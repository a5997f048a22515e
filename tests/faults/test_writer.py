"""Faults met by the writer itself, by their number in the fault table, with a real server behind it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from lane_samples import Sample, eventually, text_of
from whole_path import TABLE, Producing, WholePath
from writer_thread import writing

from ringlog import Producer
from ringlog.lanes.claims import BudgetExhausted, cards, open_board
from ringlog.lanes.segments import attach_segment
from ringlog.layout import HEAD_OFFSET, BoardReason, slots_offset
from ringlog.questdb import tables
from ringlog.questdb.tables import create_table
from ringlog.records import LatencySample, Record, Varchar, layout_of
from ringlog.ring import store
from ringlog.settings import Settings
from ringlog.writer import Writer

OTHER = layout_of(LatencySample).table


class Address(Record):
    """A record whose text the table takes only where it is an address."""

    __table__ = "addresses"

    number: int
    text: Annotated[str, Varchar(64)]


@pytest.fixture
def addresses(path: WholePath, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """A table whose column `text` is an IPv4 behind the sink's back, so that QuestDB itself refuses other texts."""
    layout = layout_of(Address)
    path.query(f"drop table if exists {layout.table}")
    path.query(create_table(layout).replace('"text" VARCHAR', '"text" IPV4'))
    actual = tables.columns

    def as_declared(connection: Any, table: str) -> tuple[tables.ServerColumn, ...]:
        return tuple(
            column._replace(type="VARCHAR") if column.type == "IPv4" else column for column in actual(connection, table)
        )

    monkeypatch.setattr(tables, "columns", as_declared)
    return lambda what: path.query(f"select {what} from {layout.table}")


def test_18_garbage_in_slots(path: WholePath) -> None:
    """Slots that append could not have written are kept with their bytes and never sent; their neighbours arrive.

    Defence: the decoder's checks (without them garbage is stored here, as somebody's record).
    """
    layout = layout_of(Sample)
    with Producer([Sample], settings=path.settings) as producer:
        appender = producer.appender(Sample)
        assert all(appender.append(number, text_of(number)) for number in range(100))
        (card,) = cards(producer.instance)
        segment = attach_segment(card.segment)
        garbage = bytes(range(7, 7 + 24))
        for seq in (0, 50, 51):
            at = slots_offset(len(layout.to_json())) + seq * layout.slot_bytes
            segment.memory[at : at + len(garbage)] = garbage
        segment.close()
    with writing(path.settings):
        eventually(lambda: path.stored() == 97, "the neighbours")
        eventually(lambda: path.proof().tables[TABLE].in_lanes == 0, "the lane to be drained")
        # Where the answer to a request came too late they are in the spool as well, and sent again.
        eventually(lambda: path.proof().tables[TABLE].confirmed == 97, "the confirmation")
        report = path.proof()
    assert report.is_exact, report
    assert (report.tables[TABLE].confirmed, report.tables[TABLE].quarantined) == (97, 3)
    # A file for each run of them.
    kept = {file.name: file.read_bytes() for file in (path.settings.spool_path / "quarantine").glob("slots-*.bytes")}
    assert sorted(name.split("-", 2)[2] for name in kept) == ["0-1.bytes", "50-2.bytes"]
    slots = b"".join(content for _, content in sorted(kept.items()))
    starts = range(0, len(slots), layout.slot_bytes)
    assert [slots[at : at + len(garbage)] for at in starts] == [garbage] * 3


def test_18_garbage_for_a_head(path: WholePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that cannot be holds up its own lane alone: it is left as it is, named, and others go on.

    Defence: a head is held against its tail.
    """
    # No other request fails: not because the machine is busy, nor for want of a table of the writer's own metrics.
    path.with_settings(request_timeout_ms=15_000, confirm_timeout_ms=15_000)
    monkeypatch.setattr("ringlog.writer.writer.METRICS_INTERVAL_SECONDS", 600.0)
    with (
        Producer([Sample], settings=path.settings, lane_bytes={Sample: 64 * 1024}) as broken,
        writing(path.settings) as writer,
        path.producing() as append,
    ):
        # Its lane has been full once, so that every slot holds a record that looks like one to be read. Slots that were
        # never written have no time, and a batch leaves those out where it can.
        appender = broken.appender(Sample)
        written = appender.room
        assert all(appender.append(number, text_of(number)) for number in range(written))
        eventually(lambda: path.stored() == written, "its records")
        (card,) = (card for card in cards(broken.instance) if card.lane == appender.lane)
        segment = attach_segment(card.segment)
        store(segment.memory, HEAD_OFFSET, 1 << 40)
        append(100)
        eventually(lambda: path.stored() == written + 100, "the records of the other")
        assert any(f"{card.lane:016x}" in text for text in path.proof().unproved)
        assert writer._refuge.corrupt == 0, "slots that nobody wrote were looked at"
        store(segment.memory, HEAD_OFFSET, written)
        segment.close()
        assert writer.statistics.errors == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def require_standing_refusal(writer: Writer, append: Producing) -> None:
    """The board refuses through a few ticks, whatever the writer tries meanwhile."""
    ticks = len(writer.statistics.tick_ms)
    accepted = []
    eventually(lambda: accepted.append(append(1)) or len(writer.statistics.tick_ms) > ticks + 5, "a few more ticks")
    assert not any(accepted), accepted
    assert append.appender.refused_reason() == "board: spool_full"


@pytest.mark.root
def test_21_disk_full_refuses_and_resumes(
    path: WholePath, small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk under the spool: appends are refused at once, by reason, and accepted again when space is back.

    The alert is a log line, a count in the writer's status and a command that is run. Nothing accepted is lost.
    Defence: the watch of the spool's disk (without it every append is accepted here until the spool itself fails).
    """
    told = tmp_path / "alerts"
    hook = f"{sys.executable} -c \"import sys; open('{told}', 'a').write(' '.join(sys.argv[1:3]) + chr(10))\""
    path.with_settings(spool_dir=str(small_disk / "spool"), disk_free_bytes_min=16 << 20, alert_command=hook)
    with caplog.at_level(logging.INFO), writing(path.settings), path.producing() as append:
        append(64)
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(45 << 20))
        eventually(lambda: append(1) == 0, "appends to be refused")
        assert append.appender.refused_reason() == "board: disk_full"
        refused = append.appender.refused()["board"]
        assert append(1000) == 0
        assert append.appender.refused()["board"] == refused + 1000
        assert "pressure level=refuse spool disk" in caplog.text
        board = open_board(append.instance)
        eventually(lambda: json.loads(board.read_status() or b"{}").get("alerts", {}).get("spool disk"), "the count")
        eventually(lambda: told.exists() and "spool disk refuse" in told.read_text(), "the command")
        ballast.unlink()
        eventually(lambda: append(1) == 1, "appends to be accepted again")
        eventually(lambda: "spool disk ok" in told.read_text(), "the command")
    with writing(path.settings):
        path.require_exact()


@pytest.mark.root
def test_21_spool_on_a_full_disk(path: WholePath, small_disk: Path) -> None:
    """A disk that fills up during an outage, faster than it is watched: accepted records stay in their lanes.

    The board refuses until they fit. Once there is space they are spooled, and once there is a server they arrive.
    Defences: an append to the spool that failed moves no tail (moved all the same, records are lost here), and the
    board waits for an append that succeeds (asking for free bytes, it accepts and refuses in turn here).
    """
    good = path.with_settings(spool_dir=str(small_disk / "spool"), disk_free_bytes_min=1)
    path.with_settings(questdb_pg_port=1, questdb_http_port=1)
    with writing(path.settings) as writer, path.producing() as append:
        append(64)
        eventually(lambda: writer._refuge.spooled_rows == 64, "the first records")
        ballast = small_disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        os.truncate(ballast, ballast.stat().st_size - 65_536)
        append(2000)
        eventually(lambda: append(1) == 0, "appends to be refused")
        require_standing_refusal(writer, append)
        ballast.unlink()
        eventually(lambda: append(1) == 1, "appends to be accepted again")
        path.settings = good
        eventually(lambda: path.proof().tables[TABLE].in_lanes == 0, "all to be spooled")
        assert path.proof().is_exact
    with writing(path.settings):
        path.require_exact()


def test_28_spool_at_its_cap(path: WholePath) -> None:
    """At the spool's cap the board refuses and nothing is dropped; replayed, it accepts again, by itself.

    A batch larger than the cap is spooled in part, so that the board goes on refusing as long as the outage lasts.
    Defences: the board (without it appends go on until their lane is full: the reason here is another), and the part
    (without it nothing is spooled here, and the board refuses and accepts in turn).
    """
    good = path.with_settings(spool_bytes_max=200_000)
    outage = msgspec.structs.replace(good, questdb_pg_port=1, questdb_http_port=1)
    with path.producing() as append:
        append(4000)
        with writing(outage) as writer:
            reason = append.appender.refused_reason
            eventually(lambda: append(4) == 0 and reason() == "board: spool_full", "appends to be refused by the board")
            require_standing_refusal(writer, append)
            report = path.proof()
            assert report.is_exact, report
            assert report.tables[TABLE].spooled > 0
    with path.producing() as append, writing(good):
        eventually(lambda: append(64) == 64, "appends to be accepted again")
    with writing(good):
        path.require_exact()


def test_35_one_bad_row(path: WholePath, addresses: Callable[[str], list[Any]]) -> None:
    """A row that QuestDB refuses becomes a dead letter with table, origin and reason; its 199 neighbours are stored.

    Rows of other lanes and tables are not held up. Defence: the bisection (without it none of the 200 is stored).
    """
    with (
        Producer([Address], settings=path.settings) as first,
        Producer([Address], settings=path.settings) as second,
        path.producing() as append,
    ):
        mine, other = first.appender(Address), second.appender(Address)
        lane = mine.lane
        for number in range(200):
            assert mine.append(number, "no address" if number == 77 else f"10.0.0.{number}")
            assert other.append(1000 + number, "10.1.1.1")
        append(64)
        with writing(path.settings) as writer:
            eventually(lambda: addresses("count()")[0][0] == 399, "the neighbours")
            eventually(lambda: path.stored() == 64, "the other table")
            eventually(lambda: path.proof().tables["addresses"].in_lanes == 0, "the lanes to be drained")
            # Where the answer to a request came too late they are in the spool as well, and sent again.
            eventually(lambda: path.proof().tables["addresses"].confirmed == 399, "the confirmation")
            report = path.proof()
            assert writer._refuge.dead_letters == 1
    assert report.is_exact, report
    assert (report.tables["addresses"].dead_letters, report.tables["addresses"].confirmed) == (1, 399)
    done = subprocess.run(
        [sys.executable, "-m", "ringlog", "dead-letters", "list", "--json"],
        env={**os.environ, **path.settings.to_environment()},
        capture_output=True,
        check=True,
    )
    (letter,) = json.loads(done.stdout)["dead_letters"]
    assert (letter["table"], letter["lane"], letter["seq"]) == ("addresses", lane, 77)
    assert "error" in letter["reason"].lower()
    assert letter["record"]["text"] == "no address"


def test_35_a_table_at_fault(path: WholePath, addresses: Callable[[str], list[Any]]) -> None:
    """Where no row is taken the table is at fault: everything is spooled, and nothing is a dead letter.

    Defence: rows spread over a batch are tried before one is blamed (without it all 200 are dead letters here).
    """
    with Producer([Address], settings=path.settings) as producer:
        # Before the writer starts: one that drains while they come may have a batch of a few, which are blamed.
        assert all(producer.appender(Address).append(number, "no address") for number in range(200))
        with writing(path.settings) as writer:
            eventually(lambda: writer._refuge.spooled_rows >= 200, "the records to be spooled")
            assert writer._refuge.dead_letters == 0
            path.query("alter table addresses alter column text type varchar")
            eventually(lambda: addresses("count()")[0][0] == 200, "everything, once it is mended")
            eventually(lambda: path.proof().tables["addresses"].confirmed == 200, "the confirmation")
    assert path.proof().is_exact


def test_39_a_connection_that_knows_an_older_column(path: WholePath, addresses: Callable[[str], list[Any]]) -> None:
    """Rows that a connection refuses because its table was altered since it first wrote are not blamed.

    The server keeps column types with each connection. Defence: a new connection (without it these rows become dead
    letters, although the table takes them).
    """
    with Producer([Address], settings=path.settings) as producer, writing(path.settings) as writer:
        append = producer.appender(Address).append
        assert append(1, "10.0.0.1")
        eventually(lambda: addresses("count()")[0][0] == 1, "the first record")
        path.query("alter table addresses alter column text type varchar")
        assert append(2, "no address")
        eventually(lambda: addresses("count()")[0][0] == 2, "the second record")
        assert writer._refuge.dead_letters == 0


def test_58_no_descriptor_left(path: WholePath) -> None:
    """A writer without a free descriptor loses nothing, and goes on by itself once it has some.

    Defence: a lane that cannot be looked at is not taken for an abandoned one.
    """
    path.start_writer()
    assert path.writer is not None
    with path.producing() as append:
        accepted = append(64)
        eventually(lambda: path.stored() == accepted, "the first records")
        limits = resource.prlimit(path.writer.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(path.writer.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        with path.producing() as later:
            accepted += later(64) + append(64)  # the board may refuse: a writer that cannot look accepts nothing
            eventually(
                lambda: "lanes cannot be listed yet" in path.log_text() or path.writer.poll() is not None, "an error"
            )
            assert path.writer.poll() is None, path.log_text()[-1000:]
            resource.prlimit(path.writer.pid, resource.RLIMIT_NOFILE, limits)
            eventually(lambda: path.stored() == accepted, "everything")
    path.require_exact()


@pytest.mark.slow  # a server's start, and a spool to be filled
@pytest.mark.timeout(300)
def test_a_replay_beside_lanes_at_their_budget(path: WholePath) -> None:
    """With all of the default lane budget claimed, a replay makes the board refuse nothing for want of memory.

    Defence: batches shrink as lanes take more of the memory (else the writer's own 100 MB are full here).
    """
    rows = 300_000
    path.with_settings(lane_bytes_max=Settings().lane_bytes_max, batch_rows_max=100_000)
    path.start_writer()
    with contextlib.ExitStack() as lanes:
        first = lanes.enter_context(Producer([Sample], settings=path.settings))
        for size in (1 << bits for bits in range(23, 14, -1)):
            with contextlib.suppress(BudgetExhausted):
                while True:
                    lanes.enter_context(Producer([Sample], settings=path.settings, lane_bytes={Sample: size}))
        assert sum(card.size_bytes for card in cards(first.instance)) > 0.99 * path.settings.lane_bytes_max
        board = open_board(first.instance)
        path.server.kill()
        append, number, said = first.appender(Sample).append, 0, set()

        def appended(count: int) -> bool:
            nonlocal number
            said.add(board.reason)
            while number < count and append(number, "x" * 200):
                number += 1
            return number == count

        def counted(what: str) -> int:
            return int(json.loads(board.read_status() or b"{}").get(what, 0))

        eventually(lambda: appended(rows), "records to be accepted")
        eventually(lambda: counted("spooled") >= rows, "records to be spooled")
        path.server.start()
        while (before := counted("replayed")) < rows:
            eventually(lambda: appended(number + 50) and counted("replayed") > before, "the replay to go on")
        assert said == {BoardReason.ACCEPTING}
