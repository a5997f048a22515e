"""The sandwich model: its closed form against swaps played through, and what makes an attack pay."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringlog.demo.sandwich import Pool, attack, chance, largest_front_run, threat

POOL = Pool(2_500_000.0, 40.0, 0.0004)
sizes = st.floats(1.0, 200_000.0)
tolerances = st.floats(0.0005, 0.05)


@given(sizes)
def test_a_swap_never_lowers_the_product(amount: float) -> None:
    """x * y after a swap is k plus what the fee left in the pool, and k exactly without a fee."""
    before = POOL.reserve_in * POOL.reserve_out
    after = POOL.after(amount)
    assert after.reserve_in * after.reserve_out >= before
    free = Pool(*POOL[:2], 0.0).after(amount)
    assert free.reserve_in * free.reserve_out == pytest.approx(before, rel=1e-12)


@given(sizes, tolerances)
def test_the_front_run_uses_the_whole_tolerance(victim: float, tolerance: float) -> None:
    """Played through swap by swap, the closed form's front-run costs the victim exactly its tolerance."""
    assert attack(POOL, victim, tolerance).loss_bps == pytest.approx(tolerance * 1e4, rel=1e-6)
    assert largest_front_run(POOL, victim, 0.0) == 0.0


@given(tolerances)
def test_a_trade_below_the_fee_is_not_worth_an_attack(tolerance: float) -> None:
    """An attack on a trade smaller than fee x reserve loses money; on one of ten times that it pays."""
    small = POOL.fee * POOL.reserve_in * 0.9
    assert attack(POOL, small, tolerance).profit < 0
    assert threat(POOL, small, tolerance, 1.0, 10.0).probability == 0.0
    assert attack(POOL, 10 * small, 0.005).profit > 0


@given(sizes, tolerances)
def test_nothing_is_created(victim: float, tolerance: float) -> None:
    """What the attacker earns is never more than what the victim loses, at the pool's first price."""
    done = attack(POOL, victim, tolerance)
    quoted = POOL.amount_out(victim) * POOL.reserve_in / POOL.reserve_out
    assert done.profit <= quoted * done.loss_bps / 1e4 * (1 + 1e-9) + victim * victim / POOL.reserve_in


def test_the_threat_grows_with_size_and_tolerance() -> None:
    """Larger trades and looser tolerances are likelier victims, with probabilities in 0..1."""
    by_size = [threat(POOL, size, 0.005, 1.0, 10.0).probability for size in (500, 2_000, 10_000, 60_000)]
    by_tolerance = [threat(POOL, 10_000, t, 1.0, 10.0).expected_loss_bps for t in (0.001, 0.005, 0.02)]
    assert by_size == sorted(by_size)
    assert by_size[0] == 0.0
    assert 0.9 < by_size[-1] <= 1.0
    assert by_tolerance == sorted(by_tolerance)


def test_a_sale_is_the_same_attack_mirrored() -> None:
    """In the reversed pool a sale of the same worth loses as much and earns the attacker as much."""
    price = POOL.reserve_in / POOL.reserve_out
    buy, sell = attack(POOL, 10_000, 0.005), attack(POOL.reversed(), 10_000 / price, 0.005)
    assert sell.loss_bps == pytest.approx(buy.loss_bps)
    assert sell.profit * price == pytest.approx(buy.profit)


def test_chances_are_uniform_and_the_same_everywhere() -> None:
    """10,000 trades' numbers lie in [0, 1) around 1/2, differ by seed, and repeat."""
    numbers = [chance(1, trade_id) for trade_id in range(10_000)]
    assert all(0 <= number < 1 for number in numbers)
    assert math.fsum(numbers) / 10_000 == pytest.approx(0.5, abs=0.02)
    assert numbers != [chance(2, trade_id) for trade_id in range(10_000)]
    assert numbers == [chance(1, trade_id) for trade_id in range(10_000)]
