"""Both rings, one suite: what an append writes, accepts and refuses."""

from __future__ import annotations

import gc
import sys
import time
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import pytest
from ring_memory import RINGS, SLOTS_AT, WORDS, Lane, RingUnderTest, module, plain, refusals

from ringlog.errors import RecordTypeError, RecordValueError
from ringlog.layout import HEAD_OFFSET, REFUSED_OFFSET, STATE_OFFSET, TAIL_OFFSET, Refused
from ringlog.records import Record, Symbol, Varchar

FIRST_MULTIPLIER = 0x9E3779B1  # by which the C ring finds the place of a symbol, one of eight, at first
STAMP = 1_767_225_600_000_000
ROW = ("sol", "left", "text", '{"a":1}', 1.5, 0.25, 7, 95, True)


@pytest.fixture(params=RINGS)
def implementation(request: pytest.FixtureRequest) -> ModuleType:
    """The C ring, then the Python ring."""
    return module(request.param)


@pytest.fixture
def ring(implementation: ModuleType) -> RingUnderTest:
    """A ring of eight slots."""
    return RingUnderTest(implementation)


def test_positional_append_is_published_as_it_was_given(ring: RingUnderTest) -> None:
    """An accepted record lies in its slot, value for value, and the head says so."""
    assert ring.append(*ROW, timestamp=STAMP) is True
    assert ring.lane.head == 1
    assert plain(ring.layout, ring.lane.slots(0, 1)[0]) == {
        "seq": 0,
        "symbol": "sol",
        "choice": "left",
        "text": "text",
        "document": '{"a":1}',
        "number": 1.5,
        "share": 0.25,
        "whole": 7,
        "percent": 95,
        "flag": True,
        "timestamp": STAMP,
    }


def test_keywords_in_any_order_mean_the_same(ring: RingUnderTest) -> None:
    """Keyword order does not matter, and another call site with other names does not disturb the first."""

    def first() -> bool:
        return ring.append(number=1.0, symbol="a", choice="left", timestamp=STAMP)

    def second() -> bool:
        return ring.append("b", choice="right", flag=True, number=2.0, timestamp=STAMP)

    for call in (first, second, first, second):
        assert call()
    assert [(row["symbol"]["bytes"].tobytes()[:1], row["number"]) for row in ring.lane.slots(0, 4)] == [
        (b"a", 1.0),
        (b"b", 2.0),
    ] * 2


def test_names_that_are_not_interned_are_found(ring: RingUnderTest) -> None:
    """Keyword names built at run time name the same fields."""
    names = ["".join(("sym", "bol")), "".join(("choi", "ce")), "".join(("num", "ber"))]
    assert ring.append(**dict(zip(names, ("s", "right", 2.0), strict=True)))
    assert plain(ring.layout, ring.lane.slots(0, 1)[0])["choice"] == "right"


def test_fields_left_out_take_their_default(ring: RingUnderTest) -> None:
    """A field with a default may be left out; the timestamp is stamped inside append."""
    before = time.time_ns() // 1000
    assert ring.append("s", "left", number=0.0)
    row = plain(ring.layout, ring.lane.slots(0, 1)[0])
    assert (row["text"], row["document"], row["share"], row["whole"]) == (None, None, None, None)
    assert (row["percent"], row["flag"]) == (50, False)
    assert before <= row["timestamp"] <= time.time_ns() // 1000


def test_null_is_not_the_empty_string(ring: RingUnderTest) -> None:
    """None is NULL and '' is a text of no bytes."""
    ring.append("", "left", None, None, 0.0)
    ring.append("", "left", "", None, 0.0)
    rows = [plain(ring.layout, row) for row in ring.lane.slots(0, 2)]
    assert [(row["symbol"], row["text"]) for row in rows] == [("", None), ("", "")]


def test_presets_are_written_into_every_record(ring: RingUnderTest) -> None:
    """A bound append writes its presets and takes the other fields in their order."""
    append = ring.bind(symbol="preset", text="läuft", whole=None, percent=99, flag=True)
    for number in range(10):
        ring.lane.set_word(TAIL_OFFSET, ring.lane.head)
        assert append("right", None, float(number))
    rows = [plain(ring.layout, row) for row in ring.lane.slots(2, 8)]
    assert {(row["symbol"], row["text"], row["whole"], row["percent"], row["flag"]) for row in rows} == {
        ("preset", "läuft", None, 99, True)
    }
    assert [row["number"] for row in rows] == [float(number) for number in range(2, 10)]


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 16, 17, 60])
def test_symbols_that_come_again(ring: RingUnderTest, count: int) -> None:
    """However many symbols there are and in whatever order they come again, each record has its own; none is leaked."""
    rng = np.random.default_rng(count)
    symbols = [f"{number}" * (1 + number % 6) for number in range(count)]
    held = [sys.getrefcount(symbol) for symbol in symbols]
    append = ring.bind()
    for _ in range(40 * count):
        ring.lane.set_word(TAIL_OFFSET, ring.lane.head)
        symbol = symbols[rng.integers(count)]
        assert append(symbol, "left", number=1.0)
        assert plain(ring.layout, ring.lane.slots(ring.lane.head - 1, 1)[0])["symbol"] == symbol
    del append
    gc.collect()
    del symbol
    assert [sys.getrefcount(symbol) for symbol in symbols] == held


@pytest.mark.parametrize("count", [2, 3, 4])
def test_symbols_that_meet_at_one_place_are_all_kept(count: int) -> None:
    """The C ring moves symbols whose addresses lead to one place apart, so that it need not read any of them again."""
    ring = RingUnderTest(module("_ring"))
    by_place: dict[int, list[str]] = {}
    while max(map(len, by_place.values()), default=0) < count:
        symbol = f"symbol {sum(map(len, by_place.values()))}"
        by_place.setdefault((id(symbol) >> 4) * FIRST_MULTIPLIER % 2**32 >> 29, []).append(symbol)
    met = max(by_place.values(), key=len)
    del symbol
    held = [sys.getrefcount(symbol) for symbol in met]
    for symbol in met * 3:
        assert ring.append(symbol, "left", number=1.0)
        ring.lane.set_word(TAIL_OFFSET, ring.lane.head)
    del symbol
    assert [sys.getrefcount(symbol) for symbol in met] == [references + 1 for references in held]


def test_appenders_of_one_ring_share_its_order(ring: RingUnderTest) -> None:
    """Several bound appends of a ring number their records in one sequence."""
    bound = [ring.bind(symbol=symbol) for symbol in ("a", "b", "c")]
    for append in bound * 2:
        assert append("left", number=1.0)
    assert [plain(ring.layout, row)["symbol"] for row in ring.lane.slots(0, 6)] == list("abcabc")
    assert [int(row["seq"]) for row in ring.lane.slots(0, 6)] == list(range(6))


def test_appenders_follow_their_ring_from_lane_to_lane(ring: RingUnderTest) -> None:
    """What is appended goes to the lane that the ring has now, also where an appender was dropped or made meanwhile."""
    first, bound = ring.lane, {symbol: ring.bind(symbol=symbol) for symbol in ("a", "b", "c")}
    assert all(append("left", number=1.0) for append in bound.values())
    del bound["b"]
    gc.collect()
    ring.attach(Lane(ring.layout, 4))
    bound["d"] = ring.bind(symbol="d")
    assert all(append("left", number=2.0) for append in bound.values())
    ring.ring.detach()
    assert (ring.ring.head, [append("left", number=3.0) for append in bound.values()]) == (3, [False] * 3)
    ring.attach(first)
    assert bound["d"]("left", number=4.0)
    assert [(row["symbol"]["bytes"].tobytes()[:1], row["number"]) for row in first.slots(0, 4)] == [
        (b"a", 1.0),
        (b"b", 1.0),
        (b"c", 1.0),
        (b"d", 4.0),
    ]


# More symbols, and wider ones, than the page of an appender holds.
ManySymbols = type(Record)(
    "ManySymbols",
    (Record,),
    {
        "__module__": __name__,
        "__table__": "many_symbols",
        "__annotations__": {f"symbol_{number}": Annotated[str, Symbol(44)] for number in range(12)},
    },
)


def test_a_record_of_many_wide_symbols(implementation: ModuleType) -> None:
    """Each field keeps its own symbols, however many fields there are."""
    ring = RingUnderTest(implementation, ManySymbols)
    symbols = [f"{number:x}" * 3 for number in range(12)]
    for turn in range(12):
        ring.lane.set_word(TAIL_OFFSET, ring.lane.head)
        given = symbols[turn:] + symbols[:turn]
        assert ring.append(*given)
        row = plain(ring.layout, ring.lane.slots(turn, 1)[0])
        assert [row[f"symbol_{number}"] for number in range(12)] == given


def test_a_preset_that_is_all_but_the_timestamp(ring: RingUnderTest) -> None:
    """With every field preset, append takes nothing, or a timestamp by name."""
    append = ring.bind(**dict(zip([field.name for field in ring.layout.fields], ROW, strict=False)))
    assert append()
    assert append(timestamp=STAMP)
    with pytest.raises(RecordTypeError, match=r"at most 0 \(every field is preset\), and the time as timestamp="):
        append(STAMP)
    assert int(ring.lane.slots(1, 1)[0]["timestamp"]) == STAMP


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, ["wanted also symbol, choice, number"]),
        (("s", "left"), {}, ["got 2 fields", "wanted also number"]),
        (("s",), {"symbol": "t"}, ["'symbol' twice"]),
        ((*ROW, STAMP), {}, ["got 10 values by position", "at most 9 (symbol,", "and the time as timestamp="]),
        ((*ROW, None), {}, ["got 10 values by position", "and the time as timestamp="]),
        ((*ROW, STAMP), {"timestamp": STAMP}, ["got 10 values by position"]),
        ((*ROW, STAMP, 1), {}, ["got 11 values by position", "at most 9"]),
        (("s", "left"), {"number": 1.0, "price": 2.0}, ["unknown field 'price'", "symbol"]),
    ],
)
def test_arguments_that_do_not_fit(ring: RingUnderTest, args: Any, kwargs: Any, words: list[str]) -> None:
    """Missing, unknown, doubled and surplus fields raise, naming what was got and wanted; nothing is accepted."""
    with pytest.raises(RecordTypeError) as caught:
        ring.append(*args, **kwargs)
    assert all(word in str(caught.value) for word in ["Everything append", *words])
    assert ring.lane.head == 0
    assert ring.append(*ROW)


def test_a_full_ring_refuses_and_counts(ring: RingUnderTest) -> None:
    """The ninth record of eight slots is refused as FULL; a slot given back takes the next one."""
    assert [ring.append(*ROW) for _ in range(10)] == [True] * 8 + [False] * 2
    assert (ring.lane.head, ring.lane.word(REFUSED_OFFSET), ring.ring.last_refused) == (8, 2, Refused.FULL)
    ring.lane.set_word(TAIL_OFFSET, 1)
    assert ring.append(*ROW) is True
    assert ring.append(*ROW) is False
    assert int(ring.lane.slots(8, 1)[0]["seq"]) == 8
    assert ring.ring.refused() == refusals(full=3)


def test_a_full_ring_does_not_look_at_the_values(ring: RingUnderTest) -> None:
    """A record that is refused anyway costs no look at its values, but its arguments must still fit."""
    for _ in range(8):
        ring.append(*ROW)
    assert ring.append("s", "neither", number="no number") is False
    with pytest.raises(RecordTypeError):
        ring.append("s", "left")


def test_a_refusing_board_refuses_and_ends(ring: RingUnderTest) -> None:
    """While the board refuses nothing is accepted, every refusal is counted, and afterwards all goes on."""
    ring.lane.refuse(1)
    assert ring.append(*ROW) is False
    assert ring.ring.append_many(bytes(2 * ring.layout.slot_bytes), 2) == 0
    ring.lane.refuse(0)
    assert ring.append(*ROW) is True
    assert ring.ring.refused() == refusals(board=3)
    assert ring.ring.last_refused == Refused.BOARD


def test_bad_values_accept_nothing(ring: RingUnderTest) -> None:
    """A wrong value raises, the head stays, and the next record takes the same slot."""
    with pytest.raises(RecordValueError, match=r"Everything\.choice: got 'middle', wanted one of 'left', 'right'"):
        ring.append("s", "middle", number=1.0)
    assert ring.lane.head == 0
    assert ring.append(*ROW)
    assert plain(ring.layout, ring.lane.slots(0, 1)[0])["symbol"] == "sol"


def test_append_many_fills_what_is_free(ring: RingUnderTest) -> None:
    """A bulk append accepts from the front what fits, renumbers it, and counts the rest as FULL."""
    ring.append(*ROW, timestamp=STAMP)
    rows = np.repeat(ring.lane.slots(0, 1), 9)
    rows["whole"] = np.arange(9)
    assert ring.ring.append_many(rows.view(np.uint8), 9) == 7
    assert ring.lane.slots(1, 7)["seq"].tolist() == list(range(1, 8))
    assert ring.lane.slots(1, 7)["whole"].tolist() == list(range(7))
    assert ring.ring.refused() == refusals(full=2)


def test_append_many_of_nothing(ring: RingUnderTest) -> None:
    """An empty bulk append accepts and refuses nothing."""
    assert ring.ring.append_many(b"", 0) == 0
    assert ring.ring.refused() == refusals()


def test_append_many_checks_the_size(ring: RingUnderTest) -> None:
    """A byte count that does not belong to the row count raises."""
    with pytest.raises(ValueError, match="rows: got 100 bytes for 2 rows"):
        ring.ring.append_many(bytes(100), 2)


@pytest.mark.parametrize("tail", [9, 2**63, 2**64 - 1])
def test_a_tail_beyond_the_head_writes_nothing(ring: RingUnderTest, tail: int) -> None:
    """Where somebody wrote a tail that no writer stores, appends are refused, each time, until it is sound again."""
    for _ in range(8):
        ring.append(*ROW)
    ring.lane.set_word(TAIL_OFFSET, tail)
    assert [ring.append(*ROW) for _ in range(3)] == [False] * 3
    assert ring.lane.head == 8
    ring.lane.set_word(TAIL_OFFSET, 4)
    assert [ring.append(*ROW) for _ in range(5)] == [True] * 4 + [False]


def test_a_ring_goes_round(implementation: ModuleType) -> None:
    """Sequence numbers never wrap: after many laps slot and seq still agree, also near 2**63."""
    ring = RingUnderTest(implementation, capacity=4)
    start = 2**63 - 6
    lane = Lane(ring.layout, 4)
    lane.set_word(HEAD_OFFSET, start)
    lane.set_word(TAIL_OFFSET, start)
    ring.attach(lane)
    for count in range(1, 12):
        assert ring.append(*ROW)
        lane.set_word(TAIL_OFFSET, lane.head)
        assert lane.head == start + count
        assert int(lane.slots(start + count - 1, 1)[0]["seq"]) == start + count - 1


@pytest.mark.parametrize("state", [1, 2, 77])
def test_a_lane_that_is_not_open_is_left(implementation: ModuleType, state: int) -> None:
    """RETIRED, CLOSED or anything else in the state word: not one more record goes into that lane."""
    lanes: list[Lane] = []

    def recover() -> bool:
        lanes.append(Lane(ring.layout, 8))
        ring.attach(lanes[-1])
        return True

    ring = RingUnderTest(implementation, recover=recover)
    ring.append(*ROW)
    old = ring.lane
    old.set_word(STATE_OFFSET, state)
    assert ring.append(*ROW)
    assert (old.head, lanes[0].head, len(lanes)) == (1, 1, 1)
    assert ring.ring.append_many(lanes[0].slots(0, 1).view(np.uint8), 1) == 1


@pytest.mark.parametrize("reason", list(Refused))
def test_no_lane_is_counted_by_reason(implementation: ModuleType, reason: Refused) -> None:
    """Without a lane each append is refused for the reason that recover gives, and counted."""
    ring = RingUnderTest(implementation, recover=lambda: reason)
    ring.ring.detach()
    assert ring.append(*ROW) is False
    assert ring.ring.append_many(bytes(3 * ring.layout.slot_bytes), 3) == 0
    assert ring.ring.refused()[reason] == 4
    assert ring.ring.last_refused == reason


def test_a_recover_that_does_not(implementation: ModuleType) -> None:
    """Where recover says True and no lane can be written after all, the append is refused and counted, not repeated."""
    ring = RingUnderTest(implementation, recover=lambda: True)
    ring.ring.detach()
    assert ring.append(*ROW) is False
    assert sum(ring.ring.refused()) == 1


def test_a_recover_that_raises(implementation: ModuleType) -> None:
    """An exception in recover reaches the caller, and the next append asks again."""
    answers = iter([KeyError("gone"), Refused.CLOSED])

    def recover() -> Refused:
        answer = next(answers)
        if isinstance(answer, KeyError):
            raise answer
        return answer

    ring = RingUnderTest(implementation, recover=recover)
    ring.ring.detach()
    with pytest.raises(KeyError):
        ring.append(*ROW)
    assert ring.append(*ROW) is False


def test_append_inside_recover_is_refused(implementation: ModuleType) -> None:
    """An append made while the ring looks for a lane (a signal handler) returns False, counted as REENTRANT."""
    inner: list[bool] = []

    def recover() -> Refused:
        inner.append(ring.append(*ROW))
        return Refused.BUDGET

    ring = RingUnderTest(implementation, recover=recover)
    ring.ring.detach()
    assert ring.append(*ROW) is False
    assert inner == [False]
    assert ring.ring.refused()[Refused.REENTRANT] == 1
    assert ring.ring.refused()[Refused.BUDGET] == 1


def test_counts_outlive_the_lane(ring: RingUnderTest) -> None:
    """Refusals in a lane that was left stay counted."""
    for _ in range(9):
        ring.append(*ROW)
    ring.ring.detach()
    assert ring.ring.attached is False
    assert ring.ring.refused() == refusals(full=1)
    ring.attach(Lane(ring.layout, 2))
    assert [ring.append(*ROW) for _ in range(3)] == [True, True, False]
    assert ring.ring.refused() == refusals(full=2)


@pytest.mark.parametrize(
    ("slots_at", "capacity", "words"),
    [
        (SLOTS_AT, 0, WORDS),
        (SLOTS_AT, 3, WORDS),
        (SLOTS_AT, 16, WORDS),
        (SLOTS_AT, 8, (STATE_OFFSET, HEAD_OFFSET, TAIL_OFFSET + 4, REFUSED_OFFSET, 128)),
        (SLOTS_AT, 8, (STATE_OFFSET, HEAD_OFFSET, SLOTS_AT, REFUSED_OFFSET, 128)),
        (SLOTS_AT, 8, (STATE_OFFSET, HEAD_OFFSET, TAIL_OFFSET, SLOTS_AT - 32, 128)),
        (SLOTS_AT, 8, (STATE_OFFSET, HEAD_OFFSET, TAIL_OFFSET, REFUSED_OFFSET, 4096)),
    ],
)
def test_memory_that_does_not_fit_is_refused(
    ring: RingUnderTest, slots_at: int, capacity: int, words: tuple[int, ...]
) -> None:
    """Slots or words outside the memory are refused before a byte is written."""
    lane = Lane(ring.layout, 8)
    with pytest.raises(ValueError, match="memory: got"):
        ring.ring.attach(lane.memory, lane.board, slots_at, capacity, words)
    assert bytes(lane.memory) == bytes(len(lane.memory))


def test_read_only_memory_is_refused(ring: RingUnderTest) -> None:
    """Memory that cannot be written raises at once."""
    with pytest.raises(BufferError):
        ring.ring.attach(bytes(len(ring.lane.memory)), ring.lane.board, SLOTS_AT, 8, WORDS)


def test_words_are_checked(implementation: ModuleType) -> None:
    """load and store take aligned words inside the memory and nothing else."""
    memory = bytearray(64)
    implementation.store(memory, 8, 2**64 - 1)
    assert implementation.load(memory, 8) == 2**64 - 1
    for offset in (-8, 4, 60, 64):
        with pytest.raises(ValueError, match="offset: got"):
            implementation.load(memory, offset)
        with pytest.raises(ValueError, match="offset: got"):
            implementation.store(memory, offset, 1)


class Wide(Record):
    """A record with a text of the widest kind."""

    __table__ = "wide"
    text: Annotated[str, Varchar(32_768)]


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 256, 32_767, 32_768])
def test_texts_of_every_length(implementation: ModuleType, length: int) -> None:
    """Texts up to the declared width are stored whole; one byte more is refused, also a NUL wherever it stands."""
    ring = RingUnderTest(implementation, Wide, capacity=2)
    text = "".join(chr(33 + place % 90) for place in range(length))
    assert ring.append(text)
    assert plain(ring.layout, ring.lane.slots(0, 1)[0])["text"] == text
    for place in range(length) if length < 100 else (0, length - 1):
        with pytest.raises(RecordValueError, match="NUL"):
            ring.append(text[:place] + "\0" + text[place + 1 :])
    with pytest.raises(RecordValueError, match="got 32769 bytes"):
        ring.append("x" * 32_769)
    assert ring.lane.head == 1


def test_objects_that_were_never_made(implementation: ModuleType) -> None:
    """A ring or appender without its constructor raises instead of ending the process."""
    appender = implementation.Appender.__new__(implementation.Appender)
    with pytest.raises((TypeError, AttributeError)):
        appender.append()
    ring = implementation.Ring.__new__(implementation.Ring)
    with pytest.raises((TypeError, AttributeError, ValueError)):
        ring.append_many(b"x", 1)
