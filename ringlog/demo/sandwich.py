"""Sandwich attacks on a constant-product pool: what one would cost a trade, and how likely it is.

The pool keeps `x * y = k` with the fee taken from what comes in: Adams, Zinsmeister and Robinson, "Uniswap v2 Core"
(2020), section 3.2.1. The attack is that of Zhou, Qin, Torres, Le and Gervais, "High-Frequency Trading on Decentralized
On-Chain Exchanges" (IEEE S&P 2021), and the front-run is the largest that the victim's slippage tolerance lets through,
as in Heimbach and Wattenhofer, "Eliminating Sandwich Attacks with the Help of Game Theory" (ASIA CCS 2022). What is a
model of this demo, and not theirs, is the probability: see `Threat`.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

BPS = 10_000.0


class Pool(NamedTuple):
    """Reserves as the trade sees them: `reserve_in` of the token it pays with, `reserve_out` of the one it wants.

    `fee` is a fraction of what comes in.
    """

    reserve_in: float
    reserve_out: float
    fee: float

    def amount_out(self, amount_in: float) -> float:
        """What the pool gives for `amount_in`."""
        taken = amount_in * (1.0 - self.fee)
        return self.reserve_out * taken / (self.reserve_in + taken)

    def after(self, amount_in: float) -> Pool:
        """The pool after that swap; the fee stays in it."""
        return Pool(self.reserve_in + amount_in, self.reserve_out - self.amount_out(amount_in), self.fee)

    def reversed(self) -> Pool:
        """The same pool for a trade in the other direction."""
        return Pool(self.reserve_out, self.reserve_in, self.fee)

    def impact(self, amount_in: float) -> float:
        """By which fraction less than at the pool's price a trade gets, fee included."""
        return 1.0 - self.amount_out(amount_in) * self.reserve_in / (self.reserve_out * amount_in)


def largest_front_run(pool: Pool, victim_in: float, tolerance: float) -> float:
    """The most an attacker can swap first so that the victim still gets (1 - tolerance) of what it was quoted.

    With g = 1 - fee, victim v and front-run a, the victim gets R_out (R_in / (R_in + g a)) g v / (R_in + a + g v). Set
    to (1 - tolerance) of the quote, this is g a^2 + a (R_in + g R_in + g^2 v) - R_in (R_in + g v) t / (1 - t) = 0.
    """
    kept = 1.0 - pool.fee
    linear = pool.reserve_in * (1.0 + kept) + kept * kept * victim_in
    constant = pool.reserve_in * (pool.reserve_in + kept * victim_in) * tolerance / (1.0 - tolerance)
    # The positive root, written so that a small tolerance does not cancel: 2c / (b + sqrt(b^2 + 4ac)).
    return 2.0 * constant / (linear + math.sqrt(linear * linear + 4.0 * kept * constant))


class Attack(NamedTuple):
    """Three swaps played through: `profit` in the token the victim pays with, `loss_bps` of what it was quoted."""

    front_run: float
    profit: float
    loss_bps: float


def attack(pool: Pool, victim_in: float, tolerance: float) -> Attack:
    """Front-run, victim, back-run on one pool; the victim's own trade is no attack on itself."""
    front_run = largest_front_run(pool, victim_in, tolerance)
    taken = pool.amount_out(front_run)
    pushed = pool.after(front_run)
    received = pushed.amount_out(victim_in)
    returned = pushed.after(victim_in).reversed().amount_out(taken)
    quoted = pool.amount_out(victim_in)
    return Attack(front_run, returned - front_run, (1.0 - received / quoted) * BPS)


class Threat(NamedTuple):
    """What a trade in the public mempool must expect.

    `probability` that it is sandwiched; `loss_bps` if it is; `expected_loss_bps` is their product.
    """

    probability: float
    loss_bps: float

    @property
    def expected_loss_bps(self) -> float:
        return self.probability * self.loss_bps


def threat(pool: Pool, victim_in: float, tolerance: float, price_in: float, searcher_cost: float) -> Threat:
    """The threat to a trade of `victim_in`, whose token is worth `price_in` quote units.

    Model: somebody attacks if that pays. What an attack costs beside the pool's fees (tips outbid by others, failed
    tries) is taken as exponentially distributed with mean `searcher_cost` quote units, so that an attack with profit p
    happens with probability 1 - exp(-p / searcher_cost), and one that loses money never does.
    """
    planned = attack(pool, victim_in, tolerance)
    profit = planned.profit * price_in
    return Threat(-math.expm1(-profit / searcher_cost) if profit > 0 else 0.0, planned.loss_bps)


def chance(seed: int, trade_id: int) -> float:
    """A trade's own number in [0, 1), the same in every process: it is attacked if this is below the probability."""
    digest = hashlib.blake2b(f"{seed}:{trade_id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) * 2.0**-53
