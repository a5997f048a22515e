"""What the MEV simulator makes of a trade, and the generated recording it may come from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ringlog.demo.feed import read_recording, survey
from ringlog.demo.generation import write_generated
from ringlog.demo.market import QUOTE_RESERVE, pool_reserves
from ringlog.demo.sandwich import chance
from ringlog.demo.simulator import LEAK, Decision, simulated
from ringlog.records import Trade

TRADE = Trade(
    trader_id="t", mode="paper", action="buy", base_token="B", quote_token="Q", base_amount=0.5, quote_amount=30_000.0,
    executed_price=60_000.0, transaction_fee=5_000, expected_slippage=0.0, actual_slippage=0.0, mev_status="at_risk",
    mev_protected=False,
)  # fmt: skip
POOL = (int(QUOTE_RESERVE / 60_000 * 1e8), int(QUOTE_RESERVE * 1e6))


def decision(trade_id: int, pool: tuple[int, int] | None = POOL) -> Decision:
    return Decision(trade_id=trade_id, tolerance_bps=50, pool=pool)


def test_a_trade_is_attacked_if_its_own_number_says_so() -> None:
    """Of 2,000 unprotected trades those are sandwiched, for their whole tolerance, whose number is below the
    probability; protected ones only for the share that leaks, and the rest of those attacks is avoided."""
    protected = msgspec.structs.replace(TRADE, mev_protected=True)
    attacked = avoided = 0
    for trade_id in range(2_000):
        outcome, spared = (simulated(trade, decision(trade_id), 1) for trade in (TRADE, protected))
        is_hit = chance(1, trade_id) < outcome.probability
        assert outcome.actual_loss_bps == pytest.approx(50.0 if is_hit else 0.0, rel=1e-3)
        assert spared.probability == outcome.probability
        assert (spared.actual_loss_bps > 0) == (chance(1, trade_id) < LEAK * outcome.probability)
        assert spared.is_avoided == (is_hit and not spared.actual_loss_bps)
        attacked, avoided = attacked + is_hit, avoided + spared.is_avoided
    assert 0 < avoided < attacked <= 2_000


def test_a_price_that_moved_on_leaves_an_attacker_less_room() -> None:
    """A buy whose market fell since the decision can lose more than its tolerance of the new quote, one whose market
    rose less, down to nothing."""
    trade_id = next(number for number in range(100) if chance(1, number) < 0.5)
    losses = [
        simulated(msgspec.structs.replace(TRADE, executed_price=60_000.0 * move), decision(trade_id), 1).actual_loss_bps
        for move in (0.998, 1.0, 1.002, 1.01)
    ]
    assert losses[0] > losses[1] > losses[2] > losses[3] == 0.0


def test_without_a_pool_nothing_is_made_up() -> None:
    """Where the executor saw no pool, or traded nothing, no probability and no loss are claimed."""
    assert simulated(TRADE, decision(1, None), 1) == (0.0, 0.0, 0.0, False)
    assert simulated(msgspec.structs.replace(TRADE, base_amount=0.0), decision(1), 1) == (0.0, 0.0, 0.0, False)


def test_the_modelled_pool_keeps_its_product_and_the_market_s_price() -> None:
    """At every price the reserves' ratio is the price and their product that of the first price."""
    for price in (0.5, 90.0, 100.0, 40_000.0):
        base, quote = pool_reserves(price, 100.0)
        assert quote / base == pytest.approx(price)
        assert base * quote == pytest.approx(QUOTE_RESERVE**2 / 100.0)


def test_a_generated_recording_reads_like_a_real_one(tmp_path: Path) -> None:
    """It holds one market of trades and books in order, in the recent past, and is the same for the same seed."""
    write_generated(tmp_path / "a.gz", 3, 20.0)
    write_generated(tmp_path / "b.gz", 3, 20.0)
    found = survey(tmp_path / "a.gz")
    assert (found.symbols, found.broken, found.messages) == (["SOLUSDC"], 0, 2_000)
    assert 300 < found.trades == found.timed < 700
    assert found.seconds == pytest.approx(20, rel=0.2)
    first, second = (
        [message.trade for message in read_recording(tmp_path / name, pytest.fail)] for name in ("a.gz", "b.gz")
    )
    assert first == second
