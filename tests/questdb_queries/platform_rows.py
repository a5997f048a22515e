"""The platform's tables, rows for them, and waiting for the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ringlog.questdb.rollups import ROLLUPS
from ringlog.records import PLATFORM_RECORDS, layout_of

LAYOUTS = [layout_of(record_type) for record_type in PLATFORM_RECORDS]
TABLES = {layout.table: [field.name for field in layout.fields if field.name != "timestamp"] for layout in LAYOUTS}
APPLIED_TIMEOUT_S = 20.0
DAY_US = 86_400_000_000
MIDNIGHT_US = 30_000_000  # more than such a test takes

Execute = Callable[..., list[Any]]
Insert = Callable[..., None]


def wait_applied(execute: Execute, table: str, *, views: bool = True) -> None:
    """Returns once every row of the table can be read, and is in its views; those are not left to wait their minute."""
    behind = "SELECT count() FROM wal_tables() WHERE writerTxn < sequencerTxn"
    wait_until(lambda: not execute(f"{behind} AND name = %s", (table,))[0][0], f"{table} to be applied")
    if views:
        for rollup in ROLLUPS:  # a view after the one that it is over
            wait_until(lambda view=rollup.view: is_fresh(execute, view), f"{rollup.view} to be refreshed")


def is_fresh(execute: Execute, view: str) -> bool:
    """Whether a view has all rows of its base, where it can take in any; a refresh that it lacks is asked for."""
    found = execute(
        "SELECT view_status, refresh_base_table_txn, base_table_txn FROM materialized_views() WHERE view_name = %s",
        (view,),
    )
    if not found or found[0][0] == "invalid":
        return True
    ((status, refreshed, base),) = found
    if status == "valid" and refreshed < base:
        execute(f"REFRESH MATERIALIZED VIEW {view} INCREMENTAL")
        return False
    behind = "SELECT count() FROM wal_tables() WHERE writerTxn < sequencerTxn AND name = %s"
    return bool(status == "valid" and not execute(behind, (view,))[0][0])


def now_before_midnight(execute: Execute) -> int:
    """The server's now in microseconds, with time left on its day (UTC) for a test that counts days from it."""

    def left() -> bool:
        found.append(execute("SELECT now()::long")[0][0])
        return found[-1] % DAY_US < DAY_US - MIDNIGHT_US

    found: list[int] = []
    wait_until(left, "the next day", 2 * MIDNIGHT_US / 1e6)
    return found[-1]


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = APPLIED_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.005)


def trade(timestamp: int, **fields: Any) -> dict[str, Any]:
    return {
        "timestamp": timestamp,
        "trader_id": "t1",
        "mode": "paper",
        "action": "buy",
        "base_token": "SOL",
        "quote_token": "USDC",
        "base_amount": 1.5,
        "quote_amount": 210.0,
        "executed_price": 140.0,
        "transaction_fee": 5_000,
        "expected_slippage": 0.01,
        "actual_slippage": 0.02,
        "mev_status": "protected",
        "mev_protected": True,
        **fields,
    }
