"""The trades of a batch as events and prices: columns in, numbered JSON out."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from ringlog.columns import SymbolColumn, TextColumn
from ringlog.records import Trade, layout_of
from ringlog.records.fields import NULL_LONG, Field, Kind
from ringlog.redis.events import Outgoing
from ringlog.sinks.contract import Batch

TRADES_TABLE = layout_of(Trade).table
# A price means something only in one unit: trades against other tokens do not move `price:{symbol}`.
PRICE_QUOTE_TOKENS = frozenset({"USDC", "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"})

_encoder = msgspec.json.Encoder()


class TradePrice(NamedTuple):
    """The price of a base token in USDC, from its latest trade."""

    symbol: str
    price: Decimal
    observed_at_us: int


class TradeRows:
    """A batch of trades, decoded a part at a time so that no step holds the interpreter for long."""

    def __init__(self, batch: Batch) -> None:
        self.count = batch.rows
        self._batch = batch
        self._names = [field.name for field in batch.layout.fields]

    def outgoing(self, first: int, stop: int) -> Iterator[Outgoing]:
        """Rows `first` to `stop` as events; they keep the records' own (lane, seq)."""
        columns = [self._values(field, first, stop) for field in self._batch.layout.fields]
        lanes, seqs = (self._numbers(name, first, stop) for name in ("lane", "seq"))
        names = self._names
        for lane, seq, row in zip(lanes, seqs, zip(*columns, strict=True), strict=True):
            yield Outgoing(lane, seq, _encoder.encode(dict(zip(names, row, strict=True))))

    def prices(self, first: int, stop: int) -> list[TradePrice]:
        """For each base token traded against USDC in rows `first` to `stop`, its latest price."""
        bases, quotes = (self._texts(name, first, stop) for name in ("base_token", "quote_token"))
        prices, times = (self._numbers(name, first, stop) for name in ("executed_price", "timestamp"))
        latest: dict[str, tuple[int, float]] = {}
        for base, quote, price, time_us in zip(bases, quotes, prices, times, strict=True):
            if quote in PRICE_QUOTE_TOKENS and time_us >= latest.get(base, (0, 0.0))[0]:
                latest[base] = (time_us, price)
        return [TradePrice(base, Decimal(repr(price)), time_us) for base, (time_us, price) in latest.items()]

    def _numbers(self, name: str, first: int, stop: int) -> list[Any]:
        column: Any = self._batch.columns[name]
        return column[first:stop].tolist()  # type: ignore[no-any-return]

    def _values(self, field: Field, first: int, stop: int) -> list[Any]:
        match field.kind:
            case Kind.DOUBLE | Kind.BOOLEAN | Kind.TIMESTAMP:
                return self._numbers(field.name, first, stop)  # NaN is written as null
            case Kind.LONG:
                numbers = self._numbers(field.name, first, stop)
                return [None if number == NULL_LONG else number for number in numbers] if field.nullable else numbers
            case Kind.JSON:
                return [_document(text) for text in self._texts(field.name, first, stop)]
            case _:
                return self._texts(field.name, first, stop)

    def _texts(self, name: str, first: int, stop: int) -> list[Any]:
        column = self._batch.columns[name]
        if isinstance(column, SymbolColumn):
            values = column.values
            return [values[code] if code >= 0 else None for code in column.codes[first:stop].tolist()]
        if not isinstance(column, TextColumn):
            raise TypeError(f"{name}: got {type(column).__name__}, wanted a column of texts")
        ends = column.offsets[first : stop + 1].tolist()
        data = column.data[ends[0] : ends[-1]].tobytes().decode() if stop > first else ""
        if len(data) != ends[-1] - ends[0]:  # not ASCII: cut the bytes, not the characters
            raw = data.encode()
            texts = [raw[a - ends[0] : b - ends[0]].decode() for a, b in itertools.pairwise(ends)]
        else:
            texts = [data[a - ends[0] : b - ends[0]] for a, b in itertools.pairwise(ends)]
        if column.valid is None:
            return texts
        valid = column.valid[first:stop].tolist()
        return [text if known else None for text, known in zip(texts, valid, strict=True)]


@functools.lru_cache(maxsize=1_024)
def _document(text: str | None) -> Any:
    """A JSON object as it is; any other text stays a text, as `Trade.metadata` has it."""
    if text is None:
        return None
    try:
        return msgspec.Raw(text.encode()) if isinstance(msgspec.json.decode(text), dict) else text
    except msgspec.DecodeError:
        return text
