"""What the torture's tables hold, for the oracle: keys, and whether every field is what its number says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import psycopg
from oracle import NUMBERS_PER_PRODUCER, Stored, Verdict, judged

from torture.attempts import ATTEMPTED, Attempts, payload

COLUMNS = (
    "lane", "seq", "trader_id", "mode", "action", "base_token", "quote_token", "base_amount", "quote_amount",
    "executed_price", "transaction_fee", "priority_fee", "expected_slippage", "actual_slippage", "mev_status",
    "mev_protected", "transfer_fees", "tx_signature", "metadata",
)  # fmt: skip
PREFIX = "torture-"
PARTS = 16  # a table is read in so many parts: its rows as Python objects would take gigabytes


def judge(connection: psycopg.Connection[Any], logs: Mapping[int, Attempts], tables: list[str]) -> Verdict:
    """The oracle's verdict on `tables`, the generations of one.

    A producer's log names each attempt that was accepted; of the others only the last may be stored, by a producer
    that was killed between append and log.
    """
    nothing = np.empty(0, np.int64)
    accepted = np.concatenate([nothing, *(p * NUMBERS_PER_PRODUCER + log.entries[:, 2] for p, log in logs.items())])
    last = [p * NUMBERS_PER_PRODUCER + int(log.words[ATTEMPTED]) - 1 for p, log in logs.items() if log.words[ATTEMPTED]]
    attempted = np.concatenate([accepted, np.array(last, np.int64)])
    return judged(accepted, attempted, [stored(connection, table) for table in tables])


def stored(connection: psycopg.Connection[Any], table: str) -> Stored:
    """Every row of a table, its payload compared with what its number says, field by field."""
    keys: list[tuple[int, int, int]] = []
    altered = []
    for part in range(PARTS):
        query = f"SELECT {', '.join(COLUMNS)} FROM {table} WHERE lane % {PARTS} = {part}"
        for row in connection.execute(query, binary=True):
            trader = row[2].removeprefix(PREFIX) if row[2] else ""
            producer = int(trader) if trader.isdigit() else -1
            number = producer * NUMBERS_PER_PRODUCER + (row[10] if row[10] is not None else -1)
            keys.append((number, row[0], row[1]))
            if row[2:] != payload(producer, row[10]):
                altered.append(number)
    found = np.array(keys, np.int64).reshape(-1, 3)
    (count,) = connection.execute(f"SELECT count() FROM {table}").fetchone() or (0,)
    if count != len(found):
        raise AssertionError(f"{table}: got {len(found)} rows by their lanes, wanted {count}: some have no lane")
    return Stored(found[:, 0], found[:, 1], found[:, 2], altered)
