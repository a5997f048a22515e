"""What the simulated instance stands on: a clock, threads that are stepped, a disk and a server, put in place.

The code under simulation is ringlog's: rings, lanes in shared memory, writer, delivery, spool, ledger, dead letters.
Only what makes a run differ from its repetition is replaced: clocks, random numbers, threads, the end of a process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from faulty_disk import FaultyDisk

from ringlog import producer
from ringlog.disk import Chunk
from ringlog.errors import SchemaMismatch, ServerRefused, ServerUnavailable
from ringlog.lanes import board, claims, readers
from ringlog.pressure import Pressure
from ringlog.ring import store
from ringlog.sinks import Batch, Receipt, Request
from ringlog.sinks.memory import MemorySink, Row
from ringlog.spool import Spool
from ringlog.writer import delivery, statistics
from ringlog.writer import writer as writer_module

SPOOL_FILE_BYTES_MAX = 20_480  # two frames a file, so that files come and go
RESERVE_BYTES = 65_536


class Clock:
    """Time that goes on only when the scheduler says so; stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return 1_700_000_000_000_000_000 + int(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def strftime(self, *_arguments: Any) -> str:
        return "then"

    def gmtime(self) -> None:
        return None


class SteppedFuture(Future):  # type: ignore[type-arg]
    """Whoever waits for it has its thread run."""

    thread: SteppedThread

    def result(self, timeout: float | None = None) -> Any:
        while not self.done():
            self.thread.step()
        return super().result(timeout)


class SteppedThread:
    """An executor of one thread: `step` runs the next task, another `step` lets its end be seen."""

    def __init__(self, **_options: Any) -> None:
        self.tasks: list[tuple[SteppedFuture, Callable[..., Any], tuple[Any, ...]]] = []
        self._ended: tuple[SteppedFuture, Any, BaseException | None] | None = None

    def submit(self, call: Callable[..., Any], *arguments: Any) -> SteppedFuture:
        future = SteppedFuture()
        future.thread = self
        self.tasks.append((future, call, arguments))
        return future

    def step(self) -> None:
        if self._ended is not None:
            future, result, error = self._ended
            self._ended = None
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)
        elif self.tasks:
            future, call, arguments = self.tasks.pop(0)
            try:
                self._ended = future, call(*arguments), None
            except Exception as error:  # noqa: BLE001 (as an executor does)
                self._ended = future, None, error

    def shutdown(self, wait: bool = True) -> None:
        while wait and (self.tasks or self._ended is not None):
            self.step()


class Disk(FaultyDisk):
    """A disk that a process's death leaves as it is, that fills up, and that closes what a dead process had open."""

    def __init__(self, *, skip_fsync: bool = False) -> None:
        super().__init__(fault=self._fail)
        self.room: int | None = None  # bytes left where the disk is full
        self.failing: set[int] = set()  # steps that fail with EIO
        self._skip_fsync = skip_fsync
        self._open: dict[int, int] = {}

    def _fail(self, step: int, call: str) -> None:
        if step in self.failing:
            raise OSError(errno.EIO, f"injected into {call}")

    def step(self, call: str) -> None:
        """A step that is not the disk's: before it, too, the process may die."""
        failing, self.failing = self.failing, set()
        try:
            self._or_crash(call)
        finally:
            self.failing = failing

    def open(self, name: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        descriptor = super().open(name, flags, mode, dir_fd=dir_fd)
        self._open[descriptor] = os.fstat(descriptor).st_ino
        return descriptor

    def write(self, descriptor: int, chunks: Sequence[Chunk], offset: int) -> int:
        if self.room is not None:
            size = sum(len(chunk) for chunk in chunks)
            if size > self.room:
                raise OSError(errno.ENOSPC, "full")
            self.room -= size
        return super().write(descriptor, chunks, offset)

    def truncate(self, descriptor: int, length: int) -> None:
        before = os.fstat(descriptor).st_size
        super().truncate(descriptor, length)
        if self.room is not None:
            self.room += max(before - length, 0)

    def allocate(self, descriptor: int, length: int) -> None:
        self._or_crash("allocate")
        if self.room is not None:
            raise OSError(errno.ENOSPC, "full")
        os.ftruncate(descriptor, length)

    def remember(self, descriptor: int) -> None:
        if not self._skip_fsync:
            super().remember(descriptor)

    def revive(self) -> None:
        """The process is dead: its descriptors go, and another may begin."""
        for descriptor, inode in self._open.items():
            with contextlib.suppress(OSError):
                if os.fstat(descriptor).st_ino == inode:
                    os.close(descriptor)
        self._open.clear()
        self._crashed = False
        self.crash_at = -1

    def cut_power(self, path: Path) -> None:
        """Leaves of `path` what was fsynced."""
        if not path.exists():
            return
        old, new = path.with_suffix(".old"), path.with_suffix(".new")
        self.lose_power(path, new)
        path.rename(old)
        new.rename(path)
        shutil.rmtree(old)
        self._entries.clear()
        self._contents.clear()
        self._files.clear()
        for root, _, files in os.walk(path):
            for name in [*(str(Path(root) / name) for name in files), root]:
                descriptor = os.open(name, os.O_RDONLY)
                FaultyDisk.remember(self, descriptor)
                os.close(descriptor)


class Server:
    """A sink with a server's bad habits. What is safe is only what `confirm` said is applied."""

    def __init__(self, rng: random.Random, refuses: Callable[[Row], bool]) -> None:
        self.rng = rng
        self.table = MemorySink()
        self.refuses = refuses
        self.is_up = True
        self.is_well = False  # once True, every request is applied at once
        self.drifted: set[str] = set()
        self._transaction = 0
        self._applied: set[int] = set()
        self._waiting: list[tuple[int, Request]] = []  # acknowledged and not applied
        self._late: list[Request] = []  # on their way, though their sender has given up

    def encode(self, batch: Batch) -> Request:
        return self.table.encode(batch)

    def release(self, request: Request) -> None:
        self.table.release(request)

    def close(self) -> None:
        """The server goes on."""

    def send(self, request: Request) -> Receipt:
        if not self.is_up:
            raise ServerUnavailable("down")
        table = request.layout.table
        if table in self.drifted:
            raise SchemaMismatch(f"{table}: drifted")
        for line, row in enumerate(request.body, start=1):
            if table != "performance_metrics" and self.refuses(row):
                error = ServerRefused(f"error in line {line}")
                error.line = line
                raise error
        kept = dataclasses.replace(request)
        chance = 1.0 if self.is_well else self.rng.random()
        if chance < 0.06:
            self._apply(kept)
            raise ServerUnavailable("the response was lost")
        if chance < 0.12:
            self._late.append(kept)
            raise ServerUnavailable("timeout")
        if chance < 0.18:
            raise ServerUnavailable("refused a connection")
        self._transaction += 1
        if chance < 0.4:
            self._waiting.append((self._transaction, kept))
        else:
            self._apply(kept, self._transaction)
        return Receipt(table, request.rows, 1, self._transaction)

    def confirm(self, receipts: Sequence[Receipt]) -> Sequence[bool]:
        if not self.is_up or (not self.is_well and self.rng.random() < 0.05):
            raise ServerUnavailable("down")
        return [receipt.transaction in self._applied for receipt in receipts]

    def _apply(self, request: Request, transaction: int = 0) -> None:
        self.table.send(request)
        self._applied.add(transaction)

    def late(self, request: Request) -> None:
        """A request whose sender died may have left before."""
        if request.body is not None and not any(self.refuses(row) for row in request.body):
            self._late.append(dataclasses.replace(request))

    def go_on(self) -> None:
        """Something that was under way happens."""
        if self.is_up and self._waiting:
            transaction, request = self._waiting.pop(0)
            self._apply(request, transaction)
        if self.is_up and self._late:
            self._apply(self._late.pop(self.rng.randrange(len(self._late))))

    def die(self) -> None:
        """What was acknowledged and not applied is gone."""
        self.is_up = False
        self._waiting.clear()

    def recover(self) -> None:
        self.is_up = self.is_well = True
        self.drifted.clear()
        while self._waiting or self._late:
            self.go_on()


class World:
    """What all processes of one simulated machine share."""

    def __init__(self, seed: int, refuses: Callable[[Row], bool], *, skip_fsync: bool = False) -> None:
        self.rng = random.Random(seed)  # noqa: S311 (a seed is a history)
        self.clock = Clock()
        self.disk = Disk(skip_fsync=skip_fsync)
        self.server = Server(self.rng, refuses)
        self.boot = 1
        self.step_threads: Callable[[], None] = lambda: None

    def boot_id(self) -> str:
        return f"boot-{self.boot}".ljust(36)

    def _store(self, memory: Any, offset: int, value: int) -> None:
        self.disk.step("store")
        store(memory, offset, value)

    def _unlink(self, name: str) -> None:
        self.disk.step("unlink segment")
        claims.unlink_segment(name)

    def _wait(self, _futures: Any, timeout: float, _until: Any) -> None:
        self.clock.now += timeout
        self.step_threads()

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts this world in the place of clocks, random numbers, threads and boots."""
        numbers = SimpleNamespace(randbits=self.rng.getrandbits)
        spool = functools.partial(
            Spool, file_bytes_max=SPOOL_FILE_BYTES_MAX, reserve_bytes=RESERVE_BYTES, system=self.disk
        )
        places: list[tuple[Any, dict[str, Any]]] = [
            (
                delivery,
                {"time": self.clock, "random": self.rng, "ThreadPoolExecutor": SteppedThread, "wait": self._wait},
            ),
            (
                readers,
                {"time": self.clock, "boot_id": self.boot_id, "store": self._store, "unlink_segment": self._unlink},
            ),
            (claims, {"boot_id": self.boot_id, "secrets": numbers}),
            (board, {"store": self._store}),
            (producer, {"time": self.clock}),
            (statistics, {"secrets": numbers, "percentile": lambda *_: 0.0}),  # numpy's takes longer than all else
            (
                writer_module,
                {
                    "time": self.clock,
                    "boot_id": self.boot_id,
                    "Spool": spool,
                    "new_pressure": lambda *_: Pressure([]),
                    "psutil": SimpleNamespace(
                        Process=lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=0))
                    ),
                },
            ),
        ]
        with contextlib.ExitStack() as stack:
            for module, names in places:
                stack.enter_context(mock.patch.multiple(module, **names))
            yield
