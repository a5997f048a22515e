"""Claims: what a lane is made of, who may have it, and what the budget allows."""

from __future__ import annotations

import errno
import gc
import os
import re
import signal
import stat
import sys
from pathlib import Path

import msgspec
import pytest
from lane_samples import Drained, Sample, child, segments

from ringlog import Producer
from ringlog.errors import LaneError, SegmentRefused, SharedMemoryFull
from ringlog.lanes.claims import BudgetExhausted, OwnedLane, cards, claim, open_board
from ringlog.lanes.claims_lock import ClaimReentrant, claims_lock
from ringlog.lanes.instance import Instance
from ringlog.lanes.locks import LockFile, is_locked
from ringlog.lanes.readers import LaneReader
from ringlog.lanes.segments import attach_segment, create_segment, unlink_segment
from ringlog.layout import HEADER, HEADER_FIELDS, MAGIC, segment_bytes
from ringlog.records import PLATFORM_RECORDS, LatencySample, Record, Trade, layout_of
from ringlog.settings import Settings

LAYOUT = layout_of(Sample)
SHM = Path("/dev/shm")  # noqa: S108
linux = pytest.mark.skipif(sys.platform != "linux", reason="segments are files only on Linux")


@pytest.fixture
def instance(lane_settings: Settings) -> Instance:
    """A fresh instance, open."""
    return Instance(lane_settings).open()


def test_a_lane_says_what_it_is(instance: Instance) -> None:
    """Header and card carry lane, sizes, owner and the record's layout, and a reader attaches by them."""
    lane = claim(instance, LAYOUT)
    header = dict(zip(HEADER_FIELDS, HEADER.unpack(bytes(lane.memory[: HEADER.size])), strict=True))
    (card,) = cards(instance)
    assert header["magic"] == MAGIC
    assert (header["lane"], header["owner_pid"], header["capacity"]) == (card.lane, os.getpid(), lane.capacity)
    assert (card.record, card.table, card.size_bytes) == ("Sample", "samples", len(lane.memory))
    reader = LaneReader.attach(card)
    assert (reader.layout, reader.capacity, reader.head, reader.tail) == (LAYOUT, lane.capacity, 0, 0)
    assert 0 < card.lane < 2**63
    assert len(card.segment) <= 29
    reader.close()
    lane.close()


@linux
def test_only_the_owner_may_look(instance: Instance) -> None:
    """Segments, lock files and cards are 0600, directories 0700, whatever the umask."""
    previous = os.umask(0)
    try:
        lane = claim(instance, LAYOUT)
        open_board(instance)
    finally:
        os.umask(previous)
    files = [*instance.lanes_dir.iterdir(), instance.claims_path, *(SHM / name for name in segments(instance))]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert len(files) == 5
    directories = (instance.runtime_dir, instance.lanes_dir)
    assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o700}
    lane.close()


def test_11_lanes_are_never_shared(instance: Instance) -> None:
    """Every claim is a lane of its own, locked by its owner, which no second process can take.

    Defence: a lane's lock file is locked.
    """
    lanes = [claim(instance, LAYOUT, lane_bytes=4096) for _ in range(20)]
    assert len({lane.card.lane for lane in lanes}) == 20
    path = instance.lock_path(lanes[0].card.lane)
    with pytest.raises(LaneError, match="holds already"):
        LockFile(path).take()
    script = "from ringlog.lanes.locks import LockFile\nfrom pathlib import Path\n"
    script += f"print(LockFile(Path({str(path)!r})).take())"
    with child(instance.settings, script, prelude="") as other:
        assert other.line() == "False"
        other.ended()
    for lane in lanes:
        lane.close()


def test_the_budget_is_kept(instance: Instance) -> None:
    """However many claims: their segments together stay within lane_bytes_max; late ones are smaller, then refused."""
    lanes: list[OwnedLane] = []
    sizes: list[int] = []
    refused = ""
    while not refused:
        try:
            lanes.append(claim(instance, layout_of(Trade)))
        except BudgetExhausted as error:
            refused = str(error)
        sizes = [lane.segment.size for lane in lanes]
        assert sum(sizes) <= instance.settings.lane_bytes_max
    assert re.match(r"lane for Trade: got \d+ bytes left of the budget, wanted \d+", refused)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]
    assert len(lanes) > 10
    assert sum(sizes) > 0.9 * instance.settings.lane_bytes_max
    for lane in lanes:
        lane.close()


@pytest.mark.parametrize(
    ("records", "slots"),
    [
        pytest.param((Trade,), [16_384] * 4, id="trades"),
        pytest.param((Trade, LatencySample), [16_384] * 4, id="trades and latencies"),
        pytest.param(PLATFORM_RECORDS, [16_384, 16_384, 4_096, 2_048], id="all record types"),
    ],
)
def test_what_the_lanes_of_four_producers_hold(
    instance_dir: Path, records: tuple[type[Record], ...], slots: list[int]
) -> None:
    """With the default budget each of four producers of trades has 16,384 slots for them, six seconds of 10,000 a
    second in all; four that claim lanes of all record types share it, and the last has less."""
    instance = Instance(Settings(runtime_dir=str(instance_dir))).open()
    lanes = [[claim(instance, layout_of(record)) for record in records] for _ in range(4)]
    assert [of_one[0].capacity for of_one in lanes] == slots
    assert (min(slots) > 6 * 10_000 / 4) == (len(records) < 3)
    for lane in (lane for of_one in lanes for lane in of_one):
        lane.close()


def test_a_successor_gets_a_lane_of_its_predecessors_size(instance: Instance) -> None:
    """The lane of an owner that died comes back to the budget: who follows it is not given less for that."""
    mine = [claim(instance, layout_of(Trade)) for _ in range(3)]
    script = "lane = claim(Instance(Settings.from_environment()).open(), layout_of(Trade)); say(lane.capacity)\n"
    imports = "from ringlog.lanes.claims import claim; from ringlog.lanes.instance import Instance\n"
    imports += "from ringlog.records import Trade, layout_of; from ringlog.settings import Settings; import os\n"
    imports += "say = lambda word: os.write(1, b'%d\\n' % word)\n"
    for _ in range(3):
        with child(instance.settings, script, imports) as process:
            assert int(process.line()) == mine[0].capacity
            process.kill()
    for lane in mine:
        lane.close()


@linux
def test_a_refused_claim_leaves_nothing(instance: Instance) -> None:
    """A claim beyond the budget leaves no file, card or segment, and frees the way for a smaller one."""
    with pytest.raises(BudgetExhausted):
        claim(instance, LAYOUT, lane_bytes=1 << 30)
    assert list(instance.lanes_dir.iterdir()) == []
    assert segments(instance) == []
    claim(instance, LAYOUT, lane_bytes=1 << 16).close()


@pytest.mark.parametrize(("asked", "slots"), [(0, 1), (1, 1), (1 << 16, None), (100_000, None), (1 << 20, None)])
def test_lane_bytes_are_rounded_down(instance: Instance, asked: int, slots: int | None) -> None:
    """`lane_bytes` fixes the size of the slots, rounded down to a power of two of slots, at least one."""
    lane = claim(instance, LAYOUT, lane_bytes=asked)
    wanted = slots or 1 << (asked // LAYOUT.slot_bytes).bit_length() - 1
    assert lane.capacity == wanted
    assert lane.segment.size >= segment_bytes(len(LAYOUT.to_json()), LAYOUT.slot_bytes, wanted)
    lane.close()


def test_cards_that_are_none(instance: Instance) -> None:
    """Half-written or foreign cards beside the lanes are left alone."""
    lane = claim(instance, LAYOUT)
    for name, text in (("a.json", b"{"), ("b.json", b"\xff"), ("c.json", b'{"lane":-1}'), ("d.txt", b"x")):
        (instance.lanes_dir / name).write_bytes(text)
    bad = msgspec.json.decode((instance.card_path(lane.card.lane)).read_bytes())
    (instance.lanes_dir / "e.json").write_bytes(msgspec.json.encode({**bad, "lane": 2**63}))
    assert [card.lane for card in cards(instance)] == [lane.card.lane]
    lane.close()


def test_a_directory_for_all_is_refused(tmp_path: Path) -> None:
    """A runtime directory that others may enter, a symlink or a file is refused by name, got and wanted."""
    open_to_others = tmp_path / "open"
    open_to_others.mkdir(mode=0o755)
    open_to_others.chmod(0o755)
    with pytest.raises(LaneError, match="got mode 0755, wanted 0700"):
        Instance(Settings(runtime_dir=str(open_to_others))).open()
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(private)
    with pytest.raises(LaneError, match="got a symlink, wanted a directory"):
        Instance(Settings(runtime_dir=str(link))).open()
    (private / "lanes").symlink_to(tmp_path)
    with pytest.raises(LaneError, match="lanes: got a symlink"):
        Instance(Settings(runtime_dir=str(private))).open()


@pytest.mark.root
@linux
def test_20_what_belongs_to_others_is_refused(instance: Instance, tmp_path: Path) -> None:
    """A directory or segment of another uid is refused, naming it. Defence: a segment of another user is refused."""
    foreign = tmp_path / "foreign"
    foreign.mkdir(mode=0o700)
    os.chown(foreign, 12345, 12345)
    with pytest.raises(LaneError, match="got owner uid 12345, wanted 0"):
        Instance(Settings(runtime_dir=str(foreign))).open()
    create_segment(instance.board_name, 4096)
    os.chown(SHM / instance.board_name, 12345, 12345)
    with pytest.raises(SegmentRefused, match="got owner uid 12345, wanted 0"):
        attach_segment(instance.board_name)
    with pytest.raises(SegmentRefused, match="existing one of uid 12345"):
        create_segment(instance.board_name, 4096)


@linux
def test_20_segments_of_other_kinds_are_refused(instance: Instance) -> None:
    """A segment that others may read, a symlink, an empty or a taken name: each refused, untouched.

    Defence: a segment that others may read is refused.
    """
    name = instance.board_name
    create_segment(name, 4096)
    (SHM / name).chmod(0o644)
    with pytest.raises(SegmentRefused, match="got mode 0644, wanted 0600"):
        attach_segment(name)
    with pytest.raises(SegmentRefused, match=r"got an existing one of uid \d+, wanted a free name"):
        create_segment(name, 4096)
    (SHM / name).unlink()
    target = SHM / f"{name}x"
    target.write_bytes(bytes(4096))
    (SHM / name).symlink_to(target)
    try:
        with pytest.raises(SegmentRefused):
            attach_segment(name)
        assert target.read_bytes() == bytes(4096)
    finally:
        target.unlink()
    (SHM / name).unlink()
    (SHM / name).touch(mode=0o600)
    with pytest.raises(SegmentRefused, match="got 0 bytes"):
        attach_segment(name)
    with pytest.raises(FileNotFoundError):
        attach_segment(f"{name}y")


def test_20_lock_files_are_not_followed(instance: Instance, tmp_path: Path) -> None:
    """A symlink in a lock file's place is refused, and what it points to is left alone.

    Defence: lock files are not followed.
    """
    target = tmp_path / "precious"
    target.write_text("precious")
    instance.claims_path.symlink_to(target)
    with pytest.raises(LaneError, match=r"claims\.lock: got .*, wanted a lock file of this user"):
        claim(instance, LAYOUT)
    assert target.read_text() == "precious"


@linux
def test_16_a_full_dev_shm(lane_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the pages of a lane cannot be had a claim says how much it needed, and leaves no segment, card or lock.

    Defence: a claim that finds no room says how much it wanted.
    """
    reserve = os.posix_fallocate

    def full(descriptor: int, offset: int, size_bytes: int) -> None:
        if size_bytes > 1 << 16:  # the board, of a few pages, still has room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(descriptor, offset, size_bytes)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SharedMemoryFull, match=r"bytes of shared memory, got \d+ bytes free: enlarge /dev/shm"):
        Producer([Sample], settings=lane_settings).open()
    instance = Instance(lane_settings).open()
    assert cards(instance) == []
    assert list(instance.lanes_dir.iterdir()) == []
    prefix = instance.board_name.removesuffix("board")
    assert [path.name for path in SHM.glob(f"{prefix}*")] == [instance.board_name]


@pytest.mark.root
@linux
def test_16_a_tiny_dev_shm(lane_settings: Settings) -> None:
    """On a /dev/shm of 1 MiB a claim says how much it needed: no SIGBUS, and nothing is left there.

    Defence: pages are reserved before they are touched.
    """
    script = """
import ctypes, os
from ringlog.lanes.claims import claim, cards
from ringlog.lanes.instance import Instance
from ringlog.settings import Settings
from ringlog.errors import SharedMemoryFull
from ringlog.records import layout_of
from lane_samples import Sample
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0, os.strerror(ctypes.get_errno())
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0, os.strerror(ctypes.get_errno())
assert libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=1m") == 0, os.strerror(ctypes.get_errno())
instance = Instance(Settings.from_environment()).open()
try:
    claim(instance, layout_of(Sample), lane_bytes=2 << 20)
except SharedMemoryFull as error:
    print(error)
print(os.listdir("/dev/shm"), cards(instance), [p.name for p in instance.lanes_dir.iterdir()])
claim(instance, layout_of(Sample), lane_bytes=1 << 18).close()
print("claimed")
"""
    with child(lane_settings, script, prelude="") as small:
        assert "bytes of shared memory, got 1048576 bytes free: enlarge /dev/shm" in small.line()
        assert small.line() == "[] [] []"
        assert small.line() == "claimed"
        small.ended()
    assert SharedMemoryFull.__doc__


def test_a_stopped_claimer_holds_nobody_for_long(instance: Instance) -> None:
    """While another process is stopped inside a claim, a claim fails within its time limit and says why."""
    script = """
from ringlog.lanes.claims_lock import claims_lock
from ringlog.lanes.instance import Instance
from ringlog.settings import Settings
import sys
with claims_lock(Instance(Settings.from_environment())):
    print("inside", flush=True)
    sys.stdin.read()
"""
    with child(instance.settings, script, prelude="") as other:
        assert other.line() == "inside"
        other.process.send_signal(signal.SIGSTOP)
        with pytest.raises(LaneError, match=r"held by another process \(pid \d+\) for 0\.1 s, wanted it free"):
            claim(instance, LAYOUT, timeout_seconds=0.1)
        other.kill()
    claim(instance, LAYOUT).close()


def test_a_claim_inside_a_claim_does_not_wait(instance: Instance) -> None:
    """A signal handler that claims while its own thread is in a claim is refused instead of waiting for itself."""
    with claims_lock(instance), pytest.raises(ClaimReentrant, match="inside a claim"):
        claim(instance, LAYOUT)
    claim(instance, LAYOUT).close()


@linux
def test_an_interrupted_claim_leaves_nothing(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception at any step of a claim (a signal handler's) leaves no file, card, lock or segment."""
    import ringlog.lanes.claims as claims_module
    import ringlog.lanes.segments as segments_module

    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    steps = [(claims_module, "store"), (claims_module, "OwnedLane"), (msgspec.json, "encode")]
    for module, name in [*steps, (segments_module._Made, "reserve")]:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                claim(instance, LAYOUT)
        assert list(instance.lanes_dir.iterdir()) == []
        assert segments(instance) == []


def test_descriptors_do_not_leak(instance: Instance) -> None:
    """Claims, closes, refused claims and removals leave no descriptor open."""
    drained = Drained(instance.settings)

    def churn(count: int) -> int:
        for _ in range(count):
            lane = claim(instance, LAYOUT, lane_bytes=4096)
            lane.close()
            del lane
            with pytest.raises(BudgetExhausted):
                claim(instance, LAYOUT, lane_bytes=1 << 30)
        drained.until_gone()
        gc.collect()  # what earlier tests left is not to be closed between the two counts
        return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))

    assert churn(5) == churn(20)


def test_a_lock_file_closed_behind_our_back(instance: Instance) -> None:
    """Giving up a lock whose descriptor somebody else closed does not close what has that number by now."""
    lock = LockFile(instance.lease_path)
    assert lock.take()
    os.close(lock._descriptor)
    reading, writing = os.pipe()
    moved = os.dup2(reading, lock._descriptor)
    lock.release()
    os.fstat(moved)
    for descriptor in {reading, writing, moved}:
        os.close(descriptor)
    assert not is_locked(instance.lease_path)


def test_no_descriptor_left_to_look(instance: Instance) -> None:
    """Who has no free descriptor takes a lane for owned, so that it is never taken away by mistake."""
    import resource

    lane = claim(instance, LAYOUT)
    script = f"""
import resource, os
from pathlib import Path
from ringlog.lanes.locks import is_locked
path = Path({str(instance.lock_path(lane.card.lane))!r})
lane_free = Path({str(instance.claims_path)!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
print(is_locked(path), is_locked(lane_free))
"""
    with child(instance.settings, script, prelude="") as starved:
        assert starved.line() == "True True"
        starved.ended()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3
    lane.close()


def test_unlinking_twice_is_no_error(instance: Instance) -> None:
    """A segment that is gone already is no error."""
    create_segment(instance.board_name, 4096)
    unlink_segment(instance.board_name)
    unlink_segment(instance.board_name)
