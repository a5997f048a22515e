"""The processes of a torture: producers, a supervised writer, QuestDB, and proxies between the last two."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from oracle import Verdict
from tcp_proxy import TcpProxy

from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import remove_instance
from ringlog.questdb.migrations import migrate
from ringlog.records import PLATFORM_RECORDS, Trade, layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings
from torture.attempts import LONGEST_NS, REASONS, REFUSED, Attempts
from torture.planted import cut_unsynced
from torture.producer import DELIBERATE, STOP
from torture.rows import judge

TESTS = Path(__file__).parents[1]
TABLE = layout_of(Trade).table
SETTLE_SECONDS = 90.0
GRACE_SECONDS = 2.0  # after the end of a deliberate stop, for what it left in full lanes


class Stage:
    """One run's processes and logs, all below `directory`."""

    def __init__(self, directory: Path, server: QuestDBServer, seed: int, plant: str, rate: float) -> None:
        self.directory = directory
        self.server = server
        self.random = random.Random(seed)  # noqa: S311 (replayable, not secret)
        self.plant = plant
        self.rate = rate
        self.proxies = {name: TcpProxy(server.ports[name]) for name in ("http", "pg")}
        ports = {f"questdb_{name}_port": proxy.port for name, proxy in self.proxies.items()}
        self.settings = Settings(runtime_dir=str(directory / "run"), **{**server.settings(), **ports})
        self.kills: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.refused_after: Counter[str] = Counter()
        self.logs: dict[int, Path] = {}
        self.producers: dict[int, subprocess.Popen[bytes]] = {}
        self.writer: subprocess.Popen[bytes] | None = None
        self.keepers: list[subprocess.Popen[bytes]] = []
        self.tables = [TABLE]
        self.spool_cut_bytes = 0
        self.flags = np.memmap(directory / "flags", np.int64, "w+", shape=(8,))
        self._deliberate_until = 0.0
        self._starter = ThreadPoolExecutor(max_workers=1)
        self.start_server()

    def connect(self) -> psycopg.Connection[Any]:
        """To the server itself, past the proxies."""
        return psycopg.connect(
            host="127.0.0.1", port=self.server.ports["pg"], user=self.server.user, password=self.server.password,
            dbname="qdb", autocommit=True,
        )  # fmt: skip

    def make_tables(self) -> None:
        settings = Settings(**self.server.settings(), request_timeout_ms=60_000)
        migrate(settings, [layout_of(record) for record in PLATFORM_RECORDS])
        if self.plant == "dedup-off":
            with self.connect() as connection:
                connection.execute(f"ALTER TABLE {TABLE} DEDUP DISABLE")

    def start_writer(self) -> None:
        # Its log goes through a pipe, as under a supervisor: a limit on the writer's files must not silence it.
        with (self.directory / "writer.log").open("ab") as log:
            keeper = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log)
        self.keepers.append(keeper)
        self.writer = subprocess.Popen(
            [sys.executable, "-m", "torture.planted", str(self.directory / "fsyncs"), self.plant],
            env={**os.environ, **self.settings.to_environment(), "PYTHONPATH": str(TESTS)},
            stdout=keeper.stdin,
            stderr=keeper.stdin,
        )
        assert keeper.stdin is not None
        keeper.stdin.close()

    def start_producer(self) -> None:
        number = len(self.logs)
        self.logs[number] = self.directory / f"attempts-{number}"
        arguments = [self.settings.runtime_dir, str(self.logs[number]), str(self.directory / "flags"), str(number)]
        with (self.directory / "producers.log").open("ab") as log:
            self.producers[number] = subprocess.Popen(
                [sys.executable, "-m", "torture.producer", *arguments, str(self.rate), self.plant],
                env={**os.environ, "PYTHONPATH": str(TESTS)}, stdout=log, stderr=log,
            )  # fmt: skip

    def end_writer(self, *, power_cut: bool) -> None:
        """kill -9, with `power_cut` together with whatever its disk was not told to keep."""
        assert self.writer is not None
        self.writer.kill()
        self.writer.wait()
        self.kills["writer"] += 1
        if power_cut:
            self.spool_cut_bytes += cut_unsynced(self.directory / "fsyncs", self.settings.spool_path)
            self.faults["power cut of the spool's disk"] += 1
        self.start_writer()

    def end_server(self) -> None:
        self.wait_for_server()
        self.server.kill()
        self.kills["questdb"] += 1

    def start_server(self) -> None:
        """Returns at once: a slow machine needs many seconds for it, and other faults need not wait."""
        self._starting = self._starter.submit(self.server.start)

    def wait_for_server(self) -> None:
        """Until it answers again, while the writer has its supervisor. Raises what starting it raised."""
        while not self._starting.done():
            self.wait(0.05)
        self._starting.result()

    def limit_files(self, size_bytes: int) -> None:
        """From now on the kernel lets the writer's files grow to `size_bytes` only: see `planted.full_disk`."""
        assert self.writer is not None
        try:
            resource.prlimit(self.writer.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))
        except ProcessLookupError:
            return  # it ended: its successor has no limit

    def pause(self, shortest: float, longest: float) -> None:
        self.wait(self.random.uniform(shortest, longest))

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.supervise()
            time.sleep(0.02)

    @contextlib.contextmanager
    def deliberate(self) -> Iterator[None]:
        """Within the block and a little longer what is refused was to be expected: nobody could take records.

        For a writer that is stopped and for a full disk. Kills are none of these, nor is a server that cannot be
        reached: records must find room then.
        """
        self._deliberate_until = float("inf")
        self.flags[DELIBERATE] = 1
        try:
            yield
        finally:
            self._deliberate_until = time.monotonic() + GRACE_SECONDS

    def supervise(self) -> None:
        """Restarts what ended by itself, as a supervisor would."""
        if time.monotonic() > self._deliberate_until:
            self.flags[DELIBERATE] = 0
        if self.writer is not None and self.writer.poll() is not None:
            self.faults["writer ended by itself"] += 1
            self.start_writer()

    def finish(self) -> Verdict:
        """Ends the producers, lets the writer deliver everything, and asks the oracle."""
        self.flags[STOP] = 1
        for process in self.producers.values():
            process.wait(60)
        self.wait_for_server()
        logs = {number: Attempts(path, create=False) for number, path in self.logs.items() if path.exists()}
        with self.connect() as connection:
            deadline = time.monotonic() + SETTLE_SECONDS
            seen = -1
            while time.monotonic() < deadline:
                self.supervise()
                time.sleep(0.5)
                (count,) = connection.execute(f"SELECT count() FROM {TABLE}").fetchone() or (0,)
                if count == seen and not self.undelivered():
                    break
                seen = count
            return judge(connection, logs, self.tables)

    def undelivered(self) -> list[Path]:
        """What the writer has still to deliver: lanes, and files of the spool."""
        lanes = Path(self.settings.runtime_dir) / "lanes"
        return [*lanes.glob("*.json"), *self.settings.spool_path.glob("tables/*/*.spool")]

    def refusals(self, first: int) -> dict[str, int]:
        """How many attempts were refused, by reason; `first`: the first of their words in a log."""
        words = [Attempts(path, create=False).words for path in self.logs.values() if path.exists()]
        counts = {reason: sum(int(each[first + at]) for each in words) for at, reason in enumerate(REASONS)}
        return {reason: count for reason, count in counts.items() if count}

    def blame(self, fault: str) -> None:
        """Counts what was refused since the last call as refused after this fault."""
        rows = sum(self.refusals(REFUSED).values()) - self.refused_after.total()
        if rows:
            self.refused_after[fault] += rows

    def longest_ns(self) -> int:
        """The longest append of all."""
        return max(int(Attempts(path, create=False).words[LONGEST_NS]) for path in self.logs.values() if path.exists())

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
        for keeper in self.keepers:
            keeper.wait(20)  # each ends with its writer
        self._starter.shutdown(wait=True)
        for proxy in self.proxies.values():
            proxy.close()
        remove_instance(Instance(self.settings))
