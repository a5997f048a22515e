"""What type checkers say of appends: a line with `# error: CODE` must have that error, and no other line any."""

from __future__ import annotations

import datetime
from typing import Annotated

from ringlog import Appender, LatencySample, Producer, Record, Trade
from ringlog.records import Symbol


class Fill(Record):
    """A record type of a user's own."""

    __table__ = "fills"
    venue: Annotated[str, Symbol(16)]
    price: float
    note: Annotated[str | None, Symbol(16)] = None


producer = Producer([Trade, Fill, LatencySample])
append = producer.appender(Fill).append
accepted: bool = append(venue="x", price=1.5)
append(venue="x", price=1.5, note="n", timestamp=datetime.datetime.now(datetime.UTC))
append(venue="x", price=1.5, timestamp=1_767_225_600_000_000)
append("x", 1.5)
append("x", 1.5, timestamp=1_767_225_600_000_000)
append("x", price=1.5)
append(venue="x")  # error: call-overload
append(venue="x", prize=1.5)  # error: call-overload
append(venue=1, price=1.5)  # error: call-overload
append(venue="x", price="1.5")  # error: call-overload
append(venue="x", price=1.5, timestamp="now")  # error: call-overload
append()  # error: call-overload

sample = producer.appender(LatencySample).append
sample(service="s", operation="o", latency_us=1.0)
sample(service="s", operation="o")  # error: call-overload
text: str = sample("s", "o", 1.0)  # error: assignment

bound = producer.appender(Trade).bind(trader_id="t1", mode="paper")
bound("buy", "SOL", "USDC")

producer.record_latency(LatencySample(service="s", operation="o", latency_us=1.0))
producer.record_latency(LatencySample(service="s", operation="o"))  # error: call-arg
producer.record_latency(Fill(venue="x", price=1.5))  # error: arg-type
producer.record_trade(Fill(venue="x", price=1.5))  # error: arg-type
producer.appender(str)  # error: arg-type


def any_of(record_type: type[Record]) -> bool:
    """Of a type that is known at run time alone."""
    appender: Appender[...] = producer.appender(record_type)
    return appender.append(venue="x")
