"""The price and pool cache against a real server."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_attempts import promptly

from ringlog.errors import RedisValueError, ServerRefused, ServerUnavailable
from ringlog.redis import AsyncCache, AsyncConnection, Cache, Connection, Freshness, PoolState
from ringlog.redis.values import price_of, price_text

ADDRESS = "58oQChx4yWmvKdwLLZzBi4ChoCc2fqCUWBkwMihLYQo2"
POOL = PoolState(
    address=ADDRESS,
    base_token="SOL",
    quote_token="USDC",
    base_reserve=2**64 - 1,
    quote_reserve=7,
    price=Decimal("152.310000001"),
    fee_bps=25,
    slot=300_000_000,
)


def test_price_is_a_plain_decimal_string_alive_for_two_seconds(connection: Connection, raw: redis.Redis) -> None:
    """`price:{symbol}` holds the decimal itself and expires 2 s after the observation, as other programs expect."""

    def priced() -> None:
        Cache(connection).set_price("SOL", Decimal("1.5E+2"))
        assert raw.get("price:SOL") == b"150"
        assert 1_000 < raw.pttl("price:SOL") <= 2_000

    promptly(priced)


def test_fresh_stale_and_missing_are_told_apart(connection: Connection, raw: redis.Redis) -> None:
    """A value that has expired is STALE with its age, one that was never written MISSING; neither is an error."""
    cache = Cache(connection)

    def observed() -> Any:
        cache.set_price("SOL", "152.31")
        fresh = cache.price("SOL")
        assert (fresh.freshness, fresh.value, fresh.is_fresh) == (Freshness.FRESH, Decimal("152.31"), True)
        return fresh

    fresh = promptly(observed)
    assert fresh.age_ms() is not None
    raw.pexpire("price:SOL", 1)
    while raw.exists("price:SOL"):
        pass
    stale = cache.price("SOL")
    assert (stale.freshness, stale.value, stale.is_fresh) == (Freshness.STALE, Decimal("152.31"), False)
    assert stale.observed_at_us == fresh.observed_at_us
    missing = cache.price("BONK")
    assert (missing.freshness, missing.value, missing.age_ms()) == (Freshness.MISSING, None, None)


def test_an_evicted_key_is_a_miss(connection: Connection, raw: redis.Redis) -> None:
    """What the server evicted to save memory reads as MISSING, the price and its last value alike."""
    cache = Cache(connection)
    raw.config_set("maxmemory-policy", "allkeys-lru")
    cache.set_price("SOL", "152.31")
    raw.config_set("maxmemory", "1mb")
    for number in range(20_000):
        if not raw.exists("price:SOL", "last:price:SOL"):
            break
        raw.set(f"filler:{number}", b"x" * 100)
    assert cache.price("SOL").freshness is Freshness.MISSING


def test_freshness_counts_from_the_observation(connection: Connection, raw: redis.Redis) -> None:
    """A price observed 1.5 s ago is fresh for at most 0.5 s more, and one observed 2 s ago is stale from the start."""
    cache = Cache(connection)
    now_us = time.time_ns() // 1_000
    cache.set_price("SOL", "1", now_us - 1_500_000)
    assert raw.pttl("price:SOL") <= 500
    cache.set_price("BONK", "2", now_us - 2_000_000)
    assert cache.price("BONK").freshness is Freshness.STALE
    cache.set_price("WIF", "3", now_us + 60_000_000)
    assert raw.pttl("price:WIF") <= 2_000, "a clock ahead must not keep a price fresh for longer"


def test_bulk_reads_and_writes_take_one_round_trip(connection: Connection, raw: redis.Redis) -> None:
    """100 prices are read by one command and written by commands that travel together."""
    cache = Cache(connection)
    prices = {f"T{number}": Decimal(number) / 7 for number in range(100)}
    prices = {symbol: price.quantize(Decimal("1e-9")) for symbol, price in prices.items()}
    cache.set_prices(prices)
    before = _reads_of(raw)
    found = cache.prices(list(prices))
    assert _reads_of(raw) - before == 1
    assert {symbol: cached.value for symbol, cached in found.items()} == prices
    assert list(found) == list(prices)
    assert cache.prices([]) == {}


def _reads_of(raw: redis.Redis) -> int:
    return int(raw.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"])


@pytest.mark.parametrize(
    "price",
    [
        1.5, float("nan"), True, None, "abc", "", "1_0.5.5", Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"),
        Decimal("-1"), "-0.1", Decimal("1E+100"), Decimal("1E-100"), Decimal("1E+999999"), "9" * 65, b"1",
    ],
)  # fmt: skip
def test_bad_prices_are_refused_before_anything_is_sent(connection: Connection, raw: redis.Redis, price: Any) -> None:
    """A price that is no finite, non-negative decimal of bounded length raises RedisValueError and writes nothing."""
    with pytest.raises(RedisValueError, match="SOL"):
        Cache(connection).set_prices({"WIF": "1", "SOL": price})
    assert raw.dbsize() == 0


@pytest.mark.parametrize("symbol", ["", "S OL", "SOL\n", "é", "x" * 97, 7, None])
def test_bad_symbols_are_refused(connection: Connection, symbol: Any) -> None:
    """A symbol that could not be read back in a key raises RedisValueError, on reading and on writing."""
    with pytest.raises(RedisValueError):
        Cache(connection).price(symbol)
    with pytest.raises(RedisValueError):
        Cache(connection).set_price(symbol, "1")


def test_a_text_in_place_of_a_list_is_refused(connection: Connection) -> None:
    """`prices("SOL")` is a mistake, not a request for S, O and L."""
    with pytest.raises(RedisValueError, match="wanted a list"):
        Cache(connection).prices("SOL")


@given(st.decimals(min_value=0, max_value=10**20, allow_nan=False, allow_infinity=False, places=12))
@settings(max_examples=300)
def test_price_text_round_trips_exactly(price: Decimal) -> None:
    """Any price survives its text form digit for digit, and the text has no exponent."""
    text = price_text("SOL", price)
    assert price_of(text.encode()) == price
    assert "E" not in text


def test_pool_round_trips_and_expires(connection: Connection, raw: redis.Redis) -> None:
    """A pool state is JSON with TTL 2 s and comes back equal, u64 reserves and decimal price included."""
    cache = Cache(connection)

    def kept() -> None:
        cache.set_pool(POOL)
        assert cache.pool(ADDRESS).value == POOL
        stored = raw.get(f"pool:{ADDRESS}")
        assert stored is not None
        assert msgspec.json.decode(stored)["price"] == "152.310000001"  # type: ignore[arg-type]
        assert 1_000 < raw.pttl(f"pool:{ADDRESS}") <= 2_000

    promptly(kept)
    raw.delete(f"pool:{ADDRESS}")
    assert cache.pools([ADDRESS])[ADDRESS].freshness is Freshness.STALE


@pytest.mark.parametrize(
    "changes",
    [
        {"base_reserve": -1}, {"quote_reserve": 2**64}, {"fee_bps": 10_001}, {"slot": "x"}, {"price": Decimal("NaN")},
        {"price": Decimal("-1")}, {"base_token": 7}, {"base_token": "x" * 5_000}, {"address": "0OIl"},
    ],
)  # fmt: skip
def test_pool_states_that_do_not_fit_are_refused(
    connection: Connection, raw: redis.Redis, changes: dict[str, Any]
) -> None:
    """A field out of range or of the wrong type, a broken address, or too much JSON raises RedisValueError."""
    with pytest.raises(RedisValueError):
        Cache(connection).set_pool(msgspec.structs.replace(POOL, **changes))
    assert raw.dbsize() == 0


def test_what_others_wrote_is_broken_and_spoils_nothing_else(connection: Connection, raw: redis.Redis) -> None:
    """A value that is no decimal, or JSON that does not fit, reads as BROKEN; its neighbours read as ever."""
    cache = Cache(connection)
    cache.set_prices({"SOL": "1", "WIF": "2"})
    cache.set_pool(POOL)
    raw.mset({"price:BAD": b"12,5", "price:NAN": b"NaN", "price:BIN": b"\xff", "last:price:OLD": b"junk"})
    raw.mset({"price:SOL": b"1", "price:WIF": b"2"})  # without a TTL: fresh for as long as this takes
    raw.set("last:price:WIF", b"no stamp")
    raw.set(f"pool:{ADDRESS}", b'{"address": 1}')
    found = cache.prices(["SOL", "BAD", "NAN", "BIN", "OLD", "WIF"])
    assert [cached.freshness.value for cached in found.values()] == ["fresh", *["broken"] * 4, "fresh"]
    assert found["BAD"].value is None
    assert cache.pool(ADDRESS).freshness is Freshness.BROKEN


def test_a_key_of_another_type_is_a_miss(connection: Connection, raw: redis.Redis) -> None:
    """MGET answers nil for a key that is no string, so such a key reads as MISSING."""
    raw.lpush("price:SOL", "x")
    assert Cache(connection).price("SOL").freshness is Freshness.MISSING


def test_writes_without_memory_are_refused_by_name(connection: Connection, raw: redis.Redis) -> None:
    """With maxmemory reached and noeviction, a write raises ServerRefused naming the cause; reads go on."""
    cache = Cache(connection)
    cache.set_price("SOL", "1")
    raw.config_set("maxmemory", "1")
    with pytest.raises(ServerRefused, match="out of memory"):
        cache.set_prices({"SOL": "2", "WIF": "3"})
    assert cache.price("SOL").value == Decimal(1)


def test_a_server_that_is_away_is_named_at_once_where_no_retry_is_wanted() -> None:
    """With redis_retry_timeout_ms=0 a dead server raises ServerUnavailable with its address, and no secret."""
    from ringlog.settings import Secret, Settings

    settings_ = Settings(redis_port=1, redis_password=Secret("canary"), redis_retry_timeout_ms=0)
    with Connection(settings_) as connection, pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:1") as caught:
        Cache(connection).price("SOL")
    assert "canary" not in repr(caught.value)


async def test_async_cache_answers_as_the_sync_one(
    async_connection: AsyncConnection, connection: Connection, raw: redis.Redis
) -> None:
    """AsyncCache has the same methods and reads what Cache wrote, and the reverse."""
    sync, cache = Cache(connection), AsyncCache(async_connection)
    public = {name for name in dir(Cache) if not name.startswith("_")}
    assert public == {name for name in dir(AsyncCache) if not name.startswith("_")}
    await cache.set_price("SOL", "152.31")
    await cache.set_pool(POOL)
    raw.persist(f"pool:{ADDRESS}")  # it must not go stale between the two that are compared
    sync.set_prices({"WIF": 3})
    assert sync.price("SOL").value == Decimal("152.31")
    assert (await cache.price("WIF")).value == Decimal(3)
    assert (await cache.pools([ADDRESS]))[ADDRESS] == sync.pool(ADDRESS)
    assert (await cache.prices(["NONE"]))["NONE"].freshness is Freshness.MISSING
    with pytest.raises(RedisValueError):
        await cache.set_price("SOL", 1.5)  # type: ignore[arg-type]
