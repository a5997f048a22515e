"""What a peer is: a call that takes a trade's 17 values, and a consumer that has used every record it counts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from ringlog.records import Kind, Trade, layout_of

# Takes the 17 values by position and stamps the record. False: no room at the moment.
Send = Callable[..., bool]
# Waits at most so many seconds for a record, then takes all that are at hand: how many, and the sum of their fees.
Receive = Callable[[float], tuple[int, int]]


@dataclasses.dataclass(slots=True)
class Place:
    """Where the two processes of a peer meet; spawned processes get it as an argument."""

    directory: str
    channel: Any = None
    redis: dict[str, Any] = dataclasses.field(default_factory=dict)
    questdb: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unlike that of any other place."""
        return self.directory.strip("/").replace("/", "-").replace(".", "-")


@dataclasses.dataclass(slots=True, frozen=True)
class Peer:
    """`modules` are those it cannot do without; `channel(context)` is made by the parent of both processes."""

    name: str
    produce: Callable[[Place], AbstractContextManager[Send]]
    consume: Callable[[Place], AbstractContextManager[Receive]]
    modules: tuple[str, ...] = ()
    channel: Callable[[Any], Any] = lambda _: None
    environment: tuple[tuple[str, str], ...] = ()
    server: str = ""


FIELDS = layout_of(Trade).fields  # the timestamp last
_TYPES: dict[Kind, type] = {Kind.DOUBLE: float, Kind.LONG: int, Kind.BOOLEAN: bool, Kind.TIMESTAMP: int}
# A trade as a program with msgspec would send it.
Message = msgspec.defstruct(
    "Message", [(field.name, _TYPES.get(field.kind, str)) for field in FIELDS], array_like=True, gc=False
)
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Message).decode


def encoded(*values: Any) -> bytes:
    return encode(Message(*values, time.time_ns() // 1000))


def as_tuples(put: Callable[[tuple[Any, ...]], Any]) -> Send:
    """Hands each trade to `put`, which waits for room, as a tuple of its values and its time."""

    def send(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q):  # type: ignore[no-untyped-def]  # noqa: E741
        put((a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, time.time_ns() // 1000))
        return True

    return send
