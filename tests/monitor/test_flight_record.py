"""`ringlog dump`: a lane as a flight recorder, live, dead, or copied off a machine that crashed."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from lane_samples import Drained, Sample, child, text_of

from ringlog import Producer
from ringlog.cli import ringlog
from ringlog.errors import LaneError, SegmentRefused
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.layout import HEAD_OFFSET, HEADER
from ringlog.monitor.flight_record import FlightRecord, flight_record
from ringlog.records import layout_of
from ringlog.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="segments are files only on Linux")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108


@pytest.fixture
def crashed(lane_settings: Settings, tmp_path: Path) -> tuple[Instance, Path]:
    """A copy of the lane of a producer that was killed after 100 appends, of which 60 had been confirmed."""
    instance = Instance(lane_settings).open()
    script = "[appender.append(n, text_of(n)) for n in range(100)]\nsay('appended')\nsys.stdin.readline()"
    with child(lane_settings, script) as process:
        assert process.line() == "appended"
        drained = Drained(lane_settings)
        drained.directory.refresh()
        (lane,) = drained.directory.lanes.values()
        lane.advance(60)
        process.kill()
    copy = tmp_path / "lane.bin"
    shutil.copy(SHARED_MEMORY / lane.card.segment, copy)
    drained.directory.close()
    return instance, copy


def checked(found: FlightRecord) -> None:
    assert (found.accepted, found.confirmed, found.waiting) == (100, 60, 40)
    assert (found.record, found.table, found.state, found.half_written) == ("Sample", "samples", "open", 0)
    assert [row["number"] for row in found.rows] == list(range(100))
    assert all(row["text"] == text_of(row["number"]) for row in found.rows)
    assert [row["seq"] for row in found.rows if not row["confirmed"]] == list(range(60, 100))


def test_a_killed_producers_lane_live_and_copied(crashed: tuple[Instance, Path]) -> None:
    """Header, counters and every record, the confirmed ones marked, from the segment by name and from a copy alike."""
    instance, copy = crashed
    (card,) = cards(instance)
    before = (SHARED_MEMORY / card.segment).read_bytes()
    for where in (card.segment, str(copy)):
        checked(flight_record(where, instance))
    assert (SHARED_MEMORY / card.segment).read_bytes() == before
    assert [row["number"] for row in flight_record(str(copy), instance, 3).rows] == [97, 98, 99]


def test_only_what_is_still_there(lane_settings: Settings) -> None:
    """Of a lane that was gone round the last lap is shown, but for the slot that was being overwritten."""
    instance = Instance(lane_settings).open()
    drained = Drained(lane_settings)
    with Producer([Sample], settings=lane_settings, lane_bytes={Sample: 64 * 256}) as producer:
        for number in range(150):
            while not producer.appender(Sample).append(number, text_of(number)):
                drained.drain()
        drained.drain()
        (card,) = cards(instance)
        found = flight_record(card.segment, instance)
        assert [row["number"] for row in found.rows] == list(range(86, 150))
        assert found.refused["full"] == 2
        with (SHARED_MEMORY / card.segment).open("r+b") as file:  # died between the seq and the fields
            file.seek(card.size_bytes - 64 * layout_of(Sample).slot_bytes + 150 % 64 * layout_of(Sample).slot_bytes)
            file.write(struct.pack("<Q", 150))
        found = flight_record(card.segment, instance)
        assert [row["number"] for row in found.rows] == list(range(87, 150))
        assert found.half_written == 1


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another layout version": (lambda b: b[:8] + struct.pack("<I", 3) + b[12:], "version 3, wanted .* version 2"),
    "cut short": (lambda b: b[:9000], "in 9000 bytes, wanted lane"),
    "cut in the header": (lambda b: b[:100], "got 100 bytes, wanted at least 1024"),
    "foreign": (lambda b: b"\x89PNG\r\n\x1a\n" + b[8:], "got magic .*PNG"),
    "short and foreign": (lambda _: b"hello, world", "got 12 bytes, wanted at least"),
    "empty": (lambda _: b"", "got 0 bytes, wanted a lane"),
    "no magic": (lambda b: bytes(8) + b[8:], "got no magic, wanted a completed claim"),
    "head": (lambda b: b[:HEAD_OFFSET] + b"\xff" * 8 + b[HEAD_OFFSET + 8 :], "wanted at most"),
    "layout": (lambda b: b[:1024] + b"{" * 40 + b[1064:], "got a layout that is none"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_lane_is_named(crashed: tuple[Instance, Path], damage: str) -> None:
    """Another version, a truncated file, a foreign file: each a clear error that names the file, got and wanted."""
    instance, copy = crashed
    change, message = DAMAGE[damage]
    copy.write_bytes(change(copy.read_bytes()))
    with pytest.raises(SegmentRefused, match=message) as caught:
        flight_record(str(copy), instance)
    assert str(copy) in str(caught.value)


def test_unreadable_records_are_counted_and_the_rest_shown(crashed: tuple[Instance, Path]) -> None:
    """A slot with values that no append could have written is named by its seq; its neighbours are shown."""
    instance, copy = crashed
    data = bytearray(copy.read_bytes())
    slots_at = HEADER.unpack(data[: HEADER.size])[-2]
    data[slots_at + 5 * 256 + 8 : slots_at + 5 * 256 + 16] = b"\xff" * 8
    copy.write_bytes(data)
    found = flight_record(str(copy), instance)
    assert (found.unreadable, len(found.rows)) == ([5], 99)


def test_where_there_is_nothing(crashed: tuple[Instance, Path], tmp_path: Path) -> None:
    """A name of no segment lists those that the instance has; a missing file, a directory and nonsense are named."""
    instance, _ = crashed
    with pytest.raises(LaneError, match=f"got no segment and no file .* has {cards(instance)[0].segment}"):
        flight_record("rl00000000", instance)
    for where, message in [
        (str(tmp_path / "none"), "No such file"),
        (str(tmp_path), "of no lane"),
        ("a b", "got neither a file nor the name"),
    ]:
        with pytest.raises(LaneError, match=message):
            flight_record(where, instance)


def test_the_command(crashed: tuple[Instance, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """`ringlog dump FILE` prints header, counters and records, one object with --json; errors are ringlog's own."""
    instance, copy = crashed
    monkeypatch.setenv("RINGLOG_RUNTIME_DIR", str(instance.runtime_dir))
    shown = CliRunner().invoke(ringlog, ["dump", str(copy), "--last", "50"])
    assert shown.exit_code == 0, shown.output
    assert "accepted      100" in shown.output
    assert "readable      50, of which 40 waiting" in shown.output
    assert shown.output.count("\nconfirmed ") == 11  # the counter's line too
    facts = json.loads(CliRunner().invoke(ringlog, ["dump", str(copy), "--json"]).output)
    assert (facts["waiting"], len(facts["rows"])) == (40, 100)
    failed = CliRunner().invoke(ringlog, ["dump", "rl00000000"])
    assert isinstance(failed.exception, LaneError)
