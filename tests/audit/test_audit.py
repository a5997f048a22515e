"""The audit: balanced at every moment, and every kind of difference named by table, lane and seq."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lane_samples import Child, Sample, child, eventually
from oracle import payload, produce
from whole_path import TABLE, WholePath
from writer_thread import writing

from ringlog import Producer
from ringlog.audit import Kind, Place, Report, proof
from ringlog.dead_letters import DeadLetters, Refused
from ringlog.disk import Directory, Reserve
from ringlog.errors import LaneError
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance, boot_id
from ringlog.lanes.readers import LaneReader
from ringlog.ledger import Ledger, Term
from ringlog.questdb.migrations import script
from ringlog.records import layout_of
from ringlog.spans import Span

DAY_US = 86_400_000_000
START_US = 1_767_225_600_000_000  # 2026-01-01


def audit_command(path: WholePath) -> tuple[int, dict[str, Any]]:
    """Exit status and report of `ringlog audit --json`, which gives a busy server its time."""
    patient = msgspec.structs.replace(path.settings, request_timeout_ms=15_000)
    done = subprocess.run(
        [sys.executable, "-m", "ringlog", "audit", "--json"],
        env={**Child.environment(patient), **patient.to_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, json.loads(done.stdout or "{}") | {"stderr": done.stderr}


def deliver(path: WholePath, days: int = 1, rows: int = 100) -> int:
    """So many records on each of so many days through a lane into the table, confirmed; the lane, which is closed."""
    with writing(path.settings):
        with Producer([Sample], settings=path.settings) as producer:
            appender = producer.appender(Sample)
            for number in range(days * rows):
                stamp = START_US + number // rows * DAY_US + number
                assert appender.append(number, payload(number), timestamp=stamp)
            lane = appender.lane
        # A request that took its second has led them through the spool, which may outlast the lane.
        eventually(lambda: path.proof().tables[TABLE].confirmed == days * rows, "the records to be confirmed")
        eventually(lambda: not cards(Instance(path.settings)), "the lane to be removed")
    assert lane is not None
    report = path.proof()
    assert report.is_exact, report
    return lane


def only_difference(report: Report) -> tuple[Kind, Place, str, int, int]:
    (difference,) = report.differences
    assert difference.table == TABLE
    assert difference.rows == difference.last_seq - difference.first_seq + 1
    return difference.kind, difference.place, difference.lane, difference.first_seq, difference.last_seq


def test_balanced_at_every_moment(path: WholePath) -> None:
    """Looked at again and again while producers append and die and the writer restarts: never a difference."""
    path.start_writer()
    reports = [path.proof()]
    with child(path.settings, produce(path.logs, 1, rest_seconds=0.001)) as first:
        assert first.line() == "go"
        with child(path.settings, produce(path.logs, 2, rest_seconds=0.001)) as second:
            assert second.line() == "go"
            eventually(lambda: path.stored() > 500, "rows")
            reports += [path.proof() for _ in range(5)]
            second.kill()
        path.end_writer(9)
        reports += [path.proof() for _ in range(3)]
        path.start_writer()
        reports += [path.proof() for _ in range(5)]
        first.kill()
    status, report = audit_command(path)
    assert status == 0, report
    assert [each for each in reports if not each.is_exact] == []
    accepted = [each.tables[TABLE].accepted for each in reports if TABLE in each.tables]
    assert accepted == sorted(accepted)
    assert accepted[-1] > accepted[0]
    last = path.require_exact()
    table = path.proof().tables[TABLE]
    assert table.accepted == table.confirmed == table.stored == last.stored
    assert path.end_writer(15) == 0


def test_records_that_move_between_two_looks(path: WholePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are accepted and delivered before and after each single look of an audit: never a difference.

    Defence: tails are read before the ledger and heads after it (each order turned round fails here).
    """
    with writing(path.settings), path.producing() as produce_:
        sent = 0

        def move() -> None:
            nonlocal sent
            sent += produce_(64)
            eventually(lambda: path.stored() == sent, "the records")
            (card,) = cards(Instance(path.settings))
            reader = LaneReader.attach(card)
            eventually(lambda: reader.tail == sent, "the tail")
            reader.close()

        def moving(module: Any, name: str) -> None:
            original = getattr(module, name)

            def look(*arguments: Any) -> Any:
                move()
                found = original(*arguments)
                move()
                return found

            monkeypatch.setattr(module, name, look)

        moving(Directory, "read")
        for name in ("_letters", "holdings", "_stored"):
            moving(proof, name)
        report = path.proof()
    assert report.is_exact, report
    assert sent >= 10 * 64


def test_records_that_leave_the_spool_meanwhile(path: WholePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spooled when the audit begins, in the table when it looks at the spool: no difference.

    Defence: only what is spooled before and after is looked for in the files (without it all of them are lost).
    """
    _, file = spooled(path)
    original = proof.holdings

    def late(directory: Directory) -> Any:
        with writing(path.settings):
            eventually(lambda: not file.exists(), "the replay to be confirmed")
        return original(directory)

    monkeypatch.setattr(proof, "holdings", late)
    report = path.proof()
    assert report.is_exact, report
    assert report.tables[TABLE].confirmed == 100


def test_a_table_in_several_windows(path: WholePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is too large for one question is asked for in pieces, with the same answer."""
    from ringlog.audit import stored

    deliver(path, days=3)
    monkeypatch.setattr(stored, "ROWS_MAX", 40)
    monkeypatch.setattr(stored, "PART_SEQS", 16)
    report = path.proof()
    assert report.is_exact, report
    assert report.tables[TABLE].stored == 300


def test_rows_that_vanished(path: WholePath) -> None:
    """Rows taken away behind our back are named, by the command too, which exits 1."""
    lane = deliver(path, days=3)
    path.query(f"alter table {TABLE} drop partition list '2026-01-02'")
    eventually(lambda: path.stored() == 200, "the partition to go")
    assert only_difference(path.proof()) == (Kind.LOST, Place.QUESTDB, f"{lane:016x}", 100, 199)
    status, report = audit_command(path)
    assert (status, report["exact"]) == (1, False)
    assert report["differences"] == [
        {"kind": "lost", "place": "questdb", "table": TABLE, "lane": f"{lane:016x}"}
        | {"first_seq": 100, "last_seq": 199, "rows": 100, "is_at_least": False}
    ]


def test_a_dropped_table(path: WholePath) -> None:
    """A table that is gone has lost every record, and the server's words say why."""
    lane = deliver(path)
    path.query(f"drop table {TABLE}")
    report = path.proof()
    assert only_difference(report) == (Kind.LOST, Place.QUESTDB, f"{lane:016x}", 0, 99)
    assert any("does not exist" in text for text in report.unproved)


def test_doubled_and_invented_rows(path: WholePath) -> None:
    """A second row of a record, and a row that its lane never accepted, are told apart and named."""
    lane = deliver(path)
    path.query(f"insert into {TABLE} (timestamp, lane, seq, number) values ({START_US + 5 * DAY_US}, {lane}, 17, 1)")
    eventually(lambda: path.stored() == 101, "the copy")
    assert only_difference(path.proof()) == (Kind.DOUBLED, Place.QUESTDB, f"{lane:016x}", 17, 17)
    path.query(f"insert into {TABLE} (timestamp, lane, seq, number) values ({START_US + 5 * DAY_US}, {lane}, 100, 1)")
    eventually(lambda: path.stored() == 102, "the invented row")
    kinds = {(each.kind, each.first_seq, each.last_seq) for each in path.proof().differences}
    assert kinds == {(Kind.DOUBLED, 17, 17), (Kind.UNEXPECTED, 100, 100)}


def test_rows_of_others_are_counted_apart(path: WholePath) -> None:
    """Rows of lanes that this instance never had are no difference: a table may have many instances."""
    deliver(path)
    path.query(f"insert into {TABLE} (timestamp, lane, seq, number) values ({START_US}, 12345, 0, 1)")
    eventually(lambda: path.stored() == 101, "the row")
    report = path.proof()
    assert report.is_exact, report
    assert (report.tables[TABLE].stored, report.tables[TABLE].other_rows) == (100, 1)


def test_what_retention_took_is_no_loss(path: WholePath) -> None:
    """Findings 14, 15: rows that retention counted in their lane are not lost, and named; rows that it took from the
    table without saying whose are, and so are those of a day that it did not take."""
    lane = deliver(path, days=3)
    path.query(script("retention_audit") or "")
    path.query(script("retention_lanes") or "")
    path.query(f"alter table {TABLE} drop partition list '2026-01-01'")
    eventually(lambda: path.stored() == 200, "the partition to go")
    lost = (Kind.LOST, Place.QUESTDB, f"{lane:016x}", 0, 99)
    assert only_difference(path.proof()) == lost
    for run in (1, 2):
        path.query(
            "insert into retention_audit (timestamp, run, table_name, partition_name, outcome, cut, rows, bytes) "
            f"values (now(), {run}, '{TABLE}', '2026-01-01', 'dropped', {START_US + DAY_US}, 100, 1)"
        )
    lanes = "insert into retention_lanes (timestamp, table_name, day, lane, first_seq, last_seq, rows) values"
    path.query(f"{lanes} (2, '{TABLE}', {START_US}, {lane + 1}, 0, 99, 100)")  # of another host
    path.query(f"{lanes} (3, '{TABLE}', {START_US}, {lane}, 0, 99, 100)")  # by a run that dropped nothing
    path.query(f"{lanes} (2, '{TABLE}', {START_US + DAY_US}, {lane}, 0, 99, 100)")  # a day that it did not drop
    # The writer of another test may have run retention as well, at its hour.
    for table, key, rows in (("retention_audit", "run", 2), ("retention_lanes", "timestamp", 3)):
        counted = f"select count() from {table} where {key} < 4"
        eventually(lambda: path.query(counted) == [(rows,)], "the rows")  # noqa: B023
    assert only_difference(path.proof()) == lost
    path.query(f"{lanes} (2, '{TABLE}', {START_US}, {lane}, 0, 98, 99)")
    eventually(lambda: path.proof().tables[TABLE].taken_by_retention == 99, "the count to be seen")
    report = path.proof()
    assert only_difference(report) == (Kind.LOST, Place.QUESTDB, f"{lane:016x}", 99, 99)
    assert [(each.first_seq, each.last_seq) for each in report.taken_by_retention] == [(0, 98)]
    path.query("drop table retention_audit")
    path.query("drop table retention_lanes")


def test_a_server_that_cannot_be_asked(path: WholePath) -> None:
    """Without the server the rest is still proved, and what is not is said: exit 1."""
    deliver(path)
    path.with_settings(questdb_pg_port=1)
    report = path.proof()
    assert report.differences == []
    assert len(report.unproved) == 1
    assert "127.0.0.1:1" in report.unproved[0]
    assert report.tables[TABLE].stored is None
    status, _ = audit_command(path)
    assert status == 1


def spooled(path: WholePath, rows: int = 100) -> tuple[int, Path]:
    """So many records put away while the server cannot be reached: their lane, and their spool file."""
    outage = msgspec.structs.replace(path.settings, questdb_pg_port=1, questdb_http_port=1)
    with Producer([Sample], settings=path.settings) as producer:
        appender = producer.appender(Sample)
        assert all(appender.append(number, payload(number)) for number in range(rows))
        lane = appender.lane
        with writing(outage):  # only now, so that all of them are in one frame
            eventually(lambda: path.proof().tables[TABLE].spooled == rows, "the records to be spooled")
    assert lane is not None
    (file,) = (path.settings.spool_path / "tables" / TABLE).glob("*.spool")
    return lane, file


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5000] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, flip])
def test_a_destroyed_spool_file(path: WholePath, damage: Callable[[Path], None]) -> None:
    """Spooled records whose file is gone or broken are named; once a writer has seen it they count as quarantined."""
    lane, file = spooled(path)
    assert path.proof().is_exact
    damage(file)
    assert only_difference(path.proof()) == (Kind.LOST, Place.SPOOL, f"{lane:016x}", 0, 99)
    with writing(path.settings):
        eventually(lambda: path.proof().tables[TABLE].quarantined == 100, "the damage to be seen")
        assert path.proof().is_exact


def test_dead_letters_that_vanished(path: WholePath) -> None:
    """A dead letter whose file is gone is named."""
    lane = deliver(path)
    directory = Directory.open(path.settings.spool_path)
    ledger = Ledger(directory, Reserve(directory, 4096), boot_id())
    letters = DeadLetters(directory.subdirectory("dead_letters"))
    layout = layout_of(Sample)
    letters.keep(layout, [Refused(lane + 1, 3, "no", bytes(layout.slot_bytes))])
    ledger.record(Term.DEAD_LETTERS, TABLE, [Span(lane + 1, 3, 1)])
    ledger.record(Term.CONFIRMED, "nothing", [])
    ledger.close_lane(TABLE, lane + 1, 4)
    ledger.close()
    report = path.proof()
    assert only_difference(report) == (Kind.LOST, Place.LEDGER, f"{lane + 1:016x}", 0, 2)
    (file,) = (path.settings.spool_path / "dead_letters").glob("*.ndjson")
    file.unlink()
    found = {(each.kind, each.place, each.first_seq, each.last_seq) for each in path.proof().differences}
    assert found == {(Kind.LOST, Place.LEDGER, 0, 2), (Kind.LOST, Place.DEAD_LETTERS, 3, 3)}


def test_an_instance_that_never_was(path: WholePath, tmp_path: Path) -> None:
    """A runtime directory that does not exist is named, and nothing is made; one without a record is exact."""
    assert path.proof().is_exact
    path.with_settings(runtime_dir=str(tmp_path / "elsewhere"))
    with pytest.raises(LaneError, match="elsewhere: got no such directory"):
        path.proof()
    status, report = audit_command(path)
    assert status == 1
    assert "elsewhere: got no such directory" in report["stderr"]
    assert not (tmp_path / "elsewhere").exists()


def test_a_ledger_with_broken_lines(path: WholePath) -> None:
    """A flipped byte of the ledger is told, and the records of its line are named."""
    deliver(path)
    file = path.settings.spool_path / "ledger"
    content = file.read_bytes().split(b"\n")
    descriptor = os.open(file, os.O_WRONLY)
    os.pwrite(descriptor, b"x", len(content[0]) + 1)
    os.close(descriptor)
    report = path.proof()
    assert any("broken lines" in text for text in report.unproved)
