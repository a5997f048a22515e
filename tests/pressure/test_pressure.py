"""Pressure: when records are refused and accepted again, by readings and on a real full disk."""

from __future__ import annotations

import errno
import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringlog.errors import ConfigurationError
from ringlog.pressure import (
    SAMPLE_INTERVAL_SECONDS,
    Alert,
    Level,
    Pressure,
    Resource,
    Thresholds,
    Watch,
    disk_watch,
    memory_watch,
)

LIMITS = Thresholds(refuse_below_bytes=100, resume_at_bytes=110, warn_below_bytes=200)


class Gauge:
    """A resource whose reading the test sets."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.reads = 0
        self.error: OSError | None = None

    def read(self) -> int:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.room


def watched(*gauges: Gauge, **options) -> Pressure:
    resources = [Resource.SPOOL_DISK, Resource.MEMORY]
    watches = [Watch(resource, "here", LIMITS, gauge.read) for resource, gauge in zip(resources, gauges, strict=False)]
    return Pressure(watches, **options)


@pytest.mark.parametrize(
    ("rooms", "levels"),
    [
        ([500, 199, 200], [Level.OK, Level.WARN, Level.OK]),
        ([100, 99, 109, 110, 109], [Level.WARN, Level.REFUSE, Level.REFUSE, Level.WARN, Level.WARN]),
        ([0, 1000], [Level.REFUSE, Level.OK]),
    ],
)
def test_levels_follow_the_room_left(rooms: list[int], levels: list[Level]) -> None:
    """Refuse below one threshold, accept again only from a higher one on, warn below the highest."""
    level, seen = Level.OK, []
    for room in rooms:
        level = LIMITS.next(level, room)
        seen.append(level)
    assert seen == levels


@given(st.lists(st.integers(90, 120), max_size=50))
def test_a_trembling_value_changes_the_verdict_rarely(rooms: list[int]) -> None:
    """Between two changes of mind the room has crossed the whole band between the two thresholds."""
    level, before = Level.OK, []
    for room in rooms:
        following = LIMITS.next(level, room)
        if following is Level.REFUSE and level is not Level.REFUSE:
            assert room < 100
        if following is not Level.REFUSE and level is Level.REFUSE:
            assert room >= 110
        level = following
        before.append(level)


def test_the_verdict_names_the_worst_resource() -> None:
    """Producers and operators learn what is short, how much is left and how much is wanted."""
    disk, memory = Gauge(150), Gauge(20)
    pressure = watched(disk, memory)
    verdict = pressure.poll(0.0)
    assert not verdict.accepting
    assert verdict.resource is Resource.MEMORY
    assert verdict.message == "buffer memory here: got 20 bytes left, wanted 110"
    memory.room = 1000
    verdict = pressure.poll(1.0)
    assert verdict.accepting
    assert verdict.message == "spool disk here: got 150 bytes left, wanted 200"


def test_sampling_is_bounded_and_quick_enough() -> None:
    """However often it is polled there are at most ten samples a second, and space that is back is seen within one."""
    disk = Gauge(0)
    pressure = watched(disk)
    verdicts = [pressure.poll(tick / 1000).accepting for tick in range(1000)]
    assert 5 <= disk.reads <= 11
    assert not any(verdicts)
    disk.room = 1000
    assert pressure.poll(1.0 + SAMPLE_INTERVAL_SECONDS).accepting


def test_each_change_is_logged_counted_and_handed_out_once(caplog: pytest.LogCaptureFixture) -> None:
    """An alert is one log line, one count and one call a change; a hook that fails stops nothing."""
    heard: list[Alert] = []

    def hook(alert: Alert) -> None:
        heard.append(alert)
        raise RuntimeError("pager is down")

    disk = Gauge(50)
    pressure = watched(disk, on_alert=hook)
    with caplog.at_level(logging.INFO, "ringlog.pressure"):
        for tick, room in enumerate([50, 50, 150, 150, 500]):
            disk.room = room
            pressure.poll(float(tick))
    assert [alert.level for alert in heard] == [Level.REFUSE, Level.WARN, Level.OK]
    assert pressure.alerts[Resource.SPOOL_DISK] == 2
    lines = [record.levelname for record in caplog.records if record.message.startswith("pressure")]
    assert lines == ["ERROR", "WARNING", "INFO"]
    assert sum("the alert hook failed" in record.message for record in caplog.records) == 3


def test_a_disk_that_cannot_be_read_refuses() -> None:
    """An unmounted or failing disk counts as full, by name, until it can be read again."""
    disk = Gauge(1000)
    pressure = watched(disk)
    disk.error = OSError(errno.EIO, "Input/output error")
    verdict = pressure.poll(0.0)
    assert not verdict.accepting
    assert verdict.message == "spool disk here: cannot be read (Input/output error)"
    disk.error = None
    assert pressure.poll(1.0).accepting


def test_thresholds_out_of_order_are_refused() -> None:
    """Thresholds that could never resume are an error at start."""
    with pytest.raises(ConfigurationError, match="wanted refuse_below <= resume_at <= warn_below"):
        Thresholds(100, 50, 200)


def test_memory_of_this_process_is_seen() -> None:
    """Lanes and what batches take in this process count together against the limit."""
    lanes = [0]
    watch = memory_watch(lambda: lanes[0], used_bytes_max=60_000_000)
    before = watch.read()
    batch = np.ones(40_000_000, np.uint8)
    assert before - watch.read() >= 30_000_000
    lanes[0] = 30_000_000
    pressure = Pressure([watch])
    assert not pressure.poll(0.0).accepting
    del batch
    lanes[0] = 0
    assert pressure.poll(1.0).accepting


@pytest.mark.root
def test_21_a_real_full_disk(tmp_path: Path) -> None:
    """On a real disk that fills up records are refused, and accepted at the first sample after space is back.

    Defence: a disk has room again from the moment that it has.
    """
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        pressure = Pressure([disk_watch(Resource.SPOOL_DISK, tmp_path, 256 * 1024)])
        assert pressure.poll(0.0).accepting
        (tmp_path / "ballast").write_bytes(bytes(900 * 1024))
        assert not pressure.poll(1.0).accepting
        (tmp_path / "ballast").unlink()
        assert pressure.poll(1.0 + SAMPLE_INTERVAL_SECONDS).accepting
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
