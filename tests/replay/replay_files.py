"""Files of trades for replays, and what a replay leaves in lanes."""

from __future__ import annotations

import csv
import gzip
import io
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet

from ringlog.records import Trade, layout_of

FIELDS = tuple(field.name for field in layout_of(Trade).fields)
FIRST_US = time.time_ns() // 1000 - 86_400_000_000


def trade(number: int) -> dict[str, Any]:
    """A trade whose values all follow from its number; some are NULL, some texts not ASCII, some with quotes."""
    return {
        "trader_id": f"trader-{number % 3}",
        "mode": ("paper", "live")[number % 2],
        "action": ("buy", "sell", "swap")[number % 3],
        "base_token": "SOL" if number % 5 else "ÖL",
        "quote_token": "USDC",
        "base_amount": number / 7,
        "quote_amount": number * 1.5,
        "executed_price": 1e-9 * number,
        "transaction_fee": 5000 + number,
        "priority_fee": None if number % 4 == 0 else number,
        "expected_slippage": -0.001,
        "actual_slippage": 0.5,
        "mev_status": "protected",
        "mev_protected": number % 2 == 1,
        "transfer_fees": None if number % 3 else 0.25,
        "tx_signature": None if number % 6 == 1 else "s" * (number % 88 + 1),
        "metadata": None if number % 7 else f'{{"n":{number},"note":"a, ""b"""}}'.replace('""', "'"),
        "timestamp": FIRST_US + 1000 * number,
    }


def trades(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [trade(number) for number in range(first, first + count)]


def csv_bytes(rows: list[dict[str, Any]], columns: tuple[str, ...] = FIELDS) -> bytes:
    """Numbers in full, NULL as an empty field, texts that need it quoted."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([cell(row[column]) for column in columns])
    return out.getvalue().encode()


def cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def json_bytes(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format and compression that the file's name says."""
    name = path.name
    if ".parquet" in name:
        pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=500)
        return path
    content = json_bytes(rows) if ".ndjson" in name or ".jsonl" in name else csv_bytes(rows)
    if name.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    elif name.endswith((".zst", ".zstd")):
        content = pa.compress(content, "zstd", asbytes=True)
    path.write_bytes(content)
    return path
