"""Values whose own code raises or lies, and calls of record types: a RinglogError that names record and field."""

from __future__ import annotations

import datetime
import decimal
import enum
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from ringlog.errors import RecordError, RecordTypeError, RecordValueError, RinglogError
from ringlog.records import LatencySample, PerformanceMetric, Record, Trade, layout_of
from ringlog.ring import IMPLEMENTATION, new_appender, new_ring
from ringlog.validation import Coercion, exact_value

STAMP = 1_767_225_600_000_000


class Boom(Exception):
    """What a caller's own code raises; it cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def boom(*_args: Any, **_named: Any) -> Any:
    raise Boom


class Zone(datetime.tzinfo):
    """A time zone that raises."""

    utcoffset = dst = tzname = boom


class Unshown:
    """Nothing that any field takes, and that cannot be shown."""

    __repr__ = __str__ = __float__ = __index__ = __int__ = __eq__ = boom
    __hash__ = boom  # type: ignore[assignment]


class Liar:
    """Claims to be of a class that it cannot name."""

    __class__ = property(boom)  # type: ignore[assignment]


class Odd(float):
    """A float whose methods raise."""

    __float__ = __int__ = __index__ = __eq__ = __le__ = __ge__ = __repr__ = boom  # type: ignore[assignment]
    __hash__ = boom  # type: ignore[assignment]


class OddInt(int):
    """An int of that kind."""

    __float__ = __int__ = __index__ = __eq__ = __le__ = __ge__ = __repr__ = boom  # type: ignore[assignment]
    __hash__ = boom  # type: ignore[assignment]


class OddText(str):
    """A str of that kind."""

    __slots__ = ()
    encode = __str__ = __repr__ = __eq__ = __len__ = __contains__ = boom  # type: ignore[assignment]
    __hash__ = boom  # type: ignore[assignment]


class OddTime(datetime.datetime):
    """A datetime whose difference is none."""

    def __sub__(self, other: Any) -> Any:
        return "soon"


class OddDict(dict):  # type: ignore[type-arg]
    """A dict that raises."""

    items = keys = values = __iter__ = __len__ = __getitem__ = __repr__ = boom  # type: ignore[assignment]


class Choice(enum.Enum):
    """No str, although its value is one."""

    PAPER = "paper"


class Mode(enum.StrEnum):
    """A str."""

    PAPER = "paper"


# Values are made in the test: pytest would compare and show them.
WRONG: list[tuple[str, Callable[[], Any]]] = [
    ("timestamp", lambda: pd.NaT),
    ("timestamp", lambda: np.datetime64("NaT")),
    ("timestamp", lambda: np.datetime64("2026-01-01")),
    ("timestamp", lambda: np.timedelta64("NaT")),
    ("timestamp", lambda: pd.Timestamp.min),
    ("timestamp", lambda: pd.Timestamp.max.tz_localize("UTC")),
    ("timestamp", lambda: pd.Timestamp("2026-01-01")),
    ("timestamp", lambda: pd.Timestamp("9999-12-31", tz="UTC").as_unit("s")),
    ("timestamp", lambda: datetime.datetime(2026, 1, 1, tzinfo=Zone())),
    ("timestamp", lambda: datetime.datetime(1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=23)))),
    ("timestamp", lambda: OddTime(2026, 1, 1, tzinfo=datetime.UTC)),
    ("timestamp", lambda: 10**5000),
    ("timestamp", lambda: -(10**5000)),
    ("timestamp", lambda: np.longdouble(STAMP)),
    ("timestamp", lambda: decimal.Decimal(STAMP)),
    ("timestamp", lambda: OddInt(STAMP)),
    ("base_amount", lambda: decimal.Decimal("1.5")),
    ("base_amount", lambda: pd.NA),
    ("base_amount", lambda: pd.NaT),
    ("base_amount", lambda: 10**5000),
    ("base_amount", lambda: np.longdouble("1e4000")),
    ("base_amount", lambda: np.complex64(1)),
    ("base_amount", lambda: np.array(1.5)),
    ("base_amount", lambda: np.array([1.5])),
    ("base_amount", lambda: np.void(b"12345678")),
    ("base_amount", lambda: Odd("nan")),
    ("base_amount", lambda: Odd(1.5)),
    ("base_amount", lambda: OddInt(3)),
    ("transaction_fee", lambda: 10**5000),
    ("transaction_fee", lambda: decimal.Decimal(5)),
    ("transaction_fee", lambda: OddInt(5)),
    ("transaction_fee", lambda: np.array([], object)),
    ("mev_protected", lambda: np.array([True, False])),
    ("mev_protected", lambda: "yes"),
    ("trader_id", lambda: OddText("x" * 33)),
    ("trader_id", lambda: OddText("\0")),
    ("trader_id", lambda: "\udcff"),
    ("trader_id", lambda: np.bytes_(b"t")),
    ("mode", lambda: Choice.PAPER),
    ("mode", lambda: OddText("neither")),
    ("metadata", lambda: {"a": Unshown()}),
    ("metadata", lambda: {Unshown: 1}),
    ("metadata", lambda: {"a": float("nan"), "b": Choice}),
    *((field.name, wrong) for field in layout_of(Trade).fields
      for wrong in (Unshown, Liar, type("\x1b[2J", (), {}))),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{field}-{index}" for index, (field, _) in enumerate(WRONG)])
def test_what_a_value_raises_is_ours(field: str, value: Callable[[], Any]) -> None:
    """Finding 12: whatever a value's own methods do, the error is a RecordError of one short line that can be shown.

    It names record and field, what was got and what was wanted.
    """
    layout = layout_of(Trade)
    with pytest.raises(RecordError, match=rf"^Trade\.{field}: got .+, wanted .+") as caught:
        exact_value(layout.name, layout.field(field), value())
    assert isinstance(caught.value, RinglogError)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 600


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("base_amount", lambda: np.float16(0.5), 0.5),
        ("base_amount", lambda: np.longdouble("0.5"), 0.5),
        ("trader_id", lambda: OddText("t1"), "t1"),
        ("mode", lambda: Mode.PAPER, "paper"),
        ("metadata", lambda: OddDict(a=1), '{"a":1}'),
        ("timestamp", lambda: pd.Timestamp(STAMP * 1000 + 999, tz="UTC"), STAMP),
        ("timestamp", lambda: np.uint64(STAMP), STAMP),
    ],
)
def test_what_a_subclass_stores(field: str, value: Callable[[], Any], wanted: Any) -> None:
    """Scalars of numpy and pandas, texts and enum members are stored as what they are; nanoseconds are cut off."""
    layout = layout_of(Trade)
    exact = exact_value(layout.name, layout.field(field), value())
    assert (exact, type(exact)) == (wanted, type(wanted))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: LatencySample("s", "o", 1.0),
            "got 3 values by position, wanted none: each by its name, of serv",
        ),
        (lambda: LatencySample(service="s"), "got 1 fields, wanted also operation, latency_us$"),
        (lambda: LatencySample(**{}), "wanted also service, operation, latency_us$"),
        (
            lambda: LatencySample(service="s", operation="o", latency=1.0),
            "got unknown field 'latency', wanted one",
        ),
        (lambda: LatencySample(STAMP, service="s", operation="o", latency_us=1.0), "got 1 values by position"),
        (lambda: LatencySample("s", service="s"), "got 1 values by position"),
    ],
)
def test_a_record_type_called_wrongly(call: Any, words: str) -> None:
    """Finding 12: too many, unknown or missing arguments raise RecordTypeError, naming the type and them."""
    with pytest.raises(RecordTypeError, match=rf"^LatencySample: .*{words}"):
        call()


class Checked(Record):
    """A user's own class, with a check of its own."""

    __table__ = "checked"
    price: float

    def __post_init__(self) -> None:
        if self.price < 0:
            raise TypeError("a check of the class's own")


def test_a_record_type_called_rightly() -> None:
    """Everything else that makes records works as before: copies, conversions, and what a class checks itself."""
    made = PerformanceMetric(metric_type="latency", operation="o", value=1.0, timestamp=STAMP)
    assert msgspec.structs.replace(made, value=2.0).value == 2.0
    assert msgspec.convert(msgspec.to_builtins(made), PerformanceMetric) == made
    with pytest.raises(TypeError, match=r"^a check of the class's own$") as caught:
        Checked(price=-1.0)
    assert not isinstance(caught.value, RecordTypeError)


@pytest.mark.skipif(IMPLEMENTATION == "python", reason="the Python ring looks at a given time once")
def test_a_clock_that_is_set_back_in_an_append(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time that was good when it was coerced and is not when it is written is wrong input, not a SystemError."""
    import mmap

    from ringlog.layout import Refused

    layout = layout_of(LatencySample)
    times = iter([STAMP, *[0] * 50])

    class Moving(Coercion):
        def __call__(self, index: int, *value: Any) -> Any:
            monkeypatch.setattr(time, "time_ns", lambda: (ahead + 10**12 if next(times) else real()) * 1)
            return super().__call__(index, *value)

    real, ahead = time.time_ns, time.time_ns() + 4 * 3_600_000_000_000
    ring = new_ring(layout, Moving(layout), lambda: Refused.CLOSED)
    memory = mmap.mmap(-1, 4096 + 8 * layout.slot_bytes)
    ring.attach(memory, mmap.mmap(-1, 4096), 4096, 8, (128, 256, 384, 512, 128))
    append = new_appender(ring, {}, {})
    with pytest.raises(RecordValueError, match=r"LatencySample\.timestamp"):
        append("s", "o", np.float64(1.0), timestamp=ahead // 1000)
    assert ring.head == 0
    ring.detach()
