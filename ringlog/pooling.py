"""psycopg's pools, made to end with their process and their event loop, and to begin anew in a forked process.

A pool of psycopg_pool has workers: threads, or tasks of the event loop that it was opened in. They do not come along
when a process forks or another event loop begins, and a worker that is connecting waits for the server, not for the
program to end. Here a pool that was open is opened again where it is asked for a connection in a forked process or in
another event loop, and no worker keeps a program from ending, with or without `close()`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import re
import threading
import time
import weakref
from typing import Any

import psycopg_pool

from ringlog.errors import one_line

logger = logging.getLogger(__name__)

# How long closing waits for each of a pool's workers (a few). One that is connecting to a server that hangs ends by
# itself, and keeps nothing waiting: it is a daemon thread, or a task of a loop.
CLOSE_TIMEOUT_S = 0.05
# For all workers of a loop that does not run: it is run for as long as they take to be cancelled.
END_TIMEOUT_S = 1.0
NAME_PREFIX = "ringlog-"
NOTICE_INTERVAL_S = 10.0

_OWN_NAME = re.compile(rf"(?<![\w-]){NAME_PREFIX}\w+")


# By the class of their connections: a pool forgets a connection before it says that it is broken.
_names: dict[type, str] = {}


class _Notice(logging.Filter):
    """Replaces what psycopg_pool logs about our pools: a line of ours instead, at most one every NOTICE_INTERVAL_S.

    After a restart of the server it would be a line or two for each connection. Nothing is said of workers that were
    left to end by themselves, or cancelled with their loop. Lines about other pools of the process pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said_at: dict[str, float] = {}  # by pool, monotonic seconds

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        name = _pool_name(record.threadName or "", arguments)
        if name is None:
            return True
        is_cancelled = any(isinstance(argument, asyncio.CancelledError) for argument in arguments)
        if record.levelno >= logging.WARNING and not is_cancelled and "couldn't stop" not in str(record.msg):
            self._say(name, record.getMessage())
        return False

    def _say(self, name: str, message: str) -> None:
        now = time.monotonic()
        if now - self._said_at.get(name, -NOTICE_INTERVAL_S) >= NOTICE_INTERVAL_S:
            self._said_at[name] = now
            logger.warning("pool=%s trouble=%r", name, one_line(message))


def _pool_name(thread: str, arguments: tuple[object, ...]) -> str | None:
    """The pool of ours that a line is about: by its arguments, or because one of its workers logs it."""
    names = [_names[type(each)] for each in arguments if type(each) in _names]
    texts = [str(each) for each in arguments if not isinstance(each, BaseException)]
    with contextlib.suppress(RuntimeError):  # no event loop runs here
        task = asyncio.current_task()
        texts.append(task.get_name() if task else "")
    found = (_OWN_NAME.search(text) for text in (*names, *texts, thread))
    return next((match[0] for match in found if match), None)


# What these say is in our errors too: it must not reach the terminal of a program that configured no logging.
for _name in ("psycopg", "stamina"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
_notice = _Notice()
logging.getLogger("psycopg.pool").addFilter(_notice)


def closed_reason(error: psycopg_pool.PoolClosed) -> str:
    """What a pool that is not open says, and what to do about it."""
    text = str(error)
    return text if "wanted" in text else f"{text}, wanted it used inside `with`, or after `open()`"


class Pool(psycopg_pool.ConnectionPool[Any]):
    """A ConnectionPool that forked processes may use as well; `name` begins with NAME_PREFIX."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._reopens = False
        _names[options["connection_class"]] = options["name"]
        super().__init__(**options)
        _pools.add(self)

    def getconn(self, timeout: float | None = None) -> Any:
        if self._reopens:
            self.open()
            self._reopens = False
        return super().getconn(timeout)

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        self._reopens = False
        super().close(timeout)

    def begin_anew(self) -> None:
        """In a forked process: forgets connections, workers and locks, all of which are the parent's."""
        self._reopens = self._reopens or not self.closed
        super().__init__(**self._options)

    def __del__(self) -> None:
        # psycopg_pool's waits for 5 s for each worker, in whatever thread collects garbage.
        if not getattr(self, "_closed", True):
            self.close(0)


class AsyncPool(psycopg_pool.AsyncConnectionPool[Any]):
    """An AsyncConnectionPool of one event loop at a time; `name` begins with NAME_PREFIX.

    It closes when its loop cancels its tasks, as `asyncio.run` does at its end, and is opened again in the next loop
    that asks for a connection. While its loop runs no other loop may use it: PoolClosed says so.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._loop: asyncio.AbstractEventLoop | None = None  # that it was opened in
        self._guard: asyncio.Task[None] | None = None
        self._reopens = False
        _names[options["connection_class"]] = options["name"]
        super().__init__(**options)
        _pools.add(self)

    async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            self._leave_loop(self._loop)
        self._loop, self._reopens = loop, False
        with contextlib.suppress(TypeError):  # a loop of another library need not be one that can be referred to
            _loops.add(loop)
        await super().open(wait, timeout)
        if self._guard is None:
            self._guard = asyncio.create_task(_close_with_loop(weakref.ref(self)), name=f"{self.name}-guard")
            # Of a loop that is never run again, nor closed, asyncio would complain when the program ends.
            for task in self._tasks_of_loop():
                with contextlib.suppress(AttributeError):
                    task._log_destroy_pending = False  # type: ignore[attr-defined]

    async def getconn(self, timeout: float | None = None) -> Any:
        if self._loop is not asyncio.get_running_loop() and (self._loop is not None or self._reopens):
            await self.open()
        return await super().getconn(timeout)

    async def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        guard, self._guard = self._guard, None
        loop, self._loop, self._reopens = self._loop, None, False
        if loop is asyncio.get_running_loop():
            if guard is not None:
                guard.cancel()
            await super().close(timeout)
        elif loop is not None:
            self._abandon(loop)
            self._closed = True

    async def end_with_loop(self) -> None:
        """Closes the pool, whose workers are being cancelled. Its loop stays known: only another one opens it again."""
        idle = list(self._pool)
        with contextlib.suppress(asyncio.CancelledError):  # the workers', whom psycopg_pool waits for
            await super().close(CLOSE_TIMEOUT_S)
        for connection in idle:
            await connection.close()

    def _leave_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop.is_running():
            raise psycopg_pool.PoolClosed(
                "it is open in another event loop, which is running: wanted one object for each loop"
            )
        self._abandon(loop)
        self.begin_anew()

    def _abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends what is left in a loop that does not run: collected as garbage, its tasks would complain on stderr."""
        # In a thread, since another loop may run in this one.
        ending = threading.Thread(target=_end_tasks, args=(loop, self._tasks_of_loop()))
        ending.start()
        ending.join()
        for connection in self._pool:
            connection.pgconn.finish()

    def _tasks_of_loop(self) -> list[asyncio.Task[Any]]:
        found = (self._guard, self._sched_runner, *self._workers)
        return [task for task in found if task is not None]

    def begin_anew(self) -> None:
        """Forgets connections, workers and loop, which are another process's or of a loop that ended."""
        reopens = self._reopens or self._loop is not None
        with contextlib.suppress(AttributeError):
            del self._lock  # psycopg_pool makes it in the loop, where there is none
        super().__init__(**self._options)
        self._loop, self._guard, self._reopens = None, None, reopens


async def _close_with_loop(pool_ref: weakref.ref[AsyncPool]) -> None:
    """Waits until the loop cancels its tasks, and then closes the pool."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        pool = pool_ref()
        if pool is not None and pool._guard is asyncio.current_task():
            await pool.end_with_loop()


_pools: weakref.WeakSet[Pool | AsyncPool] = weakref.WeakSet()
_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()


def _begin_anew_all() -> None:
    for pool in list(_pools):
        pool.begin_anew()


def _close_all() -> None:
    """At the end of the program: what was left open ends without a word, also in loops that nobody closed."""
    for pool in list(_pools):
        if isinstance(pool, Pool):
            pool.close()
    for loop in list(_loops):
        _end_tasks(loop, [task for task in asyncio.all_tasks(loop) if task.get_name().startswith(NAME_PREFIX)])


def _end_tasks(loop: asyncio.AbstractEventLoop, tasks: list[asyncio.Task[Any]]) -> None:
    """Cancels tasks of a loop that does not run, and waits until they ended."""
    pending = [task for task in tasks if not task.done()]
    if pending and not loop.is_closed() and not loop.is_running():
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.wait(pending, timeout=END_TIMEOUT_S))


os.register_at_fork(after_in_child=_begin_anew_all)
atexit.register(_close_all)
