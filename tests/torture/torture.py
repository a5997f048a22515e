"""The torture: `./scripts/torture --seconds N --seed S [--plant BUG] --json`.

Random faults, drawn from the seed: kill -9 of producers, the writer (half of the time with a power cut of the spool's
disk), QuestDB, all three; stops of each; a proxy before QuestDB that cuts requests and answers, takes everything and
says nothing, is slow, or says 204 by itself; a full disk while QuestDB is away. At the end the oracle judges.

A disk is full for the writer alone: its writes to the spool's disk fail with ENOSPC at the system call's place.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
from tcp_proxy import Connection, Fault, TcpProxy, blackhole, lost_reply, passed, reset_in_the_middle, slow

from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import remove_instance
from ringlog.questdb.migrations import migrate
from ringlog.records import PLATFORM_RECORDS, Trade, layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Secret, Settings
from torture.attempts import LONGEST_NS, REFUSED, REFUSED_DELIBERATE, Attempts
from torture.oracle import Judgement, judge
from torture.planted import BUGS, cut_unsynced
from torture.producer import DELIBERATE, DISK_FULL, STOP

TESTS = Path(__file__).parents[1]
SETTLE_SECONDS = 90.0


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
GRACE_SECONDS = 2.0  # after a deliberate stop, until refusals count as not deliberate again


class Torture:
    """One run: its processes, its faults and its logs, all below `directory`."""

    def __init__(self, directory: Path, server: QuestDBServer, seed: int, plant: str, rate: float) -> None:
        self.directory = directory
        self.server = server
        self.random = random.Random(seed)  # noqa: S311 (replayable, not secret)
        self.plant = plant
        self.rate = rate
        self.proxy = TcpProxy(server.ports["http"])
        addresses = {**server.settings(), "questdb_http_port": self.proxy.port}
        self.settings = Settings(runtime_dir=str(directory / "run"), **addresses)
        self.kills: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.logs: dict[int, Path] = {}
        self.producers: dict[int, subprocess.Popen[bytes]] = {}
        self.writer: subprocess.Popen[bytes] | None = None
        self.spool_cut_bytes = 0
        self.flags = np.memmap(directory / "flags", np.int64, "w+", shape=(8,))
        self._deliberate_until = 0.0

    def start_writer(self) -> None:
        values = {name: getattr(self.settings, name) for name in self.settings.__struct_fields__}
        environment = {
            f"RINGLOG_{name.upper()}": value.reveal() if isinstance(value, Secret) else str(value)
            for name, value in values.items()
            if value not in ("", Secret())
        }
        with (self.directory / "writer.log").open("ab") as log:
            self.writer = subprocess.Popen(
                [sys.executable, "-m", "torture.planted", *map(str, self._planted()), self.plant],
                env={**os.environ, **environment, "PYTHONPATH": str(TESTS)}, stdout=log, stderr=log,
            )  # fmt: skip

    def _planted(self) -> tuple[Path, Path]:
        return self.directory / "fsyncs", self.directory / "flags"

    def start_producer(self) -> None:
        number = len(self.logs)
        self.logs[number] = self.directory / f"attempts-{number}"
        arguments = [self.settings.runtime_dir, str(self.logs[number]), str(self.directory / "flags"), str(number)]
        with (self.directory / "producers.log").open("ab") as log:
            self.producers[number] = subprocess.Popen(
                [sys.executable, "-m", "torture.producer", *arguments, str(self.rate), self.plant],
                env={**os.environ, "PYTHONPATH": str(TESTS)}, stdout=log, stderr=log,
            )  # fmt: skip

    def kill_writer(self) -> None:
        assert self.writer is not None
        self.writer.kill()
        self.writer.wait()
        self.kills["writer"] += 1
        if self.random.random() < 0.5:
            self.spool_cut_bytes += cut_unsynced(self.directory / "fsyncs", self.settings.spool_path)
            self.faults["spool power cut"] += 1
        self.start_writer()

    def kill_producer(self) -> None:
        number = self.random.choice(sorted(self.producers))
        process = self.producers.pop(number)
        process.kill()
        process.wait()
        self.kills["producer"] += 1
        self.start_producer()

    def kill_server(self) -> None:
        self.server.kill()
        self.kills["questdb"] += 1
        self.pause(0.0, 1.0)
        self.server.start()

    def kill_all(self) -> None:
        self.deliberate(10.0)
        self.kill_producer()
        self.server.kill()
        self.kills["questdb"] += 1
        self.kill_writer()
        self.server.start()

    def stop_writer(self) -> None:
        assert self.writer is not None
        self.deliberate(4.0)
        self.writer.send_signal(signal.SIGSTOP)
        self.faults["writer stopped"] += 1
        self.pause(0.5, 4.0)
        self.writer.send_signal(signal.SIGCONT)

    def stop_server(self) -> None:
        self.server.stop_signal()
        self.faults["questdb stopped"] += 1
        self.pause(0.5, 3.0)
        self.server.continue_signal()

    def stop_producer(self) -> None:
        """Longer than the linger after which the lane of a dead producer would be taken away."""
        process = self.producers[self.random.choice(sorted(self.producers))]
        process.send_signal(signal.SIGSTOP)
        self.faults["producer stopped"] += 1
        self.pause(1.2, 2.5)
        process.send_signal(signal.SIGCONT)

    def cut(self, name: str) -> None:
        self.proxy.inject(CUTS[name])
        self.faults[name] += 1
        self.pause(0.5, 2.5)  # some are longer than the pause that the writer makes after a failure
        self.proxy.inject(passed)

    def fill_disk(self) -> None:
        self.deliberate(4.0)
        self.flags[DISK_FULL] = 1
        self.proxy.inject(blackhole)
        self.faults["disk full"] += 1
        self.pause(1.0, 4.0)
        self.flags[DISK_FULL] = 0
        self.proxy.inject(passed)

    def pause(self, shortest: float, longest: float) -> None:
        deadline = time.monotonic() + self.random.uniform(shortest, longest)
        while time.monotonic() < deadline:
            self.supervise()
            time.sleep(0.02)

    def deliberate(self, seconds: float) -> None:
        self._deliberate_until = max(self._deliberate_until, time.monotonic() + seconds + GRACE_SECONDS)
        self.flags[DELIBERATE] = 1

    def supervise(self) -> None:
        """Restarts what ended by itself, as a supervisor would."""
        if time.monotonic() > self._deliberate_until:
            self.flags[DELIBERATE] = 0
        if self.writer is not None and self.writer.poll() is not None:
            self.faults["writer ended by itself"] += 1
            self.start_writer()

    def run(self, seconds: float, producers: int) -> None:
        faults: list[Callable[[], None]] = [
            *[self.kill_writer] * 10, *[self.kill_producer] * 6, *[self.kill_server] * 2, self.kill_all,
            self.stop_writer, self.stop_server, *[self.stop_producer] * 2, self.fill_disk,
            *(functools.partial(self.cut, name) for name in CUTS for _ in range(2)),
        ]  # fmt: skip
        dealt: list[Callable[[], None]] = []
        self.start_writer()
        for _ in range(producers):
            self.start_producer()
        deadline = time.monotonic() + seconds
        self.pause(2.0, 2.0)
        while time.monotonic() < deadline:
            if not dealt:  # as from a deck of cards: each comes up in every half minute or so
                dealt = self.random.sample(faults, len(faults))
            dealt.pop()()
            self.pause(0.1, 1.6)

    def finish(self) -> Judgement:
        """Ends the producers, lets the writer deliver everything, and judges."""
        self.flags[STOP] = 1
        for process in self.producers.values():
            process.wait(60)
        logs = {number: Attempts(path, create=False) for number, path in self.logs.items() if path.exists()}
        with psycopg.connect(
            host="127.0.0.1", port=self.server.ports["pg"], user=self.server.user, password=self.server.password,
            dbname="qdb", autocommit=True,
        ) as connection:  # fmt: skip
            deadline = time.monotonic() + SETTLE_SECONDS
            wanted, seen = sum(len(log.entries) for log in logs.values()), -1
            lanes = Path(self.settings.runtime_dir) / "lanes"
            while time.monotonic() < deadline:
                self.supervise()
                time.sleep(0.5)
                (count,) = connection.execute("SELECT count() FROM trades").fetchone() or (0,)
                if count >= wanted and count == seen and not any(lanes.glob("*.json")):
                    break
                seen = count
            return judge(connection, logs)

    def refusals(self) -> tuple[int, int, int]:
        """Refused while faults were deliberate, refused otherwise, and the longest append in nanoseconds."""
        words = [Attempts(path, create=False).words for path in self.logs.values() if path.exists()]
        deliberate = sum(int(each[REFUSED_DELIBERATE]) for each in words)
        return deliberate, sum(int(each[REFUSED]) for each in words), max(int(each[LONGEST_NS]) for each in words)

    def close(self) -> None:
        self.flags[STOP] = 1
        for process in [*self.producers.values(), *([self.writer] if self.writer else [])]:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.proxy.close()
        remove_instance(Instance(self.settings))


def torture(seconds: float, seed: int, plant: str, producers: int, rate: float) -> dict[str, object]:
    """One run; the report that `--json` prints."""
    directory = Path(tempfile.mkdtemp(prefix="ringlog-torture-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        server = stack.enter_context(QuestDBServer(directory / "questdb"))
        run = Torture(directory, server, seed, plant, rate)
        migrate(run.settings, [layout_of(record) for record in PLATFORM_RECORDS])
        if plant == "dedup-off":
            with psycopg.connect(
                host="127.0.0.1", port=server.ports["pg"], user=server.user, password=server.password, dbname="qdb",
                autocommit=True,
            ) as connection:  # fmt: skip
                connection.execute(f"ALTER TABLE {layout_of(Trade).table} DEDUP DISABLE")
        stack.callback(run.close)
        run.run(seconds, producers)
        judgement = run.finish()
        deliberate, refused, longest_ns = run.refusals()
        report: dict[str, object] = {
            "seed": seed, "seconds": seconds, "plant": plant or None,
            "kills": dict(run.kills), "faults": dict(run.faults),
            **dataclasses.asdict(judgement), "refused": refused, "refused_deliberate": deliberate,
            "spool_cut_bytes": run.spool_cut_bytes, "append_ns": {"max": longest_ns}, "is_clean": judgement.is_clean,
        }  # fmt: skip
        if not judgement.is_clean and not plant:
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
