"""A day of data made on the server itself: `long_sequence` and `rnd_*`, so that nothing has to be sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.stack import wait_for

Execute = Callable[[str], Any]

DAY_US = 86_400_000_000
CHUNK_ROWS = 5_000_000
SERVICES, OPERATIONS, TRADERS = 5, 10, 100

# The columns of each table as random expressions; `x` is the row number within its chunk.
COLUMNS = {
    "latencies": {
        "service": f"concat('service-', rnd_int(0, {SERVICES - 1}, 0))",
        "operation": f"concat('operation-', rnd_int(0, {OPERATIONS - 1}, 0))",
        # Log-normal around 400 us: what latencies look like.
        "latency_us": "exp(6 + 0.5 * (rnd_double() + rnd_double() + rnd_double() + rnd_double() - 2) * 1.732)",
    },
    "trades": {
        "trader_id": f"concat('trader-', rnd_int(0, {TRADERS - 1}, 0))",
        "mode": "rnd_symbol('paper', 'live')",
        "action": "rnd_symbol('buy', 'sell', 'swap')",
        "base_token": "rnd_symbol('SOL', 'BONK', 'JUP', 'WIF')",
        "quote_token": "rnd_symbol('USDC', 'USDT')",
        "base_amount": "rnd_double() * 100",
        "quote_amount": "rnd_double() * 15000",
        "executed_price": "140 + rnd_double() * 20",
        "transaction_fee": "rnd_long(5000, 50000, 0)",
        "priority_fee": "rnd_long(0, 1000000, 4)",
        "expected_slippage": "rnd_double() / 100",
        "actual_slippage": "rnd_double() / 100",
        "mev_status": "rnd_symbol('protected', 'at_risk', 'impacted')",
        "mev_protected": "rnd_boolean()",
        "transfer_fees": "rnd_double(2) / 100",
        "tx_signature": "rnd_varchar(88, 88, 0)",
        "metadata": "cast(null as varchar)",
    },
    "performance_metrics": {
        "metric_type": "rnd_symbol('latency', 'throughput', 'error_rate')",
        "operation": f"concat('operation-', rnd_int(0, {OPERATIONS - 1}, 0))",
        "value": "rnd_double() * 1000",
        "percentile": "cast(rnd_symbol('50', '95', '99') as long)",
        "tags": "cast(null as varchar)",
    },
    "mev_metrics": {
        "token_pair": "rnd_symbol('SOL/USDC', 'BONK/USDC', 'JUP/USDC', 'WIF/USDT')",
        "trade_size": "rnd_double() * 1000",
        "sandwich_probability": "rnd_double()",
        "estimated_loss_bps": "rnd_double() * 80",
        "actual_loss_bps": "rnd_double(2) * 60",
        "protection_used": "rnd_boolean()",
        "priority_fee_lamports": "rnd_long(0, 1000000, 0)",
        "avoided": "rnd_boolean()",
    },
}


def fill(execute: Execute, table: str, rows: int, end_us: int, span_us: int = DAY_US) -> None:
    """Puts `rows` rows into `table`, evenly over the `span_us` before `end_us`; returns once they are applied."""
    columns = COLUMNS[table]
    step_us = max(1, span_us // rows)
    for first in range(0, rows, CHUNK_ROWS):
        count = min(CHUNK_ROWS, rows - first)
        start = end_us - (rows - first) * step_us
        execute(
            f"INSERT INTO {table} (timestamp, lane, seq, {', '.join(columns)}) "
            f"SELECT timestamp_sequence(cast({start} as timestamp), {step_us}), 1, {first} + x - 1, "
            f"{', '.join(columns.values())} FROM long_sequence({count})"
        )
        wait_applied(execute, table)


def wait_applied(execute: Execute, table: str) -> None:
    """Returns once every transaction of `table` is applied; TimeoutError else."""
    behind = f"SELECT count() FROM wal_tables() WHERE name = '{table}' AND (writerTxn < sequencerTxn OR suspended)"
    wait_for(lambda: not execute(behind)[0][0], f"rows of {table} that are all applied")


def refresh(execute: Execute, view: str) -> None:
    """Has a view take in all rows of its base now, rather than within a minute; TimeoutError else."""
    execute(f"REFRESH MATERIALIZED VIEW {view} INCREMENTAL")
    stale = (
        f"SELECT count() FROM materialized_views() WHERE view_name = '{view}' "
        "AND (refresh_base_table_txn < base_table_txn OR view_status <> 'valid')"
    )
    wait_for(lambda: not execute(stale)[0][0], f"refreshed view {view}")
    wait_applied(execute, view)
