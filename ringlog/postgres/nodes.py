"""RPC nodes: latency, errors and a circuit breaker that all processes share.

    closed ──failures_max failures in a row──> open ──cooldown_s, one trial──> half_open
       ^──────────────the trial succeeded────────────────────┘   (failed: open again)

Every step is one UPDATE on the node's row, by the server's clock, so processes cannot disagree, and of all that ask
at the end of a cool-down exactly one gets the trial. Why own code: pybreaker holds a lock while the guarded call runs
(one call a node at a time), knows no asyncio, and like purgatory reads the state and writes it back in two steps, so
that with shared storage every process starts a trial of its own.
"""

from __future__ import annotations

import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from ringlog.errors import PostgresValueError
from ringlog.postgres.pools import AsyncPool, Pool, Statement, Steps, operation, transaction
from ringlog.postgres.values import checked_text, fitted
from ringlog.settings import Secret

# Weights of the newest call: latency forgets in about 10 calls, the ratio of errors in about 20.
LATENCY_WEIGHT = 0.2
ERROR_WEIGHT = 0.1
ERROR_RATIO_MAX = 0.99
SECONDS_MAX = 86_400.0
LATENCY_US_MAX = 3_600_000_000.0

BreakerState = Literal["closed", "open", "half_open"]


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """An RPC node. Its URL is a Secret, since providers put API keys into it: `node.url.reveal()`.

    `failures_max` failures in a row open its breaker; after `cooldown_s` one trial is let through, and after
    `trial_timeout_s` without an outcome another one.
    """

    name: str
    url: Secret
    enabled: bool = True
    failures_max: int = 5
    cooldown_s: float = 30.0
    trial_timeout_s: float = 10.0


class NodeHealth(msgspec.Struct, frozen=True):
    """What all processes know of a node: `latency_us` and `error_ratio` are exponentially weighted means."""

    node: str
    state: BreakerState
    latency_us: float | None
    error_ratio: float
    successes: int
    failures: int
    consecutive_failures: int
    opened_at: datetime.datetime | None
    updated_at: datetime.datetime


class Choice(NamedTuple):
    """A node to call now. `trial` numbers a half-open breaker's trial: hand it to `record_*`."""

    node: Node
    trial: int | None = None


_NODE = "n.name, n.url, n.enabled, n.failures_max, n.cooldown_s, n.trial_timeout_s"
_HEALTH = """h.node, h.state, h.latency_us, h.error_ratio, h.successes, h.failures, h.consecutive_failures,
    h.opened_at, h.updated_at"""
_SAVE = """insert into rpc_nodes (name, url, enabled, failures_max, cooldown_s, trial_timeout_s)
    values (%s, %s, %s, %s, %s, %s) on conflict (name) do update set url = excluded.url, enabled = excluded.enabled,
        failures_max = excluded.failures_max, cooldown_s = excluded.cooldown_s,
        trial_timeout_s = excluded.trial_timeout_s"""
_DUE = """n.enabled and (
    h.state = 'open' and h.opened_at + make_interval(secs => n.cooldown_s) <= now()
    or h.state = 'half_open' and h.trial_until <= now())"""
# The condition is repeated on the row itself: once its lock is granted, an UPDATE looks at the newest version again.
_TRIAL = f"""update node_health h
    set state = 'half_open', trial = h.trial + 1, trial_until = now() + make_interval(secs => n.trial_timeout_s),
        updated_at = now()
    from rpc_nodes n where n.name = h.node and {_DUE} and h.node = (
        select h.node from node_health h join rpc_nodes n on n.name = h.node where {_DUE} and (%s::text is null or
        h.node = %s) order by h.opened_at limit 1 for update of h skip locked)
    returning {_NODE}, h.trial"""
# The expected time to a success: a node that fails half of its calls costs twice its latency.
_BEST = f"""select {_NODE}, null from rpc_nodes n join node_health h on h.node = n.name
    where n.enabled and h.state = 'closed' and (%s::text is null or h.node = %s)
    order by h.latency_us / (1 - least(h.error_ratio, {ERROR_RATIO_MAX})) nulls last, n.name limit 1"""
_SUCCESS = f"""update node_health h set
    latency_us = coalesce(h.latency_us + {LATENCY_WEIGHT} * (%s - h.latency_us), %s),
    error_ratio = h.error_ratio * (1 - {ERROR_WEIGHT}), successes = h.successes + 1, consecutive_failures = 0,
    state = case when h.state = 'half_open' and h.trial = %s then 'closed' else h.state end,
    opened_at = case when h.state = 'half_open' and h.trial = %s then null else h.opened_at end,
    updated_at = now()
    where h.node = %s returning h.state"""
_FAILURE = f"""update node_health h set
    error_ratio = h.error_ratio + {ERROR_WEIGHT} * (1 - h.error_ratio), failures = h.failures + 1,
    consecutive_failures = h.consecutive_failures + 1,
    (state, opened_at) = (select case when opens then 'open' else h.state end,
                                 case when opens then now() else h.opened_at end
        from (select h.state = 'closed' and h.consecutive_failures + 1 >= n.failures_max
                  or h.state = 'half_open' and h.trial = %s as opens) as decided),
    updated_at = now()
    from rpc_nodes n where n.name = h.node and h.node = %s returning h.state"""


@transaction
def save(node: Node) -> Steps[None]:
    checked = checked_node(node)
    yield Statement(_SAVE, checked)
    yield Statement("insert into node_health (node) values (%s) on conflict (node) do nothing", (checked[0],))


@operation
def get_all() -> Steps[dict[str, Node]]:
    rows = yield Statement(f"select {_NODE} from rpc_nodes n order by n.name")
    return {row[0]: _node(row) for row in rows}


@operation
def get(name: str) -> Steps[Node | None]:
    rows = yield Statement(f"select {_NODE} from rpc_nodes n where n.name = %s", (checked_text("name", name, 64),))
    return _node(rows[0]) if rows else None


@operation
def health() -> Steps[dict[str, NodeHealth]]:
    rows = yield Statement(f"select {_HEALTH} from node_health h order by h.node")
    return {row[0]: NodeHealth(*row[:7], *(_utc(at) for at in row[7:])) for row in rows}


@operation
def choose(name: str | None) -> Steps[Choice | None]:
    if name is not None:
        checked_text("name", name, 64)
    rows = yield Statement(_BEST, (name, name))
    if not rows:
        rows = yield Statement(_TRIAL, (name, name))
    return Choice(_node(rows[0]), rows[0][6]) if rows else None


@operation
def probe() -> Steps[Choice | None]:
    rows = yield Statement(_TRIAL, (None, None))
    return Choice(_node(rows[0]), rows[0][6]) if rows else None


@operation
def record_success(name: str, latency_us: float, trial: int | None) -> Steps[BreakerState]:
    if isinstance(latency_us, bool) or not isinstance(latency_us, int | float) or not 0 <= latency_us < LATENCY_US_MAX:
        raise PostgresValueError(f"latency_us: got {latency_us!r}, wanted 0 to {LATENCY_US_MAX:.0f} microseconds")
    rows = yield Statement(_SUCCESS, (float(latency_us), float(latency_us), trial, trial, name))
    return _state(name, rows)


@operation
def record_failure(name: str, trial: int | None) -> Steps[BreakerState]:
    rows = yield Statement(_FAILURE, (trial, name))
    return _state(name, rows)


class _Breaker(msgspec.Struct):
    enabled: bool
    failures_max: int
    cooldown_s: float
    trial_timeout_s: float


def checked_node(node: Node) -> tuple[Any, ...]:
    """The columns of `node`, if they can be kept; raises PostgresValueError that names the part, never the URL."""
    if not isinstance(node.url, Secret):
        raise PostgresValueError("node.url: got no Secret, wanted Secret(url): it may hold an API key")
    url = node.url.reveal()
    if not url.startswith(("http://", "https://", "ws://", "wss://")) or len(url) > 2048 or "\0" in url:
        raise PostgresValueError("node.url: got something else, wanted http, https, ws or wss, at most 2048 characters")
    fields = ("enabled", "failures_max", "cooldown_s", "trial_timeout_s")
    breaker = fitted("node", {name: getattr(node, name) for name in fields}, _Breaker)
    if not 1 <= breaker.failures_max < 2**31:
        raise PostgresValueError(f"node.failures_max: got {breaker.failures_max}, wanted 1 or more")
    if not 0 <= breaker.cooldown_s <= SECONDS_MAX or not 0 < breaker.trial_timeout_s <= SECONDS_MAX:
        raise PostgresValueError(
            f"node: got cooldown_s={breaker.cooldown_s}, trial_timeout_s={breaker.trial_timeout_s}, wanted up to a day"
        )
    return (checked_text("node.name", node.name, 64), node.url, *msgspec.structs.astuple(breaker))


def _node(row: tuple[Any, ...]) -> Node:
    return Node(
        name=row[0],
        url=Secret(row[1]),
        enabled=row[2],
        failures_max=row[3],
        cooldown_s=row[4],
        trial_timeout_s=row[5],
    )


def _state(name: str, rows: list[tuple[Any, ...]]) -> BreakerState:
    if not rows:
        raise PostgresValueError(f"node: got {name!r:.60}, wanted the name of a saved node")
    state: BreakerState = rows[0][0]
    return state


def _utc(at: datetime.datetime | None) -> datetime.datetime | None:
    return at and at.astimezone(datetime.UTC)


class Nodes:
    """The rpc_nodes and node_health tables. Bad input raises PostgresValueError before anything is sent.

    An outcome whose answer was lost in a restart is sent again and may count twice; a transition may not.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def save(self, node: Node) -> None:
        """Writes a node, over what was known of its name; its health stays."""
        self._pool.run(save(node))

    def get_all(self) -> dict[str, Node]:
        """All nodes, by name."""
        return self._pool.run(get_all())

    def health(self) -> dict[str, NodeHealth]:
        """The health of all nodes, by name."""
        return self._pool.run(health())

    def choose(self, name: str | None = None) -> Choice | None:
        """The best node with a closed breaker: the least expected time to a success, latency / (1 - error_ratio).

        Where no breaker is closed: a trial, if one is due. With `name`, only that node is looked at. None: call nobody.
        """
        return self._pool.run(choose(name))

    def probe(self) -> Choice | None:
        """A due trial, for a prober that tries open nodes while callers use the closed ones; None if none is due."""
        return self._pool.run(probe())

    def record_success(self, name: str, latency_us: float, trial: int | None = None) -> BreakerState:
        """A call succeeded within `latency_us`; returns the breaker's state. A successful trial closes it."""
        return self._pool.run(record_success(name, latency_us, trial))

    def record_failure(self, name: str, trial: int | None = None) -> BreakerState:
        """A call failed; returns the breaker's state. A failed trial opens it again."""
        return self._pool.run(record_failure(name, trial))


class AsyncNodes:
    """`Nodes` for asyncio: the same names, awaited."""

    def __init__(self, pool: AsyncPool) -> None:
        self._pool = pool

    async def save(self, node: Node) -> None:
        await self._pool.run(save(node))

    async def get_all(self) -> dict[str, Node]:
        return await self._pool.run(get_all())

    async def health(self) -> dict[str, NodeHealth]:
        return await self._pool.run(health())

    async def choose(self, name: str | None = None) -> Choice | None:
        return await self._pool.run(choose(name))

    async def probe(self) -> Choice | None:
        return await self._pool.run(probe())

    async def record_success(self, name: str, latency_us: float, trial: int | None = None) -> BreakerState:
        return await self._pool.run(record_success(name, latency_us, trial))

    async def record_failure(self, name: str, trial: int | None = None) -> BreakerState:
        return await self._pool.run(record_failure(name, trial))
