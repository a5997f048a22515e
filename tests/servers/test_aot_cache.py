"""Java's cache of QuestDB's start: made once, used by every server, and never a reason not to start."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_questdb_jar import jar_of

from ringlog.errors import ServerError
from ringlog.servers import QuestDBServer, aot_cache, questdb


@pytest.fixture
def jar(tmp_path: Path) -> Path:
    path = tmp_path / "server.jar"
    path.write_bytes(b"jar")
    return path


@pytest.fixture
def made(questdb_server: QuestDBServer) -> Path:
    """The cache that servers here start with."""
    arguments = psutil.Process(questdb_server.pid).cmdline()
    caches = [argument.partition("=")[2] for argument in arguments if argument.startswith("-XX:AOTCache=")]
    if not caches:
        pytest.skip("Java could not make a cache on this machine: servers start without")
    return Path(caches[0])


def refused(starts: list[list[str]]) -> Callable[[list[str]], None]:
    """A start that fails, and is noted with Java's options."""

    def record(options: list[str]) -> None:
        starts.append(options)
        raise ServerError("exited while it started")

    return record


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which files a process has mapped")
def test_a_server_starts_with_the_cache(questdb_server: QuestDBServer, made: Path) -> None:
    """A running server has the cache in its memory: Java has found it to be of this jar and these options."""
    assert str(made) in {each.path for each in psutil.Process(questdb_server.pid).memory_maps()}


def test_a_damaged_cache_is_left_alone(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With changed bytes in the middle of the cache the server starts all the same, and does without it."""
    own = tmp_path / "ringlog"
    shutil.copytree(made.parent, own, ignore=shutil.ignore_patterns("*-making-*", "download-*"))
    with (own / made.name).open("r+b") as file:
        file.seek(made.stat().st_size // 2)
        file.write(b"changed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with QuestDBServer() as server:
        assert Path(jar_of(server)).parent == own
        assert "Checksum verification failed" in server.log_path.read_text()
    assert questdb.questdb_jar().parent == own


def test_what_cannot_be_made_is_tried_once_for_a_jar(jar: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the recorded start fails, Java starts without a cache, with a warning, and the next start tries no more."""
    cache = jar.with_suffix(".aot")
    starts: list[list[str]] = []
    for _ in range(2):
        aot_cache.make_once(cache, jar, ["java"], refused(starts))
        assert aot_cache.options(cache) == []
    assert len(starts) == 1
    assert f"path={cache}: exited while it started" in caplog.text
    assert sorted(path.name for path in jar.parent.iterdir()) == ["server.aot", "server.jar", "server.lock"]


def test_a_younger_jar_wants_a_cache_of_its_own(jar: Path) -> None:
    """A jar that was fetched again is another file to Java, so the cache is made again."""
    cache = jar.with_suffix(".aot")
    starts: list[list[str]] = []
    aot_cache.make_once(cache, jar, ["java"], refused(starts))
    later = cache.stat().st_mtime + 1
    os.utime(jar, (later, later))
    aot_cache.make_once(cache, jar, ["java"], refused(starts))
    assert len(starts) == 2


def test_a_cache_that_cannot_be_written_is_done_without(jar: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where its directory takes no file, which a directory in its place shows to root too, Java starts without."""
    cache = jar.with_suffix(".aot")
    jar.with_suffix(".lock").mkdir()
    starts: list[list[str]] = []
    aot_cache.make_once(cache, jar, ["java"], refused(starts))
    assert aot_cache.options(cache) == []
    assert starts == []
    assert f"java starts without a cache: path={cache}" in caplog.text
