"""Dead letters: readable, durable, kept once, and sent again as the very record they were."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from faulty_disk import Crash, FaultyDisk, descriptors_closed
from hypothesis import given
from hypothesis import strategies as st

from ringlog.dead_letters import DeadLetters, Refused
from ringlog.dead_letters.letter import fields_of, slot_of
from ringlog.disk import Directory, Reserve
from ringlog.errors import SpoolFull
from ringlog.records import LatencySample, RecordLayout, Trade, layout_of
from ringlog.spans import Span

SAMPLE = layout_of(LatencySample)
TRADE = layout_of(Trade)
TRADE_FIELDS = {
    "trader_id": "t1",
    "mode": "paper",
    "action": "buy",
    "base_token": "SOL",
    "quote_token": "USDC",
    "base_amount": 1.5,
    "quote_amount": 0.1,
    "executed_price": 150.25,
    "transaction_fee": 5000,
    "priority_fee": None,
    "expected_slippage": 0.001,
    "actual_slippage": -0.25,
    "mev_status": "protected",
    "mev_protected": True,
    "transfer_fees": None,
    "tx_signature": "5" * 88,
    "metadata": '{"route": ["a", "ü"]}',
    "timestamp": 1_763_700_000_123_456,
}


def sample(seq: int) -> bytes:
    fields = {"service": "rpc", "operation": "send", "latency_us": seq / 2, "timestamp": 1_763_700_000_000_000 + seq}
    return slot_of(SAMPLE, seq, fields)


def refused(*seqs: int, lane: int = 7) -> list[Refused]:
    return [Refused(lane, seq, f"reason {seq}", sample(seq)) for seq in seqs]


def store_at(path: Path, disk: FaultyDisk | None = None) -> DeadLetters:
    directory = Directory.open(path, disk)
    return DeadLetters(directory, Reserve(directory, 4096))


def keys(store: DeadLetters, **options) -> list[tuple[int, int]]:
    return [(letter.lane, letter.seq) for letter, _ in store.letters(**options)]


def test_the_file_reads_by_itself(tmp_path: Path) -> None:
    """A person finds table, reason, origin, time and all fields of the record in one file a table and day."""
    store = store_at(tmp_path / "letters")
    assert store.keep(TRADE, [Refused(0x7F, 3, "bad column", slot_of(TRADE, 3, TRADE_FIELDS))]) == 1
    (file,) = (tmp_path / "letters").glob("trades.*.ndjson")
    _, line = file.read_text().splitlines()
    letter = json.loads(line)
    assert {name: letter[name] for name in ("table", "lane", "seq", "reason", "record")} == {
        "table": "trades",
        "lane": 0x7F,
        "seq": 3,
        "reason": "bad column",
        "record": TRADE_FIELDS,
    }
    assert file.name == f"trades.{letter['time'][:10]}.ndjson"


TEXTS = st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8))


@given(
    service=TEXTS,
    latency=st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    timestamp=st.integers(0, 2**62),
    seq=st.integers(0, 2**63),
)
def test_fields_lead_back_to_the_same_record(service, latency, timestamp, seq) -> None:
    """Whatever a slot holds, its readable fields make a slot that reads the same, seq included."""
    fields = {"service": service, "operation": "x" * 48, "latency_us": latency, "timestamp": timestamp}
    slot = slot_of(SAMPLE, seq, fields)
    assert fields_of(SAMPLE, slot) == fields
    assert int(np.frombuffer(slot, SAMPLE.dtype)["seq"][0]) == seq
    assert slot_of(SAMPLE, seq, fields_of(SAMPLE, slot)) == slot


def test_a_record_is_kept_once(tmp_path: Path) -> None:
    """A record that is refused again, in this process or the next, adds no second letter."""
    store = store_at(tmp_path / "letters")
    assert store.keep(SAMPLE, refused(1, 2)) == 2
    assert store.keep(SAMPLE, refused(2, 3)) == 1
    store = store_at(tmp_path / "letters")
    assert store.keep(SAMPLE, refused(1, 2, 3, 4)) == 1
    assert keys(store) == [(7, 1), (7, 2), (7, 3), (7, 4)]


def test_retry_sends_each_once_and_marks_what_was_delivered(tmp_path: Path) -> None:
    """A retry gives every letter with its layout; the delivered ones are listed no more, the refused ones stay."""
    store = store_at(tmp_path / "letters")
    store.keep(SAMPLE, refused(1, 2, 3))
    store.keep(TRADE, [Refused(9, 0, "bad", slot_of(TRADE, 0, TRADE_FIELDS))])
    sent: list[tuple[str, int, RecordLayout]] = []

    def resend(letter, layout) -> str | None:
        sent.append((letter.table, letter.seq, layout))
        return "still bad" if letter.seq == 2 else None

    delivered, again = store.retry(store.letters(), resend)
    assert (delivered, [(letter.seq, reason) for letter, reason in again]) == (3, [(2, "still bad")])
    assert sent == [("latencies", 1, SAMPLE), ("latencies", 2, SAMPLE), ("latencies", 3, SAMPLE), ("trades", 0, TRADE)]
    store = store_at(tmp_path / "letters")
    assert keys(store) == [(7, 2)]
    assert keys(store, retried=True) == [(7, 1), (7, 2), (7, 3), (9, 0)]
    assert store.delivered_spans() == {"latencies": [Span(7, 1, 1), Span(7, 3, 1)], "trades": [Span(9, 0, 1)]}
    assert store.keep(SAMPLE, refused(1)) == 0


@descriptors_closed()
def test_a_torn_line_costs_no_other_letter(tmp_path: Path) -> None:
    """A file cut at every byte: whole letters before the cut are there, and new ones after it are whole."""
    store = store_at(tmp_path / "letters")
    store.keep(SAMPLE, refused(1, 2))
    (file,) = (tmp_path / "letters").glob("*.ndjson")
    whole = file.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(0, len(whole), 3):
        file.write_bytes(whole[:length])
        store = store_at(tmp_path / "letters")
        store.keep(SAMPLE, refused(1, 2, 3))
        assert sorted(keys(store_at(tmp_path / "letters"))) == [(7, 1), (7, 2), (7, 3)], (length, ends)
        for other in (tmp_path / "letters").glob("*.ndjson"):
            if other != file:
                other.unlink()


@pytest.mark.parametrize("power_lost", [False, True], ids=["killed", "power-lost"])
@descriptors_closed()
def test_what_was_kept_survives_any_crash(tmp_path: Path, power_lost: bool) -> None:
    """A crash before each step: every letter that `keep` returned for is there, once.

    Defences: the fsyncs of file and directory.
    """
    step, reached = 0, True
    while reached:
        disk = FaultyDisk(crash_at=step)
        path = tmp_path / f"letters-{step}"
        path.mkdir(mode=0o700)
        kept: list[tuple[int, int]] = []
        try:
            for start in range(0, 6, 2):
                store = store_at(path, disk)
                store.keep(SAMPLE, refused(start, start + 1))
                kept += [(7, start), (7, start + 1)]
            reached = False
        except Crash:
            pass
        if power_lost:
            path = disk.lose_power(path, tmp_path / f"after-{step}")
        found = keys(store_at(path))
        assert set(kept) <= set(found)
        assert len(found) == len(set(found))
        step += 1
    assert step > 12


@descriptors_closed()
def test_what_a_killed_writer_wrote_is_durable_before_it_is_relied_on(tmp_path: Path) -> None:
    """A letter found in a file, whose writer died before the fsync, survives a power cut once `keep` has returned."""
    step, unsynced = 0, 0
    reached = True
    while reached:
        path = tmp_path / f"letters-{step}"
        path.mkdir(mode=0o700)
        disk = FaultyDisk(crash_at=step)
        reached = False
        try:
            store_at(path, disk).keep(SAMPLE, refused(1))
        except Crash:
            reached = True
        disk.crash_at, disk._crashed = -1, False
        found = keys(store_at(path, disk))
        assert store_at(path, disk).keep(SAMPLE, refused(1)) == (0 if found else 1)
        left = disk.lose_power(path, tmp_path / f"after-{step}")
        assert keys(store_at(left)) == [(7, 1)]
        unsynced += reached and bool(found)
        step += 1
    assert unsynced, "no step left a letter without its fsync: this test proves nothing"


def test_a_file_that_cannot_be_made_durable_is_not_relied_on(tmp_path: Path) -> None:
    """Letters of a file whose fsync fails are kept again in another one."""
    failing = [False]

    def fault(_step: int, name: str) -> None:
        if failing[0] and name == "fsync":
            failing[0] = False
            raise OSError(errno.EIO, "injected")

    path = tmp_path / "letters"
    path.mkdir(mode=0o700)
    disk = FaultyDisk(fault=fault)
    store_at(path, disk).keep(SAMPLE, refused(1))
    store = store_at(path, disk)
    failing[0] = True
    assert store.keep(SAMPLE, refused(1)) == 1
    assert keys(store) == [(7, 1)]
    assert len(list(path.glob("latencies.*.ndjson"))) == 2


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_failed_write_goes_on_in_a_new_file(tmp_path: Path, call: str) -> None:
    """After an I/O error letters go to another file of the day; a file whose fsync failed is not trusted again."""
    failing: list[str] = []

    def fault(_step: int, name: str) -> None:
        if failing and failing[0] == name:
            failing.pop()
            raise OSError(errno.EIO, "injected")

    (tmp_path / "letters").mkdir(mode=0o700)
    disk = FaultyDisk(fault=fault)
    store = store_at(tmp_path / "letters", disk)
    store.keep(SAMPLE, refused(1))
    failing.append(call)
    store.keep(SAMPLE, refused(2))
    store.keep(SAMPLE, refused(3))
    left = disk.lose_power(tmp_path / "letters", tmp_path / "after")
    assert len(list(left.glob("latencies.*.ndjson"))) == 2
    assert keys(store_at(left)) == [(7, 1), (7, 2), (7, 3)]


def test_a_full_disk_keeps_no_part(tmp_path: Path) -> None:
    """When even the reserve is gone `keep` says so, and the letter is kept by the same call later."""
    full = [False]

    def fault(_step: int, name: str) -> None:
        if full[0] and name == "write":
            raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "letters").mkdir(mode=0o700)
    store = store_at(tmp_path / "letters", FaultyDisk(fault=fault))
    store.keep(SAMPLE, refused(1))
    full[0] = True
    with pytest.raises(SpoolFull):
        store.keep(SAMPLE, refused(2))
    assert keys(store) == [(7, 1)]
    full[0] = False
    assert store.keep(SAMPLE, refused(2)) == 1
