"""Runs a server and ends it when the process that wanted it is gone: `guard.py [options] PARENT_PID COMMAND...`

Started as a script with the standard library only. It writes the server's process id on stdout, holds stdin as a
life line, and exits with the server's status. A life line alone is not enough (a forked child of the parent holds
its other end too), nor is PR_SET_PDEATHSIG (it fires when the parent's *thread* ends); so the guard watches both
stdin and its own parent id. The server gets PR_SET_PDEATHSIG on the guard, whose main thread never ends before it.

With --detached the server outlives its parent: it takes the guard's process, once a byte comes on stdin.
"""

import argparse
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
UNPRIVILEGED_ID = 1000
WATCH_INTERVAL_S = 0.5
STOP_DEADLINE_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--not-root", action="store_true")
    parser.add_argument("--detached", action="store_true")
    parser.add_argument("--stop-signal", type=int, default=signal.SIGTERM)
    parser.add_argument("--remove", default="")
    parser.add_argument("parent", type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.not_root and os.geteuid() == 0:
        leave_root()
    if options.detached:
        wait_for_parent()
        os.execv(options.command[0], options.command)  # noqa: S606 - nothing to guard: the server takes this process
    server = subprocess.Popen(
        options.command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,  # Ctrl-C in a terminal is the parent's to handle
        preexec_fn=die_with_guard,  # noqa: PLW1509 - the guard has one thread so far
    )
    sys.stdout.write(f"{server.pid}\n")
    sys.stdout.close()
    threading.Thread(target=watch, args=(options.parent, server, options.stop_signal), daemon=True).start()
    status = server.wait()
    if parent_is_gone(options.parent, 0):
        shutil.rmtree(options.remove, ignore_errors=True)
    os._exit(status if status >= 0 else 128 - status)


def wait_for_parent() -> None:
    """Goes on once the parent has written down this process, and ends where the parent died before that.

    So no server runs that nobody knows of, at whatever step the parent is killed.
    """
    if not os.read(0, 1):
        sys.exit("guard: the process that wanted this server is gone")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def leave_root() -> None:
    """Moves into a user namespace where root is an ordinary user: PostgreSQL refuses to run as root.

    File access stays that of the outer root, so neither the installed binaries nor the data need other permissions.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    if not hasattr(libc, "unshare") or libc.unshare(CLONE_NEWUSER) != 0:
        sys.exit("guard: user namespaces are not permitted here: run as a user other than root")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{UNPRIVILEGED_ID} {uid} 1"),
        ("gid_map", f"{UNPRIVILEGED_ID} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def die_with_guard() -> None:
    """Where the kernel can (Linux): the server is killed if the guard is."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def parent_is_gone(parent: int, timeout: float) -> bool:
    readable, _, _ = select.select([0], [], [], timeout)
    return bool(readable) or os.getppid() != parent


def watch(parent: int, server: "subprocess.Popen[bytes]", stop_signal: int) -> None:
    while not parent_is_gone(parent, WATCH_INTERVAL_S):
        pass
    server.send_signal(signal.SIGCONT)
    server.send_signal(stop_signal)
    killer = threading.Timer(STOP_DEADLINE_S, server.kill)
    killer.daemon = True
    killer.start()


if __name__ == "__main__":
    main()
