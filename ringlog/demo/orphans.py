"""What becomes of the demo's processes when the demo itself is killed: they end, and one of them clears up."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sys
import threading
import time

from ringlog.errors import RinglogError
from ringlog.lanes.instance import Instance
from ringlog.lanes.locks import is_locked
from ringlog.lanes.readers import remove_instance
from ringlog.settings import Settings

CLEAR_TIMEOUT_S = 20.0  # the writer's guard gives it 10 s


def end_with_parent(runtime_dir: str, *, clears: bool, temporary: str = "") -> None:
    """From now on this process ends when the one that started it is gone, whatever it is doing.

    The one that `clears` becomes this module as a program, and so gives up its own lanes; it removes the instance's
    shared memory, and the directory `temporary`.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        if clears:
            os.execv(sys.executable, [sys.executable, "-m", "ringlog.demo.orphans", runtime_dir, temporary])  # noqa: S606
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


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


if __name__ == "__main__":
    clear(*sys.argv[1:])
