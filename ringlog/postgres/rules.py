"""Order rules and their evaluation against a price: pure, no clock, no database."""

from __future__ import annotations

import datetime
import uuid
from decimal import Context, Decimal
from typing import Annotated, Literal, NamedTuple

import msgspec

from ringlog.errors import PostgresValueError
from ringlog.postgres.addresses import checked_address
from ringlog.postgres.values import checked_decimal, checked_text, fitted

TRADER_ID_BYTES_MAX = 32
ONE_IN_BASIS_POINTS = 10_000
# Prices are multiplied by basis points without rounding: a rule fires at its price, not near it.
_EXACT = Context(prec=200)

TrailingBps = Annotated[int, msgspec.Meta(ge=1, le=ONE_IN_BASIS_POINTS - 1)]
State = Literal["armed", "triggered", "filled", "cancelled"]
Reason = Literal["stop_loss", "take_profit"]


class OrderRule(msgspec.Struct, frozen=True, kw_only=True):
    """When to sell a holding. Prices are in quote units per token, trailing distances in basis points.

    `stop_loss` sells at or below a price, `stop_loss_trailing_bps` that far below the highest price since arming; with
    both, at the higher of the two. `take_profit` sells at or above a price; with `take_profit_trailing_bps`, reaching
    it only starts a trail that far below the highest price. The rest is kept by the database.
    """

    trader_id: str
    token: str
    quantity: Decimal
    entry_price: Decimal
    stop_loss: Decimal | None = None
    stop_loss_trailing_bps: TrailingBps | None = None
    take_profit: Decimal | None = None
    take_profit_trailing_bps: TrailingBps | None = None
    id: uuid.UUID = msgspec.field(default_factory=uuid.uuid4)
    highest_price: Decimal | None = None  # since arming; None is entry_price
    state: State = "armed"
    trigger_reason: Reason | None = None
    trigger_price: Decimal | None = None
    fill_price: Decimal | None = None
    tx_signature: str | None = None
    cancel_reason: str | None = None
    armed_at: datetime.datetime | None = None
    triggered_at: datetime.datetime | None = None
    ended_at: datetime.datetime | None = None


class Evaluation(NamedTuple):
    """What a price does to an armed rule: why it fires (None: it does not), and the highest price from now on."""

    reason: Reason | None
    highest_price: Decimal


def evaluate(rule: OrderRule, price: Decimal) -> Evaluation:
    """What `price` does to `rule`, taken as armed. Where both would fire, it is the stop-loss.

    Raises PostgresValueError for a price that is no finite number above 0.
    """
    checked_decimal("price", price)
    highest = max(rule.entry_price if rule.highest_price is None else rule.highest_price, price)
    if rule.stop_loss is not None and price <= rule.stop_loss:
        return Evaluation("stop_loss", highest)
    if rule.stop_loss_trailing_bps is not None and _trails(price, highest, rule.stop_loss_trailing_bps):
        return Evaluation("stop_loss", highest)
    if rule.take_profit is not None and highest >= rule.take_profit:
        if rule.take_profit_trailing_bps is None:
            # Only the price itself counts: without a trail, an earlier high has fired already or was never seen.
            return Evaluation("take_profit" if price >= rule.take_profit else None, highest)
        if _trails(price, highest, rule.take_profit_trailing_bps):
            return Evaluation("take_profit", highest)
    return Evaluation(None, highest)


def _trails(price: Decimal, highest: Decimal, distance_bps: int) -> bool:
    least = _EXACT.multiply(highest, Decimal(ONE_IN_BASIS_POINTS - distance_bps))
    return _EXACT.multiply(price, Decimal(ONE_IN_BASIS_POINTS)) <= least


def checked_rule(rule: OrderRule) -> OrderRule:
    """`rule`, if it can be armed; raises PostgresValueError that names what is wrong."""
    rule = fitted("rule", rule, OrderRule)
    checked_text("rule.trader_id", rule.trader_id, TRADER_ID_BYTES_MAX)
    checked_address("rule.token", rule.token)
    for name in ("quantity", "entry_price", "stop_loss", "take_profit", "highest_price"):
        if getattr(rule, name) is not None:
            checked_decimal(f"rule.{name}", getattr(rule, name))
    if rule.state != "armed":
        raise PostgresValueError(f"rule.state: got {rule.state!r}, wanted 'armed'")
    if rule.stop_loss is None and rule.stop_loss_trailing_bps is None and rule.take_profit is None:
        raise PostgresValueError("rule: got neither stop_loss, stop_loss_trailing_bps nor take_profit, wanted one")
    if rule.stop_loss is not None and rule.take_profit is not None and rule.stop_loss >= rule.take_profit:
        raise PostgresValueError(
            f"rule.stop_loss: got {rule.stop_loss}, wanted it below take_profit ({rule.take_profit})"
        )
    if rule.take_profit_trailing_bps is not None and rule.take_profit is None:
        raise PostgresValueError("rule.take_profit_trailing_bps: got it without take_profit, wanted both")
    if rule.highest_price is not None and rule.highest_price < rule.entry_price:
        raise PostgresValueError(
            f"rule.highest_price: got {rule.highest_price}, wanted at least entry_price ({rule.entry_price})"
        )
    return rule
