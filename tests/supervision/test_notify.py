"""What the writer tells systemd: ready, alive, reloading, stopping; received by a real datagram socket."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lane_samples import DEADLINE_SECONDS, Sample, eventually, text_of
from notify_socket import NotifySocket
from whole_path import WholePath

from ringlog import Producer
from ringlog.errors import ServerRefused
from ringlog.settings import Settings
from ringlog.sinks import Batch, Receipt, Request
from ringlog.sinks.memory import MemorySink
from ringlog.writer import Writer
from ringlog.writer.supervisor import Supervisor


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path) as bound:
        yield bound


def test_a_writer_says_how_it_stands(path: WholePath, notify: NotifySocket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ready once it drains, signs of life in time, a reload's begin (with its clock) and end, and the stop."""
    monkeypatch.setenv("NOTIFY_SOCKET", notify.address)
    monkeypatch.setenv("WATCHDOG_USEC", "9000000")
    path.start_writer()
    assert notify.next() == "READY=1"
    assert notify.until("WATCHDOG=1") == ["WATCHDOG=1"]
    began = time.monotonic()
    assert notify.until("WATCHDOG=1") == ["WATCHDOG=1"]
    assert time.monotonic() - began < 9.0, "later than systemd would wait"
    assert path.writer is not None
    path.writer.send_signal(signal.SIGHUP)
    word, clock = notify.until("RELOADING")[-1].split("\n")
    assert word == "RELOADING=1"
    assert 0 < int(clock.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert set(notify.until("READY")[:-1]) <= {"WATCHDOG=1"}
    path.writer.send_signal(signal.SIGTERM)
    assert set(notify.until("STOPPING")[:-1]) <= {"WATCHDOG=1"}
    assert path.writer.wait(DEADLINE_SECONDS) == 0
    path.writer = None


class HungSink(MemorySink):
    """Its encoding, which is done on the writer's own thread, does not return until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_entered, self.is_free = threading.Event(), threading.Event()

    def encode(self, batch: Batch) -> Request:
        self.is_entered.set()
        assert self.is_free.wait(30)
        return super().encode(batch)


def test_a_writer_that_hangs_is_silent(lane_settings: Settings, notify: NotifySocket) -> None:
    """Signs of life come from the tick itself: while it hangs none is sent, so the watchdog sees it."""
    sink = HungSink()
    writer = Writer(lane_settings, sink, supervisor=Supervisor(notify.address, watchdog_seconds=0.3))
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        notify.until("WATCHDOG=1")
        with Producer([Sample], settings=lane_settings) as producer:
            assert producer.appender(Sample).append(1, text_of(1))
        assert sink.is_entered.wait(30)
        notify.discard()
        with pytest.raises(TimeoutError):
            notify.next(timeout_seconds=0.6)
        sink.is_free.set()
        notify.until("WATCHDOG=1")
    finally:
        sink.is_free.set()
        writer.stop()
        thread.join()


class SlowRefusal(MemorySink):
    """Refuses a row, and takes its time over the requests that look for it."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0
        self.is_free = threading.Event()

    def send(self, request: Request) -> Receipt:
        self.requests += 1
        if self.requests == 1:
            raise ServerRefused("one of the rows")
        assert self.is_free.wait(30)
        return super().send(request)


def test_a_long_bisection_is_no_hang(lane_settings: Settings, notify: NotifySocket) -> None:
    """While refused rows are looked for, which may take minutes, the watchdog still hears of the writer."""
    sink = SlowRefusal()
    writer = Writer(lane_settings, sink, supervisor=Supervisor(notify.address, watchdog_seconds=0.03))
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        with Producer([Sample], settings=lane_settings) as producer:
            assert all(producer.appender(Sample).append(number, text_of(number)) for number in range(4))
        eventually(lambda: sink.requests > 1, "the bisection")
        notify.discard()
        notify.until("WATCHDOG=1")
        notify.until("WATCHDOG=1")
    finally:
        sink.is_free.set()
        writer.stop()
        thread.join()


def test_an_abstract_socket_is_reached() -> None:
    """An address with a leading @ is the abstract one that systemd often gives."""
    name = f"ringlog-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        try:
            bound.bind(f"\0{name}")
        except OSError:
            pytest.skip("no abstract sockets here: they are Linux's")
        bound.settimeout(10)
        Supervisor.from_environment({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert bound.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    ("environ", "signs"),
    [
        ({"WATCHDOG_USEC": "300000000"}, 1),
        ({"WATCHDOG_USEC": "300000000", "WATCHDOG_PID": str(os.getpid())}, 1),
        ({"WATCHDOG_USEC": "300000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({}, 0),
    ],
)
def test_signs_of_life_are_sent_where_they_are_wanted(
    environ: dict[str, str], signs: int, notify: NotifySocket
) -> None:
    """One sign a third of the interval, only where a watchdog is set and is meant for this process."""
    supervisor = Supervisor.from_environment({"NOTIFY_SOCKET": notify.address, **environ})
    for _ in range(100):
        supervisor.alive()
    supervisor.stopping()
    seen = notify.until("STOPPING")
    assert seen[:-1] == ["WATCHDOG=1"] * signs


@pytest.mark.parametrize("address", ["", "vsock:2:1", "/nowhere/notify"])
def test_nobody_listens(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without a supervisor, or with one that has gone, the writer goes on; a socket that is not there is logged."""
    caplog.set_level(logging.WARNING)
    Supervisor.from_environment({"NOTIFY_SOCKET": address}).ready()
    assert ("takes no READY" in caplog.text) == address.startswith("/")
