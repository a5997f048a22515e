"""Wrong input is seen: counted by producer and record type, logged now and then, and refused where it may not raise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from lane_samples import Sample, text_of

from ringlog import AsyncProducer, Producer, rows_of
from ringlog.cli.top import top
from ringlog.errors import ConfigurationError, RecordError, RecordTypeError
from ringlog.lanes.claims import cards
from ringlog.layout import Refused
from ringlog.monitor.metrics import InstanceCollector
from ringlog.monitor.snapshot import Observer
from ringlog.producer import Appender
from ringlog.records import LatencySample, Trade
from ringlog.settings import Settings
from ringlog.testing import MemoryInstance

WRONG_ROWS = rows_of(LatencySample, {"service": ["s"] * 3, "operation": ["o"] * 3, "latency_us": [1.0] * 3})
WRONG_ROWS["latency_us"][1] = np.nan
# What a caller may get wrong, and how many records that is.
WRONG: list[tuple[str, Callable[[Appender], Any], int]] = [
    ("value", lambda to: to.append("s", "o", "no number"), 1),
    ("value by name", lambda to: to.append(service="s", operation="o", latency_us=float("nan")), 1),
    ("missing", lambda to: to.append("s", "o"), 1),
    ("unknown", lambda to: to.append("s", "o", 1.0, price=2.0), 1),
    ("twice", lambda to: to.append("s", "o", 1.0, service="t"), 1),
    ("too many", lambda to: to.append("s", "o", 1.0, 2.0, 3.0), 1),
    ("a time by position", lambda to: to.append("s", "o", 1.0, 1_767_225_600_000_000), 1),
    ("time", lambda to: to.append("s", "o", 1.0, timestamp=5), 1),
    ("bound", lambda to: to.bind(service="s")("o", None), 1),
    ("bound, missing", lambda to: to.bind(service="s")("o"), 1),
    ("object", lambda to: to.record(LatencySample(service="s", operation="o", latency_us=float("inf"))), 1),
    ("object of another type", lambda to: to.record(Sample(number=1, text="")), 1),  # type: ignore[arg-type]
    ("rows", lambda to: to.append_many(WRONG_ROWS), 3),
    ("rows of another type", lambda to: to.append_many(np.zeros(4)), 4),
    ("no rows", lambda to: to.append_many(None), 1),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("is_open", [True, False], ids=["claimed", "before the claim"])
@pytest.mark.parametrize(("call", "rows"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_input_is_counted(ringlog_memory: MemoryInstance, call: Any, rows: int, is_open: bool) -> None:
    """Finding 11: whatever is wrong raises as ever, counts as `invalid`, and leaves the lane as it was.

    With on_invalid="refuse" the same call returns False (0 for rows) and counts the same. Where no lane was claimed
    yet, the next one's words take the count over, for that is where `top` and the metrics see it.
    """
    for options in ({}, {"on_invalid": "refuse"}):
        producer = Producer([LatencySample], settings=ringlog_memory.settings, **options)  # type: ignore[arg-type]
        if is_open:
            producer.open()
        appender = producer.appender(LatencySample)
        if options:
            answer = call(appender)
            assert answer == 0
            assert isinstance(answer, bool) or rows > 1 or answer == 0
        else:
            with pytest.raises(RecordError, match="LatencySample"):
                call(appender)
        assert {name: count for name, count in appender.refused().items() if count} == {"invalid": rows}
        assert appender.refused_reason() == "invalid"
        assert appender.append("s", "o", 1.0) is True
        assert appender.accepted == 1
        assert {name: count for name, count in producer.refused()["latencies"].items() if count} == {"invalid": rows}
        lanes = [lane for lane in observed(ringlog_memory.settings) if lane.owner == "alive"]
        assert [lane.refused for lane in lanes] == [{"invalid": rows}]
        producer.close()


def observed(settings: Settings) -> list[Any]:
    observer = Observer(settings)
    try:
        return observer.look().lanes
    finally:
        observer.close()


def test_wrong_input_is_visible(ringlog_memory: MemoryInstance) -> None:
    """Finding 11: `ringlog top` and the metrics show `invalid` by lane and record type."""
    from click.testing import CliRunner

    appender = ringlog_memory.producer(LatencySample, on_invalid="refuse").appender(LatencySample)
    assert [appender.append("s", "o", None) for _ in range(3)] == [False] * 3
    samples = [
        sample
        for family in InstanceCollector(ringlog_memory.settings).collect()
        for sample in family.samples
        if sample.name == "ringlog_lane_refused_records_total"
    ]
    assert [(sample.labels["record"], sample.labels["reason"], sample.value) for sample in samples] == [
        ("LatencySample", "invalid", 3)
    ]
    shown = CliRunner().invoke(top, ["--once"], env={**ringlog_memory.settings.to_environment(), "COLUMNS": "160"})
    assert "3 invalid" in shown.output, shown.output


async def test_the_async_producer_refuses_too(ringlog_memory: MemoryInstance) -> None:
    """on_invalid="refuse" is an option of AsyncProducer; records of a type without an appender are refused, too."""
    async with AsyncProducer([LatencySample], settings=ringlog_memory.settings, on_invalid="refuse") as producer:
        wrong = LatencySample(service="s" * 99, operation="o", latency_us=1.0)
        assert [await producer.record(wrong), await producer.record_latency(wrong)] == [False, False]
        assert await producer.record_latency(Sample(number=1, text="")) is False  # type: ignore[arg-type]
        assert await producer.record(Sample(number=1, text="")) is False
        assert await producer.record_trade("no trade") is False  # type: ignore[arg-type]
        assert producer.refused()["latencies"]["invalid"] == 3
        assert await producer.record(LatencySample(service="s", operation="o", latency_us=1.0))


def test_what_else_on_invalid_may_be(ringlog_memory: MemoryInstance) -> None:
    """Another word than the two is refused by name; presets raise whatever it is, for they are bound at start."""
    with pytest.raises(ConfigurationError, match="got on_invalid='ignore', wanted 'raise' or 'refuse'"):
        ringlog_memory.producer(Sample, on_invalid="ignore")
    appender = ringlog_memory.producer(Sample, on_invalid="refuse").appender(Sample)
    with pytest.raises(RecordTypeError, match=r"Sample\.number: got str"):
        appender.bind(number="one")
    assert sum(appender.refused().values()) == 0


def test_the_log_has_a_line_now_and_then(ringlog_memory: MemoryInstance, caplog: pytest.LogCaptureFixture) -> None:
    """Finding 11: the first wrong input of a record type is logged with its error, a thousand more are not."""
    appender = ringlog_memory.producer(Sample, on_invalid="refuse").appender(Sample)
    with caplog.at_level(logging.WARNING, "ringlog"):
        for _ in range(1000):
            assert appender.append("one", "\x1b[2J") is False
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "record=Sample invalid=1 so far, the latest: Sample.number: got str 'one', wanted an int"
    assert appender.refused()["invalid"] == 1000


class Hostile(logging.Handler, logging.Filter):
    """A host's logging that raises wherever it is asked."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError("hostile")

    filter = emit  # type: ignore[assignment]


class HostileLogger(logging.Logger):
    """A logger of a host's own class."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 (logging's name)
        raise ValueError("hostile")


@pytest.fixture(params=["handler", "filter", "class"])
def hostile_logging(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every logging call of the producer raises."""
    logger = logging.getLogger("ringlog.producer")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    hostile = Hostile()
    if request.param == "handler":
        logger.addHandler(hostile)
    elif request.param == "filter":
        logger.addFilter(hostile)
    else:
        logger.__class__ = HostileLogger
    yield
    logger.removeHandler(hostile)
    logger.removeFilter(hostile)
    logger.__class__ = logging.Logger
    logger.setLevel(before)


@pytest.mark.usefixtures("hostile_logging")
def test_logging_decides_over_no_append(ringlog_memory: MemoryInstance) -> None:
    """Finding 12: with logging that raises, the first append claims and is accepted, wrong input raises its own error.

    So do opening, a refusal for want of a lane, and closing; no lane is claimed by halves.
    """
    settings = ringlog_memory.settings
    producer = Producer([Sample], settings=settings)
    appender = producer.appender(Sample)
    assert appender.append(1, text_of(1)) is True
    with pytest.raises(RecordTypeError, match=r"Sample\.number"):
        appender.append("one", "")
    assert len(cards(producer.instance)) == 1
    producer.close()
    with Producer([Sample], settings=settings, on_invalid="refuse") as opened:
        assert opened.appender(Sample).append("one", "") is False
        assert opened.record(LatencySample(service="s", operation="o", latency_us=1.0)) is False
    lazy = Producer([Trade], settings=settings, lane_bytes={Trade: 1 << 40}).appender(Trade)
    assert lazy.append(*("t", "paper", "buy", "a", "b", 1.0, 1.0, 1.0, 1, 1, 0.1, 0.1, "protected", True)) is False
    assert len(cards(producer.instance)) == 2
    assert [row["number"] for row in ringlog_memory.rows(Sample)] == [1]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_comes_through(ringlog_memory: MemoryInstance, interrupt: type[BaseException]) -> None:
    """Finding 12: KeyboardInterrupt and SystemExit of a value's own code reach the caller, uncounted; the ring goes on.

    Also with on_invalid="refuse", and from a host's handler.
    """

    class Interrupts(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise interrupt

        __iter__ = keys = __len__ = __repr__ = items  # type: ignore[assignment]

    class Float(float):
        def __repr__(self) -> str:
            raise interrupt

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise interrupt

    appender = ringlog_memory.producer(LatencySample, on_invalid="refuse").appender(LatencySample)
    for value in (Interrupts(), Float("nan")):
        with pytest.raises(interrupt):
            appender.append("s", "o", value)
        assert appender.append("s", "o", 1.0) is True
    assert sum(appender.refused().values()) == 0
    handler = Handler()
    logging.getLogger("ringlog.producer").addHandler(handler)
    try:
        with pytest.raises(interrupt):
            appender.append("s", "o", "wrong")
    finally:
        logging.getLogger("ringlog.producer").removeHandler(handler)
    assert appender.refused()["invalid"] == 1
    assert appender.append("s", "o", 2.0) is True
    assert [row["latency_us"] for row in ringlog_memory.rows(LatencySample)] == [1.0, 1.0, 2.0]


def test_a_reason_for_every_word() -> None:
    """Reasons are numbers without a gap, that a segment has words for: `refused()` names each word."""
    assert sorted(Refused) == list(range(len(Refused)))
