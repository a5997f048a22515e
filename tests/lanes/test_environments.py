"""Machines without what lanes need: refused by name, and `ringlog doctor` says what is missing."""

from __future__ import annotations

import pytest
from lane_samples import child

from ringlog.settings import Settings

SCRIPT = """
import ctypes, os, sys
from ringlog import Producer
from ringlog.audit import prove
from ringlog.errors import LaneError
from ringlog.monitor.findings import diagnosed
from ringlog.monitor.snapshot import Observer
from ringlog.settings import Settings
from ringlog.sinks.memory import MemorySink
from ringlog.writer import Writer
from lane_samples import Sample
libc = ctypes.CDLL(None, use_errno=True)
def call(answer):
    assert answer == 0, os.strerror(ctypes.get_errno())
call(libc.unshare(0x00020000))  # a mount namespace of this process alone; never remount: that changes it for all
call(libc.mount(b"none", b"/", None, 0x44000, None))
call(libc.mount(*{mount!r}))
settings = Settings.from_environment()
for attempt in (lambda: Producer([Sample], settings=settings).open(), lambda: Writer(settings, MemorySink())):
    try:
        attempt()
    except LaneError as error:
        print("LaneError", error, flush=True)
observer = Observer(settings)
observer.look()
try:
    prove(settings)
except LaneError as error:
    print("LaneError", error, flush=True)
for finding in diagnosed(settings, [], set()):
    if finding.level == "fail" and finding.check in ("shared memory", "boot"):
        print(finding.text, "|", finding.fix, flush=True)
"""
READ_ONLY = (b"tmpfs", b"/dev/shm", b"tmpfs", 1, b"")
ABSENT = (b"tmpfs", b"/dev", b"tmpfs", 0, b"")
SUBSET = (b"proc", b"/proc", b"proc", 0, b"subset=pid")


@pytest.mark.root
@pytest.mark.parametrize(
    ("mount", "refused", "found"),
    [
        pytest.param(READ_ONLY, "Read-only file system", "is read-only for uid 0", id="read-only"),
        pytest.param(ABSENT, "No such file or directory", "shm: is not there", id="absent"),
    ],
)
def test_65_dev_shm_that_cannot_be_used(
    lane_settings: Settings, mount: tuple[object, ...], refused: str, found: str
) -> None:
    """Finding 6: producer and writer raise LaneError that names the reason, an onlooker looks, doctor says what to do.

    Defence: a segment that cannot be made is a LaneError.
    """
    with child(lane_settings, SCRIPT.replace("{mount!r}", repr(mount)), prelude="") as poor:
        for _ in range(2):
            said = poor.line()
            assert said.startswith("LaneError segment")
            assert f"got {refused}, wanted to make it" in said
        assert found in poor.line()
        poor.ended()


@pytest.mark.root
def test_65_proc_that_shows_processes_alone(lane_settings: Settings) -> None:
    """Finding 6: with /proc mounted with subset=pid nobody guesses which boot it is: producer, writer and audit raise
    LaneError that names the file, and doctor says what to do.

    Defence: an unknown boot is a LaneError.
    """
    with child(lane_settings, SCRIPT.replace("{mount!r}", repr(SUBSET)), prelude="") as poor:
        for _ in range(3):
            said = poor.line()
            assert said.startswith("LaneError /proc/sys/kernel/random/boot_id: got No such file or directory")
        assert "mount /proc without subset=pid" in poor.line()
        poor.ended()


CLOSED = """
import ctypes, os, shutil, tempfile
from ringlog import Producer
from ringlog.errors import SharedMemoryUnusable
from ringlog.settings import Settings
import _posixshmem
from lane_samples import Sample
libc = ctypes.CDLL(None, use_errno=True)
def call(answer):
    assert answer == 0, os.strerror(ctypes.get_errno())
call(libc.unshare(0x00020000))  # a mount namespace of this process alone
call(libc.mount(b"none", b"/", None, 0x44000, None))
call(libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"mode=700,uid=12345"))
os.setgroups([]); os.setgid(4242); os.setuid(4242)
place = tempfile.mkdtemp(dir="/tmp")
producer = Producer([Sample], settings=Settings(runtime_dir=place + "/runtime", spool_dir=place + "/spool"))
print(producer.appender(Sample).append(1, "text"), producer.appender(Sample).refused_reason(), flush=True)
try:
    producer.open()
except SharedMemoryUnusable as error:
    print(error, flush=True)
shutil.rmtree(place)
"""


@pytest.mark.root
def test_65_dev_shm_that_this_user_may_not_enter(lane_settings: Settings) -> None:
    """Finding 6: a closed /dev/shm is named as what is wrong (`shared_memory`), not the segment that cannot be seen.

    Defence: a /dev/shm that is closed to this user is not taken for a segment that is wrong.
    """
    with child(lane_settings, CLOSED, prelude="") as poor:
        assert poor.line() == "False shared_memory"
        assert "got Permission denied, wanted to look for it: is /dev/shm open to this user" in poor.line()
        poor.ended()
