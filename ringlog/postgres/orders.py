"""Order rules in PostgreSQL: armed, triggered, filled or cancelled, and no rule triggered by two processes.

    armed ──> triggered ──> filled
      └───────────┴───────> cancelled

A transition is one UPDATE that names the state it leaves; whoever is second finds no row. A trigger in the database
refuses every other transition, by whatever program.
"""

from __future__ import annotations

import datetime
import uuid
from decimal import Decimal
from typing import Any

from ringlog.errors import PostgresValueError
from ringlog.postgres.addresses import checked_address
from ringlog.postgres.pools import AsyncPool, Pool, Statement, Steps, operation, transaction
from ringlog.postgres.rules import TRADER_ID_BYTES_MAX, OrderRule, Reason, State, checked_rule, evaluate
from ringlog.postgres.values import checked_decimal, checked_text

_COLUMNS = """trader_id, token, quantity, entry_price, stop_loss, stop_loss_trailing_bps, take_profit,
    take_profit_trailing_bps, id, highest_price, state, trigger_reason, trigger_price, fill_price, tx_signature,
    cancel_reason, armed_at, triggered_at, ended_at"""
_NAMES = _COLUMNS.replace("\n", "").replace(" ", "").split(",")
_ARMED = (
    "trader_id",
    "token",
    "quantity",
    "entry_price",
    "stop_loss",
    "stop_loss_trailing_bps",
    "take_profit",
    "take_profit_trailing_bps",
    "id",
    "highest_price",
)
_ARM = f"""insert into order_rules ({", ".join(_ARMED)}) values ({", ".join(["%s"] * len(_ARMED))})
    on conflict (id) do nothing"""
_TRIGGER = f"""update order_rules set state = 'triggered', trigger_reason = %s, trigger_price = %s, claim = %s,
    triggered_at = now(), highest_price = greatest(highest_price, %s) where id = %s and state = 'armed'
    returning {_COLUMNS}"""
_FILL = f"""update order_rules set state = 'filled', fill_price = %s, tx_signature = %s, ended_at = now()
    where id = %s and state = 'triggered' returning {_COLUMNS}"""
_FILLED = f"""select {_COLUMNS} from order_rules where id = %s and state = 'filled' and fill_price = %s
    and tx_signature is not distinct from %s"""
_CANCEL = f"""update order_rules set state = 'cancelled', cancel_reason = %s, ended_at = now()
    where id = %s and state in ('armed', 'triggered') returning {_COLUMNS}"""
_CANCELLED = f"select {_COLUMNS} from order_rules where id = %s and state = 'cancelled' and cancel_reason = %s"


@transaction
def arm(rule: OrderRule) -> Steps[OrderRule]:
    rule = checked_rule(rule)
    values = {name: getattr(rule, name) for name in _ARMED}
    values["highest_price"] = values["highest_price"] or rule.entry_price
    yield Statement(_ARM, tuple(values.values()))
    rows = yield Statement(f"select {_COLUMNS} from order_rules where id = %s", (rule.id,))
    stored = _rule(rows[0])
    unalike = [name for name in _ARMED if name != "highest_price" and getattr(stored, name) != values[name]]
    if unalike:
        raise PostgresValueError(f"rule.id: got {rule.id}, which is taken by a rule with another {', '.join(unalike)}")
    return stored


@transaction
def observe(token: str, price: Decimal, claim: uuid.UUID) -> Steps[list[OrderRule]]:
    checked_address("token", token)
    checked_decimal("price", price)
    # Locked in the order of their ids, so that two processes wait for each other instead of deadlocking.
    armed = f"select {_COLUMNS} from order_rules where token = %s and state = 'armed' order by id for update"
    rows = yield Statement(armed, (token,))
    raised: list[uuid.UUID] = []
    for rule in map(_rule, rows):
        reason, highest = evaluate(rule, price)
        if reason is not None:
            yield Statement(_TRIGGER, (reason, price, claim, highest, rule.id))
        elif highest != rule.highest_price:
            raised.append(rule.id)
    if raised:
        yield Statement("update order_rules set highest_price = %s where id = any(%s)", (price, raised))
    # By claim, not by what was just done: an earlier try may have committed and lost its answer.
    rows = yield Statement(f"select {_COLUMNS} from order_rules where claim = %s order by id", (claim,))
    return [_rule(row) for row in rows]


@transaction
def trigger(rule_id: uuid.UUID, reason: Reason, price: Decimal, claim: uuid.UUID) -> Steps[OrderRule | None]:
    checked_decimal("price", price)
    rows = yield Statement(_TRIGGER, (reason, price, claim, price, rule_id))
    if not rows:
        rows = yield Statement(f"select {_COLUMNS} from order_rules where id = %s and claim = %s", (rule_id, claim))
    return _rule(rows[0]) if rows else None


@transaction
def fill(rule_id: uuid.UUID, fill_price: Decimal, tx_signature: str | None) -> Steps[OrderRule | None]:
    checked_decimal("fill_price", fill_price)
    if tx_signature is not None:
        checked_text("tx_signature", tx_signature, 88)
    rows = yield Statement(_FILL, (fill_price, tx_signature, rule_id))
    if not rows:
        rows = yield Statement(_FILLED, (rule_id, fill_price, tx_signature))
    return _rule(rows[0]) if rows else None


@transaction
def cancel(rule_id: uuid.UUID, reason: str) -> Steps[OrderRule | None]:
    checked_text("reason", reason, 200)
    rows = yield Statement(_CANCEL, (reason, rule_id))
    if not rows:
        rows = yield Statement(_CANCELLED, (rule_id, reason))
    return _rule(rows[0]) if rows else None


@operation
def get(rule_id: uuid.UUID) -> Steps[OrderRule | None]:
    rows = yield Statement(f"select {_COLUMNS} from order_rules where id = %s", (rule_id,))
    return _rule(rows[0]) if rows else None


@operation
def in_state(state: State, trader_id: str) -> Steps[list[OrderRule]]:
    checked_text("trader_id", trader_id, TRADER_ID_BYTES_MAX)
    wanted = f"select {_COLUMNS} from order_rules where trader_id = %s and state = %s order by armed_at, id"
    rows = yield Statement(wanted, (trader_id, state))
    return [_rule(row) for row in rows]


@operation
def get_all() -> Steps[dict[str, OrderRule]]:
    rows = yield Statement(f"select {_COLUMNS} from order_rules order by armed_at, id")
    return {str(rule.id): rule for rule in map(_rule, rows)}


def _rule(row: tuple[Any, ...]) -> OrderRule:
    values = dict(zip(_NAMES, row, strict=True))
    for name in ("armed_at", "triggered_at", "ended_at"):
        values[name] = values[name] and values[name].astimezone(datetime.UTC)
    return OrderRule(**values)


class Orders:
    """The order_rules table. Bad input raises PostgresValueError before anything is sent.

    A transition returns the rule where this call made it (or had made it, on a try whose answer was lost), and None
    where the rule was not in the state to leave: somebody else was first, or there is no such rule.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def arm(self, rule: OrderRule) -> OrderRule:
        """Stores a new rule. Its trader and its token must be known; its id may be used once."""
        return self._pool.run(arm(rule))

    def observe(self, token: str, price: Decimal) -> list[OrderRule]:
        """Holds `price` against all armed rules of `token`, and returns those that this call triggered.

        Whoever gets a rule here is the only one who does, and has to sell. Highest prices are kept for the others.
        """
        return self._pool.run(observe(token, price, uuid.uuid4()))

    def trigger(self, rule_id: uuid.UUID, reason: Reason, price: Decimal) -> OrderRule | None:
        """Triggers one armed rule, for a caller that evaluates by itself; None where another was first."""
        return self._pool.run(trigger(rule_id, reason, price, uuid.uuid4()))

    def fill(self, rule_id: uuid.UUID, fill_price: Decimal, tx_signature: str | None = None) -> OrderRule | None:
        """A triggered rule was executed at `fill_price`."""
        return self._pool.run(fill(rule_id, fill_price, tx_signature))

    def cancel(self, rule_id: uuid.UUID, reason: str) -> OrderRule | None:
        """An armed or triggered rule is given up."""
        return self._pool.run(cancel(rule_id, reason))

    def get(self, rule_id: uuid.UUID) -> OrderRule | None:
        """The rule, or None."""
        return self._pool.run(get(rule_id))

    def in_state(self, state: State, trader_id: str) -> list[OrderRule]:
        """A trader's rules in one state, oldest first: after a crash, `triggered` is what remains to be sold."""
        return self._pool.run(in_state(state, trader_id))


class AsyncOrders:
    """`Orders` for asyncio: the same names, awaited."""

    def __init__(self, pool: AsyncPool) -> None:
        self._pool = pool

    async def arm(self, rule: OrderRule) -> OrderRule:
        return await self._pool.run(arm(rule))

    async def observe(self, token: str, price: Decimal) -> list[OrderRule]:
        return await self._pool.run(observe(token, price, uuid.uuid4()))

    async def trigger(self, rule_id: uuid.UUID, reason: Reason, price: Decimal) -> OrderRule | None:
        return await self._pool.run(trigger(rule_id, reason, price, uuid.uuid4()))

    async def fill(self, rule_id: uuid.UUID, fill_price: Decimal, tx_signature: str | None = None) -> OrderRule | None:
        return await self._pool.run(fill(rule_id, fill_price, tx_signature))

    async def cancel(self, rule_id: uuid.UUID, reason: str) -> OrderRule | None:
        return await self._pool.run(cancel(rule_id, reason))

    async def get(self, rule_id: uuid.UUID) -> OrderRule | None:
        return await self._pool.run(get(rule_id))

    async def in_state(self, state: State, trader_id: str) -> list[OrderRule]:
        return await self._pool.run(in_state(state, trader_id))
