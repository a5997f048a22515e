"""The MEV simulator: for each trade what a sandwich was expected to cost, and what happened.

It is a consumer of `stream:trade-events`, where the writer publishes trades once they are stored. Expected is what the
pool that the executor saw said before the trade; actual is played through on the pool at the executed price. Whether a
trade is attacked is decided by its own number (`sandwich.chance`), once for both routes: so it can be said of a
protected trade what would have happened to it in the public mempool.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import msgspec

from ringlog.demo.configuration import DECIMALS, FEE_BPS, trader_configs
from ringlog.demo.holdings import ONE_IN_BASIS_POINTS
from ringlog.demo.market import QUOTE_DECIMALS
from ringlog.demo.orphans import end_with_parent
from ringlog.demo.paper import SEARCHER_COST
from ringlog.demo.plan import Plan
from ringlog.demo.results import SimulatorResult, counts_of, write
from ringlog.demo.sandwich import Pool, attack, chance, threat
from ringlog.records import MevMetric, Trade
from ringlog.redis import Connection, Event, StreamConsumer, Topic

GROUP = "mev-simulator"
LEAK = 0.02  # of protected trades that reach searchers all the same
QUIET_S = 20.0  # after the last event, once all have traded: a busy server stores nothing for seconds


class Decision(msgspec.Struct):
    """What a trade's metadata says of its decision: reserves in smallest units, as the executor saw them."""

    trade_id: int
    tolerance_bps: int
    pool: tuple[int, int] | None = None


class Outcome(NamedTuple):
    """What was to be expected without protection, and what happened; losses in basis points."""

    probability: float
    expected_loss_bps: float
    actual_loss_bps: float
    is_avoided: bool


def simulated(trade: Trade, decision: Decision, seed: int) -> Outcome:
    """One trade's expected and actual loss. The pool's x * y is the one that the executor saw."""
    if decision.pool is None or not min(decision.pool) or not trade.base_amount:
        return Outcome(0.0, 0.0, 0.0, False)
    base, quote = decision.pool[0] / 10**DECIMALS, decision.pool[1] / 10**QUOTE_DECIMALS
    seen = Pool(quote, base, FEE_BPS / ONE_IN_BASIS_POINTS)
    then_quote = (base * quote * trade.executed_price) ** 0.5
    then = Pool(then_quote, base * quote / then_quote, seen.fee)
    amount, price = trade.quote_amount, 1.0
    if trade.action == "sell":
        seen, then, amount, price = seen.reversed(), then.reversed(), trade.base_amount, trade.executed_price
    tolerance = decision.tolerance_bps / ONE_IN_BASIS_POINTS
    expected = threat(seen, amount, tolerance, price, SEARCHER_COST)
    number = chance(seed, decision.trade_id)
    probability = expected.probability * (LEAK if trade.mev_protected else 1.0)
    # The order's least amount was fixed when it was decided: what the price has moved since is not the attacker's.
    room = 1.0 - (1.0 - tolerance) * seen.amount_out(amount) / then.amount_out(amount)
    loss_bps = 0.0
    if number < probability and room > 0:
        done = attack(then, amount, room)
        loss_bps = done.loss_bps if done.profit > 0 else 0.0
    is_avoided = trade.mev_protected and probability <= number < expected.probability
    return Outcome(expected.probability, expected.expected_loss_bps, loss_bps, is_avoided)


def run(plan: Plan, expected: Any, is_ready: Any, is_stopped: Any) -> None:
    """The process's main: simulates trades until it has `expected.value` of them (negative: not known yet)."""
    end_with_parent()
    settings = plan.settings()
    with Connection(settings) as connection, plan.producer([MevMetric], settings) as producer:
        consumer = StreamConsumer(connection, Topic.TRADE_EVENTS, GROUP, "simulator")
        consumer.create_group("first")
        append = producer.appender(MevMetric).append
        is_ready.set()
        # A writer that died in the load leaves trades to the session's, which publishes them too.
        own = {config.trader_id for index in range(plan.executors) for config in trader_configs(index)}
        simulated_count = missed = 0
        heard_s = time.monotonic()
        while not is_stopped.is_set() and simulated_count + missed != expected.value:
            delivery = consumer.read(500, wait_ms=200)
            missed += sum(gap.entries or 0 for gap in delivery.gaps)
            trades = [trade for trade in map(_trade, delivery.events) if trade.trader_id in own]
            for trade in trades:
                while not _append(append, trade, plan.seed):
                    if is_stopped.wait(0.005):
                        return
            simulated_count += len(trades)
            consumer.ack(delivery.events)
            if delivery.events or expected.value < 0:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > QUIET_S:
                break
        counts = counts_of(producer, [MevMetric])
    write(plan.result_dir, "simulator", SimulatorResult(**counts, simulated=simulated_count, missed=missed))


def _trade(event: Event) -> Trade:
    if not isinstance(event.payload, Trade):
        raise TypeError(f"{event.topic}: got {type(event.payload).__name__}, wanted Trade")
    return event.payload


def _append(append: Any, trade: Trade, seed: int) -> bool:
    decision = msgspec.convert(trade.metadata, Decision)
    outcome = simulated(trade, decision, seed)
    return bool(
        append(
            token_pair=f"{trade.base_token}/{trade.quote_token}",
            trade_size=trade.base_amount,
            sandwich_probability=outcome.probability,
            estimated_loss_bps=outcome.expected_loss_bps,
            actual_loss_bps=outcome.actual_loss_bps,
            protection_used=trade.mev_protected,
            priority_fee_lamports=trade.priority_fee or 0,
            avoided=outcome.is_avoided,
            timestamp=trade.timestamp,
        )
    )
