"""The paper trade executor: prices from Redis, limits and order rules from PostgreSQL, trades and positions appended.

It trades the recorded market: every recorded trade becomes the trade of one of its traders, at its real price, quantity
and time. What the traders' limits and rules decide is whose it is.
"""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ringlog.demo.appends import Durations, TimedAppends
from ringlog.demo.configuration import DECIMALS, EPOCH, FEE_BPS, paper_address, trader_configs
from ringlog.demo.executor import BASE_FEE_LAMPORTS, paced
from ringlog.demo.feed import MarketTrade, Message, read_recording
from ringlog.demo.holdings import ONE_IN_BASIS_POINTS, Action, Fill, fill_of
from ringlog.demo.lockstep import DONE, Lockstep
from ringlog.demo.orphans import end_with_parent
from ringlog.demo.plan import Plan
from ringlog.demo.results import ExecutorResult, TraderResult, counts_of, write
from ringlog.demo.sandwich import Pool as Reserves
from ringlog.demo.sandwich import Threat, threat
from ringlog.demo.traders import Order, Trader, allocate
from ringlog.errors import RinglogError
from ringlog.postgres import ConfigWatch, Nodes, Orders, Pool, Token, Tokens
from ringlog.producer import Appender, Producer
from ringlog.records import LatencySample, Position, Record, Trade
from ringlog.redis import Cache, Connection, PoolState

RECORDS = (Trade, Position, LatencySample)
SEARCHER_COST = 5.0  # quote units: the mean cost of an attack, see `sandwich.threat`
NODE_TRADES = 200  # how many trades go to one RPC node before the best one is chosen again


class Market(NamedTuple):
    """What Redis knew of the market at one moment; `age_us` is None where it knew nothing."""

    middle: Decimal
    bid: Decimal
    ask: Decimal
    pool: PoolState | None
    age_us: int | None


class _Appenders:
    """The executor's three kinds of records; a refused one is offered again, as a replay may."""

    def __init__(self, plan: Plan, timed: TimedAppends, producer: Producer, is_stopped: Any) -> None:
        self.timed = timed
        self._by_type: dict[type[Record], Appender[...]] = {record: producer.appender(record) for record in RECORDS}
        self._is_stopped = is_stopped
        quote, base = paper_address(plan.quote), paper_address(plan.base)
        self._trade = self._by_type[Trade].bind(mode="paper", base_token=base, quote_token=quote, tx_signature=None)
        self._position = self._by_type[Position].bind(mode="paper", token=base)
        self._latency = self._by_type[LatencySample].append
        self._pace = paced(plan.rate, is_stopped)

    def trade(self, *values: Any, stamp_us: int) -> bool:
        return self._insist(Trade, self._trade, values, stamp_us)

    def position(self, trader: Trader, mark: Decimal, stamp_us: int) -> bool:
        """The trader's holding at `mark`."""
        holding = trader.holding
        values = (
            trader.trader_id,
            float(holding.quantity),
            float(holding.average_entry_price),
            float(mark),
            float(holding.realized_pnl),
            float(holding.unrealized_pnl(mark)),
        )
        return self._insist(Position, self._position, values, stamp_us)

    def latency(self, service: str, operation: str, latency_us: float, stamp_us: int | None = None) -> bool:
        return self._insist(LatencySample, self._latency, (service, operation, latency_us), stamp_us)

    def _insist(
        self, record: type[Record], append: Callable[..., bool], values: tuple[Any, ...], stamp_us: int | None
    ) -> bool:
        return self.timed.insist(self._by_type[record], append, values, self._pace, self._is_stopped, stamp_us)


class PaperExecutor:
    """One executor and its traders."""

    def __init__(
        self, plan: Plan, index: int, appenders: _Appenders, cache: Cache, database: Pool, configs: ConfigWatch
    ) -> None:
        self._plan = plan
        self._append = appenders
        self._cache = cache
        self._configs = configs
        self._orders, self._nodes = Orders(database), Nodes(database)
        self._token = _token(Tokens(database), paper_address(plan.base))
        self.traders = [Trader(self._config(config.trader_id)) for config in trader_configs(index)]
        self.limits: collections.Counter[str] = collections.Counter()
        self.rules: collections.Counter[str] = collections.Counter()
        self.nodes: collections.Counter[str] = collections.Counter()
        self._node = ""
        self._market: Market | None = None
        self._count = 0

    def trade(self, trade: MarketTrade, stamp_us: int) -> bool:
        """One recorded trade: reads, decides, appends. False once stopped."""
        began_ns = time.perf_counter_ns()
        market = self._market = self._read_market(trade)
        read_ns = time.perf_counter_ns()
        for trader in self.traders:
            trader.config = self._config(trader.trader_id)
            self._observe(trader, market.middle)
        # An exchange may give more digits than the token has: balances are in whole units of it.
        price, quantity = Decimal(repr(trade.price)), round(Decimal(repr(trade.quantity)), self._token.decimals)
        action: Action = "sell" if trade.is_buyer_maker else "buy"
        fee = self._token.transfer_fee_config
        transfer_fee = fee.epoch_fee(EPOCH) if fee else None
        fee_bps = market.pool.fee_bps if market.pool else FEE_BPS
        fill = fill_of(action, quantity, price, fee_bps, transfer_fee, self._token.decimals)
        slippage = float((price - market.middle) / market.middle) * (1 if action == "buy" else -1)
        order = Order(action, quantity, fill.moved, price, slippage)
        trader, refused = allocate(self.traders, order)
        self.limits.update(refused)
        tolerance = trader.config.limits.slippage_max_bps / ONE_IN_BASIS_POINTS
        danger = _threat(market, order, tolerance)
        decided_ns = time.perf_counter_ns()
        is_alive = self._record(trade, market, order, fill, trader, danger, stamp_us)
        trader.trades += 1
        trader.holding.apply(fill)
        is_alive = is_alive and self._append.position(trader, market.middle, stamp_us)
        self._keep_rules(trader, order)
        if market.age_us is not None:
            is_alive = is_alive and self._append.latency(trader.trader_id, "price_age", float(market.age_us), stamp_us)
        return (
            is_alive
            and self._append.latency("redis", "read_market", (read_ns - began_ns) / 1e3)
            and self._append.latency("executor", "decide", (decided_ns - read_ns) / 1e3)
        )

    def finish(self, stamp_us: int) -> None:
        """Cancels what is still armed, and marks every holding once more."""
        for trader in self.traders:
            if trader.rule is not None:
                self.rules["cancelled"] += self._orders.cancel(trader.rule.id, "the session is over") is not None
            if self._market is not None:
                self._append.position(trader, self._market.middle, stamp_us)

    def result(self, counts: dict[str, Any]) -> ExecutorResult:
        mark = self._market.middle if self._market else Decimal(0)
        traders = [
            TraderResult(
                trader_id=trader.trader_id,
                trades=trader.trades,
                quantity=trader.holding.quantity,
                realized_pnl=trader.holding.realized_pnl,
                unrealized_pnl=trader.holding.unrealized_pnl(mark),
            )
            for trader in self.traders
        ]
        return ExecutorResult(
            **counts,
            traders=traders,
            limits=dict(self.limits),
            rules=dict(self.rules),
            config_version=max(trader.config.version for trader in self.traders),
            nodes=dict(self.nodes),
        )

    # How

    def _config(self, trader_id: str) -> Any:
        current = self._configs.current(trader_id)
        if current is None:
            raise RinglogError(f"trader {trader_id!r}: got no configuration in PostgreSQL, wanted one")
        return current.config

    def _read_market(self, trade: MarketTrade) -> Market:
        """Two round trips. What is stale is traded on, and its age says so; the trade itself stands in for nothing."""
        symbol = self._plan.base
        prices = self._cache.prices([symbol, f"{symbol}.bid", f"{symbol}.ask"])
        middle, bid, ask = prices.values()
        pool = self._cache.pool(self._plan.pool_address).value
        if middle.value is None or bid.value is None or ask.value is None:
            price = Decimal(repr(trade.price))
            return Market(price, price, price, pool, None)
        age_us = None
        if middle.observed_at_us is not None:
            age_us = max(0, time.time_ns() // 1_000 - middle.observed_at_us)
        return Market(middle.value, bid.value, ask.value, pool, age_us)

    def _observe(self, trader: Trader, price: Decimal) -> None:
        """A rule that fires is triggered in PostgreSQL first: it belongs to whoever gets it there."""
        reason = trader.observe(price)
        if reason is None or trader.rule is None:
            return
        rule_id = trader.rule.id
        if trader.has_nothing_to_sell:
            trader.rule = None
            self._timed("cancel", lambda: self._orders.cancel(rule_id, "nothing is left to sell"))
            self.rules["cancelled"] += 1
        elif (rule := self._timed("trigger", lambda: self._orders.trigger(rule_id, reason, price))) is not None:
            trader.trigger(rule)
            self.rules[reason] += 1
        else:
            trader.rule = None

    def _keep_rules(self, trader: Trader, order: Order) -> None:
        """A sale may fill a triggered rule, and a buy arms one."""
        if trader.rule is not None and trader.is_exiting and order.action == "sell":
            rule_id, average = trader.rule.id, trader.exits(order)
            if average is not None:
                self._timed("fill", lambda: self._orders.fill(rule_id, average))
                self.rules["filled"] += 1
        rule = trader.rule_to_arm(self._token.address, order)
        if rule is not None:
            trader.rule = self._timed("arm", lambda: self._orders.arm(rule))
            self.rules["armed"] += 1

    def _timed(self, operation: str, call: Callable[[], Any]) -> Any:
        began_ns = time.perf_counter_ns()
        found = call()
        self._append.latency("postgres", operation, (time.perf_counter_ns() - began_ns) / 1e3)
        return found

    def _record(
        self, trade: MarketTrade, market: Market, order: Order, fill: Fill, trader: Trader, danger: Threat,
        stamp_us: int,
    ) -> bool:  # fmt: skip
        if self._count % NODE_TRADES == 0:
            choice = self._timed("choose_node", self._nodes.choose)
            self._node = choice.node.name if choice else "none"
        self._count += 1
        self.nodes[self._node] += 1
        protection = trader.config.mev_protection
        is_protected = protection.enabled and danger.probability > protection.sandwich_probability_max
        spread = float((market.ask - market.bid) / 2 / market.middle)
        return self._append.trade(
            trader.trader_id,
            order.action,
            trade.quantity,
            trade.price * trade.quantity,
            trade.price,
            BASE_FEE_LAMPORTS,
            int(protection.tip_max_lamports * danger.probability) if is_protected else None,
            spread,
            order.slippage,
            "protected" if is_protected else "at_risk",
            is_protected,
            float(fill.transfer_fee),
            _metadata(trade, market, trader),
            stamp_us=stamp_us,
        )


def _token(tokens: Tokens, address: str) -> Token:
    token = tokens.get(address)
    if token is None or token.decimals != DECIMALS:
        raise RinglogError(f"token {address}: got {token}, wanted one of {DECIMALS} decimals in PostgreSQL")
    return token


def _threat(market: Market, order: Order, tolerance: float) -> Threat:
    """What the pool that the executor saw says of a sandwich."""
    # A price that runs far enough leaves less than one unit in the modelled pool, which then quotes nothing.
    if market.pool is None or not order.quantity or not min(market.pool.base_reserve, market.pool.quote_reserve):
        return Threat(0.0, 0.0)
    fee = market.pool.fee_bps / ONE_IN_BASIS_POINTS
    reserves = Reserves(market.pool.quote_reserve / 1e6, market.pool.base_reserve / 10**DECIMALS, fee)
    if order.action == "buy":
        return threat(reserves, float(order.notional), tolerance, 1.0, SEARCHER_COST)
    return threat(reserves.reversed(), float(order.quantity), tolerance, float(market.middle), SEARCHER_COST)


def _metadata(trade: MarketTrade, market: Market, trader: Trader) -> str:
    """JSON of at most 158 bytes: what the MEV simulator needs to know of the decision."""
    pool = f',"pool":[{market.pool.base_reserve},{market.pool.quote_reserve}]' if market.pool else ""
    rule = f',"rule":"{trader.rule.trigger_reason}"' if trader.is_exiting and trader.rule else ""
    return f'{{"trade_id":{trade.trade_id},"tolerance_bps":{trader.config.limits.slippage_max_bps}{pool}{rule}}}'


def run(plan: Plan, index: int, lines: Any, is_started: Any, is_stopped: Any) -> None:
    """The process's main: trades its share of the recording, then writes its result."""
    end_with_parent()
    settings = plan.settings()
    timed = TimedAppends(Durations(plan.result_dir, index, create=True))
    small = msgspec.structs.replace(settings, postgres_pool_size_max=2)
    with (
        Connection(settings) as connection,
        Pool(small) as database,
        ConfigWatch(settings) as configs,
        plan.producer(RECORDS, settings) as producer,
    ):
        appenders = _Appenders(plan, timed, producer, is_stopped)
        executor = PaperExecutor(plan, index, appenders, Cache(connection), database, configs)
        lockstep = Lockstep(lines, is_stopped)
        is_started.wait()
        last = _play(plan, index, executor, lockstep)
        lockstep.reach(index + 1, DONE)
        if last is not None:
            executor.finish(last.receive_us)
        result = executor.result(counts_of(producer, RECORDS))
    (Path(plan.result_dir) / f"samples-{index}.json").write_text(json.dumps(appenders.timed.samples))
    write(plan.result_dir, f"executor-{index}", result)


def _play(plan: Plan, index: int, executor: PaperExecutor, lockstep: Lockstep) -> Message | None:
    """Trades every trade that is this executor's; the last message read, or None once stopped."""
    started = time.monotonic()
    message: Message | None = None
    for message in read_recording(Path(plan.recording), lambda _line, _reason: None, b'"trade"'):
        lockstep.reach(index + 1, message.line)
        if message.trade is None or message.trade.trade_id % plan.executors != index:
            continue
        ahead = plan.wait_for(message.receive_us, started)
        if ahead > 0.001:
            time.sleep(ahead)
        if not lockstep.follow_market(message.line) or not executor.trade(message.trade, message.receive_us):
            return None
    return message
