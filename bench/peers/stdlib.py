"""Peers from Python's own library."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.peers.contract import Message, Peer, Place, Receive, Send, as_tuples

FEE = Message.__struct_fields__.index("transaction_fee")


@contextlib.contextmanager
def queue_producer(place: Place) -> Iterator[Send]:
    yield as_tuples(place.channel.put)


def taken(get: Callable[[float], Any], fee: Callable[[Any], int]) -> Receive:
    """`get(wait_s)` returns a record or raises queue.Empty."""

    def receive(wait_s: float) -> tuple[int, int]:
        rows = fees = 0
        with contextlib.suppress(queue.Empty):
            while rows < 10_000:
                fees += fee(get(wait_s if not rows else 0.0))
                rows += 1
        return rows, fees

    return receive


@contextlib.contextmanager
def queue_consumer(place: Place) -> Iterator[Receive]:
    def get(wait_s: float) -> Any:
        return place.channel.get(wait_s > 0, wait_s)

    yield taken(get, lambda record: int(record[FEE]))


@contextlib.contextmanager
def pipe_producer(place: Place) -> Iterator[Send]:
    yield as_tuples(place.channel[1].send)


@contextlib.contextmanager
def pipe_consumer(place: Place) -> Iterator[Receive]:
    connection = place.channel[0]

    def get(wait_s: float) -> Any:
        if not connection.poll(wait_s):
            raise queue.Empty
        return connection.recv()

    yield taken(get, lambda record: int(record[FEE]))


@contextlib.contextmanager
def logging_producer(place: Place) -> Iterator[Send]:
    logger = logging.getLogger("bench.peers")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = logging.handlers.QueueHandler(place.channel)
    logger.addHandler(handler)
    names = Message.__struct_fields__

    def send(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q):  # type: ignore[no-untyped-def]  # noqa: E741
        values = (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, time.time_ns() // 1000)
        logger.info("trade", extra={"trade": dict(zip(names, values, strict=True))})
        return True

    yield send
    logger.removeHandler(handler)


@contextlib.contextmanager
def logging_consumer(place: Place) -> Iterator[Receive]:
    def get(wait_s: float) -> Any:
        return place.channel.get(wait_s > 0, wait_s)

    yield taken(get, lambda record: int(record.trade["transaction_fee"]))


PEERS = (
    Peer("multiprocessing.Queue", queue_producer, queue_consumer, channel=lambda context: context.Queue()),
    Peer("multiprocessing.Pipe", pipe_producer, pipe_consumer, channel=lambda context: context.Pipe(duplex=False)),
    Peer("logging QueueHandler", logging_producer, logging_consumer, channel=lambda context: context.Queue()),
)
