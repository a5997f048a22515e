"""What the cache holds: prices as decimal strings, pool states as JSON, and whether a value read is fresh."""

from __future__ import annotations

import enum
import re
import time
from decimal import Decimal, InvalidOperation
from typing import Annotated, Generic, TypeVar

import msgspec

from ringlog.errors import RedisValueError
from ringlog.redis.keys import POOL_BYTES_MAX, PRICE_BYTES_MAX

T = TypeVar("T")

_DECIMAL = re.compile(r"[0-9]{1,64}(\.[0-9]{1,64})?")


class Freshness(enum.StrEnum):
    """How far a cached value may be trusted."""

    FRESH = "fresh"  # observed within the last 2 s
    STALE = "stale"  # the last one known, up to an hour old: the feed has stopped
    MISSING = "missing"  # never written, not for an hour, or evicted
    BROKEN = "broken"  # present, but not written by ringlog: wrong text or JSON


class Cached(msgspec.Struct, Generic[T], frozen=True):
    """What the cache knows of one price or pool.

    `value` is None where `freshness` is MISSING or BROKEN. `observed_at_us` (microseconds since the epoch) is the
    time the writer gave, or None where it is not known.
    """

    freshness: Freshness
    value: T | None = None
    observed_at_us: int | None = None

    @property
    def is_fresh(self) -> bool:
        return self.freshness is Freshness.FRESH

    def age_ms(self) -> float | None:
        """Milliseconds since the observation, by this machine's clock; None where it is not known."""
        if self.observed_at_us is None:
            return None
        return max(0.0, (time.time_ns() // 1_000 - self.observed_at_us) / 1_000)


BasisPoints = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
Reserve = Annotated[int, msgspec.Meta(ge=0)]  # and below 2**64, which is checked below: msgspec's bounds are int64
Slot = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class PoolState(msgspec.Struct, frozen=True, kw_only=True):
    """One liquidity pool: reserves in the tokens' smallest unit (u64), price in quote per base token.

    Fields that a newer writer adds are ignored by an older reader.
    """

    address: str
    base_token: str
    quote_token: str
    base_reserve: Reserve
    quote_reserve: Reserve
    price: Decimal
    fee_bps: BasisPoints
    slot: Slot


_pool_encoder = msgspec.json.Encoder(decimal_format="string")
_pool_decoder = msgspec.json.Decoder(PoolState)


def price_text(name: str, price: Decimal | int | str) -> str:
    """`price` as a plain decimal string (no exponent).

    Raises RedisValueError for a float (its decimals are not the ones written down), a negative or endless value, text
    that is no number, or more than 64 characters.
    """
    wanted = f"wanted a finite Decimal >= 0 of at most {PRICE_BYTES_MAX} characters"
    if isinstance(price, bool) or not isinstance(price, Decimal | int | str):
        raise RedisValueError(f"price of {name}: got {price!r} ({type(price).__name__}), {wanted}")
    try:
        number = Decimal(price)
    except (InvalidOperation, ValueError):
        raise RedisValueError(f"price of {name}: got {str(price)[:80]!r}, {wanted}") from None
    if not number.is_finite() or number.is_signed() or abs(number.adjusted()) > PRICE_BYTES_MAX:
        raise RedisValueError(f"price of {name}: got {str(number)[:80]}, {wanted}")
    text = format(number, "f")
    if len(text) > PRICE_BYTES_MAX:
        raise RedisValueError(f"price of {name}: got {len(text)} characters, {wanted}")
    return text


def price_of(payload: bytes) -> Decimal:
    """The price in a payload; ValueError where it is no plain decimal string."""
    text = payload.decode("ascii")
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"got {text[:80]!r}, wanted a decimal string")
    return Decimal(text)


def pool_json(state: PoolState) -> bytes:
    """The JSON of a pool state; raises RedisValueError where a field does not fit its type, or it is too long."""
    if not isinstance(state, PoolState):
        raise RedisValueError(f"pool state: got {type(state).__name__}, wanted PoolState")
    try:
        payload = _pool_encoder.encode(state)
        _checked(_pool_decoder.decode(payload))
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise RedisValueError(f"pool {state.address!r}: {error}") from None
    if len(payload) > POOL_BYTES_MAX:
        raise RedisValueError(
            f"pool {state.address!r}: got {len(payload)} bytes of JSON, wanted at most {POOL_BYTES_MAX}"
        )
    return payload


def pool_of(payload: bytes) -> PoolState:
    """The pool state in a payload; msgspec.DecodeError or ValueError where it does not fit PoolState."""
    return _checked(_pool_decoder.decode(payload))


def _checked(state: PoolState) -> PoolState:
    if not state.price.is_finite() or state.price.is_signed():
        raise ValueError(f"price: got {state.price}, wanted a finite Decimal >= 0")
    for name in ("base_reserve", "quote_reserve"):
        if getattr(state, name) >= 2**64:
            raise ValueError(f"{name}: got {getattr(state, name)}, wanted a u64")
    return state
