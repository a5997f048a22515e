"""A peer's two processes: the producer measures its own calls, the consumer counts what it could use."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench.append import paced
from bench.peers.contract import Peer, Place, Send
from bench.stack import TIMEOUT_SECONDS, wait_for
from bench.trades import trades

DRAIN_SECONDS = 0.1


def missing(peer: Peer) -> str:
    """The module that keeps a peer from running here, or nothing."""
    return next((name for name in peer.modules if importlib.util.find_spec(name) is None), "")


def _consume(consume: Any, place: Place, drain_seconds: float, counts: Any, is_ready: Any, is_over: Any) -> None:
    with consume(place) as receive:
        is_ready.release()
        due = time.monotonic()
        while not is_over.is_set():
            if drain_seconds:
                due += drain_seconds
                time.sleep(max(due - time.monotonic(), 0))
            rows, fees = receive(0.0 if drain_seconds else 0.05)
            while rows:
                counts[1] += fees  # first: who waits for the rows then looks at both
                counts[0] += rows
                rows, fees = receive(0.0)


def _full_speed(send: Send, seconds: float, counts: Any) -> tuple[int, dict[str, float]]:
    """Records/s from the first call until the consumer has used the last."""
    records = trades(1000)
    sent, before = 0, counts[0]
    began = time.perf_counter()
    until = began + seconds
    while time.perf_counter() < until:
        for a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q in records:  # noqa: E741
            while not send(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q):
                time.sleep(0)
        sent += len(records)
    wait_for(lambda: counts[0] - before >= sent, f"{sent} records used", 0.001)
    return sent, {"records_per_second": sent / (time.perf_counter() - began)}


def _fees(count: int) -> int:
    """The fees of the first `count` records that a stage sends."""
    fees = [record[8] for record in trades(1000)]
    return count // len(fees) * sum(fees) + sum(fees[: count % len(fees)])


def _produce(produce: Any, place: Place, stages: Sequence[Stage], counts: Any, results: Any) -> None:
    rows = fees = 0
    with produce(place) as send:
        for stage in stages:
            if stage.rate:
                found: dict[str, Any] = paced(send, 2 * stage.rate, stage.seconds, is_fresh=True)
                sent = int(2 * stage.rate * stage.seconds) // 2
            else:
                sent, found = _full_speed(send, stage.seconds, counts)
            rows, fees = rows + sent, fees + _fees(sent)
            results.send((stage.name, found))
    results.send(("sent", {"rows": rows, "fees": fees}))


class Stage(NamedTuple):
    """Calls at `rate`/s for so many seconds, or as fast as they go (rate 0)."""

    name: str
    rate: float = 0.0
    seconds: float = 0.0


def measured(peer: Peer, servers: Mapping[str, Any], drain_seconds: float, stages: Sequence[Stage]) -> dict[str, Any]:
    """What a peer's producer found, by stage. Raises RuntimeError if one record was lost, doubled or altered."""
    context = multiprocessing.get_context("spawn")
    counts, is_ready, is_over = context.Array("Q", 2, lock=False), context.Semaphore(0), context.Event()
    results, results_end = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="ringlog-peers-") as directory, environment(peer.environment):
        place = Place(directory, peer.channel(context), servers.get("redis", {}), servers.get("questdb", {}))
        consumer = context.Process(
            target=_consume, args=(peer.consume, place, drain_seconds, counts, is_ready, is_over), daemon=True
        )
        producer = context.Process(
            target=_produce, args=(peer.produce, place, stages, counts, results_end), daemon=True
        )
        found: dict[str, Any] = {}
        try:
            consumer.start()
            if not is_ready.acquire(timeout=TIMEOUT_SECONDS):
                raise RuntimeError(f"{peer.name}: its consumer did not start")
            producer.start()
            results_end.close()
            while "sent" not in found:
                if not results.poll(TIMEOUT_SECONDS):
                    raise RuntimeError(f"{peer.name}: got no result within {TIMEOUT_SECONDS:.0f} s")
                name, value = results.recv()
                found[name] = value
            wanted = (found["sent"]["rows"], found["sent"]["fees"])
            wait_for(lambda: counts[0] >= wanted[0], f"{wanted[0]} records of {peer.name}")
            if (counts[0], counts[1]) != wanted:
                raise RuntimeError(f"{peer.name}: got {counts[0]} records, fees {counts[1]}, wanted {wanted}")
        finally:
            is_over.set()
            for process in (producer, consumer):
                if process.pid is not None:
                    process.join(TIMEOUT_SECONDS)
                    process.kill()
        return found


@contextlib.contextmanager
def environment(values: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Sets environment variables for processes started inside."""
    before = {name: os.environ.get(name) for name, _ in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
