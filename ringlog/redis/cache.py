"""The price and pool cache: `price:{symbol}` and `pool:{address}`, alive for 2 s after the observation.

A key that has expired says only that nothing is fresh. So every write also keeps `last:price:{symbol}` (the time of
the observation, a space, the value) for an hour, and a read asks for both in one command: the first present is FRESH,
only the second is STALE, neither is MISSING. Both times are settings (`Limits`). Reads cost one round trip however many
are asked for; so do writes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple, TypeVar

import msgspec

from ringlog.errors import RedisValueError
from ringlog.redis.connection import AsyncConnection, Command, Connection, Exchange, Steps
from ringlog.redis.keys import Keys
from ringlog.redis.limits import Limits
from ringlog.redis.values import Cached, Freshness, PoolState, pool_json, pool_of, price_of, price_text

T = TypeVar("T")
Price = Decimal | int | str


class Observation(NamedTuple):
    """A value ready to be written: its two keys, its payload, and when it was observed."""

    key: str
    last_key: str
    payload: bytes
    observed_at_us: int


def observed_price(keys: Keys, symbol: str, price: Price, observed_at_us: int) -> Observation:
    """Raises RedisValueError for a symbol or price that cannot be kept."""
    return Observation(keys.price(symbol), keys.last_price(symbol), price_text(symbol, price).encode(), observed_at_us)


def observed_pool(keys: Keys, state: PoolState, observed_at_us: int) -> Observation:
    """Raises RedisValueError for a pool state that cannot be kept."""
    payload = pool_json(state)
    return Observation(keys.pool(state.address), keys.last_pool(state.address), payload, observed_at_us)


def write_commands(limits: Limits, observations: Iterable[Observation]) -> list[Command]:
    """The SETs of observations; one that is no longer fresh becomes only the last known value."""
    now_us = time.time_ns() // 1_000
    commands: list[Command] = []
    for key, last_key, payload, observed_at_us in observations:
        ttl_ms = min(limits.fresh_ttl_ms, limits.fresh_ttl_ms - (now_us - observed_at_us) // 1_000)
        if ttl_ms > 0:
            commands.append(("SET", key, payload, "PX", ttl_ms))
        commands.append(("SET", last_key, b"%d %b" % (observed_at_us, payload), "EX", limits.last_ttl_s))
    return commands


def write(limits: Limits, observations: Iterable[Observation]) -> Steps[None]:
    """Writes observations in one round trip."""
    commands = write_commands(limits, observations)
    if commands:
        yield Exchange(tuple(commands))


def read(keys: Sequence[str], last_keys: Sequence[str], decode: Callable[[bytes], T]) -> Steps[list[Cached[T]]]:
    """Reads values and last values with one MGET."""
    if not keys:
        return []
    (replies,) = yield Exchange((("MGET", *keys, *last_keys),), plain=True)
    count = len(keys)
    return [_cached(replies[i], replies[count + i], decode) for i in range(count)]


def _cached(fresh: bytes | None, last: bytes | None, decode: Callable[[bytes], T]) -> Cached[T]:
    observed_at_us, last_payload = _split(last)
    try:
        if fresh is not None:
            return Cached(Freshness.FRESH, decode(fresh), observed_at_us)
        if last is None:
            return Cached(Freshness.MISSING)
        if last_payload is not None:
            return Cached(Freshness.STALE, decode(last_payload), observed_at_us)
    except (ValueError, msgspec.DecodeError):
        pass
    return Cached(Freshness.BROKEN)


def _split(last: bytes | None) -> tuple[int | None, bytes | None]:
    stamp, _, payload = (last or b"").partition(b" ")
    return (int(stamp), payload) if stamp.isdigit() else (None, None)


def _times(observed_at_us: int | None) -> int:
    if observed_at_us is None:
        return time.time_ns() // 1_000
    if isinstance(observed_at_us, bool) or not isinstance(observed_at_us, int) or not 0 < observed_at_us < 2**53:
        raise RedisValueError(f"observed_at_us: got {observed_at_us!r}, wanted microseconds since the epoch")
    return observed_at_us


def _read_prices(keys: Keys, symbols: Sequence[str]) -> Steps[list[Cached[Decimal]]]:
    _several("symbols", symbols)
    return read([keys.price(s) for s in symbols], [keys.last_price(s) for s in symbols], price_of)


def _read_pools(keys: Keys, addresses: Sequence[str]) -> Steps[list[Cached[PoolState]]]:
    _several("addresses", addresses)
    return read([keys.pool(a) for a in addresses], [keys.last_pool(a) for a in addresses], pool_of)


def _several(what: str, names: Sequence[str]) -> None:
    if isinstance(names, str):
        raise RedisValueError(f"{what}: got the text {names!r}, wanted a list of texts")


def _price_observations(keys: Keys, prices: Mapping[str, Price], at_us: int | None) -> list[Observation]:
    time_us = _times(at_us)
    return [observed_price(keys, symbol, price, time_us) for symbol, price in prices.items()]


def _pool_observations(keys: Keys, states: Iterable[PoolState], at_us: int | None) -> list[Observation]:
    time_us = _times(at_us)
    return [observed_pool(keys, state, time_us) for state in states]


class Cache:
    """Prices (Decimal) and pool states (PoolState) by name.

    Times are microseconds since the epoch; left out, the observation is now. Bad input raises RedisValueError before
    anything is sent; a server that is away or refuses raises ServerUnavailable or ServerRefused.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys
        self._write = functools.partial(write, connection.limits)

    def price(self, symbol: str) -> Cached[Decimal]:
        """What is known of one token's price."""
        return self._connection.run(lambda: _read_prices(self._keys, (symbol,)))[0]

    def prices(self, symbols: Sequence[str]) -> dict[str, Cached[Decimal]]:
        """What is known of many tokens' prices, by symbol, in one round trip."""
        return dict(zip(symbols, self._connection.run(lambda: _read_prices(self._keys, symbols)), strict=True))

    def set_price(self, symbol: str, price: Price, observed_at_us: int | None = None) -> None:
        self.set_prices({symbol: price}, observed_at_us)

    def set_prices(self, prices: Mapping[str, Price], observed_at_us: int | None = None) -> None:
        """Writes many prices in one round trip; one bad price and none is written."""
        self._connection.run(functools.partial(self._write, _price_observations(self._keys, prices, observed_at_us)))

    def pool(self, address: str) -> Cached[PoolState]:
        """What is known of one pool."""
        return self.pools((address,))[address]

    def pools(self, addresses: Sequence[str]) -> dict[str, Cached[PoolState]]:
        """What is known of many pools, by address, in one round trip."""
        return dict(zip(addresses, self._connection.run(lambda: _read_pools(self._keys, addresses)), strict=True))

    def set_pool(self, state: PoolState, observed_at_us: int | None = None) -> None:
        self.set_pools((state,), observed_at_us)

    def set_pools(self, states: Iterable[PoolState], observed_at_us: int | None = None) -> None:
        """Writes many pool states in one round trip; one bad state and none is written."""
        self._connection.run(functools.partial(self._write, _pool_observations(self._keys, states, observed_at_us)))


class AsyncCache:
    """`Cache` for asyncio: the same names, awaited."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._keys = connection.keys
        self._write = functools.partial(write, connection.limits)

    async def price(self, symbol: str) -> Cached[Decimal]:
        return (await self.prices((symbol,)))[symbol]

    async def prices(self, symbols: Sequence[str]) -> dict[str, Cached[Decimal]]:
        return dict(zip(symbols, await self._connection.run(lambda: _read_prices(self._keys, symbols)), strict=True))

    async def set_price(self, symbol: str, price: Price, observed_at_us: int | None = None) -> None:
        await self.set_prices({symbol: price}, observed_at_us)

    async def set_prices(self, prices: Mapping[str, Price], observed_at_us: int | None = None) -> None:
        await self._connection.run(
            functools.partial(self._write, _price_observations(self._keys, prices, observed_at_us))
        )

    async def pool(self, address: str) -> Cached[PoolState]:
        return (await self.pools((address,)))[address]

    async def pools(self, addresses: Sequence[str]) -> dict[str, Cached[PoolState]]:
        found = await self._connection.run(lambda: _read_pools(self._keys, addresses))
        return dict(zip(addresses, found, strict=True))

    async def set_pool(self, state: PoolState, observed_at_us: int | None = None) -> None:
        await self.set_pools((state,), observed_at_us)

    async def set_pools(self, states: Iterable[PoolState], observed_at_us: int | None = None) -> None:
        await self._connection.run(
            functools.partial(self._write, _pool_observations(self._keys, states, observed_at_us))
        )
