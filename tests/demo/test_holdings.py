"""Positions and P&L against an independent calculation in fractions, lot by lot."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringlog.demo.holdings import Fill, Holding, fill_of
from ringlog.postgres import TransferFee

FEE = TransferFee(epoch=0, maximum_fee=10_000, transfer_fee_basis_points=2)

prices = st.decimals("0.01", "100000", places=2)
quantities = st.decimals("0.00001", "50", places=8)
actions = st.sampled_from(["buy", "sell"])


def applied(*fills: tuple[str, str, str]) -> Holding:
    holding = Holding()
    for action, moved, paid in fills:
        holding.apply(Fill(action, Decimal(moved), Decimal(paid), Decimal(0), Decimal(0)))  # type: ignore[arg-type]
    return holding


def test_a_round_trip_realizes_what_it_earned() -> None:
    """2 bought at 100, 1 sold at 110: 10 realized, 1 left at 100, 5 unrealized at 105."""
    holding = applied(("buy", "2", "200"), ("sell", "1", "110"))
    assert (holding.quantity, holding.average_entry_price, holding.realized_pnl) == (1, 100, 10)
    assert holding.unrealized_pnl(Decimal(105)) == 5


def test_a_short_earns_when_the_price_falls() -> None:
    """2 sold short at 100: 20 unrealized at 90; bought back at 90: 20 realized and nothing open."""
    holding = applied(("sell", "2", "200"))
    assert (holding.quantity, holding.average_entry_price, holding.unrealized_pnl(Decimal(90))) == (-2, 100, 20)
    holding.apply(Fill("buy", Decimal(2), Decimal(180), Decimal(0), Decimal(0)))
    assert (holding.quantity, holding.cost, holding.realized_pnl, holding.average_entry_price) == (0, 0, 20, 0)


def test_a_trade_through_zero_closes_first_and_opens_the_rest() -> None:
    """1 held at 100, 3 sold at 110: 10 realized, and a short of 2 at 110."""
    holding = applied(("buy", "1", "100"), ("sell", "3", "330"))
    assert (holding.quantity, holding.average_entry_price, holding.realized_pnl) == (-2, 110, 10)


def test_what_a_transfer_fee_takes_whole_is_a_loss() -> None:
    """A buy of which nothing arrives costs what was paid, and divides nothing by zero."""
    holding = applied(("buy", "0", "5"))
    assert (holding.quantity, holding.cost, holding.realized_pnl) == (0, 0, -5)


def test_a_fill_carries_both_fees() -> None:
    """A buyer receives less by the transfer fee and pays the pool's on top; a seller sends more and receives less."""
    buy = fill_of("buy", Decimal("0.1"), Decimal(60_000), 4, FEE, 8)
    assert buy == ("buy", Decimal("0.09998"), Decimal("6002.4"), Decimal("2.4"), Decimal("0.00002"))
    sell = fill_of("sell", Decimal("0.1"), Decimal(60_000), 4, FEE, 8)
    assert sell.paid == Decimal("5997.6")
    assert FEE.amount_received(int(sell.moved.scaleb(8))) == 10_000_000
    assert fill_of("buy", Decimal(9), Decimal(60_000), 4, FEE, 8).transfer_fee == Decimal("0.0001")  # the maximum


def test_a_quantity_finer_than_the_token_is_an_error() -> None:
    """A quantity that the token cannot express names got and wanted."""
    with pytest.raises(ValueError, match=r"got 0\.0000001, wanted at most 6 decimals"):
        fill_of("buy", Decimal("0.0000001"), Decimal(1), 4, None, 6)


@given(st.lists(st.tuples(actions, quantities, prices), min_size=1, max_size=60), prices)
def test_positions_equal_an_independent_calculation(trades: list[tuple[str, Decimal, Decimal]], mark: Decimal) -> None:
    """Realized and unrealized P&L add up to cash and holdings in exact fractions; the average is that of the cost."""
    holding = Holding()
    cash = quantity = Fraction(0)
    for action, size, price in trades:
        fill = fill_of(action, size, price, 4, FEE, 8)  # type: ignore[arg-type]
        holding.apply(fill)
        units = int(Fraction(size) * 10**8)
        notional = Fraction(size) * Fraction(price)
        if action == "buy":
            quantity += Fraction(units - min(-(-units * 2 // 10_000), 10_000), 10**8)
            cash -= notional * Fraction(10_004, 10_000)
        else:
            gross = -(-units * 10_000 // 9_998)
            sent = units + 10_000 if gross - units >= 10_000 else gross
            quantity -= Fraction(units + min(-(-sent * 2 // 10_000), 10_000), 10**8)
            cash += notional * Fraction(9_996, 10_000)
    assert Fraction(holding.quantity) == quantity
    total = Fraction(holding.realized_pnl) + Fraction(holding.unrealized_pnl(mark))
    assert abs(total - (cash + quantity * Fraction(mark))) < Fraction(1, 10**30)
    if holding.quantity:
        assert holding.average_entry_price >= 0
