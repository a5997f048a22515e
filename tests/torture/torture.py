"""The torture: `./scripts/torture --seconds N --seed S [--plant BUG] --json`.

Faults in an order drawn from the seed: kill -9 of producers, the writer (half of the time with a power cut of the
spool's disk), QuestDB, all three; stops of each; a proxy before QuestDB that cuts requests
and answers, takes everything and says nothing, is slow, or says 204 by itself; a full disk; a table that is dropped and
made again. At the end the oracle judges.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from tcp_proxy import Connection, Fault, blackhole, lost_reply, passed, reset_in_the_middle, slow

from ringlog.servers import QuestDBServer
from torture.attempts import REFUSED, REFUSED_DELIBERATE
from torture.planted import BUGS
from torture.stage import TABLE, Stage

UNLIMITED = -1


def false_204(connection: Connection) -> None:
    """Writes are acknowledged and go nowhere; whatever else is asked, the server answers."""
    request = connection.request()
    while request.startswith(b"POST /write"):
        connection.client.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        request = connection.request()
    if request:
        connection.connect().sendall(request)
        connection.pump()


CUTS: dict[str, Fault] = {
    "request cut": reset_in_the_middle,
    "answer cut": lost_reply,
    "silence": blackhole,
    "slow answers": slow(0.3),
    "false 204": false_204,
}


class Torture:
    """The faults. Each is one method, and leaves everything running."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.random = stage.random

    def kill_writer(self) -> None:
        self.stage.end_writer(power_cut=self.random.random() < 0.5)

    def kill_producer(self) -> None:
        number = self.random.choice(sorted(self.stage.producers))
        process = self.stage.producers.pop(number)
        process.kill()
        process.wait()
        self.stage.kills["producer"] += 1
        self.stage.start_producer()

    def kill_server(self) -> None:
        self.stage.end_server()
        self.stage.pause(0.0, 1.0)
        self.stage.start_server()

    def kill_all(self) -> None:
        self.kill_producer()
        self.stage.end_server()
        self.kill_writer()
        self.stage.start_server()

    def kill_with_spool(self) -> None:
        """The server dies, records go to the spool, and then the writer dies with the power of its disk."""
        self.stage.end_server()
        self.stage.pause(1.5, 2.5)
        self.stage.end_writer(power_cut=True)
        self.stage.start_server()

    def stop_writer(self) -> None:
        assert self.stage.writer is not None
        self.stage.faults["writer stopped"] += 1
        with self.stage.deliberate():
            self.stage.writer.send_signal(signal.SIGSTOP)
            self.stage.pause(0.5, 4.0)
            self.stage.writer.send_signal(signal.SIGCONT)

    def stop_producer(self) -> None:
        """Longer than the linger, so that its lane stands still while its owner lives."""
        process = self.stage.producers[self.random.choice(sorted(self.stage.producers))]
        self.until_written()
        process.send_signal(signal.SIGSTOP)
        self.stage.faults["producer stopped"] += 1
        self.stage.pause(2.0, 3.5)
        process.send_signal(signal.SIGCONT)

    def stop_server(self) -> None:
        self.stage.wait_for_server()
        self.stage.server.stop_signal()
        self.stage.faults["questdb stopped"] += 1
        self.stage.pause(0.5, 3.0)
        self.stage.server.continue_signal()

    def cut(self, name: str) -> None:
        """The network between writer and server; half of the time the question after a write gets no answer either."""
        self.stage.proxies["http"].inject(CUTS[name])
        if self.random.random() < 0.5 and name != "false 204":
            self.stage.proxies["pg"].inject(blackhole)
        self.stage.faults[name] += 1
        self.stage.pause(0.5, 2.5)  # some are longer than the pause that the writer makes after a failure
        for proxy in self.stage.proxies.values():
            proxy.inject(passed)

    def lie(self) -> None:
        """A proxy that says 204 by itself, to a writer that writes."""
        self.until_written()
        self.cut("false 204")

    def fill_disk(self) -> None:
        """The spool is needed and its disk is full; then there is room again."""
        self.stage.proxies["http"].inject(blackhole)
        self.stage.pause(1.2, 1.8)
        self.stage.faults["disk full"] += 1
        with self.stage.deliberate():
            self.stage.limit_files(0)
            self.stage.pause(0.5, 2.0)
            if self.random.random() < 0.5:
                self.stage.proxies["http"].inject(passed)  # the server is back first
                self.stage.pause(0.2, 0.6)
            self.stage.limit_files(UNLIMITED)
        self.stage.proxies["http"].inject(passed)

    def replace_table(self) -> None:
        """Somebody drops the table and makes it again while the writer stands still; its rows are copied first.

        What the server acknowledged into the dropped table on a connection from before is stored nowhere.
        """
        if len(self.stage.tables) > 1:
            return
        self.until_written()  # a writer that has just started has no connection from before
        with self.stage.connect() as connection, self.stage.deliberate():
            writer = self.stage.writer
            assert writer is not None
            writer.send_signal(signal.SIGSTOP)
            before = (-1, -1)
            while (now := self.positions(connection)) != before or now[0] != now[1]:
                before = now
                time.sleep(0.2)
            kept = f"{TABLE}_before"
            connection.execute(f"CREATE TABLE {kept} AS (SELECT * FROM {TABLE})")
            connection.execute(f"DROP TABLE {TABLE}")
            self.stage.make_tables()
            self.stage.tables.append(kept)
            self.stage.faults["table dropped and made again"] += 1
            writer.send_signal(signal.SIGCONT)
        self.until_written()  # or the next fault meets it before it has seen what happened

    def until_written(self) -> None:
        """Until the writer that runs now has written a few batches, for at most 10 s."""
        self.stage.wait_for_server()
        with self.stage.connect() as connection:
            begun = self.positions(connection)[1]
            deadline = time.monotonic() + 10.0
            while self.positions(connection)[1] < begun + 3 and time.monotonic() < deadline:
                self.stage.wait(0.05)

    def positions(self, connection: psycopg.Connection[Any]) -> tuple[int, int]:
        """The transaction that the table has applied, and the one that it has logged."""
        query = f"SELECT writerTxn, sequencerTxn FROM wal_tables() WHERE name = '{TABLE}'"
        return connection.execute(query).fetchone() or (0, 0)

    def decks(self) -> Iterator[Callable[[], None]]:
        """Faults without end: rare ones take turns with kills, then kills alone, each deck shuffled by the seed.

        In the first deck the rare ones come in the order given, most telling first: a short run on a slow machine
        meets few.
        """
        cuts = [functools.partial(self.cut, name) for name in CUTS if name != "false 204"]
        rare: list[Callable[[], None]] = [
            self.stop_producer, self.lie, self.kill_with_spool, cuts[1], self.fill_disk, self.replace_table, cuts[0],
            self.kill_all, self.stop_writer, cuts[2], self.stop_server, self.kill_server, cuts[3],
        ]  # fmt: skip
        kills = [self.kill_writer] * 14 + [self.kill_producer] * 8
        while True:
            self.random.shuffle(kills)
            for fault, kill in zip(rare, kills, strict=False):
                yield from (kill, fault)
            yield from kills[len(rare) :]
            self.random.shuffle(rare)

    def run(self, seconds: float, producers: int) -> None:
        self.stage.start_writer()
        for _ in range(producers):
            self.stage.start_producer()
        deadline = time.monotonic() + seconds
        self.stage.pause(2.0, 2.0)
        for fault in self.decks():
            if time.monotonic() > deadline:
                return
            fault()
            self.stage.pause(0.1, 1.1)
            self.stage.blame(getattr(fault, "__name__", " ".join(map(str, getattr(fault, "args", ())))))


def torture(seconds: float, seed: int, plant: str, producers: int, rate: float) -> dict[str, object]:
    """One run; the report that `--json` prints."""
    directory = Path(tempfile.mkdtemp(prefix="ringlog-torture-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        server = stack.enter_context(QuestDBServer(directory / "questdb"))
        stage = Stage(directory, server, seed, plant, rate)
        stage.make_tables()
        stack.callback(stage.close)
        Torture(stage).run(seconds, producers)
        verdict = stage.finish()
        refused, deliberate = stage.refusals(REFUSED), stage.refusals(REFUSED_DELIBERATE)
        report: dict[str, object] = {
            "seed": seed, "seconds": seconds, "plant": plant or None,
            "kills": dict(stage.kills), "faults": dict(stage.faults),
            "accepted": verdict.accepted,
            "refused": sum(refused.values()), "refused_by_reason": refused,
            "refused_after": dict(stage.refused_after),
            "refused_deliberate": sum(deliberate.values()), "refused_deliberate_by_reason": deliberate,
            "stored": verdict.stored, "lost": len(verdict.lost),
            "duplicated": len(verdict.doubled) + len(verdict.doubled_keys), "altered": len(verdict.altered),
            "invented": len(verdict.invented), "spool_cut_bytes": stage.spool_cut_bytes,
            "append_ns": {"max": stage.longest_ns()}, "is_clean": verdict.holds,
        }  # fmt: skip
        if not verdict.holds:
            report["first"] = str(verdict)
        if not verdict.holds and not plant:
            kept = Path(tempfile.mkdtemp(prefix="ringlog-torture-failed-"))
            shutil.copytree(directory, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns("attempts-*", "questdb"))
            report["kept"] = str(kept)
        return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=170.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--plant", choices=BUGS, default="", help="a known bug that must be caught: then exits 0 if it was"
    )
    parser.add_argument("--producers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=4_000.0, help="attempts/s of each producer")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    print(f"seed {given.seed}", file=sys.stderr, flush=True)
    report = torture(given.seconds, given.seed, given.plant, given.producers, given.rate)
    print(
        json.dumps(report, indent=2) if given.json else "\n".join(f"{name}: {value}" for name, value in report.items())
    )
    return 0 if report["is_clean"] != bool(given.plant) else 1


if __name__ == "__main__":
    sys.exit(main())
