"""Record types: what a class declares is what lies in a slot, and what cannot lie in one is refused."""

from __future__ import annotations

import datetime
import itertools
import math
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pytest

from ringlog.errors import DeclarationError
from ringlog.records import (
    PLATFORM_RECORDS,
    Double,
    Json,
    Kind,
    Long,
    Record,
    RecordLayout,
    Symbol,
    Trade,
    Varchar,
    defaults_of,
    layout_of,
)


def declared(annotation: Any, *, table: str = "things", name: str = "field", **options: Any) -> type[Record]:
    """A record type of one field."""
    namespace: dict[str, Any] = {
        "__table__": table,
        "__annotations__": {name: annotation},
        "__module__": __name__,
        **options,
    }
    return type(Record)("Thing", (Record,), namespace)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (str, r"Thing\.field: got type <class 'str'>"),
        (bytes, "wanted float, int, bool"),
        (list[int], "wanted float, int, bool"),
        (bool | None, "QuestDB's BOOLEAN has no NULL"),
        (int | str, "wanted float, int, bool"),
        (Annotated[str, Symbol(0)], "got width_bytes=0, wanted 1 to 32768"),
        (Annotated[str, Varchar(32_769)], "got width_bytes=32769"),
        (Annotated[str, Varchar("9")], "got width_bytes='9'"),  # type: ignore[arg-type]
        (Annotated[int, Varchar(9)], "got type <class 'int'>"),
        (Annotated[float, Symbol(9)], "got type <class 'float'>"),
        (Annotated[str, Double()], "got type <class 'str'>"),
        (Annotated[str, Symbol(2, choices=("abc",))], "got choice 'abc', wanted 1 to 2 bytes"),
        (Annotated[str, Symbol(2, choices=("",))], "got choice ''"),
        (Literal["a\0b"], "without NUL"),
        (Literal["\ud800"], "UTF-8"),
        (Literal["a", 1], r"got Literal\['a', 1\]"),
        (Literal[True], r"got Literal\[True\]"),
        (Literal[-(2**63)], "wanted minimum <= maximum, both ints from -9223372036854775807"),
        (Literal[2**63], "ints from"),
        (Annotated[float, Double(minimum=math.nan)], "finite floats"),
        (Annotated[float, Double(maximum=math.inf)], "finite floats"),
        (Annotated[float, Double(minimum=2.0, maximum=1.0)], "wanted minimum <= maximum"),
        (Annotated[float, Double(minimum="0")], "finite floats"),  # type: ignore[arg-type]
        (Annotated[int, Long(minimum=-(2**63))], "ints from"),
        (Annotated[int, Long(maximum=2**63)], "ints from"),
        (Annotated[int, Long(minimum=1.5)], "ints from"),  # type: ignore[arg-type]
        ("NotAType", "got a type that is not known"),
    ],
)
def test_bad_fields(annotation: Any, words: str) -> None:
    """A field that has no place in a slot, or limits that no value can keep, raise DeclarationError and say why."""
    with pytest.raises(DeclarationError, match=words):
        layout_of(declared(annotation))


@pytest.mark.parametrize("name", ["Field", "über", "lane", "seq", "a" * 64, "_private"])
def test_bad_names(name: str) -> None:
    """Names that QuestDB or ringlog cannot use are refused."""
    with pytest.raises(DeclarationError, match="reserved or unusable name"):
        layout_of(declared(float, name=name))


@pytest.mark.parametrize("table", ["", "Trades", "a b", "a;drop", "t" * 64, "1st"])
def test_bad_tables(table: str) -> None:
    """A table's name is a plain identifier."""
    with pytest.raises(DeclarationError, match="__table__"):
        layout_of(declared(float, table=table))


def test_a_default_made_anew_each_time() -> None:
    """A default factory is refused: what an append leaves out is the same in every record."""
    with pytest.raises(DeclarationError, match=r"Thing\.field: got a default made anew"):
        layout_of(declared(Annotated[dict[str, Any], Json(9)], field={}))


def test_a_timestamp_of_its_own() -> None:
    """The timestamp cannot be declared anew."""
    with pytest.raises(DeclarationError, match="timestamp"):
        layout_of(
            type(Record)(
                "Thing",
                (Record,),
                {"__table__": "things", "__annotations__": {"a": float, "timestamp": float}, "__module__": __name__},
            )
        )


def test_no_fields_and_too_many() -> None:
    """A record type has 1 to 60 fields and a slot of at most 1 MiB."""

    def of(count: int, annotation: Any) -> type[Record]:
        names = {f"f{number}": annotation for number in range(count)}
        return type(Record)(
            "Thing", (Record,), {"__table__": "things", "__annotations__": names, "__module__": __name__}
        )

    with pytest.raises(DeclarationError, match="got 0 fields"):
        layout_of(of(0, float))
    with pytest.raises(DeclarationError, match="got 61 fields"):
        layout_of(of(61, float))
    assert len(layout_of(of(60, float)).fields) == 61
    with pytest.raises(DeclarationError, match="wanted at most 1048576"):
        layout_of(of(40, Annotated[str, Varchar(32_768)]))


class Fill(Record):
    """The example of the documentation: a user's own record type."""

    __table__ = "fills"

    venue: Annotated[str, Symbol(16)]
    side: Literal["bid", "ask"]
    price: Annotated[float, Double(minimum=0.0)]
    lots: int
    is_maker: bool
    note: Annotated[str | None, Varchar(64)] = None


@pytest.mark.parametrize("record_type", [*PLATFORM_RECORDS, Fill])
def test_the_layout_is_sound(record_type: type[Record]) -> None:
    """Fields do not overlap, words are aligned, and the timestamp is the last field at byte 8 of a whole-line slot."""
    layout = layout_of(record_type)
    places = sorted((field.offset, field.offset + field.stored_bytes) for field in layout.fields)
    assert places[0] == (8, 16)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    assert places[-1][1] <= layout.slot_bytes
    assert layout.slot_bytes % 64 == 0
    aligned = [field for field in layout.fields if field.width_bytes == 8 or field.kind.is_text]
    assert all(field.offset % 8 == 0 for field in aligned)
    assert layout.fields[-1].name == "timestamp"
    assert layout.dtype.itemsize == layout.slot_bytes
    assert [name for name in layout.dtype.names or ()] == ["seq", *(field.name for field in layout.fields)]


@pytest.mark.parametrize("record_type", [*PLATFORM_RECORDS, Fill])
def test_json_round_trip(record_type: type[Record]) -> None:
    """A layout comes back from its JSON equal, hash and all: that is how a writer knows an older producer's records."""
    layout = layout_of(record_type)
    again = RecordLayout.from_json(layout.to_json())
    assert again == layout
    assert hash(again) == hash(layout)
    assert again.dtype == layout.dtype


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff\xfe", b'{"name":1}', b"null", b'{"name":"x","table":"t"}'])
def test_json_that_is_no_layout(text: bytes) -> None:
    """Bytes that are no layout raise msgspec's error and nothing else."""
    with pytest.raises(msgspec.MsgspecError):
        RecordLayout.from_json(text)


def test_an_added_field_leaves_the_others() -> None:
    """Adding a field changes no other field's kind, width or limits: only places move."""

    class Before(Record):
        __table__ = "grows"
        price: float
        venue: Annotated[str, Symbol(16)]

    class After(Record):
        __table__ = "grows"
        price: float
        venue: Annotated[str, Symbol(16)]
        fee: float | None = None

    before, after = layout_of(Before), layout_of(After)
    for field in before.fields:
        assert msgspec.structs.replace(after.field(field.name), offset=0) == msgspec.structs.replace(field, offset=0)
    assert {field.name for field in after.fields} - {field.name for field in before.fields} == {"fee"}


def test_trade_is_as_specified() -> None:
    """The trade has the fields, kinds, NULL rules and choices of its specification."""
    kinds = {field.name: (field.kind, field.nullable) for field in layout_of(Trade).fields}
    symbols = ("trader_id", "mode", "action", "base_token", "quote_token", "mev_status")
    doubles = ("base_amount", "quote_amount", "executed_price", "expected_slippage", "actual_slippage")
    assert kinds == {
        **dict.fromkeys(symbols, (Kind.SYMBOL, False)),
        **dict.fromkeys(doubles, (Kind.DOUBLE, False)),
        "transaction_fee": (Kind.LONG, False),
        "priority_fee": (Kind.LONG, True),
        "mev_protected": (Kind.BOOLEAN, False),
        "transfer_fees": (Kind.DOUBLE, True),
        "tx_signature": (Kind.VARCHAR, True),
        "metadata": (Kind.JSON, True),
        "timestamp": (Kind.TIMESTAMP, False),
    }
    choices = {field.name: field.choices for field in layout_of(Trade).fields if field.choices}
    assert choices == {
        "mode": ("paper", "live"),
        "action": ("buy", "sell", "swap"),
        "mev_status": ("protected", "at_risk", "impacted"),
    }
    assert defaults_of(Trade) == {
        "priority_fee": None,
        "transfer_fees": None,
        "tx_signature": None,
        "metadata": None,
    }


def test_records_are_frozen_and_named() -> None:
    """A record object is made by name only and cannot be changed afterwards."""
    fill = Fill(venue="x", side="bid", price=1.0, lots=2, is_maker=True, timestamp=datetime.datetime.now(datetime.UTC))
    with pytest.raises(AttributeError):
        fill.price = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        Fill("x", "bid")  # type: ignore[call-arg, misc]


def test_dtype_reads_what_it_writes() -> None:
    """The dtype's number fields take NULL and extremes unchanged."""
    rows = np.zeros(2, layout_of(Trade).dtype)
    rows["transaction_fee"] = [-(2**63), 2**63 - 1]
    rows["base_amount"] = [np.nan, 1.7976931348623157e308]
    assert rows["transaction_fee"].tolist() == [-(2**63), 2**63 - 1]
    assert rows["base_amount"][1] == 1.7976931348623157e308
