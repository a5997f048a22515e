"""The built-in record types of the trading platform."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from ringlog.records.declaration import Record
from ringlog.records.fields import Double, Json, Long, Symbol, Varchar

# Widths in bytes: a Solana address is at most 44 base58 characters, a signature at most 88.
Address = Annotated[str, Symbol(44)]
Lamports = Annotated[int, Long(minimum=0)]
OptionalLamports = Annotated[int | None, Long(minimum=0)]
Amount = Annotated[float, Double(minimum=0.0)]


class Trade(Record):
    """One executed trade. Amounts and price are in token units, fees in lamports, slippages are fractions."""

    __table__ = "trades"

    trader_id: Annotated[str, Symbol(32)]
    mode: Literal["paper", "live"]
    action: Literal["buy", "sell", "swap"]
    base_token: Address
    quote_token: Address
    base_amount: Amount
    quote_amount: Amount
    executed_price: Amount
    transaction_fee: Lamports
    priority_fee: OptionalLamports = None
    expected_slippage: float
    actual_slippage: float
    mev_status: Literal["protected", "at_risk", "impacted"]
    mev_protected: bool
    transfer_fees: Annotated[float | None, Double(minimum=0.0)] = None  # Token-2022, in token units
    tx_signature: Annotated[str | None, Varchar(88)] = None
    metadata: Annotated[dict[str, Any] | str | None, Json(158)] = None


class PerformanceMetric(Record):
    """One measured value: a latency in microseconds, a throughput in operations/s, or an error rate (0..1)."""

    __table__ = "performance_metrics"

    metric_type: Literal["latency", "throughput", "error_rate"]
    operation: Annotated[str, Symbol(48)]
    value: float
    percentile: Literal[50, 95, 99] | None = None
    tags: Annotated[dict[str, Any] | str | None, Json(158)] = None


class LatencySample(Record):
    """One latency of one operation of one service, in microseconds (negative where clocks disagree)."""

    __table__ = "latencies"

    service: Annotated[str, Symbol(32)]
    operation: Annotated[str, Symbol(48)]
    latency_us: float


class MevMetric(Record):
    """One trade's exposure to MEV: probability 0..1, losses in basis points, priority fee in lamports."""

    __table__ = "mev_metrics"

    token_pair: Annotated[str, Symbol(96)]
    trade_size: Amount
    sandwich_probability: Annotated[float, Double(minimum=0.0, maximum=1.0)]
    estimated_loss_bps: float
    actual_loss_bps: float | None = None
    protection_used: bool
    priority_fee_lamports: Lamports
    avoided: bool


class Position(Record):
    """A trader's holding of one token: quantity in token units, prices and P&L in quote units."""

    __table__ = "positions"

    trader_id: Annotated[str, Symbol(32)]
    mode: Literal["paper", "live"]
    token: Address
    quantity: float
    average_entry_price: Amount
    mark_price: Amount
    realized_pnl: float
    unrealized_pnl: float


PLATFORM_RECORDS: tuple[type[Record], ...] = (Trade, PerformanceMetric, LatencySample, MevMetric, Position)
