"""The correlation analyzer: reads the session back with ASOF joins, and says what goes with what.

Latency against slippage: each trade with the age of the price that its trader had seen. Protection against loss: each
trade with its MEV metric. An ASOF join takes the newest row at or before the trade's time; where two trades share one
microsecond it may take the other's, so a MEV metric also has to be of the trade's size, and what does not match is left
out and counted.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ringlog.demo.report import SessionReport
from ringlog.questdb.queries import Queries

QUERY_TIMEOUT_MS = 30_000
AGE_BINS = 12

LATENCY_AGAINST_SLIPPAGE = """
    SELECT l.latency_us / 1000 AS age_ms, abs(t.actual_slippage) * 10000 AS slippage_bps
    FROM trades t ASOF JOIN (SELECT * FROM latencies WHERE operation = 'price_age') l ON (t.trader_id = l.service)
    WHERE l.latency_us IS NOT NULL"""
PROTECTION_AGAINST_LOSS = """
    SELECT t.quote_amount, m.protection_used, m.sandwich_probability, m.estimated_loss_bps, m.actual_loss_bps,
        m.avoided, m.priority_fee_lamports
    FROM trades t ASOF JOIN mev_metrics m WHERE m.trade_size = t.base_amount"""
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

    def columns(sql: str) -> dict[str, NDArray[Any]]:
        frame = queries.execute_query(sql, timeout_ms=QUERY_TIMEOUT_MS).to_pandas()
        return {name: frame[name].to_numpy() for name in frame.columns}

    latency, protection = columns(LATENCY_AGAINST_SLIPPAGE), columns(PROTECTION_AGAINST_LOSS)
    age, slippage = latency["age_ms"].astype(float), latency["slippage_bps"].astype(float)
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
