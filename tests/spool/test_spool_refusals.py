"""A spool directory that is not what it must be: a clear error that names it, and everything left as it was."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest
from spool_batches import append, drain, keys, open_spool

from ringlog.disk import sealed
from ringlog.errors import SpoolUnusable
from ringlog.spans import Span
from ringlog.spool import frames


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A closed spool with ten records in one file."""
    spool = open_spool(tmp_path / "spool")
    append(spool, Span(1, 0, 10))
    spool.close()
    return tmp_path / "spool"


def the_file(spool: Path) -> Path:
    (file,) = (spool / "tables/ticks").glob("*.spool")
    return file


def contents(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def refused(path: Path, match: str) -> None:
    """Opening fails with a message that has `match`, and no byte below `path` changes."""
    before = contents(path)
    with pytest.raises(SpoolUnusable, match=match):
        open_spool(path)
    assert contents(path) == before


def test_parent_must_exist(tmp_path: Path) -> None:
    """A spool on a disk that is not mounted is not quietly made somewhere else: the missing parent is an error."""
    with pytest.raises(SpoolUnusable, match=r"absent/spool: got No such file or directory \(ENOENT\), wanted"):
        open_spool(tmp_path / "absent" / "spool")


def test_other_version_of_a_file(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another version is refused by both versions' numbers, and its records are still there afterwards."""
    file = the_file(filled)
    original = file.read_bytes()
    monkeypatch.setattr(frames, "VERSION", 2)
    newer = frames.pack_file_header(1, 0, 0, b"{}")
    monkeypatch.undo()
    file.write_bytes(newer + original[len(newer) :])
    refused(filled, r"\.spool: got a spool file of version 2, wanted version 1; it is left as it is")
    file.write_bytes(original)
    assert drain(open_spool(filled))[0] == keys(Span(1, 0, 10))


def test_other_version_of_the_cursor(filled: Path) -> None:
    """A cursor of another version is refused: reading on from the start would be a guess about what it means."""
    cursor = filled / "tables/ticks/cursor"
    cursor.write_bytes(sealed(msgspec.json.encode({"version": 9, "position": {"ordinal": 0, "row": 0}})))
    refused(filled, r"cursor: got version 9, wanted 1")


def test_broken_cursor_replays_all(filled: Path) -> None:
    """A cursor whose bytes prove nothing is kept in quarantine, and all files are replayed: the server folds copies."""
    cursor = filled / "tables/ticks/cursor"
    cursor.write_bytes(b"garbage")
    assert drain(open_spool(filled))[0] == keys(Span(1, 0, 10))
    assert (filled / "quarantine/ticks.cursor.bytes").read_bytes() == b"garbage"


def test_foreign_file_in_the_place_of_a_spool_file(filled: Path) -> None:
    """A file with a spool file's name that never was one stops the start, and is not taken for broken records."""
    (filled / "tables/ticks/00000000000000000009.spool").write_text("SQLite format 3")
    refused(filled, r"00000000000000000009\.spool: got a file that is no spool file, wanted version 1")


def test_files_of_other_names_are_none_of_our_business(filled: Path) -> None:
    """Files that are not named like ours stay where they are and disturb nothing."""
    (filled / "tables/ticks/notes.txt").write_text("mine")
    (filled / "tables/lost+found").mkdir()
    assert drain(open_spool(filled))[0] == keys(Span(1, 0, 10))
    assert (filled / "tables/ticks/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["tables/ticks/00000000000000000009.spool", "tables/ticks/cursor", "reserve"])
def test_symlink_in_the_place_of_a_file(filled: Path, tmp_path: Path, place: str) -> None:
    """A symlink is never followed, wherever it points: it is refused by name, and its target is untouched."""
    target = tmp_path / "target"
    shutil.copy(the_file(filled), target)
    before = target.read_bytes()
    (filled / place).unlink(missing_ok=True)
    (filled / place).symlink_to(target)
    refused(filled, Path(place).name)
    assert target.read_bytes() == before


def test_symlink_in_the_place_of_a_directory(filled: Path, tmp_path: Path) -> None:
    """Neither the spool's directory nor one below it may be a symlink."""
    filled.rename(tmp_path / "elsewhere")
    filled.symlink_to(tmp_path / "elsewhere")
    refused(filled, r"spool: got .*wanted a directory of our own")
    filled.unlink()
    (tmp_path / "elsewhere").rename(filled)
    (filled / "tables/ticks").rename(tmp_path / "ticks")
    (filled / "tables/ticks").symlink_to(tmp_path / "ticks")
    refused(filled, r"ticks: got .*wanted a directory of our own")


def test_fifo_in_the_place_of_a_file(filled: Path) -> None:
    """A FIFO neither hangs the start nor is read."""
    os.mkfifo(filled / "tables/ticks/00000000000000000009.spool")
    refused(filled, r"\.spool: got no regular file, wanted a regular file of uid")


def test_directory_open_to_others(filled: Path) -> None:
    """A directory that others may enter is refused with the command that mends it."""
    filled.chmod(0o755)
    refused(filled, r"spool: got mode 0755, wanted 0700 \(chmod 700 ")


@pytest.mark.root
@pytest.mark.parametrize("place", [".", "tables/ticks", "tables/ticks/cursor", "FILE"])
def test_other_owner(filled: Path, place: str) -> None:
    """A directory or file of another user is refused with both uids (only root can make one)."""
    path = the_file(filled) if place == "FILE" else filled / place
    os.chown(path, 65_534, 65_534)
    refused(filled, r"uid 65534, wanted .*uid 0")
