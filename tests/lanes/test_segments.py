"""Segments: attaching removes nothing, opening waits for nobody, and a mapping costs no descriptor."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

import pytest
from lane_samples import Child, Drained, Sample, child, text_of

from ringlog import Producer
from ringlog.errors import LaneError, SegmentRefused
from ringlog.lanes.board import Board
from ringlog.lanes.claims import Card, cards, claim, open_board
from ringlog.lanes.instance import Instance
from ringlog.lanes.locks import LockFile, is_locked
from ringlog.lanes.readers import LaneReader
from ringlog.lanes.segments import SHM, attach_segment, create_segment, inode_of, unlink_segment
from ringlog.records import layout_of
from ringlog.settings import Settings

linux = pytest.mark.skipif(not SHM.is_dir(), reason="Linux shows segments as files")
LAYOUT = layout_of(Sample)
ATTEMPT_SECONDS = 20  # a hang is for ever


@pytest.fixture
def instance(lane_settings: Settings) -> Instance:
    """A fresh instance, open."""
    return Instance(lane_settings).open()


def descriptors() -> int:
    """How many are open, without that of the look itself."""
    return len(os.listdir("/proc/self/fd")) - 1


@contextmanager
def limited(what: int, soft: int) -> Iterator[None]:
    """A lower soft limit of this process for a while."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """So many are free, and no more."""
    with limited(resource.RLIMIT_NOFILE, 128):
        taken: list[int] = []
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        for descriptor in taken[:count]:
            os.close(descriptor)
        try:
            yield
        finally:
            for descriptor in taken[count:]:
                os.close(descriptor)


@linux
@pytest.mark.parametrize("free", [0, 1, 2, 3])
def test_61_attaching_without_descriptors_removes_nothing(instance: Instance, free: int) -> None:
    """Finding 1: with 0 to 3 free descriptors a lane attaches or raises LaneError; its segment stays in either case.

    Defence: attaching unlinks nothing.
    """
    lane = claim(instance, LAYOUT)
    name = lane.card.segment
    before = inode_of(name)
    refused = False
    with free_descriptors(free):
        try:
            LaneReader.attach(lane.card).close()
        except LaneError as error:
            refused = "Too many open files" in str(error)
    assert refused == (free == 0)
    assert inode_of(name) == before
    lane.close()


@linux
def test_61_attaching_without_memory_removes_nothing(instance: Instance) -> None:
    """Finding 1: without address space for a lane LaneError names the limit; segment and descriptors are as before.

    Defence: attaching unlinks nothing.
    """
    lane = claim(instance, LAYOUT, lane_bytes=1 << 20)
    before = inode_of(lane.card.segment)
    script = """
import resource, sys
from ringlog.errors import LaneError
from ringlog.lanes.segments import attach_segment
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 18), resource.RLIM_INFINITY))
for is_writable in (True, False):
    try:
        attach_segment(sys.stdin.readline().strip(), is_writable=is_writable)
    except LaneError as error:
        print(error, flush=True)
"""
    with child(instance.settings, script, prelude="") as poor:
        assert poor.process.stdin is not None
        poor.process.stdin.write(f"{lane.card.segment}\n" * 2)
        poor.process.stdin.flush()
        for _ in range(2):
            assert re.search(r"got Cannot allocate memory.*RLIMIT_AS", poor.line())
        poor.ended()
    assert inode_of(lane.card.segment) == before
    lane.close()


@linux
@pytest.mark.parametrize("call", ["fstat", "mmap"])
def test_61_attaching_that_fails_at_any_call_removes_nothing(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Finding 1: whichever system call of an attach fails, LaneError names the segment, which stays, and no descriptor
    is left open.

    Defence: attaching unlinks nothing.
    """
    import ringlog.lanes.segments as segments_module

    lane = claim(instance, LAYOUT)
    before, open_before = inode_of(lane.card.segment), descriptors()

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fstat") if call == "fstat" else (segments_module, "_mapped")), fail)
        with pytest.raises(LaneError, match=f"segment {lane.card.segment}: got Input/output error"):
            attach_segment(lane.card.segment)
    assert (inode_of(lane.card.segment), descriptors()) == (before, open_before)
    lane.close()


@linux
def test_61_a_board_without_descriptors_stays(lane_settings: Settings) -> None:
    """Finding 2: processes that run out of descriptors while they open the board never take it away from the others.

    Defence: attaching unlinks nothing.
    """
    with Producer([Sample], settings=lane_settings) as producer:
        before = inode_of(producer.instance.board_name)
        for free in range(6):
            with free_descriptors(free):
                for attempt in (lambda: open_board(producer.instance, 0.1), lambda: Board.look(producer.instance)):
                    try:
                        board = attempt()
                    except LaneError:
                        continue
                    assert board is not None
                    board.segment.close()
            assert inode_of(producer.instance.board_name) == before
        assert producer.appender(Sample).append(1, text_of(1))


@linux
def test_61_creating_without_means_leaves_nothing(instance: Instance) -> None:
    """Finding 1: where a new segment cannot be made for want of descriptors LaneError says so, and no name is left.

    Defence: what was made in part is unlinked. No patch: SharedMemory itself removes what it could not map.
    """
    name = instance.segment_name(7)
    for free in range(3):
        with free_descriptors(free):
            if free == 0:
                with pytest.raises(LaneError, match="got Too many open files"):
                    create_segment(name, 4096)
            else:
                with contextlib.suppress(LaneError):  # SharedMemory takes a second one for a moment
                    create_segment(name, 4096).close()
                    unlink_segment(name)
        assert inode_of(name) is None
    create_segment(name, 4096).close()
    unlink_segment(name)


@linux
def test_mappings_cost_no_descriptor(lane_settings: Settings) -> None:
    """Finding 3: a lane costs its owner one descriptor, its lock; reader, onlooker and board cost none."""
    before = descriptors()
    with Producer([Sample], settings=lane_settings) as producer:
        assert descriptors() == before + 1
        (card,) = cards(producer.instance)
        held = [LaneReader.attach(card), Board.look(producer.instance), attach_segment(card.segment, is_writable=False)]
        assert descriptors() == before + 1
        assert producer.appender(Sample).append(1, text_of(1))
        assert isinstance(held[0], LaneReader)
        assert held[0].head == 1
    assert descriptors() == before


@linux
def test_a_mapping_goes_with_its_last_holder(instance: Instance) -> None:
    """Closing a segment unmaps it once no view holds it: never under a view that is still read, and never too late."""

    def is_mapped() -> bool:
        return name in Path("/proc/self/maps").read_text()

    name = instance.segment_name(3)
    segment = create_segment(name, 1 << 16)
    view = segment.memory[4096:8192]
    segment.close()
    segment.close()
    assert view[0] == 0
    assert is_mapped()
    view.release()
    del segment, view
    assert not is_mapped()
    unlink_segment(name)


@linux
def test_what_we_make_is_shared_memory_of_python(instance: Instance) -> None:
    """`multiprocessing.shared_memory` attaches a segment of ours by its name, and we one of its own."""
    name = instance.segment_name(5)
    ours = create_segment(name, 8192)
    ours.memory[:5] = b"hello"
    theirs = shared_memory.SharedMemory(name)
    resource_tracker.unregister(f"/{name}", "shared_memory")  # else our name is unlinked when this process ends
    assert bytes(theirs.buf[:5]) == b"hello"
    theirs.buf[:5] = b"world"
    assert bytes(ours.memory[:5]) == b"world"
    with pytest.raises(TypeError):
        attach_segment(name, is_writable=False).memory[0] = 1
    theirs.close()
    ours.close()
    unlink_segment(name)
    made = shared_memory.SharedMemory(create=True, size=4096)
    made.buf[:3] = b"abc"
    assert bytes(attach_segment(made.name).memory[:3]) == b"abc"
    made.close()
    made.unlink()


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _directory(path: Path) -> None:
    path.mkdir(mode=0o700)


def _empty(path: Path) -> None:
    path.touch(mode=0o600)


def _garbage(path: Path) -> None:
    path.touch(mode=0o600)
    path.write_bytes(b"no segment" * 10_000)


def _symlink(path: Path) -> None:
    path.symlink_to(os.devnull)


def _socket(path: Path) -> None:
    import socket

    directory = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{directory}/{path.name}")  # a socket's path has to be short
    os.close(directory)
    path.chmod(0o600)


KINDS: dict[str, Callable[[Path], None]] = {
    "FIFO": _fifo,
    "directory": _directory,
    "symlink": _symlink,
    "socket": _socket,
    "file": _garbage,
}


def remove(path: Path) -> None:
    """Whatever it is."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@linux
@pytest.mark.parametrize("kind", KINDS)
def test_66_whatever_lies_at_a_name_is_refused_at_once(lane_settings: Settings, kind: str) -> None:
    """Finding 7: a FIFO, directory, symlink, socket or foreign file at the name of board or lane: SegmentRefused naming
    it, at once, by attach, producer, writer's directory and onlooker alike; it is left as it is.

    Defence: only a regular file is attached.
    """
    instance = Instance(lane_settings).open()
    path = SHM / instance.board_name
    KINDS[kind](path)
    try:
        before = os.lstat(path)
        if kind != "file":  # its bytes are no board: that is seen by who reads them
            for is_writable in (True, False):
                with pytest.raises(SegmentRefused, match=rf"segment {path.name}: got a {kind}, wanted a regular file"):
                    attach_segment(path.name, is_writable=is_writable)
        with pytest.raises(SegmentRefused, match=path.name):
            Producer([Sample], settings=lane_settings).open()
        with pytest.raises(SegmentRefused, match=path.name):
            Board.look(instance)
        assert os.lstat(path)[:2] == before[:2]
    finally:
        remove(path)


@linux
@pytest.mark.parametrize("kind", KINDS)
def test_66_whatever_lies_in_the_runtime_directory_is_refused_at_once(lane_settings: Settings, kind: str) -> None:
    """Finding 7: the same in the place of lock files, the lease and cards: LaneError or left out, and nobody waits.

    Defence: files of an instance are regular ones.
    """
    if kind == "file":
        pytest.skip("a file is what belongs there")
    instance = Instance(lane_settings).open()
    for path in (instance.claims_path, instance.lease_path):
        KINDS[kind](path)
        with pytest.raises(LaneError, match=rf"{path.name}: got .*, wanted a (lock|regular) file"):
            LockFile(path).take()
        assert is_locked(path)  # cannot be told
        remove(path)
    card = instance.card_path(9)
    KINDS[kind](card)
    assert cards(instance) == []
    remove(card)


COMMANDS = (
    ["top", "--once"],
    ["top", "--once", "--json"],
    ["doctor", "--json"],
    ["audit"],
    ["dump", "BOARD"],
    ["writer"],
)


def run(arguments: list[str], settings: Settings, name: str) -> tuple[int, str]:
    """Exit status and all output of a command of this instance; it may not take longer than ATTEMPT_SECONDS."""
    arguments = [name if argument == "BOARD" else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "ringlog", *arguments],
        env={**Child.environment(settings), "RINGLOG_QUESTDB_CLIENT_CONF": "http::addr=127.0.0.1:1;"},
        capture_output=True,
        text=True,
        timeout=ATTEMPT_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@linux
@pytest.mark.parametrize("kind", ["FIFO", "file"])
def test_66_every_command_ends_at_once(lane_settings: Settings, kind: str) -> None:
    """Finding 7: no command hangs or ends in a traceback where something else is at the board's name; each names it.

    Defence: only a regular file is attached. No patch: the tests above take it away from what every command uses.
    """
    instance = Instance(lane_settings).open()
    path = SHM / instance.board_name
    KINDS[kind](path)
    try:
        for arguments in COMMANDS:
            status, said = run(arguments, lane_settings, path.name)
            assert status == 1, (arguments, said)
            assert "Traceback" not in said, (arguments, said)
            assert path.name in said or arguments == ["audit"], (arguments, said)
    finally:
        remove(path)


@pytest.mark.root
@linux
@pytest.mark.parametrize("make", [_empty, _fifo, _garbage, _directory])
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_66_what_another_user_puts_there_is_refused(
    lane_settings: Settings, make: Callable[[Path], None], mode: int
) -> None:
    """Finding 7: what another uid puts at the name of board or lane is refused by owner before anything else, by a user
    that may not open it too, and is never removed.

    Defence: a segment of another user is refused.
    """
    instance = Instance(lane_settings).open()
    path = SHM / instance.board_name
    make(path)
    os.chown(path, 12345, 12345)
    path.chmod(mode)
    try:
        for attempt in (
            lambda: attach_segment(path.name),
            lambda: attach_segment(path.name, is_writable=False),
            lambda: Producer([Sample], settings=lane_settings).open(),
            lambda: Board.look(instance),
        ):
            with pytest.raises(SegmentRefused, match=rf"segment {path.name}: got owner uid 12345, wanted 0"):
                attempt()
        script = f"""
import os
from pathlib import Path
from ringlog.errors import LaneError, SegmentRefused
from ringlog.lanes.segments import attach_segment, create_segment, inode_of, unlink_segment
import _posixshmem
os.setgroups([]); os.setgid(4242); os.setuid(4242)
for attempt in (attach_segment, inode_of, lambda name: create_segment(name, 4096), unlink_segment):
    try:
        attempt({path.name!r})
    except LaneError as error:
        print(error, flush=True)
"""
        with child(lane_settings, script, prelude="") as stranger:
            for _ in range(4):
                assert "uid 12345" in stranger.line()
            stranger.ended()
        assert os.lstat(path).st_uid == 12345
    finally:
        remove(path)


@linux
def test_cards_that_cannot_be_listed(lane_settings: Settings) -> None:
    """Finding 7: a directory of lanes that is none is a LaneError; the writer's side logs it and goes on."""
    instance = Instance(lane_settings).open()
    instance.lanes_dir.rmdir()
    instance.lanes_dir.touch()
    with pytest.raises(LaneError, match=r"lanes: got Not a directory, wanted to list it"):
        cards(instance)
    instance.lanes_dir.unlink()
    instance.lanes_dir.mkdir(mode=0o700)
    assert Drained(lane_settings).drain() == []


def test_a_card_with_impossible_figures_is_left_out(instance: Instance) -> None:
    """A card whose numbers cannot be a lane's is not believed."""
    lane = claim(instance, LAYOUT)
    text = json.loads(instance.card_path(lane.card.lane).read_bytes())
    for wrong in ({"size_bytes": -1}, {"lane": 0}, {"segment": 3}):
        instance.card_path(lane.card.lane).write_text(json.dumps({**text, **wrong}))
        assert cards(instance) == []
    instance.card_path(lane.card.lane).write_text(json.dumps(text))
    assert cards(instance) == [lane.card]
    assert isinstance(lane.card, Card)
    lane.close()
