"""Files of trades in the layouts in which exchanges, vendors and programs publish them."""

from __future__ import annotations

import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet

COUNT = 25
BEFORE_2025 = 1_723_161_254_087_896  # 2024-08-08 23:54:14
SINCE_2025 = 1_743_161_254_087_896  # 2025-03-28
SYMBOL = ["--set", "symbol=BTCUSDT"]


class Row(NamedTuple):
    """One trade, as exactly as any of the files has it."""

    number: int
    price: decimal.Decimal
    quantity: decimal.Decimal
    us: int
    side: str

    @property
    def utc(self) -> datetime.datetime:
        return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=self.us)

    def text(self, form: str) -> str:
        return self.utc.strftime(form)


class Published(NamedTuple):
    """A file: its name, the options that replay it, the trades, and what writes them."""

    name: str
    options: list[str]
    rows: list[Row]
    write: Callable[[Path, list[Row]], None]


def rows(first_us: int, unit_us: int = 1) -> list[Row]:
    """Trades some milliseconds apart, at whole `unit_us`."""
    return [
        Row(
            10_000 + number,
            decimal.Decimal("60000.01") + number * decimal.Decimal("0.37"),
            (number + 1) * decimal.Decimal("0.00012"),
            (first_us + number * 1_234_567) // unit_us * unit_us,
            ("buy", "sell")[number % 2],
        )
        for number in range(COUNT)
    ]


def lines(
    cells: Callable[[Row], Sequence[Any]], header: str = "", *, before: str = "", quoted: bool = False
) -> Callable[[Path, list[Row]], None]:
    """Writes a CSV, packed as its name says."""

    def write(path: Path, trades: list[Row]) -> None:
        out = io.StringIO(newline="")
        out.write(before + (header + "\n" if header else ""))
        writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
        writer.writerows(cells(row) for row in trades)
        content = out.getvalue().encode()
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(path.with_suffix(".csv").name, content)
        else:
            pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
            path.write_bytes(pack(content))

    return write


def ndjson(objects: Callable[[Row], dict[str, Any]]) -> Callable[[Path, list[Row]], None]:
    def write(path: Path, trades: list[Row]) -> None:
        path.write_text("".join(json.dumps(objects(row)) + "\n" for row in trades))

    return write


def parquet(columns: Callable[[list[Row]], dict[str, Any]], **options: Any) -> Callable[[Path, list[Row]], None]:
    def write(path: Path, trades: list[Row]) -> None:
        pa.parquet.write_table(pa.table(columns(trades)), path, **options)

    return write


def frame(trades: list[Row], *, zone: str | None) -> pd.DataFrame:
    times = pd.to_datetime([row.us for row in trades], unit="us", utc=True)
    return pd.DataFrame(
        {
            "timestamp": times if zone else times.tz_localize(None),
            "symbol": "BTCUSDT",
            "price": [float(row.price) for row in trades],
            "quantity": [float(row.quantity) for row in trades],
            "side": [row.side for row in trades],
        }
    )


def polar(trades: list[Row]) -> pl.DataFrame:
    return pl.from_pandas(frame(trades, zone="UTC")).with_columns(pl.col("timestamp").dt.cast_time_unit("us"))


def decimals(trades: list[Row], kind: Any) -> dict[str, Any]:
    """As Spark and DuckDB have them: decimals, and times of the type."""
    return {
        "executed_at": pa.array([row.us for row in trades], pa.timestamp("us")).cast(kind),
        "symbol": pa.array(["BTCUSDT"] * len(trades)),
        "price": pa.array([row.price for row in trades], pa.decimal128(18, 2)),
        "quantity": pa.array([row.quantity for row in trades], pa.decimal128(38, 18)),
        "side": pa.array([row.side for row in trades]).dictionary_encode(),
    }


def binance(unit_us: int) -> Callable[[Row], Sequence[Any]]:
    return lambda row: (
        row.number, row.price, row.quantity, row.price * row.quantity, row.us // unit_us, str(row.side == "sell"),
        "True",
    )  # fmt: skip


def futures(row: Row) -> Sequence[Any]:
    return (
        row.number,
        row.price,
        row.quantity,
        row.price * row.quantity,
        row.us // 1000,
        str(row.side == "sell").lower(),
    )


def seconds(row: Row, digits: int) -> str:
    return f"{row.us // 10**6}.{row.us % 10**6:06d}"[: 11 + digits] if digits else str(row.us // 10**6)


FUTURES_HEADER = "id,price,qty,quote_qty,time,is_buyer_maker"
EXPORTED = '"txid","refid","time","type","subtype","aclass","asset","amount","fee","balance"'
COINBASE = "portfolio,trade id,product,side,created at,size,size unit,price,fee,total,price/fee/total unit"
TARDIS = "exchange,symbol,timestamp,local_timestamp,id,side,price,amount"
DATABENTO = (
    "ts_recv,ts_event,rtype,publisher_id,instrument_id,action,side,depth,price,size,flags,ts_in_delta,sequence,symbol"
)
POLYGON = "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,sip_timestamp,size,tape"
BARS = "unix,date,symbol,open,high,low,close,Volume BTC,Volume USD"

PUBLISHED: dict[str, Published] = {
    "binance-2024": Published(
        "BTCUSDT-trades-2024-08.zip", ["--preset", "binance-spot", *SYMBOL], rows(BEFORE_2025, 1000),
        lines(binance(1000)),
    ),
    "binance-2025": Published(
        "BTCUSDT-trades-2025-03.zip", ["--preset", "binance-spot", *SYMBOL], rows(SINCE_2025), lines(binance(1))
    ),
    "binance-agg": Published(
        "BTCUSDT-aggTrades-2025-03.zip", ["--preset", "binance-spot-aggtrades", *SYMBOL], rows(SINCE_2025),
        lines(lambda row: (row.number, row.price, row.quantity, 1, 2, row.us, "True", "True")),
    ),
    "binance-um": Published(
        "BTCUSDT-trades-2025-03.zip", ["--preset", "binance-futures", *SYMBOL], rows(SINCE_2025, 1000),
        lines(futures, FUTURES_HEADER),
    ),
    "binance-um-old": Published(
        "BTCUSDT-trades-2021-01.zip", ["--preset", "binance-futures", *SYMBOL], rows(BEFORE_2025, 1000), lines(futures)
    ),
    "bybit": Published(
        "BTCUSDT2024-08-08.csv.gz", ["--preset", "bybit"], rows(BEFORE_2025, 100),
        lines(
            lambda row: (
                seconds(row, 4), "BTCUSDT", row.side.title(), row.quantity, row.price, "PlusTick", f"id-{row.number}",
                "1.5e+10", row.quantity, row.price * row.quantity,
            ),
            "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional",
        ),
    ),
    "bybit-spot": Published(
        "BTCUSDT_2025-03-28.csv.gz", ["--preset", "bybit-spot", *SYMBOL], rows(SINCE_2025, 1000),
        lines(lambda row: (row.number, row.us // 1000, row.price, row.quantity, row.side, 0),
              "id,timestamp,price,volume,side,rpi"),
    ),
    "okx": Published(
        "BTC-USDT-trades-2025-03-28.zip", ["--preset", "okx"], rows(SINCE_2025, 1000),
        lines(lambda row: ("BTC-USDT", row.number, row.side, row.price, row.quantity, row.us // 1000),
              "instrument_name,trade_id,side,price,size,created_time"),
    ),
    "kraken": Published(
        "XBTUSD.csv", ["--preset", "kraken", *SYMBOL], rows(BEFORE_2025, 10**6),
        lines(lambda row: (seconds(row, 0), row.price, row.quantity)),
    ),
    "kraken-ledger": Published(
        "ledgers.csv", ["--preset", "kraken-ledger", "--map", "price=balance"], rows(BEFORE_2025, 10**6),
        lines(lambda row: (f"L{row.number}", "T", row.text("%Y-%m-%d %H:%M:%S"), "trade", "", "currency", "XXBT",
                           row.quantity, "0.0", row.price), EXPORTED, quoted=True),
    ),
    "kraken-trades": Published(
        "trades.csv", ["--preset", "kraken-trades"], rows(BEFORE_2025, 100),
        lines(lambda row: (f"T{row.number}", "O", "XBTUSD", row.text("%Y-%m-%d %H:%M:%S.%f")[:-2], row.side, "limit",
                           row.price, row.price * row.quantity, "0", row.quantity, "0", "", "L1,L2"),
              '"txid","ordertxid","pair","time","type","ordertype","price","cost","fee","vol","margin","misc","ledgers"',
              quoted=True),
    ),
    "coinbase": Published(
        "fills.csv", ["--preset", "coinbase"], rows(BEFORE_2025, 1000),
        lines(lambda row: ("default", row.number, "BTC-USD", row.side.upper(),
                           row.text("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z", row.quantity, "BTC", row.price, "0.1", "5",
                           "USD"), COINBASE),
    ),
    "bitstamp": Published(
        "transactions.ndjson", ["--preset", "bitstamp", *SYMBOL], rows(BEFORE_2025, 10**6),
        ndjson(lambda row: {"date": seconds(row, 0), "tid": str(row.number), "price": str(row.price), "type": "0",
                            "amount": str(row.quantity)}),
    ),
    "tardis": Published(
        "binance_trades_2024-08-08_BTCUSDT.csv.gz", ["--preset", "tardis"], rows(BEFORE_2025),
        lines(lambda row: ("binance", "BTCUSDT", row.us, row.us + 900, row.number, row.side, row.price, row.quantity),
              TARDIS),
    ),
    "databento": Published(
        "glbx-mdp3-20240808.trades.csv.bz2", ["--preset", "databento"], rows(BEFORE_2025),
        lines(lambda row: (row.us * 1000 + 70_033_767, row.us * 1000 + 767, 0, 1, 2, "T", row.side[0].upper(), 0,
                           row.price, row.quantity, 0, 19, row.number, "BTCQ4"), DATABENTO),
    ),
    "polygon": Published(
        "2024-08-08.csv.gz", ["--preset", "polygon"], rows(BEFORE_2025),
        lines(lambda row: ("A", "12,37", 0, 12, row.number, row.us * 1000, row.price, 7, row.us * 1000 + 999,
                           row.quantity, 3), POLYGON),
    ),
    "polygon-crypto": Published(
        "2024-08-09.csv.gz", ["--preset", "polygon-crypto"], rows(BEFORE_2025),
        lines(lambda row: ("X:BTC-USD", 1, 1, row.number, row.us * 1000 + 1, row.price, row.quantity),
              "ticker,conditions,exchange,id,participant_timestamp,price,size"),
    ),
    "cryptodatadown": Published(
        "Bitstamp_BTCUSD_1h.csv", ["--preset", "cryptodatadownload", "--map", "quantity=Volume BTC"],
        rows(BEFORE_2025, 10**6),
        lines(lambda row: (seconds(row, 0), row.text("%Y-%m-%d %H:%M:%S"), "BTC/USD", "1", "2", "0.5", row.price,
                           row.quantity, "0"), BARS, before='https://www.CryptoDataDownload.com "\n'),
    ),
    "pandas-csv": Published(
        "frame.csv", ["--preset", "pandas"], rows(SINCE_2025),
        lambda path, trades: frame(trades, zone=None).to_csv(path),
    ),
    "pandas-json": Published(
        "frame.jsonl", ["--preset", "pandas"], rows(SINCE_2025),
        lambda path, trades: frame(trades, zone="UTC").to_json(
            path, orient="records", lines=True, date_format="iso", date_unit="us", double_precision=15
        ),
    ),
    "pandas-epoch": Published(
        "frame.ndjson", ["--preset", "pandas", *SYMBOL], rows(SINCE_2025, 1000),  # what it writes before version 4
        ndjson(lambda row: {"timestamp": row.us // 1000, "price": float(row.price), "quantity": float(row.quantity)}),
    ),
    "pandas-parquet": Published(
        "frame.parquet", ["--preset", "pandas"], rows(SINCE_2025),
        lambda path, trades: frame(trades, zone=None).to_parquet(path),
    ),
    "polars-csv": Published(
        "polars.csv", ["--preset", "polars"], rows(SINCE_2025), lambda path, trades: polar(trades).write_csv(path)
    ),
    "polars-json": Published(
        "polars.ndjson", ["--preset", "polars"], rows(SINCE_2025), lambda path, trades: polar(trades).write_ndjson(path)
    ),
    "polars-parquet": Published(
        "polars.parquet", ["--preset", "polars"], rows(SINCE_2025),
        lambda path, trades: polar(trades).write_parquet(path),
    ),
    "spark": Published(
        "part-00000.snappy.parquet", ["--preset", "spark", "--time-column", "executed_at"], rows(SINCE_2025),
        parquet(lambda trades: decimals(trades, pa.timestamp("ns")), use_deprecated_int96_timestamps=True),
    ),
    "spark-csv": Published(
        "part-00000.csv", ["--preset", "spark", *SYMBOL], rows(SINCE_2025, 1000),
        lines(lambda row: (row.text("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z", row.price, row.quantity),
              "timestamp,price,quantity"),
    ),
    "duckdb": Published(
        "duck.parquet", ["--preset", "duckdb", "--time-column", "executed_at"], rows(SINCE_2025),
        parquet(lambda trades: decimals(trades, pa.timestamp("us", tz="UTC")), store_decimal_as_integer=True),
    ),
    "duckdb-csv": Published(
        "duck.csv", ["--preset", "duckdb", "--delimiter", "|", *SYMBOL], rows(SINCE_2025),
        lines(lambda row: (f"{row.text('%Y-%m-%d %H:%M:%S.%f')}+00|{row.price}|{row.quantity}",),
              "timestamp|price|quantity"),
    ),
}  # fmt: skip
