"""`ringlog top`: what it shows is so, whoever is down, and nothing is changed by looking."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from lane_samples import Child, Drained, Sample, child, eventually, text_of
from rich.console import Console
from writer_thread import writing

from ringlog import Producer
from ringlog.lanes.claims import claim, open_board
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import Lease
from ringlog.layout import BoardReason
from ringlog.monitor import probes
from ringlog.monitor.screen import drawn
from ringlog.monitor.snapshot import Observer, Snapshot
from ringlog.records import layout_of
from ringlog.settings import Settings
from ringlog.sinks.memory import MemorySink


def looked(settings: Settings) -> Snapshot:
    observer = Observer(settings)
    try:
        return observer.look()
    finally:
        observer.close()


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    """Where no instance ever was, the screen says so, and no directory, lock or board comes into being."""
    snapshot = looked(Settings(runtime_dir=str(tmp_path / "none"), spool_dir=str(tmp_path / "spool")))
    assert (snapshot.writer.state, snapshot.lanes, snapshot.accepting) == ("absent", [], True)
    assert list(tmp_path.iterdir()) == []


def test_lanes_and_their_rates(lane_settings: Settings) -> None:
    """Accepted, confirmed, waiting, fill and refusals are the lane's; rates are between two looks."""
    observer = Observer(lane_settings)
    with Producer([Sample], settings=lane_settings, lane_bytes={Sample: 64 * 256}) as producer:
        append = producer.appender(Sample).append
        (before,) = observer.look().lanes
        for number in range(70):
            append(number, text_of(number))
        drained = Drained(lane_settings)
        drained.directory.refresh()
        (reader,) = drained.directory.lanes.values()
        reader.advance(16)
        (lane,) = observer.look().lanes
        drained.directory.close()
    assert (before.accepted, before.rate, before.lag_s) == (0, 0.0, None)
    assert (lane.accepted, lane.confirmed, lane.waiting, lane.fill) == (64, 16, 48, 0.75)
    assert (lane.refused, lane.owner) == ({"full": 6}, "alive")
    assert lane.rate > lane.confirm_rate > 0
    assert lane.lag_s is not None
    assert lane.idle_s is not None
    assert 0 <= lane.idle_s <= lane.lag_s
    observer.close()


def test_dead_adopted_and_left_owners(lane_settings: Settings) -> None:
    """A producer that was killed shows as dead, then as adopted; one that closed in order as left."""
    with child(lane_settings, "appender.append(1, text_of(1))\nsay('ready')\nsys.stdin.readline()") as process:
        assert process.line() == "ready"
        assert [lane.owner for lane in looked(lane_settings).lanes] == ["alive"]
        process.kill()
    (lane,) = looked(lane_settings).lanes
    assert (lane.owner, lane.pid, lane.waiting) == ("dead", process.process.pid, 1)
    drained = Drained(lane_settings)
    drained.directory.refresh()
    drained.directory.adopt()
    assert [lane.owner for lane in looked(lane_settings).lanes] == ["adopted"]
    with Producer([Sample], settings=lane_settings):
        pass
    assert {lane.owner for lane in looked(lane_settings).lanes} == {"adopted", "left"}
    drained.directory.close()


def test_a_lane_of_another_version_is_named(lane_settings: Settings) -> None:
    """A lane that cannot be read says why in its own line, and the others are shown."""
    lane = claim(Instance(lane_settings).open(), layout_of(Sample))
    lane.memory[8] = 9
    with Producer([Sample], settings=lane_settings):
        troubles = sorted(lane.trouble for lane in looked(lane_settings).lanes)
    assert troubles[0] == ""
    assert "version 9, wanted" in troubles[1]
    lane.close()


def test_the_writer_running_stopped_and_stalled(lane_settings: Settings) -> None:
    """A writer's figures are its own, and not shown after its end; without ticks it is stalled."""
    with Producer([Sample], settings=lane_settings) as producer, writing(lane_settings, MemorySink()):
        assert producer.appender(Sample).append(1, text_of(1))

        def confirmed() -> Snapshot | None:
            found = looked(lane_settings)  # rows are counted when they are acknowledged, the tail moves later
            # A busy machine holds up ticks for seconds, and a writer without them is shown as stalled.
            is_seen = found.writer.state == "running" and found.writer.figures.get("rows") and found.lanes[0].confirmed
            return found if is_seen else None

        running = eventually(confirmed, "a confirmed row")
        assert (running.writer.state, running.lanes[0].confirmed) == ("running", 1)
        assert running.writer.figures["lanes"] == 1
    stopped = looked(lane_settings)
    assert (stopped.writer.state, stopped.writer.figures) == ("stopped", {})
    lease, board = Lease(Instance(lane_settings)), open_board(Instance(lane_settings))
    assert lease.take()
    board.beat(time.time_ns() // 1000 - 10_000_000)
    board.refuse(BoardReason.DISK_FULL)
    stalled = looked(lane_settings)
    assert stalled.writer.state == "stalled"
    assert (stalled.accepting, stalled.reason) == (False, "disk_full")
    lease.release()


def test_servers_that_answer_and_those_that_do_not(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real QuestDB answers; a closed port, a silent one and a stranger are each named, in bounded time."""
    monkeypatch.setattr(probes, "TIMEOUT_SECONDS", 30.0)  # a busy server is one that answers
    (questdb,) = probes.probed(probes.targets(settings, {}))
    assert (questdb.name, questdb.answers, questdb.trouble) == ("questdb", True, "")
    monkeypatch.setattr(probes, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        changed = msgspec.structs.replace(
            settings, questdb_http_port=port, postgres_port=1, redis_port=settings.questdb_http_port
        )
        environ = {"RINGLOG_POSTGRES_PORT": "1", "RINGLOG_REDIS_PORT": "1"}
        found = {server.name: server for server in probes.probed(probes.targets(changed, environ))}
    assert not any(server.answers for server in found.values())
    assert found["questdb"].trouble == "no answer within 0.2 s"
    assert found["postgres"].trouble == "Connection refused"
    assert found["redis"].trouble


@pytest.mark.parametrize("width", [80, 110, 150])
def test_the_screen_shows_what_needs_a_look_first(lane_settings: Settings, width: int) -> None:
    """At any width the dead producer's lane stands above the living ones', and no line is wider than the screen."""
    with Producer([Sample], settings=lane_settings) as producer:
        assert producer.appender(Sample).append(1, text_of(1))
        with child(lane_settings, "say('ready')\nsys.stdin.readline()") as process:
            assert process.line() == "ready"
            process.kill()
        snapshot = looked(lane_settings)
    snapshot.servers = [probes.ServerFigures("questdb", "127.0.0.1:9000", False, 0.0, "[Errno 111] refused")]
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(drawn(snapshot, width))
    text = console.export_text()
    assert text.index(" dead ") < text.index(" alive ")
    for word in ("absent", "Sample", "DOWN", "[Errno 111] refused"):
        assert word in text
    assert max(map(len, text.splitlines())) <= width


def test_the_command_while_questdb_is_down_and_no_writer_runs(lane_settings: Settings) -> None:
    """`--json` streams one object a line, `--once` ends after one; both without QuestDB and without a writer."""
    environment = {**Child.environment(lane_settings), "RINGLOG_QUESTDB_HTTP_PORT": "1", "COLUMNS": "120"}
    command = [sys.executable, "-m", "ringlog", "top", "--interval", "0.1"]
    with Producer([Sample], settings=lane_settings):
        stream = subprocess.Popen([*command, "--json"], env=environment, stdout=subprocess.PIPE, text=True)
        assert stream.stdout is not None
        first, second = (json.loads(stream.stdout.readline()) for _ in range(2))
        stream.stdout.close()
        assert stream.wait(60) == 0
        once = subprocess.run([*command, "--once"], env=environment, capture_output=True, text=True, check=True)
    assert first["time"] < second["time"]
    assert (second["writer"]["state"], second["lanes"][0]["record"]) == ("absent", "Sample")
    assert "Connection refused" in once.stdout
    assert "writer ABSENT" in once.stdout
    assert once.stderr == ""
