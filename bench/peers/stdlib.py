"""Peers from Python's own library."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import logging.handlers
import queue
from collections.abc import Callable, Iterator
from typing import Any

from bench.peers.contract import FIELDS, MAPPING, VALUES, Message, Peer, Place, Receive, Send, as_tuples, sending

FEE = Message.__struct_fields__.index("transaction_fee")
TradeData = dataclasses.make_dataclass(
    "TradeData", [field.name for field in FIELDS], slots=True, namespace={"__module__": __name__}
)


@contextlib.contextmanager
def queue_producer(place: Place) -> Iterator[Send]:
    yield as_tuples(place.channel.put)


@contextlib.contextmanager
def queue_dict_producer(place: Place) -> Iterator[Send]:
    yield sending(f"put({MAPPING})\nreturn True", put=place.channel.put)


@contextlib.contextmanager
def queue_dataclass_producer(place: Place) -> Iterator[Send]:
    yield sending(f"put(TradeData({VALUES}))\nreturn True", put=place.channel.put, TradeData=TradeData)


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


def from_queue(place: Place, fee: Callable[[Any], int]) -> Receive:
    return taken(lambda wait_s: place.channel.get(wait_s > 0, wait_s), fee)


@contextlib.contextmanager
def queue_consumer(place: Place) -> Iterator[Receive]:
    yield from_queue(place, lambda record: int(record[FEE]))


@contextlib.contextmanager
def queue_dict_consumer(place: Place) -> Iterator[Receive]:
    yield from_queue(place, lambda record: int(record["transaction_fee"]))


@contextlib.contextmanager
def queue_dataclass_consumer(place: Place) -> Iterator[Receive]:
    yield from_queue(place, lambda record: int(record.transaction_fee))


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
    yield sending(f"info('trade', extra={{'trade': {MAPPING}}})\nreturn True", info=logger.info)
    logger.removeHandler(handler)


@contextlib.contextmanager
def logging_consumer(place: Place) -> Iterator[Receive]:
    yield from_queue(place, lambda record: int(record.trade["transaction_fee"]))


def _queue(context: Any) -> Any:
    return context.Queue()


PEERS = (
    Peer("multiprocessing.Queue", queue_producer, queue_consumer, channel=_queue),
    Peer("multiprocessing.Queue of dicts", queue_dict_producer, queue_dict_consumer, channel=_queue),
    Peer("multiprocessing.Queue of dataclasses", queue_dataclass_producer, queue_dataclass_consumer, channel=_queue),
    Peer("multiprocessing.Pipe", pipe_producer, pipe_consumer, channel=lambda context: context.Pipe(duplex=False)),
    Peer("logging QueueHandler", logging_producer, logging_consumer, channel=_queue),
)
