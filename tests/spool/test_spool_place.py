"""Where the spool lies without a setting: on disk, and what an older version kept in memory is moved there."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringlog.errors import ConfigurationError, SpoolUnusable
from ringlog.settings import Settings
from ringlog.spool import Spool, place

CONTENT = {"ledger": b"terms", "tables/samples/1.spool": b"frames" * 1_000, "dead_letters/samples.ndjson": b"{}\n"}


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of a user who set nothing, with a runtime directory in memory where there is one."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 (a directory of its own below it)
    with tempfile.TemporaryDirectory(dir=memory) as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        settings = Settings()
        assert settings.runtime_dir == f"{runtime}/ringlog"
        Path(settings.runtime_dir).mkdir(mode=0o700)
        yield settings


def laid(directory: Path) -> Path:
    """What an older version left."""
    for name, data in CONTENT.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    directory.chmod(0o700)
    return directory


def content(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def test_finding_18_the_spool_is_on_disk_by_default(home: Settings, tmp_path: Path) -> None:
    """Finding 18: without a setting the spool lies below $XDG_STATE_HOME, a directory an instance, and opens there."""
    path = place.settled(home)
    assert path.parent == tmp_path / "state" / "ringlog"
    Spool(path, bytes_max=1 << 20)
    assert Settings(runtime_dir=f"{home.runtime_dir}2").spool_path == Path(f"{home.runtime_dir}2/spool")
    assert Settings(spool_dir="/x").spool_path == Path("/x")


def test_finding_18_everybody_finds_the_same_place(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding 18: a process with another environment (cron, say) finds the spool by what the writer left behind."""
    path = place.settled(home)
    monkeypatch.setenv("XDG_STATE_HOME", "/nowhere")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert Settings(runtime_dir=home.runtime_dir).spool_path == path
    assert place.settled(Settings(runtime_dir=home.runtime_dir)) == path


def test_finding_18_home_is_where_the_state_is(home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without XDG_STATE_HOME, or with one that is not absolute, it is ~/.local/state, which is made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert place.settled(home).parent == tmp_path / ".local" / "state" / "ringlog"
    assert (tmp_path / ".local" / "state" / "ringlog").stat().st_mode & 0o777 == 0o700


def test_finding_18_no_home_is_named(home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No home directory, and one that cannot be written, are errors that name the setting to use instead."""
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(os.path, "expanduser", lambda _: "~")
    with pytest.raises(ConfigurationError, match=r"HOME: got '~' for uid .*: set RINGLOG_SPOOL_DIR or XDG_STATE_HOME"):
        place.settled(home)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(SpoolUnusable, match=r"File exists .*set RINGLOG_SPOOL_DIR to a directory on disk"):
        place.settled(home)


def killed_at(step: int, settings: Settings) -> bool:
    """Settles the spool and dies at the given step, before or after it; False where there are not so many."""
    count = 0

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                raise Killed
            found = function(*arguments, **options)
            count += 1
            if count == step:
                raise Killed
            return found

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((shutil, "copy2"), (shutil, "copytree"), (shutil, "rmtree"), (place, "_sync")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        for name in ("rename", "symlink_to", "mkdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        try:
            place.settled(settings)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("rebooted", [False, True], ids=["killed", "killed, and memory lost"])
def test_finding_18_a_move_that_dies_at_any_step_loses_nothing(home: Settings, rebooted: bool) -> None:
    """Finding 18: what an older version kept is moved to disk; a crash at any step is followed by a start that has all.

    Where the machine goes down as well, all is there from the moment at which the copy was whole.
    """
    runtime = Path(home.runtime_dir)
    step = 0
    seen = set()
    while True:
        step += 1
        shutil.rmtree(home.default_spool_path.parent, ignore_errors=True)
        shutil.rmtree(runtime)
        runtime.mkdir(mode=0o700)
        laid(runtime / "spool")
        if not killed_at(step, home):
            break
        was_whole = home.default_spool_path.exists() or place._whole(home.default_spool_path).exists()
        seen.add(was_whole)
        if rebooted:
            shutil.rmtree(runtime)
            runtime.mkdir(mode=0o700)
        path = place.settled(home)
        if not rebooted or was_whole:
            assert content(path) == CONTENT, step
            assert home.spool_path == path
        assert not place._moved(runtime / "spool").exists()
        assert place.settled(home) == path
    assert seen == {False, True}
    assert step > 30
    assert content(home.spool_path) == CONTENT


def test_finding_18_two_spools_are_refused_by_name(home: Settings) -> None:
    """A second spool beside the one on disk (an older version ran again) is refused: neither's records are left out."""
    new = place.settled(home)
    laid(new)
    old = Path(home.runtime_dir) / "spool"
    old.unlink()
    laid(old)
    with pytest.raises(SpoolUnusable, match=f"got a spool here and at {new}, wanted one: run `RINGLOG_SPOOL_DIR={old}"):
        place.settled(home)
    assert content(old) == content(new) == CONTENT


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_finding_18_a_disk_that_is_full_leaves_the_spool_where_it_is(
    home: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy that fails is an error in the log; the records stay where they were, and the writer goes on there."""
    old = laid(Path(home.runtime_dir) / "spool")

    def full(source: str, target: str, **_: Any) -> None:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(Path(source).read_bytes())

    monkeypatch.setattr(shutil, "copy2", full)
    assert place.settled(home) == old == home.spool_path
    assert content(old) == CONTENT
    assert "spool stays at" in caplog.text
