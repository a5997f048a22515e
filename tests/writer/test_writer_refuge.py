"""The writer's refuge over a sink in memory: replays under way, their order, and a sink that is still loading."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest
from lane_samples import Sample, child, eventually, text_of
from writer_thread import writing

from ringlog import Producer
from ringlog.errors import ConfigurationError, ServerRefused, ServerUnavailable, SpoolError
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneDirectory
from ringlog.layout import BoardReason
from ringlog.ledger import Ledger, Term
from ringlog.pressure import SAMPLE_INTERVAL_SECONDS, Resource, Thresholds, Watch
from ringlog.records import LatencySample, layout_of
from ringlog.settings import Settings
from ringlog.sinks import Batch, Receipt, Request, Sink
from ringlog.sinks.memory import MemorySink
from ringlog.spool import Spool
from ringlog.writer import refuge
from ringlog.writer.writer import POLL_SECONDS

TABLE = Sample.__table__
ROWS = 1000
REQUEST_ROWS = 50


class OrderedSink(MemorySink):
    """A memory sink that keeps the numbers of the rows it was sent, in that order."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []

    def send(self, request: Request) -> Receipt:
        self._require_available()
        self.numbers += [row["number"] for row in request.body if "number" in row]
        return super().send(request)


class FirstFails(OrderedSink):
    """Its first request fails once a second one has been encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.first: list[int] = []
        self._encoded = 0
        self._are_two = threading.Event()

    def encode(self, batch: Batch) -> Request:
        self._encoded += 1
        if self._encoded == 2:
            self._are_two.set()
        return super().encode(batch)

    def send(self, request: Request) -> Receipt:
        if not self.first:
            self.first = [row["number"] for row in request.body]
            assert self._are_two.wait(30)
            raise ServerUnavailable("the first of two requests fails")
        return super().send(request)


@pytest.fixture
def settings(lane_settings: Settings) -> Settings:
    """Small requests, so that a few records are many replays; no limit that a pause of the machine could pass."""
    limits = {"stop_timeout_ms": 60_000, "confirm_timeout_ms": 60_000}
    return msgspec.structs.replace(lane_settings, batch_rows_max=REQUEST_ROWS, drain_interval_ms=5, **limits)


def spool(settings: Settings, producer: Producer) -> None:
    """Appends ROWS records and puts them into the spool."""
    sink = MemorySink()
    sink.available = False
    with writing(settings, sink) as writer:
        for number in range(ROWS):
            assert producer.appender(Sample).append(number, text_of(number))
        eventually(lambda: writer._refuge.spooled_rows == ROWS, "the spool")


def test_the_first_of_two_replays_fails(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are read again, in order: what the second delivered meanwhile is a copy, and no cursor passed the first."""
    monkeypatch.setattr(refuge, "REPLAYS_MAX", 2)  # or a third may be sent before the first is seen to have failed
    sink = FirstFails()
    with Producer([Sample], settings=settings) as producer:
        spool(settings, producer)
        with writing(settings, sink) as writer:
            eventually(lambda: len(sink.rows(Sample)) == ROWS, "all rows")
            eventually(lambda: not writer._refuge.spool.rows(TABLE), "an empty spool")
    assert sink.first == list(range(REQUEST_ROWS))
    assert sink.numbers == [*range(REQUEST_ROWS, 2 * REQUEST_ROWS), *range(ROWS)]


def test_new_records_follow_those_of_the_spool(settings: Settings) -> None:
    """While a spool is replayed its server gets all records in order, and without the spool again once it is read.

    Rows that come after newer ones cost QuestDB half as much again.
    """
    sink = OrderedSink()
    with Producer([Sample], settings=settings) as producer:
        spool(settings, producer)
        with writing(settings, sink) as writer:
            append = producer.appender(Sample).append
            numbers = iter(range(ROWS, 1_000_000))
            count = ROWS

            def is_back() -> bool:
                nonlocal count
                number = next(numbers)
                assert append(number, text_of(number))
                count += 1
                return not writer._refuge.is_away(TABLE)

            eventually(is_back, "records sent without the spool, while they keep coming")
            eventually(lambda: len(sink.rows(Sample)) == count, "all rows")
            assert writer._refuge.spooled_rows < count
    assert sink.numbers == list(range(count))


def test_a_frame_gives_its_lane_back_before_the_next_is_written(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lanes are put away in several frames, and have the slots of the first again while the second is being
    written: a writer that is killed then has still made room."""
    append, rooms, frames = Spool.append, [], []
    with (
        Producer([Sample], settings=settings) as one,
        Producer([Sample], settings=settings) as two,
    ):
        appenders = [producer.appender(Sample) for producer in (one, two)]
        capacities = [appender.room for appender in appenders]
        for appender in appenders:
            for number in range(REQUEST_ROWS):
                assert appender.append(number, text_of(number))

        def looked_at(*arguments: Any) -> Any:
            rooms.append(sum(appender.room for appender in appenders))
            frames.append(sum(span.rows for span in arguments[2]))
            return append(*arguments)

        monkeypatch.setattr(Spool, "append", looked_at)
        sink = MemorySink()
        sink.available = False
        with writing(settings, sink) as writer:
            eventually(lambda: writer._refuge.spooled_rows == 2 * REQUEST_ROWS, "the spool")
    assert len(frames) > 1
    assert rooms == list(itertools.accumulate(frames[:-1], initial=sum(capacities) - 2 * REQUEST_ROWS))


def test_damage_that_cannot_be_written_down_costs_no_other_record(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spool frame is damaged and the disk fails as the ledger is to know: frames read beside it are not passed."""
    record, failed = Ledger.record, []

    def fails_once(self: Ledger, term: Term, *arguments: Any, **options: Any) -> None:
        if term is Term.QUARANTINED and not failed:
            failed.append(term)
            raise SpoolError("the disk failed once")
        record(self, term, *arguments, **options)

    sink = MemorySink()
    with Producer([Sample], settings=settings) as producer:
        spool(settings, producer)
        directory = Spool(settings.spool_path, bytes_max=settings.spool_bytes_max)
        frames = [span for _, span in directory.spans()]
        directory.close()
        (frame,) = (span for span in frames if span.first_seq <= 130 < span.first_seq + span.rows)
        (file,) = (settings.spool_path / "tables" / TABLE).glob("*.spool")
        content = bytearray(file.read_bytes())
        content[content.index(b"130:")] ^= 1
        file.write_bytes(content)
        monkeypatch.setattr(Ledger, "record", fails_once)
        with writing(msgspec.structs.replace(settings, batch_rows_max=ROWS), sink) as writer:
            eventually(lambda: not writer._refuge.spool.rows(TABLE), "an empty spool")
    assert failed
    missing = set(range(ROWS)) - {row["number"] for row in sink.rows(Sample)}
    assert missing == set(range(frame.first_seq, frame.first_seq + frame.rows))


class LateRefusal(MemorySink):
    """Its first request is answered only once `go_on` is set; then it refuses the record of number 5."""

    def __init__(self) -> None:
        super().__init__(lambda row: "poison" if row.get("number") == 5 else None)
        self.is_sending, self.go_on = threading.Event(), threading.Event()
        self.encoded = 0

    def encode(self, batch: Batch) -> Request:
        self.encoded += batch.layout.table == TABLE
        return super().encode(batch)

    def send(self, request: Request) -> Receipt:
        if request.layout.table == TABLE:
            self.is_sending.set()
            assert self.go_on.wait(60)
        return super().send(request)


def test_a_dead_letter_is_not_read_from_a_slot_that_was_given_back(settings: Settings) -> None:
    """A refusal that comes after its batch was put away, and its slots used again, keeps what was refused."""
    sink = LateRefusal()
    lane = {Sample: 64 * layout_of(Sample).slot_bytes}
    with Producer([Sample], settings=settings, lane_bytes=lane) as producer, writing(settings, sink) as writer:
        append = producer.appender(Sample).append

        def put(first: int, count: int) -> None:
            for number in range(first, first + count):
                assert append(number, text_of(number))

        put(0, 10)
        assert sink.is_sending.wait(60)
        put(10, 2)
        eventually(lambda: sink.encoded == 2, "the second request, the last that is held")
        put(12, 48)
        eventually(lambda: writer._refuge.spooled_rows == 60, "all to be put away while the server is silent")
        put(60, 40)  # over the slots of the first ten
        sink.go_on.set()
        eventually(lambda: writer._refuge.dead_letters == 1, "the dead letter")
        eventually(lambda: len(sink.rows(Sample)) == 99, "all others")
    lines = [
        line
        for path in (settings.spool_path / "dead_letters").glob("*.ndjson")
        for line in path.read_text().splitlines()
    ]
    letters = [letter for letter in map(msgspec.json.decode, lines) if "seq" in letter]
    assert [(letter["seq"], letter["record"]["number"], letter["record"]["text"]) for letter in letters] == [
        (5, 5, text_of(5))
    ]


class SlowSearch(MemorySink):
    """Refuses the record of number 5, and answers the requests that look for it only once `go_on` is set."""

    def __init__(self) -> None:
        super().__init__(lambda row: "poison" if row.get("number") == 5 else None)
        self.is_searching, self.go_on = threading.Event(), threading.Event()
        self._was_refused = False

    def send(self, request: Request) -> Receipt:
        if self._was_refused:
            self.is_searching.set()
            assert self.go_on.wait(60)
        try:
            return super().send(request)
        except ServerRefused:
            self._was_refused = True
            raise


def test_a_search_for_refused_rows_fills_no_lane(settings: Settings) -> None:
    """While the rows at fault in one table's batch are looked for, other tables' lanes go to the spool: none fills."""
    sink = SlowSearch()
    lane = {LatencySample: 64 * layout_of(LatencySample).slot_bytes}
    with (
        Producer([Sample, LatencySample], settings=settings, lane_bytes=lane) as producer,
        writing(settings, sink) as writer,
    ):
        for number in range(10):
            assert producer.appender(Sample).append(number, text_of(number))
        assert sink.is_searching.wait(60)
        latency = producer.appender(LatencySample).append
        for part in range(1, 4):
            assert all(latency("s", "o", float(number)) for number in range(60))
            eventually(lambda part=part: writer._refuge.spooled_rows == 60 * part, "the lane to be put away")
        assert sink.rows(LatencySample) == []
        sink.go_on.set()
        eventually(lambda: len(sink.rows(LatencySample)) == 180, "all latencies")
        eventually(lambda: len(sink.rows(Sample)) == 9, "the samples beside the refused one")
        eventually(lambda: writer._refuge.dead_letters == 1, "the dead letter")


class Stuck(MemorySink):
    """Answers no request until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def send(self, request: Request) -> Receipt:
        assert self.go_on.wait(60)
        return super().send(request)


def test_21_the_board_follows_the_disk_while_a_request_is_waited_for(settings: Settings) -> None:
    """What the disk has is said at the next look, whatever a request takes; between two looks lies a second at most.

    Defence: the board is looked after while a batch waits for room.
    """
    assert SAMPLE_INTERVAL_SECONDS <= 1.0
    assert POLL_SECONDS <= 1.0
    room = [1000]
    rows = 2 * REQUEST_ROWS + 10  # two requests under way, and a lane too empty to go to the spool instead of waiting
    sink = Stuck()
    settings = msgspec.structs.replace(settings, drain_interval_ms=600_000, high_water_ratio=0.9)
    with Producer([Sample], settings=settings) as producer:
        for number in range(rows):
            assert producer.appender(Sample).append(number, text_of(number))
        with writing(settings, sink) as writer:
            board = writer._board
            try:
                eventually(lambda: not writer._delivery.has_room, "requests under way")
                writer._pressure.watch(Watch(Resource.SPOOL_DISK, "here", Thresholds.of_disk(100), lambda: room[0]))
                for left, reason in ((0, BoardReason.DISK_FULL), (1000, BoardReason.ACCEPTING)):
                    room[0] = left
                    eventually(lambda reason=reason: board.reason is reason, "the board to say so")
                    assert not sink.rows(Sample), "a request ended: this run proves nothing"
            finally:
                sink.go_on.set()
            eventually(lambda: len(sink.rows(Sample)) == rows, "the records")


def test_full_lanes_wait_for_no_request_however_rare_the_ticks(settings: Settings) -> None:
    """A lane that fills while a batch waits for room goes to the spool, though the next tick is far."""
    sink = Stuck()
    settings = msgspec.structs.replace(settings, drain_interval_ms=600_000)
    lane = {Sample: 512 * layout_of(Sample).slot_bytes}
    with Producer([Sample], settings=settings, lane_bytes=lane) as producer:
        append = producer.appender(Sample).append
        assert all(append(number, text_of(number)) for number in range(3 * REQUEST_ROWS))
        with writing(settings, sink) as writer:
            try:
                eventually(lambda: not writer._delivery.has_room, "requests under way")
                assert all(append(number, text_of(number)) for number in range(3 * REQUEST_ROWS, 512))
                eventually(lambda: writer._refuge.spooled_rows > 512 - REQUEST_ROWS, "the lane to be put away")
                assert not sink.rows(Sample), "a request ended: this run proves nothing"
            finally:
                sink.go_on.set()
            eventually(lambda: len(sink.rows(Sample)) > 512 - REQUEST_ROWS, "the replay")
    assert len(sink.rows(Sample)) == 512


def test_lanes_wait_for_no_library(settings: Settings) -> None:
    """While the sink is still loading a lane that fills up goes to the spool; then all is delivered."""
    loading: Future[Sink] = Future()
    sink = OrderedSink()
    with Producer([Sample], settings=settings, lane_bytes={Sample: 32_768}) as producer:
        appender = producer.appender(Sample)
        assert appender.room < ROWS // 2
        with writing(settings, loading) as writer:
            for number in range(ROWS):
                eventually(lambda at=number: appender.append(at, text_of(at)), "room")  # type: ignore[misc]
            assert writer._refuge.spooled_rows > 0
            loading.set_result(sink)
            eventually(lambda: len(sink.rows(Sample)) == ROWS, "all rows")
    assert sink.numbers == list(range(ROWS))


class Loading(Future[Sink]):
    """The future of a sink; it counts how often it is looked at."""

    looked_at = 0

    def done(self) -> bool:
        self.looked_at += 1
        return super().done()


def test_a_stop_waits_for_what_still_loads(settings: Settings) -> None:
    """Stopped while its sink is loading, a writer delivers what the lanes hold as soon as it has one."""
    loading, sink = Loading(), OrderedSink()
    with Producer([Sample], settings=settings) as producer:
        with writing(settings, loading) as writer:
            assert producer.appender(Sample).append(1, text_of(1))
            writer.stop()
            before = loading.looked_at
            try:
                eventually(lambda: loading.looked_at > before + 10, "the last drain to go round")
            finally:
                loading.set_result(sink)  # which a writer that ends waits for
        assert sink.numbers == [1]
        assert writer._refuge.spooled_rows == 0


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["left", "killed"])
def test_lanes_of_the_dead_wait_for_no_library(settings: Settings, end: str) -> None:
    """Finding 5: while the sink is still loading, the lane of an owner that is gone is put into the spool and removed,
    few as its records are; a writer that is stopped then delivers them before it ends."""
    settings = msgspec.structs.replace(settings, lane_linger_ms=50)
    script = "for number in range(3): assert appender.append(number, text_of(number))\n"
    with child(settings, script + (end or "producer.close()")) as producer:
        producer.ended(None)
    loading, sink = Loading(), OrderedSink()
    with writing(settings, loading) as writer:
        eventually(lambda: not cards(Instance(settings)), "the lane to be removed")
        assert writer._refuge.spooled_rows == 3
        writer.stop()
        before = loading.looked_at
        try:
            eventually(lambda: loading.looked_at > before + 10, "the last drain to go round")
        finally:
            loading.set_result(sink)
    assert sink.numbers == [0, 1, 2]


def test_writers_killed_again_and_again_come_to_the_removal(settings: Settings) -> None:
    """Finding 5: how long a dead owner's lane stands still outlives the writer that saw it first."""
    settings = msgspec.structs.replace(settings, lane_linger_ms=300)
    with child(settings, "os.kill(os.getpid(), signal.SIGKILL)") as producer:
        producer.ended(None)

    def looked_once() -> bool:  # as a writer does that is killed after its first tick
        directory = LaneDirectory(Instance(settings))
        directory.refresh()
        directory.adopt()
        directory.close()
        return not cards(Instance(settings))

    assert not looked_once()
    eventually(looked_once, "the lane to be removed by a later one")


def test_a_sink_that_cannot_be_made(settings: Settings) -> None:
    """What its making raises ends the writer with that error; what the lanes hold stays there."""
    loading: Future[Any] = Future()
    with Producer([Sample], settings=settings) as producer:
        assert producer.appender(Sample).append(1, text_of(1))

        def run() -> None:
            with writing(settings, loading):
                loading.set_exception(ConfigurationError("got no sink"))

        with pytest.raises(ConfigurationError, match="got no sink"):
            run()
        sink = OrderedSink()
        with writing(settings, sink):
            eventually(lambda: sink.numbers == [1], "the record")
