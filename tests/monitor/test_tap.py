"""The tap: whole records only, every other one counted, and nobody notices it."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lane_samples import Child, Drained, Sample, child, eventually, text_of

from ringlog import Producer
from ringlog.arrays import rows_of
from ringlog.errors import ConfigurationError
from ringlog.lanes import views
from ringlog.lanes.claims import cards, claim
from ringlog.lanes.instance import Instance
from ringlog.lanes.segments import attach_segment
from ringlog.lanes.views import LaneView
from ringlog.monitor.rows import Condition, rows_of_columns
from ringlog.monitor.tap import Tap
from ringlog.records import layout_of
from ringlog.settings import Settings


@pytest.fixture
def tap(lane_settings: Settings) -> Iterator[Tap]:
    tap = Tap(Instance(lane_settings).open(), "samples")
    yield tap
    tap.close()


class Seen:
    """What a tap showed: numbers by lane, and how many records it said it skipped."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self.numbers: list[int] = []
        self.skipped = 0

    def poll(self) -> Seen:
        for tapped in self._tap.poll():
            self.skipped += tapped.skipped
            assert tapped.unreadable == 0
            for row in rows_of_columns(tapped.columns):
                assert row["text"] == text_of(row["number"]), row
                self.numbers.append(row["number"])
        return self


def test_every_record_is_shown_once_and_none_is_consumed(lane_settings: Settings, tap: Tap) -> None:
    """Records of all lanes of the table are shown once, from the tap's start on, and stay for the writer."""
    seen = Seen(tap)
    with Producer([Sample], settings=lane_settings) as first:
        assert first.appender(Sample).append(0, text_of(0))
        seen.poll()
        with Producer([Sample], settings=lane_settings) as second:  # claimed later: from its first record
            for number in range(1, 300):
                assert (first if number % 2 else second).appender(Sample).append(number, text_of(number))
            assert sorted(seen.poll().poll().numbers) == list(range(1, 300))
        assert sorted(Drained(lane_settings).numbers()) == list(range(300))
    assert seen.poll().skipped == 0


def test_a_record_types_name_will_do(lane_settings: Settings) -> None:
    """A tap is asked for by table or by record type; lanes of another table are left alone."""
    instance = Instance(lane_settings).open()
    by_type, by_other = Seen(Tap(instance, "Sample")), Seen(Tap(instance, "trades"))
    with Producer([Sample], settings=lane_settings) as producer:
        by_type.poll(), by_other.poll()
        assert producer.appender(Sample).append(7, text_of(7))
        assert (by_type.poll().numbers, by_other.poll().numbers) == ([7], [])


def test_the_mapping_cannot_be_written(lane_settings: Settings) -> None:
    """An onlooker's mapping has no right to write: a mistake of its own code cannot reach a producer."""
    instance = Instance(lane_settings).open()
    lane = claim(instance, layout_of(Sample))
    mapped = attach_segment(lane.card.segment, is_writable=False)
    with pytest.raises(TypeError, match="read-only"):
        mapped.memory[0] = 1
    mapped.close()
    lane.close()


def test_an_overtaken_tap_says_how_many_it_skipped(lane_settings: Settings, tap: Tap) -> None:
    """Records that were overwritten before they were looked at are counted exactly; the rest of the lane is shown."""
    seen = Seen(tap)
    drained = Drained(lane_settings)
    with Producer([Sample], settings=lane_settings, lane_bytes={Sample: 64 * 256}) as producer:
        append = producer.appender(Sample).append
        seen.poll()
        for number in range(1000):
            while not append(number, text_of(number)):
                drained.drain()
        capacity = next(iter(drained.directory.lanes.values())).capacity
        seen.poll()
    assert capacity == 64
    assert seen.numbers == list(range(1000 - capacity, 1000))
    assert seen.skipped == 1000 - capacity


@pytest.mark.parametrize("many", [False, True], ids=["append", "append_many"])
def test_what_is_overwritten_during_the_copy_is_not_shown(
    lane_settings: Settings, tap: Tap, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """A producer that comes round while slots are copied takes exactly the records that it overwrote away."""
    drained = Drained(lane_settings)
    seen = Seen(tap)
    with Producer([Sample], settings=lane_settings, lane_bytes={Sample: 64 * 256}) as producer:
        appender = producer.appender(Sample)
        seen.poll()
        for number in range(64):
            assert appender.append(number, text_of(number))
        drained.drain()

        def overtake() -> None:
            monkeypatch.undo()
            numbers = list(range(64, 84))
            if many:
                columns = {"number": numbers, "text": [text_of(number) for number in numbers]}
                assert appender.append_many(rows_of(Sample, columns)) == 20
            else:
                assert all(appender.append(number, text_of(number)) for number in numbers)

        monkeypatch.setattr(views, "fence", overtake)
        seen.poll()
        assert (seen.numbers, seen.skipped) == (list(range(20, 64)), 20)
        seen.poll()
        assert (seen.numbers[44:], seen.skipped) == (list(range(64, 84)), 20)


def test_a_slot_that_is_being_written_is_not_shown(lane_settings: Settings) -> None:
    """The slot whose seq is already the next lap's, its fields still the old ones, is not copied as either."""
    lane = claim(Instance(lane_settings).open(), layout_of(Sample), lane_bytes=64 * 256)
    slot_bytes = layout_of(Sample).slot_bytes
    for seq in range(lane.capacity):
        at = lane.slots_offset + seq * slot_bytes
        lane.memory[at : at + 8] = seq.to_bytes(8, "little")
    lane.memory[256:264] = lane.memory[384:392] = lane.capacity.to_bytes(8, "little")
    lane.memory[lane.slots_offset : lane.slots_offset + 8] = lane.capacity.to_bytes(8, "little")
    copied = LaneView(lane.card.segment, lane.memory).copied(0, lane.capacity)
    assert (copied.skipped, copied.rows, copied.next_seq) == (1, lane.capacity - 1, lane.capacity)
    lane.close()


FLAT_OUT = """
from ringlog.arrays import rows_of
import select
say("ready")
sys.stdin.readline()
numbers = list(range(100))
rows = rows_of(Sample, {"number": numbers, "text": [text_of(number) for number in numbers]})
texts = [text_of(number) for number in numbers]
until = time.monotonic() + 1.5
while time.monotonic() < until or not select.select([sys.stdin], [], [], 0)[0]:
    for number in numbers:
        appender.append(number, texts[number])
    appender.append_many(rows)
producer.close()
say("done")
"""


def test_no_torn_record_at_full_speed(lane_settings: Settings, tap: Tap) -> None:
    """Beside a producer that goes round a small lane as fast as it can, every record shown is whole, and those shown
    and those skipped together are all that were accepted."""
    settings = lane_settings
    prelude = "from lane_samples import PRELUDE\nexec(PRELUDE.replace('open()', 'open()'))\n"
    small = prelude + "producer.close()\nproducer = Producer([Sample], lane_bytes={Sample: 64 * 512}).open()\n"
    seen, drained = Seen(tap), Drained(settings)
    with child(
        settings, small + "appender = producer.appender(Sample)\n" + FLAT_OUT, prelude="import sys\n"
    ) as process:
        assert process.line() == "ready"
        seen.poll()
        process.go_on()
        heads: dict[int, int] = {}

        def finished() -> bool:
            seen.poll()
            drained.directory.refresh()
            for number, lane in drained.directory.lanes.items():
                lane.take(1 << 14)
                lane.advance(lane.sent)
                heads[number] = lane.head
            return process.process.poll() is not None

        while sum(heads.values()) <= 10_000 or len(seen.numbers) <= 1000:
            assert not finished()
        process.go_on()
        while not finished():
            pass
        finished()
        seen.poll()
    assert len(seen.numbers) + seen.skipped == sum(heads.values()) > 10_000
    assert len(seen.numbers) > 1000


def test_a_lane_of_another_version_is_named_and_costs_no_other(lane_settings: Settings, tap: Tap) -> None:
    """A lane of another layout version is refused with got and wanted, and the others are shown."""
    lane = claim(Instance(lane_settings).open(), layout_of(Sample))
    lane.memory[8] = 9
    seen = Seen(tap).poll()
    with Producer([Sample], settings=lane_settings) as producer:
        assert producer.appender(Sample).append(3, text_of(3))
        assert seen.poll().numbers == [3]
    (refusal,) = tap.refused
    assert "version 9, wanted" in refusal
    lane.close()


def test_removed_lanes_are_let_go(lane_settings: Settings, tap: Tap) -> None:
    """A lane that the writer removed is shown to its end and then closed."""
    seen, drained = Seen(tap), Drained(lane_settings)
    seen.poll()
    with Producer([Sample], settings=lane_settings) as producer:
        assert producer.appender(Sample).append(5, text_of(5))
        seen.poll()
        assert producer.appender(Sample).append(6, text_of(6))
    drained.until_gone()
    eventually(lambda: seen.poll() and tap.lanes == 0, "the lane to be let go")
    assert seen.numbers == [5, 6]


def test_conditions(lane_settings: Settings) -> None:
    """A condition compares by the field's type; a field that is none and a value of another type are named."""
    layout = layout_of(Sample)
    assert Condition("number=7").bind(layout) == 7
    assert Condition("text=7").bind(layout) == "7"
    assert Condition("text=").bind(layout) is None
    for wrong, message in [
        ("numbr=7", "wanted one of Sample: number, text"),
        ("number=x", "wanted a value of type int"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            Condition(wrong).bind(layout)
    with pytest.raises(ConfigurationError, match="wanted FIELD=VALUE"):
        Condition("number")


def command(settings: Settings, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ringlog", *arguments],
        env=Child.environment(settings), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


@contextlib.contextmanager
def appending(settings: Settings) -> Iterator[Callable[[], None]]:
    """Appends a few records at each call, and confirms them."""
    drained = Drained(settings)
    with Producer([Sample], settings=settings) as producer:
        numbers = iter(range(1 << 30))

        def more() -> None:
            for _ in range(10):
                number = next(numbers) % 100
                assert producer.appender(Sample).append(number, text_of(number))
            drained.drain()

        yield more


def until_ended(process: subprocess.Popen[str], more: Callable[[], None]) -> tuple[str, str]:
    def ended() -> bool:
        more()
        return process.poll() is not None

    try:
        eventually(ended, "the command to end")
    finally:
        process.kill()
        out, errors = process.communicate()
    return out, errors


def test_the_command_shows_count_records_that_meet_its_conditions(lane_settings: Settings) -> None:
    """`ringlog tap TABLE --json --count 3 --where text=...` prints such records, one object a line, and ends."""
    process = command(lane_settings, "tap", "samples", "--json", "--count", "1", "--where", f"text={text_of(25)}")
    assert process.stderr is not None
    assert "waiting" in process.stderr.readline()  # from here on it shows every lane from its first record
    with appending(lane_settings) as more:
        for _ in range(3):
            more()
        out, errors = until_ended(process, lambda: None)  # more would overtake one that the machine holds up
    assert process.returncode == 0, errors
    (row,) = [json.loads(line) for line in out.splitlines()]
    assert (row["number"], row["seq"] % 100, row["text"]) == (25, 25, text_of(25))
    assert "1 records shown, 0 skipped" in errors


def test_the_command_refuses_a_wrong_field_and_ends_with_its_reader(lane_settings: Settings) -> None:
    """A field that no record has ends it with exit 2, naming those there are; a reader that leaves ends it."""
    with appending(lane_settings) as more:
        process = command(lane_settings, "tap", "samples", "--where", "nmber=1")
        _, errors = until_ended(process, more)
        assert process.returncode == 2
        said = "--where: got field 'nmber', wanted one of Sample: number, text, timestamp, did you mean number?"
        assert said in " ".join(errors.split())
        process = command(lane_settings, "tap", "samples")
        assert process.stdout is not None
        ready = eventually(lambda: more() or select.select([process.stdout], [], [], 0.01)[0], "a line")
        assert ready
        process.stdout.close()
        process.stdout = None
        _, errors = until_ended(process, more)
    assert process.returncode == 0
    assert "records shown" in errors
    assert "Traceback" not in errors


def test_the_command_says_that_it_waits(lane_settings: Settings) -> None:
    """With no lane of that table it says so, names the tables there are, and shows the first lane's records."""
    process = command(lane_settings, "tap", "samples", "--count", "1")
    assert process.stderr is not None
    assert "no lane of samples yet, waiting (tables with lanes: none)" in process.stderr.readline()
    with appending(lane_settings) as more:
        more()
        out, _ = until_ended(process, lambda: None)  # more would overtake one that the machine holds up
        assert "seq=0 number=0 text=0:" in out
        assert f"{cards(Instance(lane_settings))[0].lane:016x}" in out
