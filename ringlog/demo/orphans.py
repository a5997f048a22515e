"""What becomes of the demo's processes when the demo itself is killed: they end, and one that stood by clears up."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from ringlog.environment import child_environment
from ringlog.errors import RinglogError
from ringlog.lanes.instance import Instance
from ringlog.lanes.locks import is_locked
from ringlog.lanes.readers import remove_instance
from ringlog.settings import Settings

IN_ORDER = b"in order"
CLEAR_TIMEOUT_S = 20.0  # the writer's guard gives it 10 s


def end_with_parent() -> None:
    """From now on this process ends when the one that started it is gone, whatever it is doing, and by no signal.

    That one is told, and says when to stop: by events, at which it would wait for whoever died in one of them.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    if not parent.is_alive():  # it went while this one started: nothing more is begun, or it would stay
        os._exit(1)
    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


@contextlib.contextmanager
def clearing(runtime_dir: str, temporary: str = "") -> Iterator[None]:
    """Until the end of the block another process stands by: if this one is killed, it removes the instance's shared
    memory, and the directory `temporary`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ringlog.demo.orphans", runtime_dir, temporary],
        stdin=subprocess.PIPE,  # the life line: it ends with us, whatever happens
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is ours to handle
        env=child_environment(),
    )
    try:
        yield
    finally:
        process.communicate(IN_ORDER)


def clear(runtime_dir: str, temporary: str) -> None:
    """Waits until the instance's writer and all owners of lanes are gone, then removes what is left of them."""
    instance = Instance(Settings(runtime_dir=runtime_dir))
    deadline = time.monotonic() + CLEAR_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(RinglogError, OSError):
            if not is_locked(instance.lease_path):
                remove_instance(instance)
                break
        time.sleep(0.05)
    if temporary:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__" and sys.stdin.buffer.read() != IN_ORDER:
    clear(*sys.argv[1:])
