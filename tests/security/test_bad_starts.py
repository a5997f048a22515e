"""A writer that cannot start: a clear error that names what is wrong, and nothing is deleted or changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from lane_samples import Child, Sample, segments

from ringlog import Producer
from ringlog.disk import sealed
from ringlog.errors import LaneError, RinglogError, SegmentRefused, SpoolUnusable
from ringlog.lanes.instance import Instance
from ringlog.lanes.segments import unlink_segment
from ringlog.settings import Settings
from ringlog.sinks.memory import MemorySink
from ringlog.spool.frames import FILE_MAGIC
from ringlog.writer import Writer

SHM = Path("/dev/shm")  # noqa: S108
linux = pytest.mark.skipif(sys.platform != "linux", reason="segments are files only on Linux")


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory with its content, symlinks with what they point to."""
    return {
        str(path.relative_to(directory)): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def used(lane_settings: Settings) -> Settings:
    """An instance that had a writer, so that its spool is there, and has a record in a lane."""
    writer = Writer(lane_settings, MemorySink())
    writer.stop()
    writer.run()
    with Producer([Sample], settings=lane_settings) as producer:
        assert producer.appender(Sample).append(1, "one")
    return lane_settings


def refused(settings: Settings, error: type[RinglogError], words: str, spool: Path | None = None) -> None:
    """A start raises the error and changes nothing; the command says the same in one line and exits 1."""
    root = spool if spool is not None else settings.spool_path
    before = tree(root)
    shared = {name: (SHM / name).read_bytes() for name in segments(Instance(settings))}
    done = subprocess.run(
        [sys.executable, "-m", "ringlog", "writer"],
        env={**Child.environment(settings), **settings.to_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("ringlog: ")
    assert words in line
    with pytest.raises(error) as found:
        Writer(settings, MemorySink())
    assert words in str(found.value)
    assert tree(root) == before
    after = {name: (SHM / name).read_bytes() for name in shared}
    assert {name: after[name] == shared[name] for name in shared if not name.endswith("board")} == {
        name: True for name in shared if not name.endswith("board")
    }


def spool_file(settings: Settings) -> Path:
    directory = settings.spool_path / "tables" / "samples"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory / f"{0:020d}.spool"


def other_version(settings: Settings) -> str:
    file = spool_file(settings)
    file.write_bytes(FILE_MAGIC + b"\x09\0\0\0" + bytes(9000))
    return f"{file.name}: got a spool file of version 9, wanted version 1"


def foreign_file(settings: Settings) -> str:
    file = spool_file(settings)
    file.write_text("somebody's letters")
    return f"{file.name}: got a file that is no spool file"


def symlink(settings: Settings) -> str:
    target = settings.spool_path.parent / "precious"
    target.write_text("precious")
    spool_file(settings).symlink_to(target)
    return f"{spool_file(settings).name}: got"


def other_ledger(settings: Settings) -> str:
    (settings.spool_path / "ledger").write_bytes(sealed(b'["version",9]'))
    return "ledger: got version 9, wanted 1"


def open_to_others(settings: Settings) -> str:
    settings.spool_path.chmod(0o755)
    return "spool: got mode 0755, wanted 0700"


@pytest.mark.parametrize("spoil", [other_version, foreign_file, symlink, other_ledger, open_to_others])
def test_a_spool_that_is_not_ours(used: Settings, spoil: Callable[[Settings], str]) -> None:
    """A spool of another version, a foreign file, a symlink in a file's place, a directory open to others: refused."""
    refused(used, SpoolUnusable, spoil(used))


def test_a_spool_directory_that_is_missing(lane_settings: Settings, tmp_path: Path) -> None:
    """A spool directory whose parent does not exist (a disk that is not mounted) is named, and not made."""
    settings = msgspec.structs.replace(lane_settings, spool_dir=str(tmp_path / "unmounted" / "spool"))
    refused(settings, SpoolUnusable, "unmounted/spool: got No such file or directory", tmp_path / "unmounted")
    assert not (tmp_path / "unmounted").exists()


@pytest.mark.root
def test_a_spool_directory_of_somebody_else(used: Settings) -> None:
    """A spool directory of another uid is named with both uids."""
    os.chown(used.spool_path, 12345, 12345)
    refused(used, SpoolUnusable, f"spool: got a directory of uid 12345, wanted uid {os.geteuid()}")


@pytest.mark.root
def test_a_spool_directory_that_is_read_only(used: Settings) -> None:
    """A spool directory on a disk that is mounted read-only is named."""
    path = str(used.spool_path)
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
        refused(used, SpoolUnusable, "ead-only")
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@linux
@pytest.mark.parametrize("kind", ["symlink", "foreign file", "short file"])
def test_a_board_that_is_none(used: Settings, tmp_path: Path, kind: str) -> None:
    """A symlink or somebody's file in the place of the board's segment: refused by name, and left as it is.

    Defence: only a segment of nothing but zeros is made anew.
    """
    name = Instance(used).board_name
    unlink_segment(name)
    target = tmp_path / "precious"
    content = b"precious" if kind == "short file" else b"precious" * 20_000
    target.write_bytes(content)
    if kind == "symlink":
        (SHM / name).symlink_to(target)
    else:
        (SHM / name).write_bytes(content)
        (SHM / name).chmod(0o600)
    refused(used, SegmentRefused, name)
    assert (SHM / name).read_bytes() == content
    assert target.read_bytes() == content
    assert issubclass(SegmentRefused, LaneError)
