"""The producer: opening, every way to append, refusals by reason, and the ends of a process."""

from __future__ import annotations

import asyncio
import datetime
import sys
import time
from typing import Annotated, Any

import numpy as np
import pytest
from lane_samples import Drained, Sample, child, eventually, text_of

import ringlog
from ringlog import AsyncProducer, Producer, rows_of
from ringlog.errors import LaneError, RecordError, RecordTypeError, RecordValueError
from ringlog.lanes.claims import BudgetExhausted, open_board
from ringlog.layout import BoardReason, Refused
from ringlog.records import (
    PLATFORM_RECORDS,
    LatencySample,
    Long,
    MevMetric,
    PerformanceMetric,
    Position,
    Record,
    Trade,
)
from ringlog.settings import Settings
from ringlog.testing import MemoryInstance

TRADE = Trade(
    trader_id="t1",
    mode="paper",
    action="buy",
    base_token="SOL",
    quote_token="USDC",
    base_amount=1.5,
    quote_amount=225.0,
    executed_price=150.0,
    transaction_fee=2**63 - 1,
    expected_slippage=0.001,
    actual_slippage=-0.002,
    mev_status="protected",
    mev_protected=True,
    metadata={"route": ["jupiter", None]},
    timestamp=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
)
OTHERS: list[Record] = [
    LatencySample(service="s", operation="o", latency_us=-1.5),
    PerformanceMetric(metric_type="latency", operation="o", value=1.0, percentile=99, tags={"a": 1}),
    MevMetric(
        token_pair="SOL/USDC",
        trade_size=1.0,
        sandwich_probability=0.5,
        estimated_loss_bps=1.0,
        protection_used=True,
        priority_fee_lamports=5,
        avoided=False,
    ),
    Position(
        trader_id="t",
        mode="live",
        token="SOL",
        quantity=-1.0,
        average_entry_price=1.0,
        mark_price=2.0,
        realized_pnl=0.0,
        unrealized_pnl=-1.0,
    ),
]


def test_record_objects_of_every_type(ringlog_memory: MemoryInstance) -> None:
    """Every platform record is taken as an object, by its own method too, and read back field by field."""
    producer = ringlog_memory.producer()
    latency, performance, mev, position = OTHERS
    assert producer.record_trade(TRADE)
    assert producer.record_latency(latency)  # type: ignore[arg-type]
    assert producer.record_performance(performance)  # type: ignore[arg-type]
    assert producer.record_mev(mev)  # type: ignore[arg-type]
    assert producer.record_position(position)  # type: ignore[arg-type]
    assert all(producer.record(record) for record in [TRADE, *OTHERS])
    (row, _) = ringlog_memory.rows(Trade)
    assert row["metadata"] == '{"route":["jupiter",null]}'
    assert (row["timestamp"], row["transaction_fee"]) == (1_767_225_600_000_000, 2**63 - 1)
    assert (row["priority_fee"], row["tx_signature"]) == (None, None)
    for record in OTHERS:
        rows = ringlog_memory.rows(type(record))
        assert len(rows) == 2
        fields = {name: value for name, value in rows[0].items() if name not in ("lane", "seq", "timestamp", "tags")}
        assert fields == {name: getattr(record, name) for name in fields}


async def test_the_same_names_in_async_code(ringlog_memory: MemoryInstance) -> None:
    """AsyncProducer appends to the same lanes by the same names, from many tasks."""
    async with AsyncProducer(settings=ringlog_memory.settings) as producer:
        latency, performance, mev, position = OTHERS
        calls = [
            producer.record_trade(TRADE),
            producer.record_latency(latency),  # type: ignore[arg-type]
            producer.record_performance(performance),  # type: ignore[arg-type]
            producer.record_mev(mev),  # type: ignore[arg-type]
            producer.record_position(position),  # type: ignore[arg-type]
            *(producer.record(record) for record in [TRADE, *OTHERS] * 10),
        ]
        assert await asyncio.gather(*calls) == [True] * 55
        assert sum(sum(counts.values()) for counts in producer.refused().values()) == 0
        assert producer.appender(Trade).accepted == 11
    assert [len(ringlog_memory.rows(record_type)) for record_type in PLATFORM_RECORDS] == [11] * 5
    assert await producer.record(TRADE) is False


def test_objects_of_another_type(ringlog_memory: MemoryInstance) -> None:
    """A record type that the producer was not made for raises and names those it has."""
    producer = ringlog_memory.producer(Sample)
    with pytest.raises(RecordTypeError, match="wanted one of Sample"):
        producer.record(TRADE)
    with pytest.raises(RecordTypeError, match="Sample: got Trade, wanted Sample"):
        producer.appender(Sample).record(TRADE)


def test_a_bad_object_is_not_accepted(ringlog_memory: MemoryInstance) -> None:
    """A record object with a bad value raises as an append does."""
    producer = ringlog_memory.producer(LatencySample)
    with pytest.raises(RecordValueError, match=r"LatencySample\.latency_us: got nan"):
        producer.record(LatencySample(service="s", operation="o", latency_us=float("nan")))
    assert ringlog_memory.rows(LatencySample) == []


@pytest.mark.parametrize("name", ["timestamp", "price", "lane", "seq"])
def test_presets_that_cannot_be(ringlog_memory: MemoryInstance, name: str) -> None:
    """A timestamp is never preset, nor a field that the record type does not have."""
    with pytest.raises(RecordTypeError, match=f"Sample bind: got field '{name}', wanted one of number, text"):
        ringlog_memory.producer(Sample).appender(Sample).bind(**{name: 1})


@pytest.mark.parametrize(
    ("records", "got"), [(Trade, "Trade"), (None, "None"), ([int], "int"), (["trades"], "'trades'"), ([Trade, 5], "5")]
)
def test_a_producer_of_no_record_types(records: Any, got: str) -> None:
    """What is no list of record types is refused by name, with what was wanted; one type alone is no list."""
    with pytest.raises(RecordTypeError, match=rf"producer: got .*{got}.*, wanted .*Trade"):
        Producer(records)


class First(Record):
    """A record type before a field was added to it."""

    __table__ = "grown"
    price: float


class Second(Record):
    """And after."""

    __table__ = "grown"
    price: float
    slot: Annotated[int | None, Long()] = None


@pytest.mark.parametrize("record_type", [First, Second])
def test_a_time_is_passed_by_name_alone(ringlog_memory: MemoryInstance, record_type: type[Record]) -> None:
    """Finding 9: no call passes a time by its place, so that a field which is added later cannot take it.

    The call of `First` with a time by name means the same with `Second`; bound, and as an object, too.
    """
    stamp = 1_767_225_600_000_000
    appender = ringlog_memory.producer(record_type).appender(record_type)
    fields = len(appender.layout.fields) - 1
    for append, names in ((appender.append, fields), (appender.bind(price=1.0), fields - 1)):
        values = (1.0, None)[fields - names : fields]
        with pytest.raises(RecordTypeError, match=rf"got {names + 1} values by position, .* time as timestamp="):
            append(*values, stamp)
    assert appender.append(1.0, timestamp=stamp)
    assert appender.bind(price=2.0)(timestamp=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
    assert appender.record(record_type(price=3.0, timestamp=stamp))  # type: ignore[call-arg]
    rows = ringlog_memory.rows(record_type)
    assert [(row["price"], row["timestamp"], row.get("slot")) for row in rows] == [
        (price, stamp, None) for price in (1.0, 2.0, 3.0)
    ]


def test_append_many(ringlog_memory: MemoryInstance) -> None:
    """A checked array is appended as a whole, in order, strided or not; a bad row accepts nothing."""
    appender = ringlog_memory.producer(Sample).appender(Sample)
    rows = rows_of(Sample, {"number": range(20), "text": [text_of(number) for number in range(20)]})  # type: ignore[dict-item]
    assert appender.append_many(rows[::2]) == 10
    assert appender.append_many(rows[:0]) == 0
    stored = ringlog_memory.rows(Sample)
    assert [row["number"] for row in sorted(stored, key=lambda row: row["seq"])] == list(range(0, 20, 2))
    rows["text"]["length"][7] = 500
    with pytest.raises(RecordValueError, match=r"Sample\.text: got .* in row 7"):
        appender.append_many(rows)
    with pytest.raises(RecordTypeError):
        appender.append_many(np.zeros(3))
    assert len(ringlog_memory.rows(Sample)) == 10


def test_refusals_are_counted_by_reason(lane_settings: Settings) -> None:
    """Full, board and closed: False each time, counted by reason and named by refused_reason."""
    producer = Producer([Sample], settings=lane_settings, lane_bytes={Sample: 1024}).open()
    appender = producer.appender(Sample)
    assert appender.refused_reason() is None
    accepted = [appender.append(number, text_of(number)) for number in range(10)]
    assert accepted.count(True) == appender.accepted == 1024 // appender.layout.slot_bytes
    assert appender.refused_reason() == "full"
    board = open_board(producer.instance)
    for reason in (BoardReason.DISK_FULL, BoardReason.SPOOL_FULL, BoardReason.MEMORY, BoardReason.STOPPED):
        board.refuse(reason)
        assert appender.append(1, "") is False
        assert appender.refused_reason() == f"board: {reason.name.lower()}"
    board.refuse(BoardReason.ACCEPTING)
    assert appender.refused_reason() == "board"
    producer.close()
    assert appender.append(1, "") is False
    assert appender.append_many(rows_of(Sample, {"number": [1], "text": [""]})) == 0
    assert appender.refused_reason() == "closed"
    counts = {"full": accepted.count(False), "board": 4, "closed": 2}
    assert producer.refused() == {"samples": {reason.name.lower(): 0 for reason in Refused} | counts}


def test_over_budget(lane_settings: Settings) -> None:
    """Opening over the budget raises and leaves no lane; an append that finds none is refused, until one is free."""
    first = Producer([Sample], settings=lane_settings, lane_bytes={Sample: 2 << 20}).open()
    second = Producer([Sample, LatencySample], settings=lane_settings, lane_bytes={LatencySample: 4 << 20})
    with pytest.raises(BudgetExhausted, match="lane for LatencySample"):
        second.open()
    drained = Drained(lane_settings)
    eventually(
        lambda: (drained.drain(), drained.directory.adopt(), len(drained.cards()) == 1)[-1], "the half-open lane"
    )
    lazy = Producer([Sample], settings=lane_settings, lane_bytes={Sample: 3 << 20})
    appender = lazy.appender(Sample)
    assert appender.append(1, text_of(1)) is False
    assert appender.refused_reason() == "budget"
    assert appender.refused()["budget"] == 1
    first.close()

    def accepted() -> bool:
        drained.drain()
        drained.directory.adopt()
        return appender.append(2, text_of(2))

    eventually(accepted, "an append after the budget is free")
    assert drained.numbers() == [2]
    lazy.close()


def test_open_again(lane_settings: Settings) -> None:
    """A closed producer can be opened again, with a lane of its own."""
    producer = Producer([Sample], settings=lane_settings)
    for number in range(3):
        with producer:
            assert producer.appender(Sample).append(number, text_of(number))
        assert producer.appender(Sample).append(99, text_of(99)) is False
    drained = Drained(lane_settings)
    assert sorted(drained.numbers()) == [0, 1, 2]
    assert len({row["lane"] for row in drained.rows}) == 3


def test_without_a_place(tmp_path: Any) -> None:
    """A runtime directory that cannot be made: open raises by name; an append is refused, never raises."""
    (tmp_path / "file").write_text("")
    settings = Settings(runtime_dir=str(tmp_path / "file" / "below"))
    producer = Producer([Sample], settings=settings)
    with pytest.raises(LaneError, match="file/below: got Not a directory, wanted a directory that this user can make"):
        producer.open()
    assert Producer([Sample], settings=settings).appender(Sample).append(1, "") is False


@pytest.mark.parametrize("name", ringlog.__all__)
def test_windows_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """On Windows every public name says what is wanted, before a module is loaded that cannot be loaded there."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        with pytest.raises(ImportError, match=r"^ringlog: got Windows, wanted Linux or macOS \(WSL 2 is Linux\)$"):
            getattr(ringlog, name)
    assert getattr(ringlog, name).__name__ == name


def test_a_retired_lane_is_left_with_everything(lane_settings: Settings) -> None:
    """An owner whose lane was adopted by mistake goes on in a new one; both are drained."""
    with Producer([Sample], settings=lane_settings) as producer:
        append = producer.appender(Sample).append
        drained = Drained(lane_settings)
        for number in range(100):
            assert append(number, text_of(number))
            if number % 25 == 10:
                drained.drain()
                for lane in drained.directory.lanes.values():
                    lane.retire()
        assert sorted(drained.numbers()) == list(range(100))
        assert len({row["lane"] for row in drained.rows}) == 5


ENDS = {
    "atexit": "import atexit\natexit.register(lambda: appender.append(1, text_of(1)))",
    "atexit after close": "import atexit\natexit.register(lambda: appender.append(1, text_of(1)))\nproducer.close()",
    "a daemon thread": """
def forever():
    number = 0
    while True:
        appender.append(number, text_of(number))
        number += 1
threading.Thread(target=forever, daemon=True).start()
while appender.accepted < 100: pass
""",
    "a finaliser": """
class Finalised:
    def __del__(self):
        appender.append(1, text_of(1))
kept = Finalised()
kept.cycle = kept
""",
    "a finaliser at module teardown": """
class Finalised:
    def __init__(self): self.append = appender.append
    def __del__(self): self.append(1, "1:x")
sys.finalised = Finalised()
""",
    "a cycle of the appender": """
import gc
class Holder:
    def __init__(self): self.append, self.me, self.producer = appender.append, self, producer
    def __del__(self): self.append(1, "1:x")
Holder()
del appender, producer
gc.collect()
""",
    "a thread that outlives main": """
def late():
    while threading.main_thread().is_alive(): pass
    for number in range(100): appender.append(number, text_of(number))
threading.Thread(target=late).start()
""",
}


@pytest.mark.parametrize("end", ENDS)
def test_appends_at_the_end_of_a_process(lane_settings: Settings, end: str) -> None:
    """From atexit, daemon threads, finalisers and late threads: no crash, nothing on stderr, whole records only."""
    with child(lane_settings, ENDS[end]) as process:
        assert process.ended() == ""
    drained = Drained(lane_settings)
    numbers = drained.numbers()
    too_late = {
        "atexit after close",
        "a finaliser at module teardown",
    }  # the Python ring's own modules are gone by then
    if end not in too_late or numbers:
        assert numbers == list(range(len(numbers))) or numbers == [1]
        assert numbers
    drained.until_gone()


def test_threads_of_a_process_share_its_lane(lane_settings: Settings) -> None:
    """Threads append through one producer, one bound append each: one lane, every record, none mixed."""
    script = """
def work(first):
    append = appender.bind()
    for number in range(first, first + 300):
        while not append(number, text_of(number)): pass
threads = [threading.Thread(target=work, args=(first * 300,)) for first in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    with child(lane_settings, script) as process:
        process.ended()
    drained = Drained(lane_settings)
    assert sorted(drained.numbers()) == list(range(1200))
    assert len({row["lane"] for row in drained.rows}) == 1


def test_a_signal_handler_that_closes(lane_settings: Settings) -> None:
    """A handler that closes the producer in the middle of appends: no exception, afterwards False."""
    script = """
def handler(*_):
    producer.close()
    handled.append(1)
handled = []
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.05)
number = 0
while not handled:
    number += appender.append(number, text_of(number))
assert not appender.append(number, text_of(number))
say(number)
"""
    with child(lane_settings, script) as process:
        accepted = int(process.line())
        assert process.ended() == ""
    assert Drained(lane_settings).numbers() == list(range(accepted))


def test_every_error_is_a_record_error(ringlog_memory: MemoryInstance) -> None:
    """Whatever is passed, append raises RecordError and nothing else; the time of day stays bounded."""
    append = ringlog_memory.producer(Sample).appender(Sample).append
    for wrong in (object(), [], {}, b"", 1.5, "x", None, float("nan"), 2**64, time):
        with pytest.raises(RecordError):
            append(wrong, "text")
        if not isinstance(wrong, str):
            with pytest.raises(RecordError):
                append(1, wrong)
        with pytest.raises(RecordError):
            append(1, "text", wrong if wrong is not None else "now")
    assert ringlog_memory.rows(Sample) == []
