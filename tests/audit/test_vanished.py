"""Lanes whose segments somebody removed while their boot lasted: named by audit, doctor, writer and alert command."""

from __future__ import annotations

from pathlib import Path

import pytest
from lane_samples import child, eventually
from test_audit import audit_command, only_difference
from whole_path import TABLE, WholePath
from writer_thread import writing

from ringlog.audit import Difference, Kind, Place, prove
from ringlog.disk import Directory, Reserve
from ringlog.lanes.claims import Card, cards
from ringlog.lanes.instance import Instance, boot_id
from ringlog.lanes.segments import unlink_segment
from ringlog.ledger import Accounts, Ledger, Term
from ringlog.ledger.ledger import NAME
from ringlog.monitor.finding import Finding
from ringlog.monitor.findings import diagnosed
from ringlog.pressure import Resource

APPEND = "for number in range({rows}): assert appender.append(number, 'x' * 10)\nsay('ready')\nsys.stdin.readline()\n"


def vanished(path: WholePath, lane: int, rows: int) -> None:
    """The proof has failed for this lane alone, of which so many records at least are missing; doctor names it too."""
    report = path.proof()
    (difference,) = report.differences
    assert (difference.kind, difference.place, difference.is_at_least) == (Kind.VANISHED, Place.SHARED_MEMORY, True)
    assert (difference.table, difference.lane, difference.rows) == (TABLE, f"{lane:016x}", rows)
    assert report.unproved == []
    assert [found for found in lane_findings(path) if "vanished" in found.text and f"{lane:016x}" in found.text]


def lane_findings(path: WholePath) -> list[Finding]:
    return [each for each in diagnosed(path.settings, [], set()) if each.check == "lanes" and each.level == "fail"]


@pytest.mark.parametrize("is_alive", [True, False])
def test_62_a_lane_that_no_writer_ever_saw(path: WholePath, tmp_path: Path, is_alive: bool) -> None:
    """Finding 1: a lane that vanished before any writer saw it is named before a writer starts, while it runs and
    after it, across restarts, with its owner alive and dead; the alert command is told. How many is not known: said.

    Defence: a lane that vanished is a difference.
    """
    told = tmp_path / "told"
    command = tmp_path / "alert"
    command.write_text(f'#!/bin/sh\nprintf "%s|" "$@" >> {told}\n')
    command.chmod(0o700)
    path.with_settings(alert_command=str(command))
    with child(path.settings, APPEND.format(rows=20)) as producer:
        assert producer.line() == "ready"
        (card,) = cards(Instance(path.settings))
        unlink_segment(card.segment)
        if not is_alive:
            producer.kill()
        vanished(path, card.lane, 0)
        for _ in range(2):
            with writing(path.settings):
                eventually(lambda: card.lane in account(path) and told.exists(), "the ledger and the alert command")
                vanished(path, card.lane, 0)
                assert (card in cards(Instance(path.settings))) == is_alive
            vanished(path, card.lane, 0)
    assert told.read_text().startswith(f"lanes|refuse|lane {card.lane:016x} of {TABLE}: somebody removed its segment")
    with writing(path.settings):
        eventually(lambda: not cards(Instance(path.settings)), "the card to be removed once its owner is gone")
        vanished(path, card.lane, 0)
    vanished(path, card.lane, 0)
    status, report = audit_command(path)
    assert (status, report["differences"][0]["lane"]) == (1, f"{card.lane:016x}")


def account(path: WholePath) -> dict[int, Accounts]:
    """The lanes that have vanished, as the ledger's file says."""
    accounts = Accounts(boot_id())
    file = path.settings.spool_path / NAME
    accounts.load(file.read_bytes() if file.exists() else b"", file)
    return {lane: accounts for lane, each in accounts.lanes.items() if each.is_vanished}


def test_62_a_lane_that_a_writer_knew(path: WholePath) -> None:
    """Finding 1: records that a writer had seen in a lane stay counted in `accepted`, and those without a place are
    named with their seqs, after the segment went while no writer ran; a later boot does not close over them.

    Defence: a lane that vanished is a difference.
    """
    with child(path.settings, APPEND.format(rows=20)) as producer:
        assert producer.line() == "ready"
        with writing(path.settings):
            eventually(lambda: path.stored() == 20, "the first records")
        producer.kill()
    (card,) = cards(Instance(path.settings))
    add_waiting(path, card, 7)
    unlink_segment(card.segment)
    vanished(path, card.lane, 7)
    with writing(path.settings):
        eventually(lambda: account(path), "the ledger to know")
    vanished(path, card.lane, 7)
    table = prove(path.settings).tables[TABLE]
    assert (table.accepted, table.confirmed, table.vanished, table.in_lanes) == (27, 20, 7, 0)
    accounts = Accounts("another boot")
    accounts.load((path.settings.spool_path / NAME).read_bytes(), path.settings.spool_path)
    assert accounts.lose_other_boots() == {}
    assert accounts.lanes[card.lane].is_vanished


def add_waiting(path: WholePath, card: Card, rows: int) -> None:
    """As if a writer had seen so many more records in the lane, and been killed before it could send them."""
    directory = Directory.open(path.settings.spool_path)
    ledger = Ledger(directory, Reserve(directory, 4096), boot_id())
    head = sum(span.rows for span in ledger.spans(Term.CONFIRMED, card.table))
    ledger.see(card.table, {card.lane: head + rows})
    ledger.close()


def test_62_removed_under_a_writer_that_reads_it(path: WholePath) -> None:
    """Finding 1: where a writer has the lane mapped nothing is lost: its owner moves to another lane, all records are
    stored once, and the proof is exact again when the old lane is over; until then it is not.

    Defence: a lane that vanished is a difference.
    """
    with writing(path.settings) as writer, path.producing() as produce:
        assert produce(50) == 50
        eventually(lambda: path.stored() == 50, "the first records")
        (card,) = cards(produce.instance)
        unlink_segment(card.segment)
        assert not path.proof().is_exact
        eventually(lambda: writer._pressure.alerts[Resource.LANES] == 1, "the writer to notice")
        assert only_difference(path.proof())[:3] == (Kind.VANISHED, Place.SHARED_MEMORY, f"{card.lane:016x}")
        assert produce(50) == 50
        eventually(lambda: path.stored() == 100, "all records")
        eventually(lambda: card not in cards(produce.instance), "the old lane to be over")
        assert path.proof().is_exact
        assert lane_findings(path) == []


def test_62_a_lane_whose_card_went_too(path: WholePath) -> None:
    """Finding 1: a lane that the ledger knows, of which neither card nor segment is left, is named by the audit and by
    the next writer's alert.

    Defence: a lane that vanished is a difference.
    """
    with child(path.settings, APPEND.format(rows=20)) as producer:
        assert producer.line() == "ready"
        with writing(path.settings):
            eventually(lambda: path.proof().tables[TABLE].confirmed == 20, "the records")
        producer.kill()
    instance = Instance(path.settings)
    (card,) = cards(instance)
    for file in (instance.card_path(card.lane), instance.lock_path(card.lane)):
        file.unlink()
    (unproved,) = path.proof().unproved
    assert f"got no card for segment {card.segment}" in unproved
    unlink_segment(card.segment)
    assert only_difference(path.proof())[:3] == (Kind.VANISHED, Place.SHARED_MEMORY, f"{card.lane:016x}")
    with writing(path.settings) as writer:
        eventually(lambda: writer._pressure.alerts[Resource.LANES] == 1, "the writer to notice")
    vanished(path, card.lane, 0)


def test_62_a_segment_that_is_there_after_all(path: WholePath) -> None:
    """A lane that a writer with another /dev/shm took for vanished is read by the next one: exact, nothing lost.

    Defence: a lane that is there after all has not vanished.
    """
    with child(path.settings, APPEND.format(rows=20)) as producer:
        assert producer.line() == "ready"
        (card,) = cards(Instance(path.settings))
        segment = Path("/dev/shm") / card.segment  # noqa: S108
        aside = segment.with_name(f"{card.segment}x")
        segment.rename(aside)
        with writing(path.settings):
            eventually(lambda: account(path), "the writer to miss it")
        aside.rename(segment)
        assert path.proof().tables[TABLE].in_lanes == 20
        with writing(path.settings):
            eventually(lambda: path.stored() == 20, "the records")
            producer.go_on()
            producer.ended()
            eventually(lambda: not cards(Instance(path.settings)), "the lane to be over")
    assert path.proof().is_exact
    assert path.proof().tables[TABLE].confirmed == 20


def test_a_difference_in_words() -> None:
    """What an operator reads of a lane that vanished says that the number is a lower bound."""
    facts = {"table": TABLE, "lane": "0" * 16, "first_seq": 20, "last_seq": 19, "rows": 0, "is_at_least": True}
    text = str(Difference(kind=Kind.VANISHED, place=Place.SHARED_MEMORY, **facts))
    assert text.startswith(
        f"vanished in shared memory: table={TABLE} lane={'0' * 16} rows=at least 0, seq=20 and after"
    )
