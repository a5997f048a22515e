"""Ownership: a lane outlives its owner in whatever way that ends, and nothing that was accepted is lost."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time

import msgspec
import pytest
from lane_samples import Drained, Sample, child, eventually, segments, text_of

from ringlog import Producer
from ringlog.lanes.claims import cards, claim
from ringlog.lanes.instance import Instance
from ringlog.lanes.locks import is_locked
from ringlog.lanes.readers import Absent
from ringlog.lanes.segments import unlink_segment
from ringlog.layout import LaneState
from ringlog.records import layout_of
from ringlog.ring import IMPLEMENTATION, store
from ringlog.settings import Settings

LAYOUT = layout_of(Sample)
APPEND_100 = "for number in range(100): assert appender.append(number, text_of(number))\n"
linux = pytest.mark.skipif(sys.platform != "linux", reason="segments are files only on Linux")
FORKING = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("", id="end of the script"),
        pytest.param("producer.close()", id="close"),
        pytest.param("sys.exit(0)", id="exit"),
        pytest.param("os._exit(0)", id="os._exit"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", id="kill -9"),
        pytest.param("os.abort()", id="abort"),
        pytest.param("raise SystemExit", id="exception"),
    ],
)
def test_leaving_loses_nothing(lane_settings: Settings, end: str) -> None:
    """However a producer ends, its records are drained and its lane, lock file, card and segment removed."""
    with child(lane_settings, APPEND_100 + end) as producer:
        producer.ended(None)
    drained = Drained(lane_settings)
    assert drained.numbers() == list(range(100))
    drained.until_gone()
    assert drained.numbers() == list(range(100))
    assert list(drained.instance.lanes_dir.iterdir()) == []


def test_a_living_owner_is_left_alone(lane_settings: Settings) -> None:
    """A lane is not adopted while its owner lives, whatever its card says of its pid."""
    with child(lane_settings, APPEND_100 + "say('appended'); signal.pause()") as producer:
        assert producer.line() == "appended"
        drained = Drained(lane_settings)
        (card,) = drained.cards()
        path = drained.instance.card_path(card.lane)
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(card, owner_pid=2**22 + 1)))  # no such process
        drained.drain()
        drained.directory.adopt()
        assert drained.directory.lanes[card.lane].state == LaneState.OPEN


@pytest.mark.parametrize("pid", [1, None])
def test_13_a_dead_owner_whose_pid_lives(lane_settings: Settings, pid: int | None) -> None:
    """Pid 1 looks alive for ever and pids are used again: a dead owner's lane is adopted all the same.

    Defence: life is seen through a record lock, not through a pid.
    """
    with child(lane_settings, APPEND_100 + "os.kill(os.getpid(), signal.SIGKILL)") as producer:
        producer.ended(None)
    drained = Drained(lane_settings)
    (card,) = drained.cards()
    alive = msgspec.structs.replace(card, owner_pid=pid or os.getpid())
    drained.instance.card_path(card.lane).write_bytes(msgspec.json.encode(alive))
    drained.until_gone()
    assert drained.numbers() == list(range(100))


def test_14_a_zombie_is_dead(lane_settings: Settings) -> None:
    """An owner that was killed but never waited for no longer owns its lane.

    Defence: life is seen through a record lock, not through a pid.
    """
    with child(lane_settings, APPEND_100 + "say('appended'); signal.pause()") as producer:
        assert producer.line() == "appended"
        instance = Instance(lane_settings)
        (card,) = cards(instance)
        assert is_locked(instance.lock_path(card.lane))
        os.kill(producer.process.pid, signal.SIGKILL)  # and no wait: it stays a zombie
        eventually(lambda: not is_locked(instance.lock_path(card.lane)), "the zombie's lock to go")
        Drained(lane_settings).until_gone()


def test_14_a_forked_child_does_not_keep_it_alive(lane_settings: Settings) -> None:
    """A child that inherited the lock file's descriptor and lives on does not hide its parent's death.

    Defence: the lock is a record lock, which a forked child does not hold.
    """
    script = (
        FORKING
        + APPEND_100
        + """
if os.fork() == 0:
    say(os.getpid())
    signal.pause()
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    with child(lane_settings, script) as producer:
        grandchild = int(producer.line())
        try:
            drained = Drained(lane_settings)
            drained.until_gone()
            assert drained.numbers() == list(range(100))
            os.kill(grandchild, 0)
        finally:
            os.kill(grandchild, signal.SIGKILL)


RAW = pytest.param(
    "ctypes.CDLL(None).fork()",
    id="libc fork",
    marks=pytest.mark.skipif(
        IMPLEMENTATION == "python", reason="only C is told of a fork that bypasses Python (pthread_atfork)"
    ),
)


@pytest.mark.parametrize("fork", ["os.fork()", RAW])
def test_12_fork(lane_settings: Settings, fork: str) -> None:
    """A forked child appends to a lane of its own, and its parent's lane goes on untouched.

    Defence: a forked child leaves its parent's lane.
    """
    script = f"""
import ctypes
{APPEND_100}
pid = {fork}
first = 1000 if pid == 0 else 2000
for number in range(first, first + 100): assert appender.append(number, text_of(number))
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
say("both", appender.accepted)
signal.pause()
"""
    with child(lane_settings, FORKING + script) as producer:
        assert producer.line() == "both 200"
        drained = Drained(lane_settings)
        rows = drained.drain()
        by_lane: dict[int, list[int]] = {}
        for row in rows:
            assert row["text"] == text_of(row["number"])
            by_lane.setdefault(row["lane"], []).append(row["number"])
        parent = [*range(100), *range(2000, 2100)]
        assert sorted(by_lane.values()) == sorted([parent, list(range(1000, 1100))])
        assert drained.corrupt == []


def test_12_what_a_forked_child_has_accepted(lane_settings: Settings) -> None:
    """An appender's figures are those of its own process: a forked child has no lane until it appends, and no part in
    what its parent accepted.

    Defence: a forked child's figures are its own.
    """
    script = f"""
{APPEND_100}
pid = os.fork()
if pid == 0:
    say(appender.lane, appender.accepted, appender.room, appender.accepted_by_lane())
    assert appender.append(0, text_of(0))
    say(appender.accepted, list(appender.accepted_by_lane().values()))
    appender.close()
    say(appender.lane, appender.accepted, list(appender.accepted_by_lane().values()))
    os._exit(0)
os.waitpid(pid, 0)
say(appender.accepted, list(appender.accepted_by_lane().values()))
appender.close()
if os.fork() == 0:
    say(appender.accepted_by_lane())
    os._exit(0)
os.wait()
"""
    with child(lane_settings, FORKING + script) as producer:
        said = [producer.line() for _ in range(5)]
    assert said == ["None 0 0 {}", "1 [1]", "None 1 [1]", "100 [100]", "{}"]


def test_fork_in_the_middle_of_a_claim(lane_settings: Settings) -> None:
    """A child forked while another thread was claiming, or inside an append, waits for no lock of that thread."""
    script = (
        FORKING
        + """
import ringlog.lanes.claims as claims
inside, go = threading.Event(), threading.Event()
made = claims._made
def slow(*args):
    inside.set()
    go.wait()
    return made(*args)
claims._made = slow
second = Producer([Sample])
thread = threading.Thread(target=second.open)
thread.start()
inside.wait()
claims._made = made
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    accepted = appender.append(1, text_of(1))
    deadline = time.monotonic() + 40
    while not accepted and time.monotonic() < deadline:
        time.sleep(0.01)
        accepted = appender.append(1, text_of(1))
    os._exit(0 if accepted else 1)
go.set()
thread.join()
say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    )
    with child(lane_settings, script) as producer:
        assert producer.line() == "0"
        producer.ended()


@pytest.mark.parametrize(
    "closing",
    [
        pytest.param("os.close(os.open(path, os.O_RDWR))", id="another descriptor of the file"),
        pytest.param("os.closerange(3, 256)", id="every descriptor"),
    ],
)
def test_an_owner_that_closes_its_own_lock_file(lane_settings: Settings, closing: str) -> None:
    """Its lane is adopted though it lives; it sees that in its next append and claims anew; nothing is lost."""
    script = f"""
import glob
{APPEND_100}
path, = glob.glob(os.path.join(producer.instance.lanes_dir, "*.lock"))
{closing}
say("closed")
sys.stdin.readline()
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
for number in range(100, 200): assert appender.append(number, text_of(number))
for descriptor in files: os.fstat(descriptor)
say("again")
signal.pause()
"""
    with child(lane_settings, script) as producer:
        assert producer.line() == "closed"
        drained = Drained(lane_settings)
        (card,) = drained.cards()

        def adopted() -> bool:
            drained.drain()
            drained.directory.adopt()
            return drained.directory.lanes[card.lane].state == LaneState.RETIRED

        eventually(adopted, "the lane to be adopted")
        producer.go_on()
        said = producer.line()
        assert said == "again", producer.ended(None)
        assert drained.numbers() == list(range(200))
        assert len({row["lane"] for row in drained.rows}) == 2


def test_03_producer_killed_in_the_middle_of_append(lane_settings: Settings) -> None:
    """Producers killed with -9 at any moment: what is drained is whole, in order and without a gap.

    Defence: a slot is written before it is published.
    """
    script = """
number = 0
say("go")
while True:
    if appender.append(number, text_of(number)):
        number += 1
"""
    drained = Drained(lane_settings)
    for round_ in range(8):
        before = len(drained.rows)
        with child(lane_settings, script) as producer:
            assert producer.line() == "go"

            def enough(wanted: int = before + 500 * (round_ + 1)) -> bool:
                return len(drained.drain()) >= wanted

            eventually(enough, "records")
            producer.kill()
        drained.until_gone()
        assert drained.corrupt == []
        rows = drained.rows[before:]
        assert [row["number"] for row in rows] == list(range(len(rows)))
        assert [row["seq"] for row in rows] == list(range(len(rows)))
        assert all(row["text"] == text_of(row["number"]) for row in rows)


@linux
def test_15_a_segment_unlinked_live(lane_settings: Settings) -> None:
    """A writer that has the lane mapped goes on draining it; one that comes later says what is missing.

    Defence: a missing segment is reported.
    """
    with Producer([Sample], settings=lane_settings) as producer:
        append = producer.appender(Sample).append
        assert append(1, text_of(1))
        drained = Drained(lane_settings)
        assert drained.numbers() == [1]
        (card,) = drained.cards()
        unlink_segment(card.segment)
        assert append(2, text_of(2))
        assert drained.numbers() == [1, 2]
        later = Drained(lane_settings)
        later.drain()
        assert later.directory.lanes == {}
        assert later.directory.absent[card.lane][1] == Absent.VANISHED
        assert later.cards() == [card]  # its owner lives
    later.drain()
    assert later.directory.absent[card.lane][1] == Absent.VANISHED
    assert later.cards() == []


@linux
def test_the_resource_tracker_leaves_segments_alone(lane_settings: Settings) -> None:
    """Neither an unrelated process that attached and left nor a killed creator takes a live segment's name away."""
    attach = """
from ringlog.lanes.segments import attach_segment
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.settings import Settings
from multiprocessing import resource_tracker, shared_memory
held = [attach_segment(card.segment) for card in cards(Instance(Settings.from_environment()))]
shared_memory.SharedMemory(create=True, size=64).unlink()  # the tracker runs, and tracks what is not ours
say = print
say(len(held))
"""
    with child(lane_settings, APPEND_100 + "os.kill(os.getpid(), signal.SIGKILL)") as producer:
        producer.ended(None)
    with child(lane_settings, attach, prelude="") as stranger:
        assert stranger.line() == "1"
        assert stranger.ended() == ""
    drained = Drained(lane_settings)
    assert len(segments(drained.instance)) == 2
    assert drained.numbers() == list(range(100))
    drained.until_gone()
    assert [name for name in segments(drained.instance) if not name.endswith("board")] == []


@linux
def test_60_many_lanes_leave_nothing(lane_settings: Settings) -> None:
    """Hundreds of lanes claimed and left in turn: no segment, file or descriptor is left.

    Defence: lanes that are over are removed.
    """
    drained = Drained(lane_settings)

    def churn(rounds: int) -> int:
        for number in range(rounds):
            with Producer([Sample], settings=lane_settings, lane_bytes={Sample: 4096}) as producer:
                assert producer.appender(Sample).append(number, text_of(number))
            if number % 25 == 24:
                drained.until_gone()
        drained.until_gone()
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    assert churn(25) == churn(300)
    assert len(drained.rows) == 325
    assert [name for name in segments(drained.instance) if not name.endswith("board")] == []
    assert list(drained.instance.lanes_dir.iterdir()) == []


CLAIM_STEPS = {
    "before the segment": "claims.create_segment = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "before its part of the budget": "claims.LockFile.resize = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "before its size": """
def size_it(*_):  # the lock file; the segment comes next
    segments.shared_memory.os.ftruncate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
claims.LockFile.resize = size_it
""",
    "before its pages": "segments._Made.reserve = lambda _: os.kill(os.getpid(), signal.SIGKILL)",
    "before the magic": "claims.store = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "before the card": "claims.open_private = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "within the card": "claims.open = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "before it is complete": "claims.Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("finder", ["writer", "claim"])
@pytest.mark.parametrize("step", CLAIM_STEPS)
def test_killed_within_a_claim(lane_settings: Settings, step: str, finder: str) -> None:
    """What a claimer killed at any step leaves is no lane of a writer's; writer and next claim remove it, and nothing
    of the budget stays taken (finding 4)."""
    script = f"""
import os, signal
import ringlog.lanes.claims as claims, ringlog.lanes.segments as segments
from ringlog.lanes.instance import Instance
from ringlog.settings import Settings
from ringlog.records import layout_of
from lane_samples import Sample
instance = Instance(Settings.from_environment()).open()
{CLAIM_STEPS[step]}
claims.claim(instance, layout_of(Sample))
"""
    with child(lane_settings, script, prelude="") as claimer:
        claimer.ended(-signal.SIGKILL)
    drained = Drained(lane_settings)
    for path in drained.instance.lanes_dir.iterdir():  # as if it had been long ago: a lock file alone may be new
        os.utime(path, (0, 0))
    assert len(list(drained.instance.lanes_dir.iterdir())) > 0
    drained.drain()
    assert (drained.cards(), drained.directory.absent, drained.directory.refused) == ([], {}, {})
    if finder == "writer":
        drained.directory.adopt()
    else:
        claim(drained.instance, LAYOUT, lane_bytes=lane_settings.lane_bytes_max // 2).close()
        drained.until_gone()
    assert list(drained.instance.lanes_dir.iterdir()) == []
    assert [name for name in segments(drained.instance) if name != drained.instance.board_name] == []


def test_a_claim_under_way_is_waited_for(lane_settings: Settings) -> None:
    """A lane whose owner lives and has not written the magic yet is neither refused nor removed."""
    instance = Instance(lane_settings).open()
    lane = claim(instance, LAYOUT)
    store(lane.memory, 0, 0)
    instance.card_path(lane.card.lane).rename(instance.claim_path(lane.card.lane))
    drained = Drained(lane_settings)
    drained.drain()
    drained.directory.adopt()
    assert (drained.directory.lanes, drained.directory.refused, drained.directory.absent) == ({}, {}, {})
    store(lane.memory, 0, int.from_bytes(b"RINGLOG\x01", "little"))
    instance.claim_path(lane.card.lane).rename(instance.card_path(lane.card.lane))
    drained.drain()
    assert list(drained.directory.lanes) == [lane.card.lane]
    lane.close()


def test_a_lane_of_an_earlier_boot(lane_settings: Settings) -> None:
    """A card of another boot whose segment is gone is reported as lost to the reboot, and removed."""
    instance = Instance(lane_settings).open()
    lane = claim(instance, LAYOUT)
    card = msgspec.structs.replace(lane.card, boot_id="0" * 36)
    instance.card_path(lane.card.lane).write_bytes(msgspec.json.encode(card))
    unlink_segment(card.segment)
    lane.close()
    drained = Drained(lane_settings)
    drained.drain()
    assert drained.directory.absent[card.lane][1] == Absent.REBOOTED
    assert drained.cards() == []


def test_a_linger_is_kept(lane_settings: Settings) -> None:
    """An adopted lane is removed only when its head has stood still for the linger, and not before it is drained."""
    with child(lane_settings, APPEND_100 + "os.kill(os.getpid(), signal.SIGKILL)") as producer:
        producer.ended(None)
    settings = msgspec.structs.replace(lane_settings, lane_linger_ms=300)
    drained = Drained(settings)
    drained.directory.refresh()
    (reader,) = drained.directory.lanes.values()
    first = time.monotonic()  # before the adoption, from which the linger counts
    drained.directory.adopt()
    drained.directory.adopt()
    assert drained.directory.lanes  # undrained
    assert drained.numbers() == list(range(100))

    def removed() -> bool:
        drained.directory.adopt()
        return not drained.directory.lanes

    eventually(removed, "the lane to be removed")
    assert time.monotonic() - first >= 0.3
    assert reader.sent == 100
