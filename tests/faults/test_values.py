"""Bad values at append, by their number in the fault table: an error in the caller, and the lane is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest

from ringlog import Producer
from ringlog.errors import RecordTypeError, RecordValueError
from ringlog.records import Double, Long, Record, Varchar
from ringlog.settings import Settings


class Value(Record):
    """One field of each kind that can be given a bad value."""

    __table__ = "bad_values"

    number: Annotated[int, Long()] = 0
    amount: Annotated[float, Double()] = 0.0
    text: Annotated[str, Varchar(64)] = ""


@pytest.fixture
def refuses(lane_settings: Settings) -> Iterator[Callable[..., None]]:
    """refuses(error, **fields): append raises it, and the records around it are all that the lane accepts."""
    with Producer([Value], settings=lane_settings) as producer:
        appender = producer.appender(Value)

        def check(error: type[Exception], **fields: Any) -> None:
            before = appender.accepted
            assert appender.append(1, 1.0, "before")
            with pytest.raises(error):
                appender.append(**fields)
            assert appender.append(2, 2.0, "after")
            assert appender.accepted == before + 2

        yield check


YEAR_2262_US = 9_214_646_400_000_000
YEAR_9999_US = 253_402_300_799_000_000


@pytest.mark.parametrize("timestamp", [0, -1, YEAR_2262_US, YEAR_9999_US, 2**63 - 1, 1_767_225_600_000_000_000])
def test_46_timestamps_out_of_bounds(refuses: Callable[..., None], timestamp: int) -> None:
    """0, negative, after 2262, in 9999 and nanoseconds: a ValueError (a server that is given them suspends its table).

    Defence: the bounds of a timestamp.
    """
    refuses(RecordValueError, timestamp=timestamp)
    assert issubclass(RecordValueError, ValueError)


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), float("-inf")])
def test_47_numbers_that_are_none(refuses: Callable[..., None], amount: float) -> None:
    """NaN and infinities are refused: the server would refuse the one and make NULL of the other.

    Defence: numbers are finite.
    """
    refuses(RecordValueError, amount=amount)


@pytest.mark.parametrize("number", [-(2**63), 2**63, 2**70, -(2**63) - 1])
def test_48_integers_out_of_range(refuses: Callable[..., None], number: int) -> None:
    """The smallest of 64 bits, which the server takes for NULL, and what overflows them, are refused.

    Defence: integers have a range.
    """
    refuses(RecordValueError, number=number)


@pytest.mark.parametrize("text", ["\udcff", "a\0b", "\udfff!"])
def test_49_texts_that_are_no_utf8(refuses: Callable[..., None], text: str) -> None:
    """Lone surrogates and NUL bytes are refused, since the server would take them. Defence: texts hold no NUL byte."""
    refuses(RecordValueError, text=text)


@pytest.mark.parametrize("text", ["a\nb", "'", '"', "\\", "a,b=c d", "\t\r"])
def test_49_texts_that_need_quoting_are_taken(lane_settings: Settings, text: str) -> None:
    """Newlines, quotes and the separators of line protocol are texts like others.

    Defence: texts travel with their length. No patch: nothing on the way quotes or escapes them.
    """
    with Producer([Value], settings=lane_settings) as producer:
        assert producer.appender(Value).append(text=text)


@pytest.mark.parametrize("length", [65, 10_000, 1 << 20])
def test_50_texts_over_their_width(refuses: Callable[..., None], length: int) -> None:
    """A text over its field's width is refused, however long, and never cut; bytes count, not characters.

    Defence: texts have a width.
    """
    refuses(RecordValueError, text="x" * length)
    refuses(RecordValueError, text="ö" * 33)


@pytest.mark.parametrize(
    "fields", [{"unknown": 1}, {"number": "1"}, {"number": 1.5}, {"text": b"x"}, {"amount": None}, {"timestamp": "now"}]
)
def test_51_fields_of_another_kind(refuses: Callable[..., None], fields: dict[str, Any]) -> None:
    """Unknown fields and values of another type are a TypeError. Defence: texts are str."""
    refuses(RecordTypeError, **fields)
    assert issubclass(RecordTypeError, TypeError)
