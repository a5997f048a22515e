"""The typed rows that queries give: one struct per row, every time an aware datetime in UTC, None is NULL."""

from __future__ import annotations

import datetime

import msgspec

LIMIT_MAX = 1_000_000  # rows of one answer


class TradeRow(msgspec.Struct, frozen=True, gc=False):
    """A trade as stored: the fields of `Trade`, and the lane and seq that identify it. `metadata` is JSON text."""

    timestamp: datetime.datetime
    trader_id: str
    mode: str
    action: str
    base_token: str
    quote_token: str
    base_amount: float
    quote_amount: float
    executed_price: float
    transaction_fee: int
    priority_fee: int | None
    expected_slippage: float
    actual_slippage: float
    mev_status: str
    mev_protected: bool
    transfer_fees: float | None
    tx_signature: str | None
    metadata: str | None
    lane: int
    seq: int


class PositionRow(msgspec.Struct, frozen=True, gc=False):
    """The latest position of one trader, mode and token: the fields of `Position`."""

    timestamp: datetime.datetime
    trader_id: str
    mode: str
    token: str
    quantity: float
    average_entry_price: float
    mark_price: float
    realized_pnl: float
    unrealized_pnl: float


class PerformanceRow(msgspec.Struct, frozen=True, gc=False):
    """All values of one metric type, operation and percentile (None: values that are no percentile) in the span."""

    metric_type: str
    operation: str
    percentile: int | None
    samples: int
    mean: float
    minimum: float
    maximum: float
    last: float


class MevRow(msgspec.Struct, frozen=True, gc=False):
    """The trades of the span with, or without, MEV protection. Losses in basis points (means), fees in lamports.

    `avoided_share`: trades whose attack was avoided, of all (0..1). `actual_loss_bps` covers the `actual_samples`
    trades whose loss is known. None where there is nothing to divide by.
    """

    protection_used: bool
    trades: int
    estimated_loss_bps: float | None
    actual_loss_bps: float | None
    actual_samples: int
    avoided: int
    avoided_share: float | None
    priority_fee_lamports: int


class PercentileRow(msgspec.Struct, frozen=True, gc=False):
    """One percentile of one service and operation: nearest rank of `samples` latencies, within 1 % (see docs)."""

    service: str
    operation: str
    percentile: float
    latency_us: float
    samples: int
