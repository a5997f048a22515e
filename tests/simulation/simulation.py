"""One seed of the simulation, or many: `python -m simulation.simulation --first 0 --seeds 1000` (below tests/).

A seed fixes every choice: who appends when, which task of the writer runs next, what the server does with a request,
before which step of the writer it dies and whether its disk's power goes with it. In the end everything works again,
the writer delivers, and each accepted record must be stored once, as it was, and nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from faulty_disk import Crash

from ringlog import Producer, Settings
from ringlog.errors import RinglogError
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import remove_instance
from ringlog.records import Record, Symbol, layout_of
from ringlog.writer import Writer
from simulation.server import SimulatedServer
from simulation.world import World

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (files that live for milliseconds)
ROUNDS_TO_DELIVER = 400
CRASH_WITHIN_STEPS = (3, 12, 60)
RECOVERY_CRASHES = 0.3  # so often the next writer dies early too


class Fill(Record):
    """A narrow record, so that a lane of 64 of them wraps often."""

    __table__ = "fills"

    venue: Annotated[str, Symbol(8)]
    number: int


@dataclasses.dataclass
class Outcome:
    """What a seed ended with; the lists must be empty."""

    seed: int
    accepted: int
    crashes: int
    lost: list[int]
    doubled: list[tuple[int, int]]
    altered: list[tuple[int, int]]
    undelivered: int

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.altered or self.undelivered)


class Simulation:
    """The actors of one seed."""

    def __init__(self, world: World, directory: Path, plant: Callable[[Simulation], None] | None = None) -> None:
        self.world = world
        self.random = world.random
        self.directory = directory
        self.server = SimulatedServer(world)
        self.spools = 0
        self.settings = self._settings()
        self.writer: Writer | None = None
        self.crashes = 0
        self.accepted: dict[int, tuple[int, int]] = {}  # a record's number -> its lane and seq
        self.attempted = 0
        self._loses_power = False
        self._failing = 0
        world.disk.fault = self._fault
        self.producers = [self._producer() for _ in range(self.random.randint(1, 3))]
        if plant is not None:
            plant(self)

    def _settings(self) -> Settings:
        spool = self.directory / f"spool-{self.spools}"
        return Settings(
            runtime_dir=str(self.directory / "run"), spool_dir=str(spool), batch_rows_max=48, lane_linger_ms=300,
            confirm_timeout_ms=1000, spool_bytes_max=256 * 1024,
        )  # fmt: skip

    def _producer(self) -> Producer:
        return Producer([Fill], settings=self.settings, lane_bytes={Fill: 64 * layout_of(Fill).slot_bytes}).open()

    def _fault(self, _step: int, call: str) -> None:
        if self._failing and call in ("write", "fsync", "create", "allocate", "rename"):
            raise OSError(self._failing, f"injected into {call}")

    # What may happen

    def append(self) -> None:
        appender = self.random.choice(self.producers).appender(Fill)
        for _ in range(self.random.randint(1, 40)):
            number, self.attempted = self.attempted, self.attempted + 1
            if appender.append(f"v{number % 7}", number, timestamp=1_700_000_000_000_000 + number):
                assert appender.lane is not None
                self.accepted[number] = (appender.lane, appender.accepted - 1)

    def kill_producer(self) -> None:
        """Its lock goes, and nothing else of it is tidied up."""
        index = self.random.randrange(len(self.producers))
        appender = self.producers[index].appender(Fill)
        if appender._lane is not None:
            appender._ring.detach()
            appender._lane.forget()
            appender._lane = None
        self.producers[index] = self._producer()

    def tick(self) -> None:
        self._as_writer(lambda writer: (writer._tick(), writer._guard()))

    def collect(self) -> None:
        self._as_writer(lambda writer: writer._delivery.collect())

    def run_task(self) -> None:
        self._as_writer(lambda _writer: self.world.run_task())

    def pass_time(self) -> None:
        self.world.clock.now += self.random.choice((0.01, 0.05, 0.2, 0.7, 1.5))

    def kill_writer(self) -> None:
        """Now, or before one of its next steps."""
        self._loses_power = self.random.random() < 0.4
        self._set_crash()

    def _set_crash(self) -> None:
        self.world.disk.crash_at = self.world.disk.steps + self.random.randrange(self.random.choice(CRASH_WITHIN_STEPS))

    def stop_server(self) -> None:
        self.server.available = False

    def start_server(self) -> None:
        self.server.available = True

    def apply_late(self) -> None:
        self.server.apply_late()

    def fail_disk(self) -> None:
        self._failing = self.random.choice((errno.ENOSPC, errno.EIO))

    def mend_disk(self) -> None:
        self._failing = 0

    # The writer's life

    def _as_writer(self, act: Callable[[Writer], object]) -> None:
        try:
            if self.writer is None:
                self.writer = Writer(self.settings, self.server)
            act(self.writer)
        except Crash:
            self._bury()
        except (RinglogError, OSError):
            if not self._failing:
                raise
            self._bury()  # a disk that fails may end it: its supervisor starts another

    def _bury(self) -> None:
        """Once the process is gone: its locks are free, shared memory stays, a request under way may still arrive."""
        self.crashes += 1
        under_way = [task for thread, task in self.world.tasks if thread.name == "ringlog-send"]
        self.world.tasks.clear()
        if self.writer is not None:
            self.writer._directory.close()
            self.writer = None
        for lease in self.world.leases:
            lease.release()
        self.world.leases.clear()
        self.world.disk.bury()
        for task in under_way[: self.random.choice((0, 0, 1))]:
            self.server.arrive(task.call)
        if self._loses_power:
            self._lose_power()
        if self.random.random() < RECOVERY_CRASHES:
            self._set_crash()

    def _lose_power(self) -> None:
        before = self.settings.spool_path
        self.spools += 1
        self.settings = self._settings()
        if before.exists():
            self.world.disk.lose_power(before, self.settings.spool_path)
            shutil.rmtree(before)
            self.world.disk.adopt(self.settings.spool_path)

    # The run

    def run(self) -> None:
        weights = {
            self.append: 30, self.tick: 20, self.collect: 20, self.run_task: 30, self.pass_time: 15,
            self.kill_writer: 5, self.kill_producer: 1, self.stop_server: 2, self.start_server: 5,
            self.apply_late: 3, self.fail_disk: 1, self.mend_disk: 3,
        }  # fmt: skip
        for act in self.random.choices(list(weights), list(weights.values()), k=self.random.randint(40, 120)):
            act()

    def deliver(self) -> None:
        """Everything works from now on; producers leave, the writer delivers."""
        self.mend_disk()
        self.start_server()
        self.server.is_honest = True
        self.server.apply_late()
        self.world.disk.crash_at = -1
        for producer in self.producers:
            producer.close()
        for _ in range(ROUNDS_TO_DELIVER):
            self.tick()
            while self.world.tasks:
                self.run_task()
            self.collect()
            self.world.clock.now += 0.3
            if self.undelivered == 0 and self.writer is not None and self.writer._delivery.is_idle:
                return

    @property
    def undelivered(self) -> int:
        lanes = len(list((self.directory / "run" / "lanes").glob("*.json")))
        return lanes + len(list(self.settings.spool_path.glob("tables/*/*.spool")))

    def outcome(self, seed: int) -> Outcome:
        stored: dict[tuple[int, int], int] = {}
        doubled, altered = [], []
        for row in self.server.rows(Fill):
            key, number = (row["lane"], row["seq"]), row["number"]
            if key in stored:
                doubled.append(key)
            stored[key] = number
            as_it_was = row["venue"] == f"v{number % 7}" and row["timestamp"] == 1_700_000_000_000_000 + number
            if self.accepted.get(number) != key or not as_it_was:
                altered.append(key)
        lost = [number for number, key in self.accepted.items() if stored.get(key) != number]
        return Outcome(seed, len(self.accepted), self.crashes, lost, doubled, altered, self.undelivered)

    def close(self) -> None:
        self.world.disk.crash_at = -1
        for producer in self.producers:
            producer.close()
            if producer.board is not None:
                producer.board.segment.close()
        self._loses_power = False
        self._bury()
        remove_instance(Instance(self.settings))


def simulated(seed: int, plant: Callable[[Simulation], None] | None = None) -> Outcome:
    """One seed; `plant` may break something first. Logs of the writer's troubles are of no interest here."""
    root = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    directory = Path(tempfile.mkdtemp(prefix="ringlog-simulation-", dir=root))
    world = World(seed)
    try:
        with world.installed():
            simulation = Simulation(world, directory, plant)
            try:
                simulation.run()
                simulation.deliver()
                return simulation.outcome(seed)
            finally:
                simulation.close()
    finally:
        shutil.rmtree(directory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed; with --seeds 1 that one is replayed")
    parser.add_argument("--seeds", type=int, default=1000)
    given = parser.parse_args()
    logging.getLogger("ringlog").setLevel(logging.DEBUG if given.seeds == 1 else logging.CRITICAL + 1)
    if given.seeds == 1:
        logging.basicConfig(level=logging.DEBUG)
    warnings.simplefilter("error")
    accepted = crashes = 0
    for seed in range(given.first, given.first + given.seeds):
        try:
            outcome = simulated(seed)
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise
        accepted, crashes = accepted + outcome.accepted, crashes + outcome.crashes
        if not outcome.is_clean:
            print(msgspec.json.encode(outcome).decode())
            return 1
    print(f"seeds={given.seeds} accepted={accepted} crashes={crashes} violations=0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
