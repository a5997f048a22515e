"""Published files of trades: how each is laid out, as a table.

Fields are called alike whoever wrote the file: `price`, `quantity`, `side`, `trade_id`, `symbol`, `quote_quantity`,
`fee`, `is_buyer_maker`. A record type takes those that it declares, and any other column under its own name.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from ringlog.errors import RecordTypeError
from ringlog.naming import did_you_mean
from ringlog.replay.shape import Shape

_BINANCE = {"timestamp": "time", "quantity": "qty", "trade_id": "id", "quote_quantity": "quote_qty"}
_BINANCE_AGGREGATED = {
    "timestamp": "transact_time", "trade_id": "agg_trade_id", "quantity": "quantity",
}  # fmt: skip

PRESETS: dict[str, Shape] = {
    # No header; milliseconds before 2025-01-01, microseconds since.
    "binance-spot": Shape(
        columns=("id", "price", "qty", "quote_qty", "time", "is_buyer_maker", "is_best_match"),
        mapping=_BINANCE, time_unit="auto",
    ),
    "binance-spot-aggtrades": Shape(
        columns=(
            "agg_trade_id", "price", "quantity", "first_trade_id", "last_trade_id", "transact_time", "is_buyer_maker",
            "is_best_match",
        ),
        mapping=_BINANCE_AGGREGATED, time_unit="auto",
    ),
    # Milliseconds; with a header line since 2022, without one before.
    "binance-futures": Shape(
        columns=("id", "price", "qty", "quote_qty", "time", "is_buyer_maker"), mapping=_BINANCE, time_unit="auto"
    ),
    "binance-futures-aggtrades": Shape(
        columns=(
            "agg_trade_id", "price", "quantity", "first_trade_id", "last_trade_id", "transact_time", "is_buyer_maker"
        ),
        mapping=_BINANCE_AGGREGATED, time_unit="auto",
    ),
    "bybit": Shape(mapping={"quantity": "size", "trade_id": "trdMatchID"}, time_unit="s"),
    "bybit-spot": Shape(mapping={"quantity": "volume", "trade_id": "id"}, time_unit="ms"),
    "okx": Shape(
        mapping={"timestamp": "created_time", "quantity": "size", "symbol": "instrument_name"}, time_unit="ms"
    ),
    "kraken": Shape(columns=("timestamp", "price", "volume"), mapping={"quantity": "volume"}, time_unit="s"),
    "kraken-trades": Shape(
        mapping={"timestamp": "time", "quantity": "vol", "trade_id": "txid", "symbol": "pair", "side": "type"},
        time_zone="UTC",
    ),
    "kraken-ledger": Shape(
        mapping={"timestamp": "time", "quantity": "amount", "trade_id": "txid", "symbol": "asset"}, time_zone="UTC"
    ),
    "coinbase": Shape(
        mapping={"timestamp": "created at", "quantity": "size", "trade_id": "trade id", "symbol": "product"}
    ),
    "bitstamp": Shape(mapping={"timestamp": "date", "quantity": "amount", "trade_id": "tid"}, time_unit="s"),
    "tardis": Shape(mapping={"quantity": "amount", "trade_id": "id"}),
    # Nanoseconds, cut to microseconds.
    "databento": Shape(
        mapping={"timestamp": "ts_event", "quantity": "size", "trade_id": "sequence"}, time_unit="ns", time_floor=True
    ),
    "polygon": Shape(
        mapping={"timestamp": "sip_timestamp", "quantity": "size", "trade_id": "id", "symbol": "ticker"},
        time_unit="ns", time_floor=True,
    ),
    "polygon-crypto": Shape(
        mapping={"timestamp": "participant_timestamp", "quantity": "size", "trade_id": "id", "symbol": "ticker"},
        time_unit="ns", time_floor=True,
    ),
    # A first line that says where the file is from; seconds, in some files milliseconds.
    "cryptodatadownload": Shape(skip_lines=1, mapping={"timestamp": "unix", "price": "close"}, time_unit="auto"),
    # What programs write of times without a zone is UTC, unless --time-zone says otherwise.
    "pandas": Shape(time_zone="UTC", time_unit="auto"),
    "polars": Shape(time_zone="UTC"),
    "spark": Shape(time_zone="UTC"),
    "duckdb": Shape(time_zone="UTC"),
}  # fmt: skip


def preset(name: str, fields: Collection[str]) -> Shape:
    """The shape of that name, for a record of these fields. Raises RecordTypeError, naming the nearest."""
    if name not in PRESETS:
        raise RecordTypeError(
            f"--preset: got {name!r}, wanted one of {', '.join(PRESETS)}{did_you_mean(name, PRESETS)}"
        )
    shape = PRESETS[name]
    mapping = {field: column for field, column in shape.mapping.items() if field in fields}
    return msgspec.structs.replace(shape, mapping=mapping)
