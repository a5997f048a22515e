"""Order rules: what a price does to them, and that no two processes sell the same holding."""

from __future__ import annotations

import contextlib
import itertools
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from postgres_platform import SOL, USDC, execute, start_python

from ringlog.errors import PostgresValueError
from ringlog.postgres import (
    AsyncOrders,
    AsyncPool,
    Evaluation,
    Limits,
    OrderRule,
    Orders,
    Pool,
    Token,
    Tokens,
    TraderConfig,
    TraderConfigs,
    evaluate,
    orders,
)
from ringlog.settings import Settings

D = Decimal
RULE = OrderRule(trader_id="t1", token=SOL, quantity=D(3), entry_price=D(100), stop_loss=D("90.5"), take_profit=D(120))


def rule(**fields: Any) -> OrderRule:
    """A new rule like RULE without its prices, and with `fields`."""
    plain: dict[str, Any] = {"stop_loss": None, "take_profit": None, "id": uuid.uuid4()}
    return msgspec.structs.replace(RULE, **(plain | fields))


def walked(one: OrderRule, *prices: str | int) -> tuple[str | None, Decimal]:
    """The first reason along `prices`, and the highest price then, as a caller of evaluate() keeps them."""
    for price in prices:
        reason, highest = evaluate(one, D(price))
        one = msgspec.structs.replace(one, highest_price=highest)
        if reason:
            return reason, highest
    return None, one.highest_price or one.entry_price


@pytest.fixture
def known(pool: Pool) -> Pool:
    """The pool of a database that knows trader t1 and two tokens."""
    limits = Limits(position_max=D(1), trade_max=D(1), daily_loss_max=D(1))
    TraderConfigs(pool).save(TraderConfig(trader_id="t1", limits=limits), changed_by="test")
    for address, symbol in ((SOL, "SOL"), (USDC, "USDC")):
        Tokens(pool).save(Token(address=address, symbol=symbol, decimals=6))
    return pool


@pytest.mark.parametrize(
    ("one", "prices", "outcome"),
    [
        (RULE, ["90.51", "119.99"], (None, D("119.99"))),
        (RULE, ["90.5"], ("stop_loss", D(100))),
        (RULE, ["1"], ("stop_loss", D(100))),
        (RULE, ["120"], ("take_profit", D(120))),
        (RULE, ["1000"], ("take_profit", D(1000))),
        (rule(stop_loss_trailing_bps=1000), ["110", "100", "99.01"], (None, D(110))),
        (rule(stop_loss_trailing_bps=1000), ["110", "100", "99"], ("stop_loss", D(110))),
        (rule(stop_loss_trailing_bps=1000), ["90"], ("stop_loss", D(100))),
        (rule(stop_loss_trailing_bps=1000, stop_loss=D(95)), ["95"], ("stop_loss", D(100))),
        (rule(stop_loss_trailing_bps=1000, stop_loss=D(80)), ["90"], ("stop_loss", D(100))),
        (rule(take_profit=D(120), take_profit_trailing_bps=500), ["119", "100"], (None, D(119))),
        (rule(take_profit=D(120), take_profit_trailing_bps=500), ["120", "140", "133.01"], (None, D(140))),
        (rule(take_profit=D(120), take_profit_trailing_bps=500), ["120", "140", "133"], ("take_profit", D(140))),
        (rule(take_profit=D(120), take_profit_trailing_bps=500, stop_loss=D(90)), ["130", "80"], ("stop_loss", D(130))),
        (
            rule(stop_loss_trailing_bps=1, entry_price=D("1e-18")),
            ["0.0000000000000000009999"],
            ("stop_loss", D("1e-18")),
        ),
    ],
)
def test_what_a_price_does_to_a_rule(one: OrderRule, prices: list[str], outcome: tuple[str | None, Decimal]) -> None:
    """Fixed and trailing, at their price and a hair beside it."""
    assert walked(one, *prices) == outcome


prices = st.decimals(D("0.000000001"), D(1_000_000), places=9)


@given(prices, st.lists(prices, max_size=20), st.integers(1, 9_999))
def test_a_trailing_stop_fires_exactly_when_the_fall_from_the_highest_price_is_reached(
    entry: Decimal, path: list[Decimal], distance_bps: int
) -> None:
    """Against a model in integers: it fires at the first price at or below (1 - distance) of the running maximum."""
    expected, highest = None, int(entry * 10**9)
    for price in path:
        highest = max(highest, int(price * 10**9))
        if int(price * 10**9) * 10_000 <= highest * (10_000 - distance_bps):
            expected = "stop_loss"
            break
    trailing = rule(entry_price=entry, stop_loss_trailing_bps=distance_bps)
    assert walked(trailing, *path)[0] == expected  # type: ignore[arg-type]


@given(prices, prices, prices, prices)
def test_evaluation_is_pure_and_never_lowers_the_highest_price(
    entry: Decimal, stop: Decimal, profit: Decimal, price: Decimal
) -> None:
    """The same rule and price give the same answer, the rule is left as it was, and highs only rise."""
    one = rule(entry_price=entry, stop_loss=min(stop, profit) / 2, take_profit=max(stop, profit))
    before = msgspec.structs.asdict(one)
    assert evaluate(one, price) == evaluate(one, price)
    assert evaluate(one, price).highest_price == max(entry, price)
    assert msgspec.structs.asdict(one) == before


@pytest.mark.parametrize("price", [D(0), D(-1), D("NaN"), D("Infinity"), 1.5, "100", True, None])
def test_a_price_that_is_none_is_refused(price: Any) -> None:
    """No rule fires on a broken price: it raises, in evaluate() and in observe(), before anything is sent."""
    with pytest.raises(PostgresValueError, match="price"):
        evaluate(RULE, price)
    with pytest.raises(PostgresValueError, match="price"):
        Orders(Pool(Settings(postgres_port=1))).observe(SOL, price)


def test_a_rule_goes_from_armed_to_filled(known: Pool) -> None:
    """Armed as given, triggered once, filled once; each step is stored with its time and price."""
    rules = Orders(known)
    armed = rules.arm(RULE)
    assert armed == msgspec.structs.replace(RULE, highest_price=D(100), armed_at=armed.armed_at)
    assert rules.in_state("armed", "t1") == [armed]
    assert rules.observe(SOL, D(110)) == []
    assert rules.get(RULE.id).highest_price == D(110)
    assert rules.observe(USDC, D(1)) == []
    (triggered,) = rules.observe(SOL, D(90))
    assert (triggered.state, triggered.trigger_reason, triggered.trigger_price) == ("triggered", "stop_loss", D(90))
    assert triggered.triggered_at >= armed.armed_at
    assert rules.observe(SOL, D(90)) == []
    assert rules.in_state("triggered", "t1") == [triggered]
    filled = rules.fill(RULE.id, D("89.9"), "5" * 88)
    assert (filled.state, filled.fill_price, filled.tx_signature) == ("filled", D("89.9"), "5" * 88)
    assert rules.get(RULE.id) == filled
    assert rules.in_state("armed", "t1") == []


def test_a_trail_goes_on_from_the_stored_high(known: Pool) -> None:
    """The highest price outlives the process that saw it."""
    rules = Orders(known)
    trailing = rules.arm(rule(stop_loss_trailing_bps=1_000))
    for price in (130, 120, 150, 140):
        assert rules.observe(SOL, D(price)) == []
    assert rules.get(trailing.id).highest_price == D(150)
    assert [one.id for one in Orders(known).observe(SOL, D(135))] == [trailing.id]


def test_two_processes_that_see_the_same_prices_sell_each_holding_once(database: Settings, known: Pool) -> None:
    """Three processes and 60 rules: together they get each rule exactly once, and each got none twice."""
    rules = Orders(known)
    ids = {rules.arm(rule(stop_loss=D(90) - number)).id for number in range(60)}
    source = f"""
from decimal import Decimal
from ringlog.postgres import Orders, Pool
with Pool(settings) as pool:
    orders = Orders(pool)
    orders.get(__import__("uuid").uuid4())
    print("ready", flush=True)
    sys.stdin.readline()
    for price in range(91, 29, -1):
        for rule in orders.observe({SOL!r}, Decimal(price)):
            print(rule.id, flush=True)
"""
    with contextlib.ExitStack() as started:
        processes = [started.enter_context(start_python(database, source)) for _ in range(3)]
        for process in processes:
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            process.stdin.write(b"go\n")
            process.stdin.flush()
        sold = [[uuid.UUID(line.decode().strip()) for line in process.stdout] for process in processes]
    together = list(itertools.chain.from_iterable(sold))
    assert len(together) == 60
    assert set(together) == ids
    assert rules.in_state("armed", "t1") == []


def test_one_of_many_triggers_fills_and_cancels(known: Pool) -> None:
    """Eight threads at once on each transition: one gets the rule, seven get None."""
    rules = Orders(known)
    armed = rules.arm(RULE)
    steps: list[Any] = [
        lambda number: rules.trigger(armed.id, "take_profit", D(121)),
        lambda number: rules.fill(armed.id, D(121), f"signature-{number}"),
    ]
    with ThreadPoolExecutor(8) as callers:
        for step in steps:
            assert sum(one is not None for one in callers.map(step, range(8))) == 1
        other = rules.arm(rule(stop_loss=D(1)))
        assert sum(one is not None for one in callers.map(lambda n: rules.cancel(other.id, f"by {n}"), range(8))) == 1


def test_a_transition_whose_answer_was_lost_is_recognised(known: Pool) -> None:
    """The same call tried again after it committed returns the same rule; another caller gets None."""
    rules = Orders(known)
    armed = rules.arm(RULE)
    assert rules.arm(RULE) == armed
    claim = uuid.uuid4()
    first = known.run(orders.observe(SOL, D(90), claim))
    assert [one.id for one in first] == [armed.id]
    assert known.run(orders.observe(SOL, D(90), claim)) == first
    assert known.run(orders.observe(SOL, D(90), uuid.uuid4())) == []
    other = rules.arm(rule(take_profit=D(200)))
    claim = uuid.uuid4()
    triggered = known.run(orders.trigger(other.id, "take_profit", D(201), claim))
    assert known.run(orders.trigger(other.id, "take_profit", D(201), claim)) == triggered
    assert rules.fill(armed.id, D(90), "signature") == rules.fill(armed.id, D(90), "signature")
    assert rules.fill(armed.id, D(91), "signature") is None
    assert rules.cancel(other.id, "sold elsewhere") == rules.cancel(other.id, "sold elsewhere")


def test_no_other_transition_is_possible(database: Settings, known: Pool) -> None:
    """Through ringlog they return None; by hand the database refuses them by name."""
    rules = Orders(known)
    armed = rules.arm(RULE)
    assert rules.fill(armed.id, D(1)) is None, "not triggered yet"
    assert rules.cancel(armed.id, "no longer wanted").state == "cancelled"
    assert rules.trigger(armed.id, "stop_loss", D(1)) is None
    assert rules.fill(armed.id, D(1)) is None
    assert rules.cancel(armed.id, "again") is None
    assert rules.observe(SOL, D(1)) == []
    assert rules.get(uuid.uuid4()) is None
    assert rules.cancel(uuid.uuid4(), "unknown") is None
    with pytest.raises(Exception, match="got cancelled to armed"):
        execute(database, "update order_rules set state = 'armed', ended_at = null")
    with pytest.raises(Exception, match="got cancelled to cancelled"):
        execute(database, "update order_rules set stop_loss = 1")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"stop_loss": D(121)}, "rule.stop_loss: got 121, wanted it below take_profit"),
        ({"stop_loss": D(120)}, "rule.stop_loss: got 120"),
        ({"stop_loss": None, "take_profit": None}, "neither stop_loss, stop_loss_trailing_bps nor take_profit"),
        ({"take_profit": None, "take_profit_trailing_bps": 5}, "without take_profit"),
        ({"stop_loss_trailing_bps": 0}, "stop_loss_trailing_bps"),
        ({"take_profit_trailing_bps": 10_000}, "take_profit_trailing_bps"),
        ({"quantity": D(0)}, "rule.quantity"),
        ({"quantity": D("NaN")}, "rule.quantity"),
        ({"quantity": D("1e99")}, "rule.quantity"),
        ({"entry_price": D(-1)}, "rule.entry_price"),
        ({"stop_loss": D("Infinity")}, "rule.stop_loss"),
        ({"stop_loss": "ninety"}, "stop_loss"),
        ({"token": "not base58"}, "rule.token"),
        ({"trader_id": ""}, "rule.trader_id"),
        ({"highest_price": D(99)}, "rule.highest_price: got 99, wanted at least entry_price"),
        ({"state": "filled"}, "rule.state"),
        ({"id": "no uuid"}, "id"),
    ],
)
def test_bad_rules_are_named_before_anything_is_sent(fields: dict[str, Any], names: str) -> None:
    """Each bad part raises PostgresValueError naming it, without a server: the pool was never opened."""
    with pytest.raises(PostgresValueError, match=names):
        Orders(Pool(Settings(postgres_port=1))).arm(msgspec.structs.replace(RULE, **fields))


def test_the_database_knows_the_trader_and_the_token_and_holds_the_same_bounds(database: Settings, known: Pool) -> None:
    """Unknown traders and tokens, a taken id, and rules written past ringlog are refused by name."""
    rules = Orders(known)
    with pytest.raises(PostgresValueError, match="order_rules_trader_id_fkey"):
        rules.arm(rule(stop_loss=D(1), trader_id="t2"))
    with pytest.raises(PostgresValueError, match="order_rules_token_fkey"):
        rules.arm(rule(stop_loss=D(1), token="1" * 32))
    rules.arm(RULE)
    with pytest.raises(PostgresValueError, match="taken by a rule with another quantity"):
        rules.arm(msgspec.structs.replace(RULE, quantity=D(4)))
    insert = f"""insert into order_rules (id, trader_id, token, quantity, entry_price, highest_price, stop_loss,
        take_profit) values (gen_random_uuid(), 't1', '{SOL}', %s, 1, 1, %s, %s)"""
    for values, constraint in (
        ((1, 2, 1), "order_rules_stop_below_profit"),
        ((1, None, None), "order_rules_something_to_do"),
        ((D("NaN"), 1, 2), "order_rules_quantity"),
        ((1, D("Infinity"), None), "order_rules_stop_loss"),
    ):
        with pytest.raises(Exception, match=constraint):
            execute(database, insert, values)


async def test_async_orders_answer_the_same(database: Settings, known: Pool) -> None:
    """AsyncOrders: the same names, awaited."""
    async with AsyncPool(database) as pool:
        rules = AsyncOrders(pool)
        armed = await rules.arm(RULE)
        assert await rules.get(RULE.id) == armed
        assert await rules.in_state("armed", "t1") == [armed]
        other = await rules.arm(rule(stop_loss=D(1)))
        assert [one.id for one in await rules.observe(SOL, D(120))] == [RULE.id]
        assert (await rules.trigger(other.id, "stop_loss", D(1))).state == "triggered"
        assert (await rules.fill(other.id, D(1))).state == "filled"
        assert (await rules.cancel(RULE.id, "no route")).state == "cancelled"
        assert evaluate(armed, D(1)) == Evaluation("stop_loss", D(100))
