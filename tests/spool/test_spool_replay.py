"""The spool on a healthy disk: order, merging, confirmation, the cap, and what is left on disk."""

from __future__ import annotations

import gc
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from spool_batches import QUOTE, SPOOL_BYTES_MAX, TICK, append, drain, keys, open_spool, slots_of

from ringlog.errors import SpoolFull
from ringlog.spans import Span
from ringlog.spool.frames import FrameHeader
from ringlog.spool.holdings import holdings
from ringlog.spool.spool_file import SpoolFile


def test_records_come_back_in_order_and_equal(tmp_path: Path) -> None:
    """What several batches put in comes out once, in order, byte for byte, and only the cursor stays."""
    spool = open_spool(tmp_path / "spool")
    spans = [Span(1, 0, 10), Span(2, 5, 3), Span(1, 10, 7)]
    append(spool, spans[0], spans[1])
    append(spool, spans[2])
    assert spool.rows("ticks") == 20
    assert drain(spool) == (keys(*spans), [])
    assert spool.rows("ticks") == 0
    assert spool.bytes == 0
    assert os.listdir(tmp_path / "spool/tables/ticks") == ["cursor"]


def test_a_run_may_come_in_two_halves(tmp_path: Path) -> None:
    """The two parts of a ring that wraps are one append, read straight from the memory they lie in."""
    spool = open_spool(tmp_path / "spool")
    span = Span(3, 90, 20)
    whole = slots_of(span)
    cut = 7 * TICK.slot_bytes
    spool.append(TICK, [Span(3, 90, 7), Span(3, 97, 13)], [whole[:cut], memoryview(whole[cut:])])
    assert drain(spool) == (keys(span), [])


def test_reads_merge_small_frames_up_to_the_limit(tmp_path: Path) -> None:
    """An hour of small drains is replayed in large requests: frames are merged up to `rows_max`, never split."""
    spool = open_spool(tmp_path / "spool")
    for start in range(0, 50, 5):
        append(spool, Span(1, start, 5))
    rows = []
    while (replay := spool.read("ticks", 12)) is not None:
        rows.append(replay.rows)
        spool.confirm(replay)
    assert rows == [10] * 5


def test_reads_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are asked for, a read gives no more bytes of slots than its bound: a replay stays small."""
    monkeypatch.setattr("ringlog.spool.reader.READ_BYTES_MAX", 12 * TICK.slot_bytes)
    spool = open_spool(tmp_path / "spool")
    for start in range(0, 50, 5):
        append(spool, Span(1, start, 5))
    rows = []
    while (replay := spool.read("ticks", 1000)) is not None:
        rows.append(replay.rows)
        assert replay.slots.nbytes <= 12 * TICK.slot_bytes
        spool.confirm(replay)
    assert rows == [10] * 5


def test_a_frame_beyond_the_limit_is_still_given(tmp_path: Path) -> None:
    """A frame with more rows than asked for comes alone: replay never stalls on a large one."""
    spool = open_spool(tmp_path / "spool")
    append(spool, Span(1, 0, 100))
    replay = spool.read("ticks", 10)
    assert replay is not None
    assert replay.rows == 100


def test_unconfirmed_reads_come_again_after_rewind_and_restart(tmp_path: Path) -> None:
    """Only a confirmation moves the cursor: what was read is read again after a rewind, and after a restart."""
    spool = open_spool(tmp_path / "spool")
    for start in (0, 10, 20):
        append(spool, Span(1, start, 10))
    first = spool.read("ticks", 10)
    assert spool.read("ticks", 10) is not None
    spool.rewind("ticks")
    again = spool.read("ticks", 10)
    assert again is not None
    assert again.spans == first.spans
    spool.confirm(first)
    spool.close()
    spool = open_spool(tmp_path / "spool")
    assert spool.rows("ticks") == 20
    assert drain(spool)[0] == keys(Span(1, 10, 20))


def test_several_reads_may_be_outstanding_and_records_keep_coming(tmp_path: Path) -> None:
    """Appends between reads and confirmations are replayed too, across files, in order, each once."""
    spool = open_spool(tmp_path / "spool", file_bytes_max=16_384)
    seen = []
    outstanding = []
    for start in range(0, 200, 10):
        append(spool, Span(1, start, 10))
        if start % 30 == 0:
            outstanding.append(spool.read("ticks", 15))
        if len(outstanding) == 2:
            seen += [key for replay in outstanding for key in keys(*replay.spans)]
            spool.confirm(outstanding[-1])
            outstanding.clear()
    seen += [key for replay in outstanding for key in keys(*replay.spans)]
    seen += drain(spool)[0]
    assert seen == keys(Span(1, 0, 200))
    assert spool.bytes == 0


def test_a_look_beside_the_writer_meets_a_file_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that its writer confirms and removes between two looks of another process is just not there any more."""
    spool = open_spool(tmp_path)
    append(spool, Span(7, 0, 5))
    assert [list(members) for members in holdings(spool.directory).values()] == [[(0, 5)]]
    frame_header = SpoolFile.frame_header

    def late(file: SpoolFile, offset: int) -> FrameHeader | None:
        file.remove()
        return frame_header(file, offset)

    monkeypatch.setattr(SpoolFile, "frame_header", late)
    assert holdings(spool.directory) == {}


def test_tables_are_apart(tmp_path: Path) -> None:
    """One table's replay and cursor know nothing of another's."""
    spool = open_spool(tmp_path / "spool")
    append(spool, Span(1, 0, 4))
    append(spool, Span(9, 0, 6), layout=QUOTE)
    assert sorted(spool.tables()) == ["quotes", "ticks"]
    assert drain(spool, "quotes")[0] == keys(Span(9, 0, 6))
    assert spool.tables() == ["ticks"]
    assert list(spool.spans()) == [("ticks", Span(1, 0, 4))]


def test_layouts_of_one_table_are_never_mixed_in_a_read(tmp_path: Path) -> None:
    """A record type that gained a field while the spool held older records: each read has one layout, both replay."""
    from ringlog.records import RecordLayout

    spool = open_spool(tmp_path / "spool")
    newer = RecordLayout("Tick", "ticks", TICK.slot_bytes, (*TICK.fields[:-1], *QUOTE.fields[:0], TICK.fields[-1]))
    newer = RecordLayout("NewerTick", "ticks", newer.slot_bytes, newer.fields)
    append(spool, Span(1, 0, 3))
    append(spool, Span(2, 0, 3), layout=newer)
    spool.close()
    spool = open_spool(tmp_path / "spool")
    layouts = []
    while (replay := spool.read("ticks", 100)) is not None:
        layouts.append(replay.layout)
        spool.confirm(replay)
    assert layouts == [TICK, newer]


def test_rows_and_bytes_must_agree(tmp_path: Path) -> None:
    """A caller whose spans and slots disagree is told so, and nothing is written."""
    spool = open_spool(tmp_path / "spool")
    with pytest.raises(ValueError, match="ticks: got 64 bytes of slots, wanted 2 rows"):
        spool.append(TICK, [Span(1, 0, 2)], [np.zeros(TICK.slot_bytes, np.uint8)])
    with pytest.raises(ValueError, match="at least one"):
        spool.append(TICK, [], [])
    assert spool.bytes == 0


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    """Directories are 0700 and files 0600, whatever the umask."""
    before = os.umask(0)
    try:
        spool = open_spool(tmp_path / "spool")
        append(spool, Span(1, 0, 3))
    finally:
        os.umask(before)
    for path in [tmp_path / "spool", *(tmp_path / "spool").rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_descriptors_do_not_grow_with_the_files(tmp_path: Path) -> None:
    """A spool of many files holds few descriptors open, through append, restart, replay and the list of spans."""
    gc.collect()  # what earlier tests left is not to be closed between two counts
    before = len(os.listdir("/dev/fd"))
    spool = open_spool(tmp_path / "spool", file_bytes_max=1)
    for start in range(60):
        append(spool, Span(1, start, 1))
    spool.close()
    spool = open_spool(tmp_path / "spool", file_bytes_max=1)
    assert len(list(spool.spans())) == 60
    assert len(os.listdir("/dev/fd")) < before + 12
    assert drain(spool, rows_max=1)[0] == keys(Span(1, 0, 60))
    assert len(os.listdir("/dev/fd")) < before + 12
    spool.close()
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("file_bytes_max", [1, SPOOL_BYTES_MAX])
def test_room_is_told_in_records(tmp_path: Path, file_bytes_max: int) -> None:
    """A batch of as many records as there is room for fits, in a new file or not, and leaves only a few pages."""
    spool = open_spool(tmp_path / "spool", bytes_max=1_000_000, file_bytes_max=file_bytes_max)
    append(spool, Span(1, 0, 10))
    rows = spool.rows_room(TICK)
    append(spool, Span(1, 10, 3), Span(1, 13, rows - 3))
    assert 1_000_000 - 32_768 < spool.bytes <= 1_000_000
    assert spool.rows_room(TICK) < 32_768 // TICK.slot_bytes


def test_a_cap_smaller_than_a_frame_refuses_it(tmp_path: Path) -> None:
    """The cap counts whole files, headers included: what does not fit is refused by name and by size."""
    spool = open_spool(tmp_path / "spool", bytes_max=8192)
    with pytest.raises(SpoolFull, match=r"ticks: got 12288 bytes to append, wanted at most 8192"):
        append(spool, Span(1, 0, 1))
    assert spool.bytes == 0
