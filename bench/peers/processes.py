"""A peer's two processes: the producer measures its own calls, the consumer counts what it could use."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench.append import paced
from bench.peers.contract import Peer, Place, Send
from bench.stack import TIMEOUT_SECONDS, wait_for
from bench.trades import trades

DRAIN_SECONDS = 0.1
ROWS, FEES, IS_READY, IS_OVER = range(
    4
)  # words that both processes and this one share; no lock that the dead could hold


def missing(peer: Peer) -> str:
    """The module that keeps a peer from running here, or nothing."""
    return next((name for name in peer.modules if importlib.util.find_spec(name) is None), "")


def _consume(_results: Any, consume: Any, place: Place, drain_seconds: float, counts: Any) -> None:
    with consume(place) as receive:
        counts[IS_READY] = 1
        due = time.monotonic()
        while not counts[IS_OVER]:
            if drain_seconds:
                due += drain_seconds
                time.sleep(max(due - time.monotonic(), 0))
            rows, fees = receive(0.0 if drain_seconds else 0.05)
            while rows:
                counts[FEES] += fees  # first: who waits for the rows then looks at both
                counts[ROWS] += rows
                rows, fees = receive(0.0)


def _full_speed(send: Send, seconds: float, counts: Any) -> tuple[int, dict[str, float]]:
    """Records/s from the first call until the consumer has used the last."""
    records = trades(1000)
    sent, before = 0, counts[ROWS]
    began = time.perf_counter()
    until = began + seconds
    while time.perf_counter() < until:
        for a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q in records:  # noqa: E741
            while not send(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q):
                time.sleep(0)
        sent += len(records)
    wait_for(lambda: counts[ROWS] - before >= sent, f"{sent} records used", 0.001)
    return sent, {"records_per_second": sent / (time.perf_counter() - began)}


def _fees(count: int) -> int:
    """The fees of the first `count` records that a stage sends."""
    fees = [record[8] for record in trades(1000)]
    return count // len(fees) * sum(fees) + sum(fees[: count % len(fees)])


def _produce(results: Any, produce: Any, place: Place, stages: Sequence[Stage], counts: Any) -> None:
    rows = fees = 0
    wait_for(lambda: counts[IS_READY], "consumer", 0.001)
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


class Child:
    """One of the two processes: runs `work(results, *arguments)`, and is known to have failed as soon as it has."""

    def __init__(self, context: Any, role: str, work: Callable[..., None], *arguments: Any) -> None:
        self.role = role
        self.results, end = context.Pipe(duplex=False)
        self.process = context.Process(target=_reported, args=(work, end, *arguments), daemon=True)
        self.process.start()
        end.close()

    def ended(self) -> str:
        self.process.join(TIMEOUT_SECONDS)
        status = self.process.exitcode
        what = f"was killed by signal {-status}" if status and status < 0 else f"ended with status {status}"
        return f"its {self.role} {what}"

    def end(self, patience_seconds: float) -> None:
        self.process.join(patience_seconds)
        self.process.kill()
        self.process.join()
        self.results.close()


def _reported(work: Callable[..., None], results: Any, *arguments: Any) -> None:
    try:
        work(results, *arguments)
    except Exception as error:
        results.send(("failed", f"{type(error).__name__}: {error}"))
        raise


def said(children: Sequence[Child]) -> tuple[str, Any]:
    """What a child says next. Raises RuntimeError where one failed or ended instead, or none says anything."""
    waited_for = [waited for child in children for waited in (child.results, child.process.sentinel)]
    ready = multiprocessing.connection.wait(waited_for, TIMEOUT_SECONDS)
    for child in children:
        if child.results in ready:
            try:
                name, value = child.results.recv()
            except EOFError:
                raise RuntimeError(child.ended()) from None
            if name == "failed":
                raise RuntimeError(f"its {child.role} failed: {value}")
            return name, value
    for child in children:
        if child.process.sentinel in ready:
            raise RuntimeError(child.ended())
    raise RuntimeError(f"got no result within {TIMEOUT_SECONDS:.0f} s")


def measured(peer: Peer, servers: Mapping[str, Any], drain_seconds: float, stages: Sequence[Stage]) -> dict[str, Any]:
    """What a peer's producer found, by stage.

    Raises RuntimeError if one record was lost, doubled or altered, or a process of the peer ended in the middle.
    """
    context = multiprocessing.get_context("spawn")
    counts = context.RawArray("Q", 4)
    children: list[Child] = []
    found: dict[str, Any] = {}
    patience_seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="ringlog-peers-") as directory, environment(peer.environment):
        place = Place(directory, peer.channel(context), servers.get("redis", {}), servers.get("questdb", {}))
        try:
            children.append(Child(context, "consumer", _consume, peer.consume, place, drain_seconds, counts))
            children.append(Child(context, "producer", _produce, peer.produce, place, stages, counts))
            while "sent" not in found:
                name, value = said(children)
                found[name] = value
            wanted = (found["sent"]["rows"], found["sent"]["fees"])
            consumer = children[0].process
            wait_for(lambda: counts[ROWS] >= wanted[0] or not consumer.is_alive(), f"{wanted[0]} records")
            if (counts[ROWS], counts[FEES]) != wanted:
                raise RuntimeError(f"got {counts[ROWS]} records, fees {counts[FEES]}, wanted {wanted}")
            patience_seconds = TIMEOUT_SECONDS
        finally:
            counts[IS_OVER] = 1
            for child in reversed(children):
                child.end(patience_seconds)
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
