"""Peers from packages: shared memory, sockets, structured logs. Each is set up as its own documentation does it."""

from __future__ import annotations

import contextlib
import ctypes
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.peers.contract import (
    FIELDS,
    KEYWORDS,
    VALUES,
    Message,
    Peer,
    Place,
    Receive,
    Send,
    as_tuples,
    decode,
    encode,
    sending,
)
from bench.peers.stdlib import FEE, taken
from ringlog.records import Kind

CHANNEL_BYTES = 16 * 1024 * 1024


def _fee(record: Message) -> int:
    return record.transaction_fee


@contextlib.contextmanager
def cloudtoid_producer(place: Place) -> Iterator[Send]:
    from cloudtoid_interprocess import Publisher

    with Publisher(place.name, CHANNEL_BYTES, path=place.directory) as publisher:
        statement = f"return try_send(encode(Message({VALUES})))"
        yield sending(statement, try_send=publisher.try_send, encode=encode, Message=Message)


@contextlib.contextmanager
def cloudtoid_consumer(place: Place) -> Iterator[Receive]:
    from cloudtoid_interprocess import Subscriber

    with Subscriber(place.name, CHANNEL_BYTES, path=place.directory) as subscriber:

        def get(wait_s: float) -> Message:
            found = subscriber.receive(timeout=wait_s) if wait_s else subscriber.try_receive()
            if found is None:
                raise queue.Empty
            return decode(found)

        yield taken(get, _fee)


_CTYPES: dict[Kind, Any] = {
    Kind.DOUBLE: ctypes.c_double,
    Kind.LONG: ctypes.c_int64,
    Kind.BOOLEAN: ctypes.c_bool,
    Kind.TIMESTAMP: ctypes.c_int64,
}


_KINDS = [(field.name, field.kind) for field in FIELDS[:-1]]


class TradeStructure(ctypes.Structure):
    """A trade as iceoryx2's Python binding takes it."""

    _fields_ = tuple((field.name, _CTYPES.get(field.kind) or ctypes.c_char * field.width_bytes) for field in FIELDS)

    @staticmethod
    def type_name() -> str:
        return "TradeStructure"


def _iceoryx_service(place: Place) -> Any:
    import iceoryx2 as iox

    iox.set_log_level(iox.LogLevel.Error)
    node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
    service = (
        node.service_builder(iox.ServiceName.new(place.name))
        .publish_subscribe(TradeStructure)
        .enable_safe_overflow(False)
        .subscriber_max_buffer_size(32_768)
        .open_or_create()
    )
    return node, service


@contextlib.contextmanager
def iceoryx_producer(place: Place) -> Iterator[Send]:
    import iceoryx2 as iox

    _node, service = _iceoryx_service(place)
    publisher = service.publisher_builder().backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered).create()

    values = [name if kind in _CTYPES else f"{name}.encode()" for name, kind in _KINDS]
    structure = f"TradeStructure({', '.join(values)}, time_ns() // 1000)"
    statements = f"publisher.loan_uninit().write_payload({structure}).send()\nreturn True"
    yield sending(statements, publisher=publisher, TradeStructure=TradeStructure)
    publisher.delete()


@contextlib.contextmanager
def iceoryx_consumer(place: Place) -> Iterator[Receive]:
    node, service = _iceoryx_service(place)
    subscriber = service.subscriber_builder().create()

    def get(wait_s: float) -> TradeStructure:
        import iceoryx2 as iox

        until = time.monotonic() + wait_s
        while (sample := subscriber.receive()) is None:
            if time.monotonic() >= until:
                raise queue.Empty
            node.wait(iox.Duration.from_millis(1))  # as the examples do: there is nothing else to wait on
        record = TradeStructure.from_buffer_copy(sample.payload().contents)
        sample.delete()
        return record

    yield taken(get, lambda record: int(record.transaction_fee))
    subscriber.delete()


def _faster_fifo(_: Any) -> Any:
    import faster_fifo

    return faster_fifo.Queue(max_size_bytes=CHANNEL_BYTES)


@contextlib.contextmanager
def faster_fifo_producer(place: Place) -> Iterator[Send]:
    yield as_tuples(place.channel.put)


@contextlib.contextmanager
def faster_fifo_consumer(place: Place) -> Iterator[Receive]:
    def receive(wait_s: float) -> tuple[int, int]:
        try:
            found = place.channel.get_many(block=wait_s > 0, timeout=max(wait_s, 1e-3), max_messages_to_get=10_000)
        except queue.Empty:
            return 0, 0
        return len(found), sum(record[FEE] for record in found)

    yield receive


@contextlib.contextmanager
def zmq_producer(place: Place) -> Iterator[Send]:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.set_hwm(100_000)
        socket.connect(f"ipc://{place.directory}/zmq")
        statements = f"put(encode(Message({VALUES})))\nreturn True"
        yield sending(statements, put=socket.send, encode=encode, Message=Message)


@contextlib.contextmanager
def zmq_consumer(place: Place) -> Iterator[Receive]:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.set_hwm(100_000)
        socket.bind(f"ipc://{place.directory}/zmq")

        def get(wait_s: float) -> Message:
            if not socket.poll(wait_s * 1000):
                raise queue.Empty
            return decode(socket.recv())

        yield taken(get, _fee)


@contextlib.contextmanager
def structlog_producer(place: Place) -> Iterator[Send]:
    import structlog

    with Path(place.directory, "trades.log").open("ab") as file:
        logger = structlog.wrap_logger(
            structlog.BytesLogger(file),
            processors=[structlog.processors.JSONRenderer(serializer=lambda event, **_: msgspec.json.encode(event))],
            wrapper_class=structlog.make_filtering_bound_logger(20),
        ).bind()
        yield sending(f"info('trade', {KEYWORDS})\nreturn True", info=logger.info)


@contextlib.contextmanager
def structlog_consumer(place: Place) -> Iterator[Receive]:
    path = Path(place.directory, "trades.log")
    path.touch()
    with path.open("rb") as file:
        begun = b""

        def get(wait_s: float) -> int:
            nonlocal begun
            until = time.monotonic() + wait_s
            while not (begun := begun + file.readline()).endswith(b"\n"):
                if time.monotonic() >= until:
                    raise queue.Empty
                time.sleep(0.001)
            line, begun = begun, b""
            return int(msgspec.json.decode(line)["transaction_fee"])

        yield taken(get, int)


PEERS = (
    Peer("cloudtoid-interprocess + msgspec", cloudtoid_producer, cloudtoid_consumer, ("cloudtoid_interprocess",)),
    Peer("iceoryx2", iceoryx_producer, iceoryx_consumer, ("iceoryx2",)),
    Peer("faster-fifo", faster_fifo_producer, faster_fifo_consumer, ("faster_fifo",), _faster_fifo),
    Peer("pyzmq + msgspec", zmq_producer, zmq_consumer, ("zmq",)),
    Peer("structlog to a file", structlog_producer, structlog_consumer, ("structlog",)),
)
