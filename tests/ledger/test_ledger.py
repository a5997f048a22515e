"""The ledger: the equation, one owner a record, and what a crash leaves of it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from faulty_disk import Crash, FaultyDisk, descriptors_closed
from hypothesis import given, settings
from hypothesis import strategies as st

from ringlog.disk import Directory, Reserve, sealed
from ringlog.errors import SpoolError, SpoolUnusable
from ringlog.ledger import Ledger, LiveLane, Term
from ringlog.ledger import ledger as module
from ringlog.spans import Span


def open_ledger(path: Path, boot_id: str = "boot-1", disk: FaultyDisk | None = None) -> Ledger:
    directory = Directory.open(path, disk)
    return Ledger(directory, Reserve(directory, 4096), boot_id)


def terms_of(ledger: Ledger, table: str = "trades") -> dict[tuple[int, int], Term]:
    """Every record with its term; fails where a record has two."""
    terms: dict[tuple[int, int], Term] = {}
    for term in Term:
        for span in ledger.spans(term, table):
            for seq in range(span.first_seq, span.first_seq + span.rows):
                assert (span.lane, seq) not in terms, "a record has two terms"
                terms[span.lane, seq] = term
    return terms


def test_the_equation_holds_at_every_moment(tmp_path: Path) -> None:
    """accepted = confirmed + spooled + in lanes + the rest, from the first append to the lane's end, by table."""
    ledger = open_ledger(tmp_path / "spool")
    balance = ledger.balance({1: LiveLane("trades", 0, 100)})["trades"]
    assert (balance.accepted, balance.in_lanes, balance.is_balanced) == (100, 100, True)
    ledger.record(Term.CONFIRMED, "trades", [Span(1, 0, 40)])
    ledger.record(Term.SPOOLED, "trades", [Span(1, 40, 30)])
    balance = ledger.balance({1: LiveLane("trades", 40, 100)})["trades"]
    assert (balance.accepted, balance.in_lanes, balance.is_balanced) == (100, 30, True)
    ledger.record(Term.DEAD_LETTERS, "trades", [Span(1, 50, 1)])
    ledger.record(Term.CONFIRMED, "trades", [Span(1, 40, 10), Span(1, 51, 19)])
    ledger.record(Term.EXPIRED, "trades", [Span(1, 70, 20)])
    ledger.record(Term.QUARANTINED, "trades", [Span(1, 90, 10)])
    ledger.close_lane("trades", 1, 100)
    balance = ledger.balance({})["trades"]
    assert balance.is_balanced
    assert balance.rows == {
        Term.CONFIRMED: 69,
        Term.SPOOLED: 0,
        Term.DEAD_LETTERS: 1,
        Term.EXPIRED: 20,
        Term.QUARANTINED: 10,
        Term.LOST_AT_REBOOT: 0,
        Term.DISCARDED: 0,
        Term.VANISHED: 0,
    }


def test_missing_and_excess_records_are_named(tmp_path: Path) -> None:
    """A tail that moved over records without a term, and a term for records that no lane accepted, are named."""
    ledger = open_ledger(tmp_path / "spool")
    ledger.record(Term.CONFIRMED, "trades", [Span(1, 0, 10), Span(1, 15, 5), Span(2, 0, 8)])
    balance = ledger.balance({1: LiveLane("trades", 20, 25), 2: LiveLane("trades", 5, 5)})["trades"]
    assert balance.missing == [Span(1, 10, 5)]
    assert balance.excess == [Span(2, 5, 3)]
    assert not balance.is_balanced


def test_entries_may_come_again_and_confirmed_is_the_last_word(tmp_path: Path) -> None:
    """A re-sent batch changes nothing; a copy that is spooled or refused after its confirmation stays confirmed."""
    ledger = open_ledger(tmp_path / "spool")
    for _ in range(2):
        ledger.record(Term.SPOOLED, "trades", [Span(1, 0, 10)])
        ledger.record(Term.CONFIRMED, "trades", [Span(1, 5, 10)])
    ledger.record(Term.DEAD_LETTERS, "trades", [Span(1, 3, 4)])
    assert terms_of(ledger) == {
        **{(1, seq): Term.SPOOLED for seq in range(3)},
        **{(1, seq): Term.DEAD_LETTERS for seq in range(3, 5)},
        **{(1, seq): Term.CONFIRMED for seq in range(5, 15)},
    }


def test_a_reboot_takes_what_had_no_term(tmp_path: Path) -> None:
    """Under another boot id, records seen in a lane and nowhere else are lost at reboot; the spool keeps its own."""
    ledger = open_ledger(tmp_path / "spool")
    ledger.record(Term.CONFIRMED, "trades", [Span(1, 0, 50)])
    ledger.record(Term.SPOOLED, "trades", [Span(1, 50, 10)])
    ledger.see("trades", {1: 75, 2: 5})
    ledger.close()
    balance = open_ledger(tmp_path / "spool", "boot-2").balance({})["trades"]
    assert balance.rows[Term.LOST_AT_REBOOT] == 20
    assert balance.rows[Term.SPOOLED] == 10
    assert balance.accepted == 80
    assert balance.is_balanced
    assert open_ledger(tmp_path / "spool", "boot-3").balance({})["trades"] == balance


def test_reconciling_with_the_spool(tmp_path: Path) -> None:
    """A frame the ledger does not know becomes spooled; spooled records without a frame become quarantined."""
    ledger = open_ledger(tmp_path / "spool")
    ledger.record(Term.SPOOLED, "trades", [Span(1, 0, 30)])
    destroyed = ledger.reconcile([("trades", Span(1, 0, 10)), ("trades", Span(1, 20, 15)), ("quotes", Span(2, 0, 3))])
    assert destroyed == [Span(1, 10, 10)]
    assert ledger.spans(Term.QUARANTINED, "trades") == [Span(1, 10, 10)]
    assert ledger.spans(Term.SPOOLED, "trades") == [Span(1, 0, 10), Span(1, 20, 15)]
    assert ledger.spans(Term.SPOOLED, "quotes") == [Span(2, 0, 3)]
    assert ledger.reconcile([("trades", Span(1, 0, 10)), ("trades", Span(1, 20, 15)), ("quotes", Span(2, 0, 3))]) == []


def test_the_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many batches and lanes come and go, the file is compacted and settled lanes end as totals that count."""
    monkeypatch.setattr(module, "COMPACT_BYTES", 20_000)
    monkeypatch.setattr(module, "CLOSED_LANES_MAX", 10)
    ledger = open_ledger(tmp_path / "spool")
    for lane in range(300):
        for start in range(0, 50, 5):
            ledger.record(Term.CONFIRMED, "trades", [Span(lane, start, 5)])
        ledger.close_lane("trades", lane, 50)
    assert (tmp_path / "spool/ledger").stat().st_size < 60_000
    ledger.close()
    ledger = open_ledger(tmp_path / "spool")
    assert (tmp_path / "spool/ledger").stat().st_size < 3_000
    balance = ledger.balance({})["trades"]
    assert (balance.accepted, balance.rows[Term.CONFIRMED], balance.is_balanced) == (15_000, 15_000, True)


def test_dead_letters_keep_their_lane_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane with a dead letter or spooled records is never folded into totals: its records may still move."""
    monkeypatch.setattr(module, "CLOSED_LANES_MAX", 0)
    ledger = open_ledger(tmp_path / "spool")
    ledger.record(Term.DEAD_LETTERS, "trades", [Span(1, 0, 1)])
    ledger.close_lane("trades", 1, 1)
    ledger.close()
    ledger = open_ledger(tmp_path / "spool")
    assert ledger.spans(Term.DEAD_LETTERS, "trades") == [Span(1, 0, 1)]
    ledger.record(Term.CONFIRMED, "trades", [Span(1, 0, 1)])
    ledger.close()
    ledger = open_ledger(tmp_path / "spool")
    assert ledger.spans(Term.CONFIRMED, "trades") == []
    assert ledger.balance({})["trades"].rows[Term.CONFIRMED] == 1


def test_retried_dead_letters_are_confirmed_once(tmp_path: Path) -> None:
    """A delivered dead letter becomes confirmed, however often it is entered; an unknown lane stays unknown."""
    ledger = open_ledger(tmp_path / "spool")
    ledger.record(Term.DEAD_LETTERS, "trades", [Span(1, 3, 2)])
    for _ in range(2):
        ledger.enter_retried("trades", [Span(1, 0, 4), Span(9, 0, 5)])
    assert ledger.spans(Term.CONFIRMED, "trades") == [Span(1, 3, 1)]
    assert ledger.spans(Term.DEAD_LETTERS, "trades") == [Span(1, 4, 1)]


def test_other_version_is_refused(tmp_path: Path) -> None:
    """A ledger of another version is refused by number and left as it is."""
    open_ledger(tmp_path / "spool").close()
    (tmp_path / "spool/ledger").write_bytes(sealed(b'["version",7]'))
    with pytest.raises(SpoolUnusable, match=r"ledger: got version 7, wanted 1"):
        open_ledger(tmp_path / "spool")
    assert (tmp_path / "spool/ledger").read_bytes() == sealed(b'["version",7]')


@descriptors_closed()
def test_each_flipped_byte_costs_one_line_and_is_told(tmp_path: Path) -> None:
    """Whatever byte flips, the other entries hold, the broken line is counted and its file kept."""
    ledger = open_ledger(tmp_path / "spool")
    spans = [Span(1, start, 5) for start in range(0, 25, 5)]
    for span in spans:
        ledger.record(Term.CONFIRMED, "trades", [span])
    file = tmp_path / "spool/ledger"
    whole = file.read_bytes()
    for offset in range(len(whole)):
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << offset % 8
        file.write_bytes(flipped)
        reopened = open_ledger(tmp_path / "spool")
        confirmed = sum(span.rows for span in reopened.spans(Term.CONFIRMED, "trades"))
        torn_end = flipped[-1:] != b"\n" and offset == len(whole) - 1
        assert confirmed in (20, 25) or flipped[offset : offset + 1] == b"\n" or whole[offset : offset + 1] == b"\n"
        assert confirmed >= 15
        if not torn_end:
            assert reopened.broken_lines >= 1
            assert (tmp_path / "spool/ledger.broken").read_bytes() == bytes(flipped)
        reopened.close()


SPANS = st.lists(st.builds(Span, st.integers(1, 2), st.integers(0, 40), st.integers(0, 15)), max_size=3)
OPERATIONS = st.lists(st.tuples(st.sampled_from([*Term, "sync"]), SPANS), max_size=25)


@settings(max_examples=100)
@given(
    operations=OPERATIONS,
    faults=st.dictionaries(st.integers(0, 80), st.sampled_from([errno.EIO, errno.ENOSPC]), max_size=5),
    crash_at=st.integers(0, 100),
    power_lost=st.booleans(),
)
@descriptors_closed()
def test_any_history(tmp_path_factory, operations, faults, crash_at, power_lost) -> None:
    """A model that keeps each record's term in a dict agrees after any history, failing calls and a crash.

    What `record` returned for survives the process, what `sync` returned for survives the machine.
    """

    def fault(step: int, call: str) -> None:
        if step in faults:
            raise OSError(faults[step], f"injected into {call}")

    disk = FaultyDisk(crash_at=crash_at, fault=fault)
    root = tmp_path_factory.mktemp("ledger")
    path = root / "spool"
    path.mkdir(mode=0o700)
    histories: list[dict[tuple[int, int], Term]] = [{}]  # after each operation
    safe = synced = 0
    ledger = None
    try:
        for term, spans in [*operations, ("sync", [])]:
            try:
                ledger = ledger or open_ledger(path, disk=disk)
                if term == "sync":
                    ledger.sync()
                    safe = synced = len(histories) - 1
                    continue
                model = dict(histories[-1])
                for span in spans:
                    for seq in range(span.first_seq, span.first_seq + span.rows):
                        if model.get((span.lane, seq)) is not Term.CONFIRMED:
                            model[span.lane, seq] = term
                histories.append(model)  # it may be there from now on
                ledger.record(term, "trades", spans)
                safe = len(histories) - 1
            except SpoolError:
                pass
        if ledger is not None:
            assert terms_of(ledger) == histories[-1]
    except Crash:
        pass
    if power_lost:
        path = disk.lose_power(path, root / "after")
    found = terms_of(open_ledger(path))
    assert found in histories[synced if power_lost else safe :]


def test_what_a_reboot_left_in_the_spool_balances(tmp_path: Path) -> None:
    """The power goes before the ledger's last entries are durable: the spool's records count, those before are lost.

    Defence: `meet` before a lane is first spooled, and `reconcile` raising the heads of lanes of another boot.
    """
    ledger = open_ledger(tmp_path / "spool", "boot-1")
    ledger.meet("trades", 7)
    ledger.close()
    ledger = open_ledger(tmp_path / "spool", "boot-2")
    assert ledger.reconcile([("trades", Span(7, 10, 5))]) == []
    for again in (ledger, open_ledger(tmp_path / "spool", "boot-2")):
        balance = again.balance({})["trades"]
        assert balance.is_balanced, balance
        assert (balance.accepted, balance.rows[Term.SPOOLED], balance.rows[Term.LOST_AT_REBOOT]) == (15, 5, 10)
