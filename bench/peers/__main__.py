"""The cost of a call and records/s of every peer, in rounds in which they take turns.

As its users run it: the consumer takes records as they come; ringlog's takes them when its writer does (a line of its
own shows it read at once). Drained: every consumer takes them every 100 ms.
Paced costs are those of the call alone, with two readings of the clock off; the floor is an empty Python function that
is called with the same arguments in turn. A peer whose call takes longer than the pace is called again at once, and the
rate that it reached is shown. Making the peer's object of a trade's 17 values and its time is part of the call. A peer
that cannot run here, or whose process dies, is named, with the reason, and the rest runs.

    python -m bench.peers [--json] [--tiny]
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.figures import Cell, Figure, Result, main
from bench.load import REACHED
from bench.peers import libraries, rings, servers, stdlib
from bench.peers.contract import Peer
from bench.peers.processes import DRAIN_SECONDS, Stage, measured, missing
from bench.stack import server
from ringlog.errors import RinglogError
from ringlog.servers import QuestDBServer, ValkeyServer

ROUNDS = 3
RINGS = {peer.name for peer in rings.PEERS}
PEERS = (*rings.PEERS, *libraries.PEERS, *stdlib.PEERS, *servers.PEERS)
TINY_PEERS = tuple(peer for peer in PEERS if peer.name in {"ringlog", "a plain numpy ring"})
MODES = {"as its users run it": 0.0, "drained every 100 ms": DRAIN_SECONDS}
WARM = Stage("warm", 20_000, 0.25)
STAGES = (WARM, Stage("20,000/s", 20_000, 1.0), Stage("1,000/s", 1_000, 2.0), Stage("full speed", 0, 1.0))
TINY = (Stage("20,000/s", 20_000, 0.05), Stage("1,000/s", 1_000, 0.05), Stage("full speed", 0, 0.05))
# How many times cheaper ringlog's call is at the median, at least, when a peer runs as its users run it.
TIMES_CHEAPER = {
    "cloudtoid-interprocess + msgspec": 3.0,
    "iceoryx2": 10.0,
    "multiprocessing.Queue": 10.0,
    "faster-fifo": 10.0,
    "pyzmq + msgspec": 10.0,
    "logging QueueHandler": 10.0,
    "redis XADD": 10.0,
    "questdb Sender.row, 1,000 a flush": 10.0,
}


def bare_ring() -> float | None:
    """Records/s of a ring in C with nothing around it; None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="ringlog-peers-") as directory:
        program = Path(directory) / "bare_ring"
        source = Path(__file__).with_name("bare_ring.c")
        subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
        return float(subprocess.run([str(program)], check=True, stdout=subprocess.PIPE).stdout)


@contextlib.contextmanager
def running(kinds: set[str], questdb: QuestDBServer | None, left_out: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The addresses of the servers that peers need; one that does not start is left out with the reason."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Any] = {}
        for kind in sorted(kinds):
            try:
                if kind == "questdb":
                    settings = stack.enter_context(server(questdb)).settings()
                    found[kind] = {**settings, "questdb_password": settings["questdb_password"].reveal()}
                else:
                    settings = stack.enter_context(ValkeyServer()).settings()
                    found[kind] = {name: settings[f"redis_{name}"] for name in ("host", "port")}
                    found[kind]["password"] = settings["redis_password"].reveal()
            except (RinglogError, OSError) as error:
                left_out.update({peer.name: str(error) for peer in PEERS if peer.server == kind})
        yield found


def rounds_of(
    peers: list[Peer], addresses: Mapping[str, Any], rounds: int, stages: tuple[Stage, ...], left_out: dict[str, str]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """What each peer found, by mode and round."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {peer.name: {mode: [] for mode in MODES} for peer in peers}
    for _ in range(rounds):
        for mode, drain_seconds in MODES.items():
            for peer in peers:
                if peer.name in left_out:
                    continue
                print(f"{peer.name}, {mode} ...", file=sys.stderr, flush=True)
                try:
                    found[peer.name][mode].append(measured(peer, addresses, drain_seconds, stages))
                except Exception as error:  # noqa: BLE001 (whatever keeps a peer from running, the rest runs)
                    left_out[peer.name] = f"{mode}: {error or type(error).__name__}"
    return found


def median(
    found: list[dict[str, Any]], stage: str, *path: str, of: Callable[[list[float]], float] = statistics.median
) -> float:
    """The median of the rounds, or what else is asked `of` them."""
    values = []
    for round_ in found:
        value: Any = round_[stage]
        for name in path:
            value = value[name]
        values.append(float(value))
    return of(values)


def figures_of(name: str, mode: str, found: list[dict[str, Any]], own: list[dict[str, Any]]) -> Iterator[Figure]:
    has_bars = mode == "as its users run it" and not name.startswith("ringlog")

    def figure(stage: str, column: str, value: float, unit: str, at_least: float | None = None) -> Figure:
        cell = Cell(f"{stage.capitalize()}, {mode}", name, f"{column}, {unit}" if column else unit)
        title = ", ".join(filter(None, (name, mode, stage, column)))
        return Figure(name=title, value=value, unit=unit, at_least=at_least, cell=cell)

    for stage in ("20,000/s", "1,000/s"):
        costs = {at: median(found, stage, "append", at) for at in ("p50", "p99", "p999")}
        costs["max"] = median(found, stage, "append", "max", of=max)
        if name not in RINGS:  # its users write in line what is a function of ours here
            costs["p50"] -= median(found, stage, "floor", "p50")
        for at, value in costs.items():
            yield figure(stage, at.replace("p999", "p99.9"), value, "ns")
        if own is not found:
            for at, bar in (("p50", TIMES_CHEAPER.get(name)), ("p99", 1.0)):
                times = costs[at] / median(own, stage, "append", at)
                yield figure(stage, at, times, "x ringlog's", bar if has_bars else None)
        reached = median(found, stage, "rate", of=min) / 2  # every other call is an empty one
        rate = next(known.rate for known in STAGES if known.name == stage)
        yield figure(stage, "reached", reached, "records/s", REACHED * rate if own is found else None)
    yield figure("full speed", "", median(found, "full speed", "records_per_second"), "records/s")


def run(tiny: bool = False, questdb: QuestDBServer | None = None) -> Result:
    left_out = {peer.name: f"no module {missing(peer)!r}" for peer in PEERS if missing(peer)}
    peers = [peer for peer in (TINY_PEERS if tiny else PEERS) if peer.name not in left_out]
    stages = TINY if tiny else STAGES
    with running({peer.server for peer in peers} - {""}, questdb, left_out) as addresses:
        found = rounds_of(peers, addresses, 1 if tiny else ROUNDS, stages, left_out)
    own = found["ringlog"]
    if "ringlog" in left_out:
        raise RuntimeError(f"ringlog, which the others are compared with: {left_out['ringlog']}")
    figures = [
        Figure(name=f"{name}, {stage}, p50", value=median(own["as its users run it"], stage, *path), unit="ns")
        for stage in ("20,000/s", "1,000/s")
        for name, path in (("empty call", ("floor", "p50")), ("clock, already off", ("clock_ns",)))
    ]
    bare = bare_ring()
    if bare is None:
        left_out["bare C ring"] = "no C compiler"
    else:
        figures.append(Figure(name="bare C ring of 512-byte records, full speed", value=bare, unit="records/s"))
    for name, by_mode in found.items():
        for mode, rounds in by_mode.items():
            if name not in left_out:
                figures += figures_of(name, mode, rounds, own[mode])
    what = "Peers: the same trade, usable in another process"
    return Result(benchmark="peers", what=what, figures=figures, details={"left_out": left_out, "rounds": found})


if __name__ == "__main__":
    main(run)
