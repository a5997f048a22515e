"""The lock under which lanes and boards are made and removed: of one thread in one process of an instance at a time."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ringlog.errors import LaneError
from ringlog.lanes.instance import Instance
from ringlog.lanes.locks import LockFile, holder_of

CLAIM_TIMEOUT_SECONDS = 5.0
# Between two tries to take the lock: other processes hold it for less than a millisecond. Where many wait,
# the pauses grow: they must not keep the one that works from working.
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.001, 0.05

_random = secrets.SystemRandom()
# Record locks do not hold off threads of one process. Re-entrant, so that a signal handler that claims inside a claim
# can be told so, instead of waiting for itself.
_process_lock = threading.RLock()
_is_inside = False


def _after_fork_in_child() -> None:
    global _process_lock, _is_inside  # noqa: PLW0603 (a thread of the parent may have held it)
    _process_lock = threading.RLock()
    _is_inside = False


os.register_at_fork(after_in_child=_after_fork_in_child)


class ClaimsBusy(LaneError):
    """Others claimed all the while: the same call may succeed later."""


class ClaimReentrant(LaneError):
    """A signal handler, or `__del__`, claimed in the middle of a claim of its own thread."""


@contextmanager
def claims_lock(
    instance: Instance,
    timeout_seconds: float = CLAIM_TIMEOUT_SECONDS,
    still_seconds: float = CLAIM_TIMEOUT_SECONDS,
) -> Iterator[None]:
    """Held while a lane or the board is made or removed; never on the path of an append that has a lane.

    Raises ClaimsBusy where other processes have held it for `timeout_seconds` (a stopped one, say), ClaimReentrant
    inside a claim of the same thread, LaneError where its file cannot be used.
    """
    deadline = time.monotonic() + timeout_seconds
    with one_thread(instance, deadline), one_process(instance, deadline, still_seconds):
        yield


@contextmanager
def one_thread(instance: Instance, deadline: float) -> Iterator[None]:
    global _is_inside  # noqa: PLW0603 (as the lock: of the whole process)
    lock = _process_lock  # this very object also where the process forks inside
    if not lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
        raise ClaimsBusy(f"{instance.lanes_dir}: got another thread of this process in a claim, wanted its end")
    try:
        if _is_inside:
            raise ClaimReentrant(
                f"{instance.lanes_dir}: got a claim inside a claim of this thread, wanted its end first"
            )
        _is_inside = True
        try:
            yield
        finally:
            _is_inside = False
    finally:
        lock.release()


@contextmanager
def one_process(instance: Instance, deadline: float, still_seconds: float = CLAIM_TIMEOUT_SECONDS) -> Iterator[None]:
    lock = LockFile(instance.claims_path)
    began, pause = time.monotonic(), PAUSE_SECONDS
    moved_at, mark = began, _mark(instance)
    while not lock.take():
        now, before = time.monotonic(), mark
        if (mark := _mark(instance)) != before:
            moved_at = now
        if now >= min(deadline, moved_at + still_seconds):
            raise ClaimsBusy(
                f"{instance.claims_path}: got a lock held by another process{_named(holder_of(instance.claims_path))} "
                f"for {now - began:.1f} s, wanted it free: is that process stopped?"
            )
        # Of different lengths, or all would try again at once.
        time.sleep(min(pause * _random.uniform(0.5, 1.5), deadline - now))
        pause = min(pause * 1.5, PAUSE_SECONDS_MAX)
    try:
        yield
    finally:
        lock.release()


def _mark(instance: Instance) -> int:
    """Differs after each claim or removal: files come and go there."""
    try:
        return instance.lanes_dir.stat().st_mtime_ns
    except OSError:
        return 0


def _named(pid: int) -> str:
    return f" (pid {pid})" if pid > 0 else ""
