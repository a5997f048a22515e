"""What a trader holds and has earned: average-cost arithmetic in decimals, without rounding that could add up."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Literal, NamedTuple

from ringlog.postgres.transfer_fees import TransferFee

# A close divides a cost by a quantity; 60 digits leave nothing of that in a float64, however many closes follow.
DIGITS = 60
ONE_IN_BASIS_POINTS = 10_000
ZERO = Decimal(0)

Action = Literal["buy", "sell"]


class Fill(NamedTuple):
    """One executed trade as its trader's balances see it, all of it above or at 0.

    `moved` is the base quantity that the trader receives (buy) or gives (sell), `paid` the quote amount that the trader
    pays (buy) or receives (sell); `pool_fee` (quote) and `transfer_fee` (base) are already in them.
    """

    action: Action
    moved: Decimal
    paid: Decimal
    pool_fee: Decimal
    transfer_fee: Decimal


def fill_of(
    action: Action, quantity: Decimal, price: Decimal, fee_bps: int, transfer_fee: TransferFee | None, decimals: int
) -> Fill:
    """The fill of `quantity` base tokens at `price`, with the pool's fee and the base token's transfer fee.

    The quantity is what the market saw. A buyer receives it less the transfer fee; a seller sends so much more that it
    arrives whole (`TransferFee.amount_to_send`). Raises ValueError for a quantity finer than the token's `decimals`.
    """
    with localcontext(prec=DIGITS):
        units = quantity.scaleb(decimals)
        if units != int(units):
            raise ValueError(f"quantity: got {quantity:f}, wanted at most {decimals} decimals")
        notional = quantity * price
        pool_fee = notional * fee_bps / ONE_IN_BASIS_POINTS
        withheld = 0
        if transfer_fee is not None:
            withheld = transfer_fee.fee(int(units)) if action == "buy" else transfer_fee.inverse_fee(int(units))
        fee = Decimal(withheld).scaleb(-decimals)
        if action == "buy":
            return Fill(action, quantity - fee, notional + pool_fee, pool_fee, fee)
        return Fill(action, quantity + fee, notional - pool_fee, pool_fee, fee)


class Holding:
    """A quantity of one token at average cost; negative is short.

    `cost` is what the open quantity was paid with (negative: what was received for a short), in quote units;
    `realized_pnl` is what closed quantity earned, fees taken off.
    """

    def __init__(self) -> None:
        self.quantity = self.cost = self.realized_pnl = ZERO

    def apply(self, fill: Fill) -> None:
        """Opens, adds to, reduces, closes or turns the holding."""
        with localcontext(prec=DIGITS):
            if fill.action == "buy":
                self._move(fill.moved, fill.paid)
            else:
                self._move(-fill.moved, -fill.paid)

    def _move(self, quantity: Decimal, value: Decimal) -> None:
        """Adds a signed quantity that was paid for with `value` (both negative: given away, and received)."""
        if quantity == 0:  # the transfer fee took all of it
            self.realized_pnl -= value
            return
        released = closing_value = ZERO
        if self.quantity * quantity < 0:
            closing = min(abs(quantity), abs(self.quantity))
            # A whole close takes the whole cost, and a trade that only closes its whole value: nothing is divided.
            released = self.cost if closing == abs(self.quantity) else self.cost * closing / abs(self.quantity)
            closing_value = value if closing == abs(quantity) else value * closing / abs(quantity)
            self.realized_pnl -= closing_value + released
        self.quantity += quantity
        self.cost += value - closing_value - released

    @property
    def average_entry_price(self) -> Decimal:
        """Quote units per token of the open quantity, fees included; 0 where nothing is open."""
        with localcontext(prec=DIGITS):
            return self.cost / self.quantity if self.quantity else ZERO

    def unrealized_pnl(self, mark_price: Decimal) -> Decimal:
        """What closing at `mark_price` would earn, before the fees of closing."""
        with localcontext(prec=DIGITS):
            return self.quantity * mark_price - self.cost
