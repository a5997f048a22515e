"""The oracle: accepted is in the table, the table is in attempted, payloads are equal, keys are unique."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import psycopg

from torture.attempts import ATTEMPTED, Attempts, payload

COLUMNS = (
    "lane", "seq", "trader_id", "mode", "action", "base_token", "quote_token", "base_amount", "quote_amount",
    "executed_price", "transaction_fee", "priority_fee", "expected_slippage", "actual_slippage", "mev_status",
    "mev_protected", "transfer_fees", "tx_signature", "metadata",
)  # fmt: skip


@dataclasses.dataclass
class Judgement:
    accepted: int = 0
    stored: int = 0
    lost: int = 0
    duplicated: int = 0
    altered: int = 0
    foreign: int = 0  # rows that no producer attempted

    @property
    def is_clean(self) -> bool:
        return self.lost == self.duplicated == self.altered == self.foreign == 0


def judge(connection: psycopg.Connection[Any], logs: Mapping[int, Attempts]) -> Judgement:
    """Compares every stored row with what its producer attempted, and every acceptance with the stored rows."""
    judgement = Judgement()
    stored: dict[tuple[int, int], int] = {}
    cursor = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM trades", binary=True)
    for row in cursor:
        judgement.stored += 1
        key = (row[0], row[1])
        if key in stored:
            judgement.duplicated += 1
        producer, number = int(row[2].removeprefix("torture-")), row[10]
        stored[key] = number
        log = logs.get(producer)
        if log is None or not 0 <= number < log.words[ATTEMPTED]:
            judgement.foreign += 1
        elif row[2:] != payload(producer, number):
            judgement.altered += 1
    for log in logs.values():
        for lane, seq, number in np.asarray(log.entries).tolist():
            judgement.accepted += 1
            found = stored.pop((lane, seq), None)
            if found is None:
                judgement.lost += 1
            elif found != number:
                judgement.altered += 1
    # What is left was attempted, accepted, and its producer killed before it could write so down: one each at most.
    judgement.foreign += max(0, len(stored) - len(logs))
    return judgement
