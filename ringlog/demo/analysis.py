"""The correlation analyzer: reads the session back, joins it as of each trade's time, and says what goes with what.

Latency against slippage: each trade with the age of the price that its trader had seen. Protection against loss: each
trade with its MEV metric. A join as of a time takes the newest row at or before it; where two trades share one
microsecond the server may take the other's, so a MEV metric also has to be of the trade's size, and what does not match
is left out and counted.

Every statement reads its tables once, and the join by trader is made here: QuestDB runs an ASOF JOIN with a filtered
right side by scanning back from each left row until a row passes the filter ("Filtered AsOf Join Fast" in EXPLAIN).
That takes minutes for some hundred thousand trades of a load that has no such rows at all.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ringlog.demo.report import SessionReport
from ringlog.questdb.queries import Queries

QUERY_TIMEOUT_MS = 120_000
AGE_BINS = 12

SLIPPAGES = """
    SELECT timestamp::long AS time_us, trader_id, abs(actual_slippage) * 10000 AS slippage_bps FROM trades
    WHERE trader_id IN (SELECT DISTINCT service FROM latencies WHERE operation = 'price_age')
        AND actual_slippage IS NOT NULL"""
PRICE_AGES = """
    SELECT timestamp::long AS time_us, lane, seq, service AS trader_id, latency_us / 1000 AS age_ms FROM latencies
    WHERE operation = 'price_age' AND latency_us IS NOT NULL"""
PROTECTION_AGAINST_LOSS = """
    SELECT t.quote_amount, m.protection_used, m.sandwich_probability, m.estimated_loss_bps, m.actual_loss_bps,
        m.avoided, m.priority_fee_lamports
    FROM trades t ASOF JOIN mev_metrics m
    WHERE m.trade_size = t.base_amount AND t.trader_id IN (SELECT DISTINCT trader_id FROM positions)"""
PRICES = """
    SELECT timestamp::long AS time_us, executed_price, metadata LIKE '%"rule"%' AS is_exit FROM trades
    WHERE trader_id IN (SELECT DISTINCT trader_id FROM positions) ORDER BY timestamp"""
PROFITS = """
    SELECT timestamp::long AS time_us, trader_id, realized_pnl + unrealized_pnl AS pnl FROM positions
    ORDER BY timestamp"""
OPERATIONS = """
    SELECT operation, percentile, last(value) AS latency_us FROM performance_metrics
    WHERE metric_type = 'latency' AND percentile IS NOT NULL GROUP BY operation, percentile"""
THROUGHPUT = """
    SELECT timestamp::long AS time_us, operation, value FROM performance_metrics
    WHERE metric_type = 'throughput' AND operation LIKE 'append.%' ORDER BY timestamp"""


class Protection(msgspec.Struct):
    """The trades with, or without, MEV protection: mean losses in basis points over those that were in danger."""

    trades: int = 0
    in_danger: int = 0
    expected_loss_bps: float = 0.0
    actual_loss_bps: float = 0.0
    avoided: int = 0


class Findings(msgspec.Struct, kw_only=True):
    """What the plots show, each a dict of columns (numpy arrays of one length), and what they come to."""

    latency: dict[str, NDArray[Any]]
    protection: dict[str, NDArray[Any]]
    prices: dict[str, NDArray[Any]]
    profits: dict[str, NDArray[Any]]
    operations: dict[str, NDArray[Any]]
    throughput: dict[str, NDArray[Any]]
    rank_correlation: float
    slippage_ratio: float
    protected: Protection
    unprotected: Protection


def findings(queries: Queries) -> Findings:
    """Reads back what the session stored. Raises QueryError, ServerUnavailable."""

    def frame(sql: str) -> pd.DataFrame:
        return queries.execute_query(sql, timeout_ms=QUERY_TIMEOUT_MS).to_pandas()

    def columns(sql: str) -> dict[str, NDArray[Any]]:
        found = frame(sql)
        return {name: found[name].to_numpy() for name in found.columns}

    age, slippage = latency_against_slippage(frame(SLIPPAGES), frame(PRICE_AGES))
    protection = columns(PROTECTION_AGAINST_LOSS)
    protected = protection["protection_used"].astype(bool)
    return Findings(
        latency={"age_ms": age, "slippage_bps": slippage},
        protection=protection,
        prices=columns(PRICES),
        profits=columns(PROFITS),
        operations=columns(OPERATIONS),
        throughput=columns(THROUGHPUT),
        rank_correlation=rank_correlation(age, slippage),
        slippage_ratio=_slippage_ratio(age, slippage),
        protected=_protection(protection, protected),
        unprotected=_protection(protection, ~protected),
    )


def latency_against_slippage(trades: pd.DataFrame, ages: pd.DataFrame) -> tuple[NDArray[Any], NDArray[Any]]:
    """The age (ms) of the newest price at or before each trade of its own trader, and the trade's slippage (bps).

    Of several ages of one trader and microsecond the one with the largest lane and seq counts. Trades without any are
    left out. Takes as long as sorting both sides.
    """
    joined = pd.merge_asof(
        trades.sort_values("time_us", kind="stable"),
        ages.sort_values(["time_us", "lane", "seq"])[["time_us", "trader_id", "age_ms"]],
        on="time_us",
        by="trader_id",
    ).dropna(subset=["age_ms"])
    return joined["age_ms"].to_numpy(float), joined["slippage_bps"].to_numpy(float)


def rank_correlation(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Spearman's, ties at their mean rank; 0.0 where one side does not vary."""
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _ranks(values: NDArray[Any]) -> NDArray[Any]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    found: NDArray[Any] = ((ends - counts + 1 + ends) / 2)[inverse]
    return found


def age_bins(age: NDArray[Any], slippage: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Median age, mean slippage and its standard error in bins of as many trades each."""
    parts = [part for part in np.array_split(np.argsort(age, kind="stable"), AGE_BINS) if len(part)]
    return (
        np.array([np.median(age[part]) for part in parts]),
        np.array([slippage[part].mean() for part in parts]),
        np.array([slippage[part].std() / np.sqrt(len(part)) for part in parts]),
    )


def _slippage_ratio(age: NDArray[Any], slippage: NDArray[Any]) -> float:
    """Mean slippage of the quarter with the oldest prices over that of the quarter with the freshest."""
    if len(age) < 4:
        return 1.0
    order = np.argsort(age, kind="stable")
    quarter = len(order) // 4
    fresh = float(slippage[order[:quarter]].mean())
    return float(slippage[order[-quarter:]].mean()) / fresh if fresh else 1.0


def _protection(columns: dict[str, NDArray[Any]], chosen: NDArray[Any]) -> Protection:
    danger = chosen & (columns["sandwich_probability"].astype(float) > 0)
    if not danger.any():
        return Protection(int(chosen.sum()))
    return Protection(
        int(chosen.sum()),
        int(danger.sum()),
        float(columns["estimated_loss_bps"][danger].astype(float).mean()),
        float(columns["actual_loss_bps"][danger].astype(float).mean()),
        int(columns["avoided"][danger].astype(bool).sum()),
    )


def sentences(found: Findings, session: SessionReport) -> list[str]:
    """The findings in words, plain text."""
    protected, unprotected = found.protected, found.unprotected
    matched = len(found.protection["quote_amount"])
    said = [
        f"Trades on the oldest quarter of prices slipped {found.slippage_ratio:.2f} times as much as those on the "
        f"freshest (rank correlation of price age and slippage {found.rank_correlation:+.2f}).",
        f"Unprotected trades in danger lost {unprotected.actual_loss_bps:.1f} bps on average, expected were "
        f"{unprotected.expected_loss_bps:.1f} bps ({unprotected.in_danger:,} trades).",
    ]
    if protected.in_danger:
        said.append(
            f"Protected ones lost {protected.actual_loss_bps:.1f} bps where the public mempool would have cost "
            f"{protected.expected_loss_bps:.1f} bps ({protected.in_danger:,} trades, {protected.avoided:,} attacks "
            "avoided)."
        )
    if session.trades > matched:
        said.append(
            f"{session.trades - matched:,} of {session.trades:,} trades share their microsecond with another one and "
            "were left out of the MEV join."
        )
    return said
