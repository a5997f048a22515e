"""Token-2022's transfer fee, as the on-chain program computes it.

Source: `TransferFee` and `TransferFeeConfig` of the crate spl-token-2022: solana-program/token-2022,
`interface/src/extension/transfer_fee/mod.rs`. Amounts are in the token's smallest unit, all of them unsigned 64-bit.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

U64_MAX = 2**64 - 1
ONE_IN_BASIS_POINTS = 10_000

# msgspec takes no bound above the signed range, but reads no JSON integer above u64 either.
U64 = Annotated[int, msgspec.Meta(ge=0)]
BasisPoints = Annotated[int, msgspec.Meta(ge=0, le=ONE_IN_BASIS_POINTS)]


class TransferFee(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`transfer_fee_basis_points` of the amount sent, at most `maximum_fee`, from `epoch` on."""

    epoch: U64
    maximum_fee: U64
    transfer_fee_basis_points: BasisPoints

    def fee(self, amount: int) -> int:
        """What is withheld when `amount` is sent: rounded up, at most `maximum_fee`. Raises ValueError outside u64."""
        _checked(amount)
        if not self.transfer_fee_basis_points or not amount:
            return 0
        return min(_ceil_div(amount * self.transfer_fee_basis_points, ONE_IN_BASIS_POINTS), self.maximum_fee)

    def amount_received(self, amount: int) -> int:
        """What arrives when `amount` is sent."""
        return amount - self.fee(amount)

    def amount_to_send(self, received: int) -> int:
        """The smallest amount the program would have one send so that `received` arrives.

        Several amounts may do (at 10 %, 10 and 11 both arrive as 9): the smaller is chosen. At 100 % it is `received`
        plus the maximum. Raises ValueError where the amount would not fit into u64.
        """
        _checked(received)
        points = self.transfer_fee_basis_points
        if not points or not received:
            return received
        if points == ONE_IN_BASIS_POINTS:
            return _checked(received + self.maximum_fee)
        amount = _ceil_div(received * ONE_IN_BASIS_POINTS, ONE_IN_BASIS_POINTS - points)
        return _checked(received + self.maximum_fee if amount - received >= self.maximum_fee else amount)

    def inverse_fee(self, received: int) -> int:
        """The fee on `amount_to_send(received)`.

        Not an exact inverse: `fee(x) >= inverse_fee(x - fee(x))`, as in the program.
        """
        return self.fee(self.amount_to_send(received))


class TransferFeeConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A mint's transfer fee: the newer one holds from its epoch on, the older one before."""

    older_transfer_fee: TransferFee
    newer_transfer_fee: TransferFee
    withheld_amount: U64 = 0
    transfer_fee_config_authority: str | None = None
    withdraw_withheld_authority: str | None = None

    def epoch_fee(self, epoch: int) -> TransferFee:
        """The fee that holds in `epoch`."""
        return self.newer_transfer_fee if epoch >= self.newer_transfer_fee.epoch else self.older_transfer_fee

    def fee(self, epoch: int, amount: int) -> int:
        """What is withheld when `amount` is sent in `epoch`."""
        return self.epoch_fee(epoch).fee(amount)

    def inverse_fee(self, epoch: int, received: int) -> int:
        """What is withheld in `epoch` from the amount that arrives as `received`."""
        return self.epoch_fee(epoch).inverse_fee(received)


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _checked(amount: int) -> int:
    if isinstance(amount, bool) or not isinstance(amount, int) or not 0 <= amount <= U64_MAX:
        raise ValueError(f"amount: got {amount!r}, wanted an integer of 0 to {U64_MAX}")
    return amount
