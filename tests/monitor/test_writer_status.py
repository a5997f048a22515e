"""Whose figures `top`, metrics and doctor show: those of the writer that runs, and of no other."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from lane_samples import Child, Sample, child, eventually, text_of
from rich.console import Console
from whole_path import WholePath
from writer_thread import writing

from ringlog import Producer
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.monitor.metrics import MetricsServer
from ringlog.monitor.screen import COLUMNS, drawn
from ringlog.monitor.snapshot import Observer, Snapshot, memory_filesystem
from ringlog.questdb import data_dir
from ringlog.questdb.connection import Connection
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings
from ringlog.sinks import MemorySink


@contextlib.contextmanager
def writer_process(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """`ringlog writer` without a server, killed in the end."""
    environment = {**Child.environment(settings), "RINGLOG_QUESTDB_PG_PORT": "1", "RINGLOG_QUESTDB_HTTP_PORT": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ringlog", "writer"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_finding_19_a_dead_writers_figures_are_not_the_live_ones(lane_settings: Settings) -> None:
    """Finding 19: after a kill no writer is shown at once, and after a restart the new one from its first moment on."""
    observer = Observer(lane_settings)

    def seen(process: subprocess.Popen[bytes]) -> Snapshot | None:
        found = observer.look()
        assert found.writer.figures.get("pid", process.pid) == process.pid
        if found.writer.state == "running":
            assert found.writer.figures["epoch"]
        return found if found.writer.state == "running" else None

    with writer_process(lane_settings) as first:
        eventually(lambda: seen(first), "the first writer to run")
    stopped = observer.look().writer
    assert (stopped.state, stopped.figures) == ("stopped", {})
    states = set()
    with writer_process(lane_settings) as second:

        def looked() -> bool:
            found = observer.look().writer
            states.add(found.state)
            assert found.figures.get("pid", second.pid) == second.pid
            return found.state == "running"

        eventually(looked, "the second writer to run")
    assert "stalled" not in states
    assert "starting" in states
    observer.close()


def test_finding_23_a_writer_without_a_server_names_the_server_first(lane_settings: Settings) -> None:
    """Finding 23: the first warning of a writer that finds no server is about the server, and says where records go."""
    with writer_process(lane_settings) as process:
        assert process.stdout is not None
        line = next(line.decode() for line in process.stdout if b" WARNING " in line)
    assert "no server, records wait in the spool until it answers: QuestDB at 127.0.0.1:1: no connection" in line
    assert "start it, or set RINGLOG_QUESTDB_HOST" in line


def test_finding_19_producers_are_counted_by_process(lane_settings: Settings) -> None:
    """Finding 19: three containers whose producers all have pid 1 are three; two lanes of one process are one."""
    script = "say('ready')\nsys.stdin.readline()"
    with (
        child(lane_settings, script) as one,
        child(lane_settings, script) as two,
        child(lane_settings, script) as three,
    ):
        assert [each.line() for each in (one, two, three)] == ["ready"] * 3
        instance = Instance(lane_settings)
        for card in cards(instance):
            there = msgspec.structs.replace(card, owner_pid=1)
            instance.card_path(card.lane).write_bytes(msgspec.json.encode(there))
        observer = Observer(lane_settings)
        snapshot = observer.look()
        observer.close()
    assert {lane.pid for lane in snapshot.lanes} == {1}
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(drawn(snapshot, 150))
    assert "3 producers, 3 lanes" in console.export_text()
    assert len({heading for heading, _, _ in COLUMNS}) == len(COLUMNS)


PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
def test_finding_20_promtool_has_nothing_to_say(lane_settings: Settings) -> None:
    """Finding 20: `promtool check metrics` passes on what a writer with lanes, refusals and writes serves."""
    with (
        Producer([Sample], settings=lane_settings, lane_bytes={Sample: 64 * 256}) as producer,
        writing(lane_settings, MemorySink()),
    ):
        for number in range(2_000):
            producer.appender(Sample).append(number, text_of(number))
        observer = Observer(lane_settings)
        eventually(lambda: observer.look().writer.figures.get("writes"), "a write")
        observer.close()
        server = MetricsServer(lane_settings, 0)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
                text = answer.read()
        finally:
            server.close()
    assert b"ringlog_writer_tick_seconds_count" in text
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_finding_17_a_server_here_is_watched_without_a_setting(
    path: WholePath, questdb_server: QuestDBServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Finding 17: the disk of a QuestDB on this machine is found by the writer once it has sent something."""
    settings = msgspec.structs.replace(path.settings, questdb_data_dir="")
    root = questdb_server.data_dir / "db"
    connection = Connection.from_settings(settings)
    assert data_dir.find(connection, settings) == (root, "")
    connection.close()
    path.settings = settings
    path.start_writer()
    with path.producing() as append:
        append(10)
        observer = Observer(settings)
        eventually(lambda: observer.look().writer.figures.get("server_dir") == str(root), "the server's directory")
        assert [disk.path for disk in observer.look().disks if disk.what == "server"] == [str(root)]
        observer.close()


def test_finding_17_another_servers_directory_is_not_taken(
    questdb_server: QuestDBServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 17: a directory without the server's tables, and a server elsewhere, are not watched, as is said."""
    settings = Settings(**{**questdb_server.settings(), "questdb_data_dir": ""})
    connection = Connection.from_settings(settings)
    connection.execute("create table if not exists known (t timestamp) timestamp(t) partition by day wal")
    (tmp_path / "db" / "other~1").mkdir(parents=True)
    monkeypatch.setattr(data_dir, "_bases", lambda _port: iter([tmp_path]))
    found = data_dir.find(connection, settings)
    assert found.path is None
    assert "no directory that this process can see holds its tables" in found.trouble
    connection.close()
    elsewhere = Settings(questdb_host="db.example")
    assert "db.example is another machine's" in data_dir.find(connection, elsewhere).trouble


def test_finding_18_a_file_system_in_memory_is_named() -> None:
    """Finding 18: `doctor` asks the kind of the spool's file system: /dev/shm is in memory, this file's is not."""
    assert memory_filesystem(Path("/dev/shm/none/spool")) == ("tmpfs" if sys.platform == "linux" else "")  # noqa: S108
    assert memory_filesystem(Path("/proc")) == ""
