"""The comparison with peers: it runs, counts every record, and names a peer that died in the middle."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import signal
from collections.abc import Iterator

import pytest

from bench.peers import processes
from bench.peers.contract import VALUES, Peer, Place, Receive, Send, sending
from bench.peers.rings import PEERS as RINGS
from bench.peers.stdlib import PEERS as STDLIB
from bench.peers.stdlib import queue_consumer, queue_producer
from ringlog.servers import QuestDBServer

MODES = ("as its users run it", "drained every 100 ms")
main = importlib.import_module("bench.peers.__main__")


@pytest.mark.slow
def test_rings_run() -> None:
    """The comparison runs and counts every record that the rings among the peers carried, in both modes; what was
    reached of a pace stands beside what it cost."""
    result = main.run(tiny=True)
    names = {figure.name for figure in result.figures}
    for mode in MODES:
        for ring in ("ringlog", "a plain numpy ring"):
            assert f"{ring}, {mode}, full speed" in names
            assert f"{ring}, {mode}, 20,000/s, reached" in names
    assert not set(result.details["left_out"]) - {"bare C ring", *(peer.name for peer in main.libraries.PEERS)}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_peer_runs(questdb_server: QuestDBServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every peer whose package is installed carries every record unaltered, in both modes."""
    monkeypatch.setattr(main, "TINY_PEERS", main.PEERS)
    result = main.run(tiny=True, questdb=questdb_server)
    absent = {peer.name for peer in main.PEERS if not all(map(importlib.util.find_spec, peer.modules))}
    assert set(result.details["left_out"]) - {"bare C ring"} == absent
    assert len(main.PEERS) - len(absent) >= 12


@contextlib.contextmanager
def killed_producer(place: Place) -> Iterator[Send]:
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    yield sending(f"put(({VALUES}))\nkill()\nreturn True", put=place.channel.put, kill=kill)


@contextlib.contextmanager
def failing_producer(_: Place) -> Iterator[Send]:
    yield sending("raise OSError('no such device')")


@contextlib.contextmanager
def ending_consumer(place: Place) -> Iterator[Receive]:
    with queue_consumer(place) as receive:

        def receive_and_end(wait_s: float) -> tuple[int, int]:
            rows, _ = receive(wait_s)
            if rows:
                os._exit(3)
            return 0, 0

        yield receive_and_end


@contextlib.contextmanager
def losing_consumer(place: Place) -> Iterator[Receive]:
    with queue_consumer(place) as receive:

        def receive_less(wait_s: float) -> tuple[int, int]:
            rows, fees = receive(wait_s)
            return rows, fees - 1 if rows else 0

        yield receive_less


@pytest.mark.slow
def test_a_peer_that_dies_in_the_middle_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer killed or failing, a consumer that ends or alters: each is named with what happened, none is waited
    for, no figure is made of what it had done before, and the others' figures are all there."""
    channel = STDLIB[0].channel
    dying = (
        Peer("killed", killed_producer, queue_consumer, channel=channel),
        Peer("failing", failing_producer, queue_consumer, channel=channel),
        Peer("ending", queue_producer, ending_consumer, channel=channel),
        Peer("altering", queue_producer, losing_consumer, channel=channel),
    )
    monkeypatch.setattr(main, "TINY_PEERS", (*dying, RINGS[0], RINGS[-1]))
    monkeypatch.setattr(main, "MODES", {MODES[0]: 0.0})
    monkeypatch.setattr(processes, "TIMEOUT_SECONDS", 1e6)  # a wait for the dead would last
    result = main.run(tiny=True)
    reasons = {peer.name: result.details["left_out"][peer.name].removeprefix(f"{MODES[0]}: ") for peer in dying}
    altered = re.fullmatch(r"got (\d+) records, fees (\d+), wanted \((\d+), (\d+)\)", reasons.pop("altering"))
    assert altered
    rows, fees, wanted_rows, wanted_fees = map(int, altered.groups())
    assert (rows, fees < wanted_fees) == (wanted_rows, True)
    assert reasons == {
        "killed": "its producer was killed by signal 9",
        "failing": "its producer failed: OSError: no such device",
        "ending": "its consumer ended with status 3",
    }
    assert {figure.cell.row for figure in result.figures if figure.cell} == {"ringlog", "a ring by struct.pack_into"}
