"""What the simulation puts in the place of threads, the clock and the disk; everything else of ringlog is the real one.

Steps are counted by the disk, and shared memory and the server count theirs there too: the writer dies before the step
at which a crash is set. Nothing here runs by itself: the scheduler picks each task that a writer's threads would run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

from faulty_disk import FaultyDisk

from ringlog.lanes import board, claims, readers
from ringlog.pressure import Pressure
from ringlog.spool import Spool
from ringlog.writer import delivery, writer

FILE_BYTES_MAX = 20_480  # a few frames a file, so that files come and go
RESERVE_BYTES = 4096


class Clock:
    """Stands in for the module `time`: moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int((1_700_000_000 + self.now) * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    strftime = staticmethod(time.strftime)
    gmtime = staticmethod(time.gmtime)


class SimulatedDisk(FaultyDisk):
    """A faulty disk that reserves nothing, counts other steps too, and knows what a dead writer left open."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: dict[int, tuple[int, int]] = {}

    def step(self, call: str) -> None:
        """A step outside the disk: a store into shared memory, a word with the server."""
        self._or_crash(call)

    def open(self, name: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        descriptor = super().open(name, flags, mode, dir_fd=dir_fd)
        status = os.fstat(descriptor)
        self.opened[descriptor] = (status.st_dev, status.st_ino)
        return descriptor

    def allocate(self, descriptor: int, length: int) -> None:
        self.truncate(descriptor, length)

    def bury(self) -> None:
        """Closes what the dead writer had open; the next writer's steps count on."""
        for descriptor, inode in self.opened.items():
            with contextlib.suppress(OSError):
                status = os.fstat(descriptor)
                if (status.st_dev, status.st_ino) == inode:
                    os.close(descriptor)
        self.opened.clear()
        self._crashed = False
        self.crash_at = -1

    def adopt(self, path: Path) -> None:
        """Takes what lies below `path` for durable: what a disk holds when the power comes back."""
        for entry in [path, *path.rglob("*")]:
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                self.remember(descriptor)
            finally:
                os.close(descriptor)


class World:
    """One seed's world: its random choices, clock, disk, and the tasks that wait to be run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 (replayable, not secret)
        self.clock = Clock()
        self.disk = SimulatedDisk()
        self.tasks: list[tuple[Executor, Task]] = []
        self.leases: list[readers.Lease] = []

    def run_task(self) -> bool:
        """Runs the next task of one of the threads, any of them; False where none waits."""
        threads = list(dict.fromkeys(thread for thread, _ in self.tasks))
        if not threads:
            return False
        thread = self.random.choice(threads)
        self.run_until(next(task for other, task in self.tasks if other is thread))
        return True

    def run_until(self, wanted: Task) -> None:
        """Runs a task, after those that its thread has to do before it."""
        thread = next(thread for thread, task in self.tasks if task is wanted)
        while not wanted.done():
            first = next(entry for entry in self.tasks if entry[0] is thread)
            self.tasks.remove(first)
            first[1].run()

    def wait(self, _pending: Any, timeout_seconds: float, _when: Any) -> None:
        """In the place of concurrent.futures.wait: something else happens meanwhile, and time passes."""
        self.run_task()
        self.clock.now += timeout_seconds

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """ringlog's writer in this world rather than in ours."""
        with contextlib.ExitStack() as stack:

            def put(module: Any, name: str, value: Any) -> None:
                stack.enter_context(mock.patch.object(module, name, value))

            for module in (writer, delivery, readers, claims):
                put(module, "time", self.clock)
            put(delivery, "random", self.random)
            put(delivery, "ThreadPoolExecutor", functools.partial(Executor, self))
            put(delivery, "wait", self.wait)
            options = {"file_bytes_max": FILE_BYTES_MAX, "reserve_bytes": RESERVE_BYTES}
            put(writer, "Spool", lambda path, **given: Spool(path, **options, **given, system=self.disk))
            put(writer, "new_pressure", lambda *_: Pressure([]))
            put(writer, "Lease", self._lease)
            put(claims.secrets, "randbits", self.random.getrandbits)
            put(readers, "store", self._store(readers.store))
            put(board.Board, "take_over", self._stepped("epoch", board.Board.take_over))
            yield

    def _lease(self, instance: Any) -> readers.Lease:
        self.leases.append(readers.Lease(instance))
        return self.leases[-1]

    def _store(self, store: Callable[..., None]) -> Callable[..., None]:
        def counted(memory: Any, offset: int, value: int) -> None:
            self.disk.step("store")
            store(memory, offset, value)

        return counted

    def _stepped(self, call: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.disk.step(call)
            return method(*arguments)

        return counted


class Task(Future[Any]):
    """Work that a thread would do; asked for its result too early, it is done then."""

    def __init__(self, world: World, call: Callable[[], Any]) -> None:
        super().__init__()
        self._world = world
        self.call = call

    def run(self) -> None:
        try:
            result = self.call()
        except Exception as error:  # noqa: BLE001 (a future holds whatever it was; a Crash goes through)
            self.set_exception(error)
        else:
            self.set_result(result)

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            self._world.run_until(self)
        return super().result(timeout)


class Executor:
    """A thread of the writer: its tasks in order, each when the scheduler says so."""

    def __init__(self, world: World, *, max_workers: int, thread_name_prefix: str) -> None:
        assert max_workers == 1
        self.name = thread_name_prefix
        self._world = world

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Task:
        task = Task(self._world, lambda: call(*arguments))
        self._world.tasks.append((self, task))
        return task

    def shutdown(self, wait: bool) -> None:
        """Nothing to join: what was not done is never done."""
