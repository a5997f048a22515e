"""Who takes a trade: limits, and rules that have fired."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from ringlog.demo.configuration import paper_address, trader_configs
from ringlog.demo.holdings import Fill
from ringlog.demo.traders import Order, Trader, allocate

TOKEN = paper_address("BTC")
SCALPER, SWING, DESK = (config.trader_id for config in trader_configs(0))


def traders() -> list[Trader]:
    return [Trader(config) for config in trader_configs(0)]


def order(action: Any, quantity: str, price: str = "100", slippage: float = 0.0) -> Order:
    return Order(action, Decimal(quantity), Decimal(quantity), Decimal(price), slippage)


def taken(trader: Trader, *orders: Order) -> Trader:
    for each in orders:
        trader.holding.apply(Fill(each.action, each.moved, each.notional, Decimal(0), Decimal(0)))
    return trader


@pytest.mark.parametrize(
    ("wanted", "limits", "by"),
    [
        (order("buy", "4"), [], SCALPER),
        (order("buy", "6"), ["trade_max"], SWING),
        (order("buy", "60"), ["trade_max", "trade_max"], DESK),
        (order("buy", "1", slippage=0.0006), ["slippage_max_bps"], SWING),
        (order("sell", "1"), ["holding", "holding"], DESK),
    ],
)
def test_the_first_whose_limits_allow_it_takes_a_trade(wanted: Order, limits: list[str], by: str) -> None:
    """A limit that binds is named and the next trader is asked; the desk takes what is left."""
    trader, refused = allocate(traders(), wanted)
    assert (trader.trader_id, refused) == (by, limits)


def test_position_and_loss_limits_keep_from_buying_only() -> None:
    """A full position or a day's loss refuses buys by name, and lets the trader sell what it holds."""
    full = taken(traders()[0], order("buy", "19"))
    assert full.refusal(order("buy", "2")) == "position_max"
    assert full.refusal(order("sell", "2")) is None
    losing = taken(traders()[0], order("buy", "4"), order("sell", "3", "90"))
    assert losing.holding.realized_pnl == -30
    assert losing.refusal(order("buy", "1")) == "daily_loss_max"
    assert losing.refusal(order("sell", "1")) is None
    losing.config = msgspec.structs.replace(losing.config, enabled=False)
    assert losing.refusal(order("sell", "1")) == "disabled"


def test_a_rule_that_fired_sells_before_anything_else() -> None:
    """A buy arms a rule around its price; once it has fired its trader comes first for sales, buys nothing, and is done
    at the average price of what it sold, when most of the rule's quantity is gone."""
    scalper, swing, desk = traders()
    bought = order("buy", "10")
    taken(swing, bought)
    rule = swing.rule_to_arm(TOKEN, bought)
    assert rule is not None
    assert (rule.quantity, rule.stop_loss, rule.take_profit) == (10, Decimal("99.92"), Decimal("100.08"))
    swing.rule = rule
    assert swing.rule_to_arm(TOKEN, bought) is None
    assert swing.observe(Decimal("99.93")) is None
    assert swing.observe(Decimal("99.92")) == "stop_loss"
    swing.trigger(msgspec.structs.replace(rule, state="triggered", trigger_reason="stop_loss"))
    assert swing.refusal(order("buy", "1")) == "exiting"
    assert allocate([scalper, swing, desk], order("sell", "4", "99")) == (swing, [])
    assert swing.exits(order("sell", "4", "99")) is None
    assert swing.exits(order("sell", "5", "90")) == Decimal(94)
    assert swing.rule is None


def test_a_take_profit_trails_the_highest_price() -> None:
    """Reaching the take-profit starts a trail of 2 bps below the highest price seen."""
    scalper = traders()[0]
    scalper.rule = scalper.rule_to_arm(TOKEN, order("buy", "1", "10000"))
    assert [scalper.observe(Decimal(price)) for price in (10_005, 10_010, 10_009)] == [None, None, None]
    assert scalper.observe(Decimal("10007.9")) == "take_profit"
