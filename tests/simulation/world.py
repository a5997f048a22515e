"""What the simulated machine stands on: a clock, threads that are stepped, disk and server, put in place of the real.

The code under simulation is ringlog's: rings, lanes in shared memory, writer, delivery, spool, ledger, dead letters.
Only what makes a run differ from its repetition is replaced: clocks, random numbers, threads, the end of a process.
Steps are counted by the disk, and shared memory and the server count theirs there too.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from ringlog import producer
from ringlog.lanes import board, claims, readers
from ringlog.layout import TAIL_OFFSET
from ringlog.pressure import Pressure
from ringlog.ring import load, store
from ringlog.sinks.memory import Row
from ringlog.spool import Spool
from ringlog.writer import delivery, statistics
from ringlog.writer import writer as writer_module
from simulation.disk import Disk
from simulation.oracle import Violation
from simulation.server import Server

SPOOL_FILE_BYTES_MAX = 20_480  # a few frames a file, so that files come and go
WAIT_STEP_SECONDS = 0.1
SILENT_SECONDS_MAX = 10.0


class Clock:
    """Time that goes on only when the scheduler says so; stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return int(self.now * 1e9)

    def time_ns(self) -> int:
        return 1_700_000_000_000_000_000 + int(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def strftime(self, *_arguments: Any) -> str:
        return "then"

    def gmtime(self) -> None:
        return None


class Task:
    """The future of a call that a thread would make; whoever waits for it has its thread run."""

    def __init__(self, thread: Thread, call: Callable[..., Any], arguments: tuple[Any, ...], now: float) -> None:
        self.call = call
        self.arguments = arguments
        self.since = now
        self._thread = thread
        self._is_done = False
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self.call(*self.arguments)
        except Exception as error:  # noqa: BLE001 (as a thread does; a Crash goes through)
            self._error = error

    def end(self) -> None:
        self._is_done = True

    def done(self) -> bool:
        return self._is_done

    def result(self, timeout: float | None = None) -> Any:
        while not self._is_done:
            self._thread.wait()
        if self._error is not None:
            raise self._error
        return self._result


class Thread:
    """An executor of one thread: `step` runs the next task, another lets its end be seen; a silent server stops it."""

    def __init__(self, clock: Clock, server: Server, **_options: Any) -> None:
        self._clock = clock
        self._server = server
        self.tasks: list[Task] = []
        self.ended: Task | None = None

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Task:
        task = Task(self, call, arguments, self._clock.now)
        self.tasks.append(task)
        return task

    def step(self) -> None:
        if self._clock.now < self._server.silent_until:
            return
        if self.ended is not None:
            task, self.ended = self.ended, None
            task.end()
        elif self.tasks:
            task = self.tasks.pop(0)
            task.run()
            self.ended = task

    def wait(self) -> None:
        """As `step`; whoever waits for an answer waits until there is one."""
        self._clock.now = max(self._clock.now, self._server.silent_until)
        self.step()

    @property
    def is_idle(self) -> bool:
        return not self.tasks and self.ended is None

    @property
    def silent_seconds(self) -> float:
        """How long the call under way has gone without an end that was seen."""
        first = self.ended or (self.tasks[0] if self.tasks else None)
        return min(self._clock.now - first.since, SILENT_SECONDS_MAX) if first is not None else 0.0

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            for task in self.tasks:
                task.end()
            self.tasks.clear()
        while wait and not self.is_idle:
            self.wait()


class KnownCuts:
    """Retention's cuts as a writer's thread would have asked for them: unknown to it until `known_at`."""

    def __init__(self, clock: Clock, executed: dict[str, int], known_at: float) -> None:
        self._clock = clock
        self._executed = executed
        self._known_at = known_at

    @property
    def by_table(self) -> dict[str, int] | None:
        return dict(self._executed) if self._clock.now >= self._known_at else None

    def close(self) -> None:
        """The cuts stay what they are."""


class World:
    """What all processes of one simulated machine share."""

    def __init__(self, seed: int, refuses: Callable[[Row], bool]) -> None:
        self.rng = random.Random(seed)  # noqa: S311 (replayable, not secret)
        self.clock = Clock()
        self.disk = Disk()
        self.server = Server(self.rng, refuses, self.disk.step)
        self.boot = 1
        self.step_threads: Callable[[], None] = lambda: None
        self._reserve_bytes = self.rng.choice((4_096, 65_536))

    def boot_id(self) -> str:
        return f"boot-{self.boot}".ljust(36)

    def _store(self, memory: Any, offset: int, value: int) -> None:
        self.disk.step("store")
        store(memory, offset, value)

    def _store_in_lane(self, memory: Any, offset: int, value: int) -> None:
        if offset == TAIL_OFFSET and value < load(memory, TAIL_OFFSET):
            raise Violation(f"a tail moved back: got {value}, wanted at least {load(memory, TAIL_OFFSET)}")
        self._store(memory, offset, value)

    def _unlink(self, name: str) -> None:
        self.disk.step("unlink segment")
        claims.unlink_segment(name)

    def _wait(self, futures: Sequence[Task], timeout: float, until: str = "ALL_COMPLETED") -> SimpleNamespace:
        """For the first of them a step of the threads, for all as many as that takes."""
        deadline = self.clock.now + timeout
        while until == "ALL_COMPLETED" and self.clock.now < deadline and not all(task.done() for task in futures):
            self.clock.now = min(deadline, self.clock.now + WAIT_STEP_SECONDS)
            self.step_threads()
        if until != "ALL_COMPLETED":
            self.clock.now = deadline
            self.step_threads()
        done = {task for task in futures if task.done()}
        return SimpleNamespace(done=done, not_done=set(futures) - done)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts this world in the place of clocks, random numbers, threads and boots."""
        numbers = SimpleNamespace(randbits=self.rng.getrandbits)
        sizes = {"file_bytes_max": SPOOL_FILE_BYTES_MAX, "reserve_bytes": self._reserve_bytes}
        process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=0), num_fds=lambda: 0)
        places: list[tuple[Any, dict[str, Any]]] = [
            (
                delivery,
                {
                    "time": self.clock,
                    "random": self.rng,
                    "ThreadPoolExecutor": functools.partial(Thread, self.clock, self.server),
                    "wait": self._wait,
                },
            ),
            (delivery.Delivery, {"silent_seconds": property(lambda delivery: delivery._sender.silent_seconds)}),
            (
                readers,
                {
                    "time": self.clock,
                    "boot_id": self.boot_id,
                    "store": self._store_in_lane,
                    "unlink_segment": self._unlink,
                },
            ),
            (claims, {"time": self.clock, "boot_id": self.boot_id, "secrets": numbers}),
            (board, {"store": self._store}),
            (producer, {"time": self.clock}),
            (statistics, {"secrets": numbers}),
            (statistics.Samples, {"percentile": lambda *_: 0.0}),  # numpy's takes longer than all else
            (
                writer_module,
                {
                    "time": self.clock,
                    "boot_id": self.boot_id,
                    "Spool": functools.partial(Spool, **sizes, system=self.disk),
                    "new_pressure": lambda *_: Pressure([]),
                    "psutil": SimpleNamespace(Process=lambda: process),
                },
            ),
        ]
        before = [(place, name, vars(place)[name]) for place, names in places for name in names]
        try:
            for place, names in places:
                for name, value in names.items():
                    setattr(place, name, value)
            yield
        finally:
            for place, name, value in before:
                setattr(place, name, value)
