"""The spool under crashes: of the process and of the machine, before every step that changes the disk."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from faulty_disk import Crash, FaultyDisk, descriptors_closed
from hypothesis import given, settings
from hypothesis import strategies as st
from spool_batches import append, drain, keys, open_spool

from ringlog.errors import SpoolError
from ringlog.spans import Span
from ringlog.spool import DamageKind

FILE_BYTES_MAX = 20_480  # two frames a file, so that files come and go


@dataclass
class Model:
    """What is known outside the spool: what was attempted, what append returned for, what was confirmed."""

    attempted: list[tuple[int, int]] = field(default_factory=list)
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    confirmed: set[tuple[int, int]] = field(default_factory=set)
    outstanding: list[tuple[int, int]] = field(default_factory=list)
    next_seq: int = 0
    disk_failed: bool = False

    def append(self, spool, rows: int) -> None:
        span = Span(7, self.next_seq, rows)
        self.attempted += keys(span)
        self.next_seq += rows
        append(spool, span)
        self.acknowledged += keys(span)

    def replay(self, spool, *, confirm: bool) -> None:
        replay = spool.read("ticks", 25)
        if replay is None:
            return
        assert not [damage for damage in replay.damages if damage.rows]
        self.outstanding += keys(*replay.spans)
        if confirm:
            self.confirmed |= set(self.outstanding)  # the caller's ledger says so before the spool is told
            self.outstanding.clear()
            spool.confirm(replay)

    def check(self, spool) -> None:
        """After a restart: all that was acknowledged and not confirmed comes, in order; nothing unknown comes."""
        seen, damages = drain(spool)
        assert set(seen) <= set(self.attempted)
        for damage in damages:  # only appends that never returned may be broken, and nothing was ever missing
            assert damage.kind is not DamageKind.MISSING
            assert not set(keys(*damage.spans)) & set(self.acknowledged)
        owed = [key for key in self.acknowledged if key not in self.confirmed]
        if self.disk_failed:  # what a failed fsync left behind may come beside its second copy: the server folds it
            seen = list(dict.fromkeys(seen))
        assert [key for key in seen if key in set(owed)] == owed
        assert len(seen) == len(set(seen))


def scenario(model: Model, path: Path, disk: FaultyDisk) -> None:
    """Appends, reads, confirmations and a restart, over several files."""
    spool = open_spool(path, file_bytes_max=FILE_BYTES_MAX, system=disk)
    for _ in range(3):
        model.append(spool, 10)
    model.replay(spool, confirm=True)
    model.append(spool, 20)
    model.replay(spool, confirm=False)
    model.append(spool, 5)
    spool.close()
    model.outstanding.clear()
    spool = open_spool(path, file_bytes_max=FILE_BYTES_MAX, system=disk)
    model.append(spool, 10)
    for _ in range(6):
        model.replay(spool, confirm=True)
    model.append(spool, 3)
    spool.close()


@descriptors_closed()
def crash(tmp_path: Path, step: int, power_lost: bool) -> bool:
    """Runs the scenario up to `step`, then restarts on what is left; returns whether the step was reached."""
    disk = FaultyDisk(crash_at=step)
    path = tmp_path / f"spool-{step}"
    path.mkdir(mode=0o700)
    model = Model()
    try:
        scenario(model, path, disk)
    except Crash:
        pass
    else:
        return False
    if power_lost:
        path = disk.lose_power(path, tmp_path / f"after-{step}")
    spool = open_spool(path, file_bytes_max=FILE_BYTES_MAX)
    model.check(spool)
    model.append(spool, 4)
    assert drain(spool)[0] == keys(Span(7, model.next_seq - 4, 4))
    spool.close()
    return True


@pytest.mark.parametrize("power_lost", [False, True], ids=["killed", "power-lost"])
def test_nothing_acknowledged_is_lost_whatever_the_step(tmp_path: Path, power_lost: bool) -> None:
    """A crash before each step: every acknowledged and unconfirmed record comes back once, in order.

    Defences: each fsync of file and directory, the rename behind it, and cursor before unlink.
    """
    step = 0
    while crash(tmp_path, step, power_lost):
        step += 1
    assert step > 60


@descriptors_closed()
def test_appends_that_fail_leave_no_files_behind(tmp_path: Path) -> None:
    """On a disk with room for a header and for no frame, failing appends do not fill it up with headers.

    What came before is replayed, and what is appended once there is room follows it.
    """

    def full(_step: int, call: str) -> None:
        if call == "write" and disk.calls[-2] != "create":
            raise OSError(errno.ENOSPC, "no space left")

    disk = FaultyDisk()
    spool = open_spool(tmp_path / "spool", file_bytes_max=FILE_BYTES_MAX, system=disk)
    append(spool, Span(7, 0, 10))
    assert spool.read("ticks", 25) is not None
    before = spool.bytes
    disk.fault = full
    for _ in range(5):
        with pytest.raises(SpoolError):
            append(spool, Span(7, 10, 10))
    assert spool.bytes == before
    assert len(list((tmp_path / "spool/tables/ticks").glob("*.spool"))) == 1
    disk.fault = None
    append(spool, Span(7, 10, 5))
    assert keys(*spool.read("ticks", 25).spans) == keys(Span(7, 10, 5))
    spool.rewind("ticks")
    assert drain(spool)[0] == keys(Span(7, 0, 15))
    spool.close()


def dies_before_the_first_frame(disk: FaultyDisk) -> None:
    """The process ends once a file has its header."""

    def dies(_step: int, call: str) -> None:
        if call == "write" and disk.calls[-2] != "create":
            raise Crash

    disk.fault = dies


@descriptors_closed()
def test_a_file_without_a_frame_goes_at_the_next_start(tmp_path: Path) -> None:
    """A process that died between a file's header and its first frame leaves nothing that counts against the cap."""
    disk = FaultyDisk()
    spool = open_spool(tmp_path / "spool", system=disk)
    dies_before_the_first_frame(disk)
    with pytest.raises(Crash):
        append(spool, Span(7, 0, 10))
    assert list((tmp_path / "spool/tables/ticks").glob("*.spool"))
    spool.close()
    spool = open_spool(tmp_path / "spool")
    assert spool.bytes == 0
    append(spool, Span(7, 0, 10))
    assert drain(spool)[0] == keys(Span(7, 0, 10))
    spool.close()


@descriptors_closed()
def test_a_file_without_a_frame_keeps_no_rows_that_were_destroyed(tmp_path: Path) -> None:
    """Its header says how many rows came before it: with their files gone no read passes those, and none wait."""
    disk = FaultyDisk()
    spool = open_spool(tmp_path / "spool", system=disk, file_bytes_max=1)  # so small that each frame has its own file
    append(spool, Span(7, 0, 10))
    dies_before_the_first_frame(disk)
    with pytest.raises(Crash):
        append(spool, Span(7, 10, 10))
    spool.close()
    next((tmp_path / "spool/tables/ticks").glob("*0.spool")).unlink()
    spool = open_spool(tmp_path / "spool")
    assert (spool.rows("ticks"), spool.tables(), spool.read("ticks", 1000)) == (0, [], None)
    append(spool, Span(7, 10, 10))
    assert drain(spool) == (keys(Span(7, 10, 10)), [])
    assert spool.rows("ticks") == 0
    spool.close()


@pytest.mark.parametrize("power_lost", [False, True], ids=["killed", "power-lost"])
@descriptors_closed()
def test_a_crash_during_recovery_changes_nothing(tmp_path: Path, power_lost: bool) -> None:
    """Dying at every step of one restart after another leaves all that is owed."""
    disk = FaultyDisk()
    path = tmp_path / "spool"
    path.mkdir(mode=0o700)
    model = Model()
    spool = open_spool(path, file_bytes_max=FILE_BYTES_MAX, system=disk)
    for _ in range(6):
        model.append(spool, 10)
    for _ in range(2):
        model.replay(spool, confirm=True)
    spool.close()
    for step in range(40):
        disk.crash_at = disk.steps + step % 12
        try:
            spool = open_spool(path, file_bytes_max=FILE_BYTES_MAX, system=disk)
            model.replay(spool, confirm=False)
        except Crash:
            disk._crashed = False
            disk.crash_at = -1
    if power_lost:
        path = disk.lose_power(path, tmp_path / "after")
    model.check(open_spool(path))


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 40)),
        st.tuples(st.sampled_from(["replay", "confirm", "rewind", "restart"]), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=100)
@given(
    operations=OPERATIONS,
    faults=st.dictionaries(st.integers(0, 120), st.sampled_from([errno.EIO, errno.ENOSPC]), max_size=6),
    crash_at=st.integers(0, 150),
    power_lost=st.booleans(),
    short_bytes=st.sampled_from([0, 1000]),
)
@descriptors_closed()
def test_any_history_keeps_what_was_acknowledged(
    tmp_path_factory, operations, faults, crash_at, power_lost, short_bytes
) -> None:
    """Any order of appends, replays, restarts, failing calls and short writes, then a crash: the model holds."""

    def fault(step: int, call: str) -> None:
        if step in faults:
            raise OSError(faults[step], f"injected into {call}")

    disk = FaultyDisk(crash_at=crash_at, fault=fault, short_bytes=short_bytes)
    root = tmp_path_factory.mktemp("history")
    path = root / "spool"
    path.mkdir(mode=0o700)
    model = Model(disk_failed=bool(faults))
    spool = None
    try:
        for operation, rows in [*operations, ("append", 7)]:
            try:
                spool = spool or open_spool(path, file_bytes_max=FILE_BYTES_MAX, system=disk)
                match operation:
                    case "append":
                        model.append(spool, rows)
                    case "replay" | "confirm":
                        model.replay(spool, confirm=operation == "confirm")
                    case "rewind":
                        spool.rewind("ticks")
                        model.outstanding.clear()
                    case "restart":
                        spool.close()
                        spool = None
                        model.outstanding.clear()
            except SpoolError:
                pass
    except Crash:
        pass
    if power_lost:
        path = disk.lose_power(path, root / "after")
    survivor = open_spool(path)
    model.check(survivor)
    survivor.close()


def test_no_file_is_left_behind_once_all_is_confirmed(tmp_path: Path) -> None:
    """Whatever step a process died at, or an append failed at, a spool that was drained afterwards has no files."""
    for step in range(60):
        for fails in (False, True):
            path = tmp_path / f"{step}-{fails}"
            disk = FaultyDisk(fault=_failing_at(step)) if fails else FaultyDisk(crash_at=step)
            with descriptors_closed(), contextlib.suppress(Crash, SpoolError):
                spool = open_spool(path, system=disk)
                for first in (0, 10, 20):
                    with contextlib.suppress(SpoolError):
                        append(spool, Span(1, first, 10))
                drain(spool)
            with descriptors_closed():
                spool = open_spool(path)
                drain(spool)
                assert spool.tables() == []
                spool.close()
            assert list(path.glob("tables/*/*.spool")) == [], (step, fails)


def _failing_at(step: int) -> Callable[[int, str], None]:
    def fault(at: int, call: str) -> None:
        if at == step:
            raise OSError(errno.EIO, f"injected into {call}")

    return fault
