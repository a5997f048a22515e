"""Traders and who of them takes a trade: limits, stop-losses and take-profits, without any database."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal
from typing import Literal, NamedTuple

import msgspec

from ringlog.demo.holdings import ONE_IN_BASIS_POINTS, Action, Holding
from ringlog.postgres import OrderRule, TraderConfig, evaluate

EXIT_SHARE = Decimal("0.9")  # of what a rule has to sell: the market's next sales rarely add up to it exactly

_PRICE = Context(prec=20)

Limit = Literal["disabled", "exiting", "trade_max", "slippage_max_bps", "daily_loss_max", "position_max", "holding"]


class Order(NamedTuple):
    """A trade of the market that a trader may take.

    `moved` is the quantity with the transfer fee (`Fill.moved`); `slippage` is a fraction, against the price the
    executor saw.
    """

    action: Action
    quantity: Decimal
    moved: Decimal
    price: Decimal
    slippage: float

    @property
    def notional(self) -> Decimal:
        return self.quantity * self.price


class Trader:
    """One trader of one executor, which alone knows its holding.

    `rule` is its armed or triggered order rule. Once it is triggered the trader only sells, until EXIT_SHARE of what is
    left of the rule's quantity is sold.
    """

    def __init__(self, config: TraderConfig) -> None:
        self.config = config
        self.holding = Holding()
        self.rule: OrderRule | None = None
        self.trades = 0
        self._to_sell = self._sold = self._proceeds = Decimal(0)

    @property
    def trader_id(self) -> str:
        return self.config.trader_id

    @property
    def is_exiting(self) -> bool:
        return self.rule is not None and self.rule.state == "triggered"

    @property
    def may_short(self) -> bool:
        return bool(self.config.settings.get("may_short"))

    def refusal(self, order: Order) -> Limit | None:
        """The first limit that keeps this trader from taking `order`; None where it may."""
        limits = self.config.limits
        if not self.config.enabled:
            return "disabled"
        if order.action == "sell" and order.moved > self.holding.quantity and not self.may_short:
            return "holding"
        if self.is_exiting:
            return "exiting" if order.action == "buy" else None
        if order.notional > limits.trade_max:
            return "trade_max"
        if order.slippage * ONE_IN_BASIS_POINTS > limits.slippage_max_bps and not self.may_short:
            return "slippage_max_bps"
        if order.action == "buy":
            if self.holding.realized_pnl < -limits.daily_loss_max:
                return "daily_loss_max"
            if (self.holding.quantity + order.moved) * order.price > limits.position_max:
                return "position_max"
        return None

    def rule_to_arm(self, token: str, order: Order) -> OrderRule | None:
        """The rule for what `order` bought, one at a time: stop-loss and take-profit around its price."""
        settings = self.config.settings
        if self.rule is not None or order.action == "sell" or not order.moved or "stop_loss_bps" not in settings:
            return None
        entry = order.price
        stop = 1 - Decimal(settings["stop_loss_bps"]) / ONE_IN_BASIS_POINTS
        profit = 1 + Decimal(settings["take_profit_bps"]) / ONE_IN_BASIS_POINTS
        return OrderRule(
            trader_id=self.trader_id,
            token=token,
            quantity=order.moved,
            entry_price=entry,
            stop_loss=entry * stop,
            take_profit=entry * profit,
            take_profit_trailing_bps=settings["trailing_bps"],
        )

    def observe(self, price: Decimal) -> Literal["stop_loss", "take_profit"] | None:
        """Holds `price` against the armed rule; says why it fires, and keeps the highest price if it does not."""
        if self.rule is None or self.is_exiting:
            return None
        reason, highest = evaluate(self.rule, price)
        self.rule = msgspec.structs.replace(self.rule, highest_price=highest)
        return reason

    @property
    def has_nothing_to_sell(self) -> bool:
        return self.holding.quantity <= 0

    def trigger(self, rule: OrderRule) -> None:
        """The rule is this trader's to execute: from now on it sells, as much of it as is still held."""
        self.rule = rule
        self._to_sell = min(rule.quantity, self.holding.quantity) * EXIT_SHARE
        self._sold = self._proceeds = Decimal(0)

    def exits(self, order: Order) -> Decimal | None:
        """Notes a sale by the triggered rule; the average price once enough was sold, else None."""
        self._sold += order.moved
        self._proceeds += order.moved * order.price
        if self._sold < self._to_sell:
            return None
        self.rule = None
        return _PRICE.divide(self._proceeds, self._sold)


def allocate(traders: Sequence[Trader], order: Order) -> tuple[Trader, list[Limit]]:
    """Who takes `order`: a trader whose rule has fired and can sell by it, else the first whose limits allow it.

    The last trader takes what is left. Also says which limits kept the others from it.
    """
    for trader in traders:
        if trader.is_exiting and trader.refusal(order) is None:
            return trader, []
    refused: list[Limit] = []
    for trader in traders[:-1]:
        limit = trader.refusal(order)
        if limit is None:
            return trader, refused
        refused.append(limit)
    return traders[-1], refused
