"""What a peer is: a call that takes a trade's 17 values, and a consumer that has used every record it counts."""

from __future__ import annotations

import dataclasses
import textwrap
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


# A trade's values as source text, its time the last: one after another, by keyword, and as a dict.
_EXPRESSIONS = {field.name: field.name for field in FIELDS[:-1]} | {FIELDS[-1].name: "time_ns() // 1000"}
VALUES = ", ".join(_EXPRESSIONS.values())
KEYWORDS = ", ".join(f"{name}={value}" for name, value in _EXPRESSIONS.items())
MAPPING = "{" + ", ".join(f"{name!r}: {value}" for name, value in _EXPRESSIONS.items()) + "}"


def sending(statements: str, **names: Any) -> Send:
    """A call with the 17 values, by the names of their fields, that does `statements`.

    They make the peer's object of the values in place, as its users write it: handed on from call to call, or through
    loops over names, it would cost what the peer doesn't.
    """
    found: dict[str, Any] = {"time_ns": time.time_ns, **names}
    arguments = ", ".join(field.name for field in FIELDS[:-1])
    exec(f"def send({arguments}):\n{textwrap.indent(statements, '    ')}", found)  # noqa: S102
    send: Send = found["send"]
    return send


def as_tuples(put: Callable[[tuple[Any, ...]], Any]) -> Send:
    """Hands each trade to `put`, which waits for room, as a tuple: what is made and pickled in the least time."""
    return sending(f"put(({VALUES}))\nreturn True", put=put)
