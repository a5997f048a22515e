"""Trades as an executor would append them: every record differs, few of the texts do."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringlog.arrays import rows_of
from ringlog.records import Trade

FIELDS = (
    "trader_id", "mode", "action", "base_token", "quote_token", "base_amount", "quote_amount", "executed_price",
    "transaction_fee", "priority_fee", "expected_slippage", "actual_slippage", "mev_status", "mev_protected",
    "transfer_fees", "tx_signature", "metadata",
)  # fmt: skip
# What an executor knows from the start; the other eight differ from trade to trade.
PRESETS = {
    "trader_id": "momentum-1",
    "mode": "paper",
    "base_token": "SOL",
    "quote_token": "USDC",
    "expected_slippage": 0.001,
    "mev_status": "protected",
    "mev_protected": True,
    "transfer_fees": None,
    "metadata": None,
}
VARYING = tuple(name for name in FIELDS if name not in PRESETS)
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def trades(count: int, seed: int = 1) -> list[tuple[Any, ...]]:
    """`count` trades as tuples in the order of FIELDS: a walking price, signatures of 88 characters, small JSON."""
    rng = random.Random(seed)
    price = 150.0
    found = []
    traders = [f"momentum-{i}" for i in range(4)]
    for _ in range(count):
        price *= 1 + rng.gauss(0, 1e-4)
        amount = rng.expovariate(0.2)
        found.append(
            (
                rng.choice(traders), "paper", rng.choice(("buy", "sell")), rng.choice(("SOL", "JUP", "BONK")), "USDC",
                amount, amount * price, price, 5000 + rng.randrange(5000), rng.randrange(1, 100_000),
                0.001, rng.random() / 500, rng.choice(("protected", "at_risk")), rng.random() < 0.5,
                0.0, "".join(rng.choices(_BASE58, k=88)),
                f'{{"route":"{rng.choice("abcd")}","hops":{rng.randrange(4)}}}',
            )
        )  # fmt: skip
    return found


def varying(records: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The eight fields of each trade that PRESETS leaves open, in the order of VARYING."""
    places = [FIELDS.index(name) for name in VARYING]
    return [tuple(record[place] for place in places) for record in records]


def slots(count: int, seed: int = 1) -> NDArray[Any]:
    """`count` trades as an array of slots, for `append_many`."""
    return rows_of(Trade, dict(zip(FIELDS, zip(*trades(count, seed), strict=True), strict=True)))


def stamped(rows: NDArray[Any], first_us: int) -> NDArray[Any]:
    """The same rows a microsecond apart from `first_us` on."""
    rows["timestamp"] = np.arange(first_us, first_us + len(rows))
    return rows
