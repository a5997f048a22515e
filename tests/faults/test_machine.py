"""Faults of the machine, by their number in the fault table; most need root, and some minutes."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from lane_samples import Child, Drained, Sample, child, eventually, segments, text_of
from whole_path import TABLE, WholePath
from writer_thread import writing

from ringlog import Producer
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

SHM = Path("/dev/shm")  # noqa: S108
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: namespaces, cgroups, LD_PRELOAD, /dev/shm")

REUSED_PID = """
import os, sys
from lane_samples import Child, Drained, Sample, text_of
from ringlog import Producer
from ringlog.settings import Settings
settings = Settings.from_environment()
reading, writing = os.pipe()
first = os.fork()
if first == 0:
    appender = Producer([Sample], settings=settings).open().appender(Sample)
    for number in range(100): assert appender.append(number, text_of(number))
    os._exit(0)
os.waitpid(first, 0)
with open("/proc/sys/kernel/ns_last_pid", "w") as last:
    last.write(str(first - 1))
second = os.fork()
if second == 0:
    sys.stdin.readline()
    os._exit(0)
assert second == first, (first, second)
drained = Drained(settings)
drained.until_gone()
print(drained.numbers() == list(range(100)), flush=True)
"""


@linux
@pytest.mark.root
def test_13_a_dead_owners_pid_is_used_again(lane_settings: Settings) -> None:
    """A process with the very pid of a dead owner does not keep its lane: it is adopted, drained and removed.

    Defence: life is seen through a record lock (seen through the pid, the lane stays for ever).
    """
    unshare = [
        shutil.which("unshare") or "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        sys.executable,
        "-c",
        REUSED_PID,
    ]
    done = subprocess.run(
        unshare, env=Child.environment(lane_settings), input="\n", capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "True", done.stderr


@linux
@pytest.mark.root
def test_19_another_user_attaches(lane_settings: Settings) -> None:
    """Another uid can neither attach a segment nor enter the runtime directory: EACCES.

    Defence: mode 0600 of segments and 0700 of directories, whatever the umask.
    """
    with Producer([Sample], settings=lane_settings) as producer:
        assert producer.appender(Sample).append(1, text_of(1))
        names = segments(producer.instance)
        assert len(names) == 2
        script = (
            "import sys\nfor name in sys.argv[1:]:\n    try: open(name, 'rb+')\n"
            "    except OSError as error: print(error.errno)"
        )
        paths = [*(str(SHM / name) for name in names), str(producer.instance.lanes_dir / "x")]
        setpriv = [shutil.which("setpriv") or "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        done = subprocess.run(
            [*setpriv, "/usr/bin/env", "python3", "-c", script, *paths], capture_output=True, check=True
        )
        assert done.stdout.split() == [b"13"] * 3


SHIFT = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    const char *shift = getenv("CLOCK_SHIFT_SECONDS");
    if (clock == CLOCK_REALTIME && shift) now->tv_sec += atol(shift);
    return status;
}
"""


@pytest.fixture(scope="module")
def shifted_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that shifts CLOCK_REALTIME by CLOCK_SHIFT_SECONDS for a process that is started with it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler, and nothing else shifts one process's clock")
    directory = tmp_path_factory.mktemp("clock")
    (directory / "shift.c").write_text(SHIFT)
    library = directory / "shift.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, directory / "shift.c", "-ldl"], check=True)
    return library


@linux
@pytest.mark.parametrize("minutes", [-60, 60 * 24 * 60])
def test_45_a_clock_that_is_wrong(path: WholePath, shifted_clock: Path, minutes: int) -> None:
    """A producer whose clock is an hour behind or 60 days ahead: all is stored, in the order of seq, under its time.

    (What retention makes of rows in the future is tested with retention.) Defence: seq orders records, not
    time. No patch: no line sorts records that could be made to sort them otherwise.
    """
    with writing(path.settings), path.producing() as append:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(shifted_clock))
            patch.setenv("CLOCK_SHIFT_SECONDS", str(60 * minutes))
            with child(path.settings, "for n in range(100): assert appender.append(n, text_of(n))") as producer:
                producer.ended()
        append(64)
        eventually(lambda: path.stored() == 164, "the records")
    # The other producer's clock is right: its last record says what time it was.
    (right,) = path.query(f"select max(timestamp)::long from {TABLE} where number >= 100")[0]
    rows = path.query(f"select number, seq, timestamp::long from {TABLE} where number < 100 order by seq")
    assert [row[:2] for row in rows] == [(number, number) for number in range(100)]
    assert {round((row[2] - right) / 60e6 - minutes, -1) for row in rows} == {0}
    report = path.proof()
    assert report.is_exact, report


@contextlib.contextmanager
def memory_limit(pid: int, limit_bytes: int) -> Iterator[Path]:
    """Puts a process into a cgroup (version 1) of so much memory."""
    group = Path(f"/sys/fs/cgroup/memory/ringlog-test-{os.getpid()}")
    if not group.parent.is_dir():
        pytest.skip("no cgroup v1 memory controller here")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(left)
        group.rmdir()


@linux
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_57_replay_in_little_memory(path: WholePath) -> None:
    """A writer confined to 256 MB replays a spool that is larger, whole. Defence: the spool is read in parts."""
    good = path.settings
    rows = 1_200_000
    path.with_settings(questdb_pg_port=1, questdb_http_port=1, lane_bytes_max=64 << 20)
    with writing(path.settings) as writer, Producer([Sample], settings=path.settings) as producer:
        append = producer.appender(Sample).append
        number = 0

        def appended() -> bool:
            nonlocal number
            while number < rows and append(number, "x" * 200):
                number += 1
            return number == rows

        eventually(appended, "the spool to be filled")
        eventually(lambda: writer._refuge.spooled_rows == rows, "the spool")
        assert writer._refuge.spool.bytes > 280_000_000
    path.settings = good
    path.start_writer()
    assert path.writer is not None
    with memory_limit(path.writer.pid, 256 << 20):
        for _ in range(10):
            if path.stored() == rows:
                break
            with contextlib.suppress(AssertionError):
                eventually(lambda: path.stored() == rows, "everything")
        assert path.writer.poll() is None
        assert path.stored() == rows


@linux
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_60_ten_thousand_lanes(lane_settings: Settings) -> None:
    """Ten thousand lanes claimed and left in turn: no segment, file or descriptor is left.

    Defence: lanes that are over are removed. No patch: ten thousand segments would stay behind.
    """
    drained = Drained(lane_settings)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(10_000):
        with Producer([Sample], settings=lane_settings, lane_bytes={Sample: 4096}) as producer:
            assert producer.appender(Sample).append(number, text_of(number))
        if number % 25 == 24:
            drained.until_gone()
            drained.rows.clear()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert [name for name in segments(drained.instance) if not name.endswith("board")] == []
    assert list(drained.instance.lanes_dir.iterdir()) == []


@linux
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_42_the_servers_disk_is_full(instance_dir: Path, tmp_path: Path) -> None:
    """QuestDB on a full disk, whether it refuses, suspends or dies: accepted records wait in the spool, then arrive.

    Defence: what a full server refuses is given back.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(disk)], check=True)
    try:
        with QuestDBServer(disk / "questdb") as server:
            settings = Settings(
                runtime_dir=str(instance_dir), lane_bytes_max=16 << 20, lane_linger_ms=50, **server.settings()
            )
            path = WholePath(server, settings, tmp_path / "logs")
            with writing(path.settings), path.producing() as append:
                append(1000)
                eventually(lambda: path.stored() == 1000, "the first records")
                ballast = disk / "ballast"
                with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                    while file.write(bytes(1 << 16)):
                        pass
                for _ in range(200):
                    append(100)
                    eventually(lambda: path.proof().tables[TABLE].in_lanes == 0, "records to be taken or spooled")
                    if path.proof().tables[TABLE].spooled:
                        break
                assert path.proof().tables[TABLE].spooled
                ballast.unlink()

                def replayed() -> bool:
                    if not server.running:  # a full disk may kill it late; whoever supervises it starts it again
                        server.kill()
                        server.start()
                    return path.proof().tables[TABLE].spooled == 0

                eventually(replayed, "the replay")
            with writing(msgspec.structs.replace(path.settings)):
                path.require_exact()
            path.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
