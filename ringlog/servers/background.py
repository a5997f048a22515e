"""Embedded servers that outlive the command that started them: what `ringlog up` leaves, `status` and `down` find.

`servers.json` (0600) in the runtime directory names each server's process by id and start time, so that a process
that got the same id later is never taken for it. The data of each is kept under the user's data directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from ringlog.errors import LaneError, ServerError, ServerUnavailable
from ringlog.lanes.instance import check_private, read_private
from ringlog.servers.embedded import EmbeddedServer, write_private
from ringlog.servers.postgres import PostgresServer
from ringlog.servers.questdb import QuestDBServer
from ringlog.servers.valkey import ValkeyServer

KINDS: dict[str, type[EmbeddedServer]] = {
    "questdb": QuestDBServer,
    "postgres": PostgresServer,
    "valkey": ValkeyServer,
}


class BackgroundServer(msgspec.Struct):
    """One server in `servers.json`; `started` is what `started_at` says of its process."""

    kind: Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(KINDS)})$")]
    pid: int
    started: float
    data_dir: str


def default_data_dir() -> Path:
    """Where `ringlog up` keeps its data: `$XDG_DATA_HOME/ringlog`, by default below ~/.local/share."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "ringlog"


class Background:
    """The servers that run in the background for one runtime directory."""

    def __init__(self, runtime_dir: str | os.PathLike[str]) -> None:
        self._directory = Path(runtime_dir)
        self._path = self._directory / "servers.json"

    def find(self) -> dict[str, EmbeddedServer]:
        """The servers that were started and not stopped, by kind; each may have died since (`running`).

        Raises LaneError where the directory is not this user's alone: whoever may write there could name any process
        as one to stop, and any server as ours.
        """
        if os.path.lexists(self._directory):
            check_private(self._directory)
        return {entry.kind: self._attached(entry) for entry in self._read()}

    def up(self, kinds: Sequence[str], data_dir: Path | None = None) -> dict[str, EmbeddedServer]:
        """Starts those of `kinds` that do not run yet, by default below `default_data_dir()`; all or none of the
        new ones.

        Raises ServerError where one runs already and keeps its data elsewhere than below the `data_dir` that is given.
        """
        with self._locked():
            servers = {kind: server for kind, server in self.find().items() if server.running}
            for kind in kinds:
                if data_dir is not None and kind in servers and servers[kind].data_dir != data_dir / kind:
                    got = servers[kind].data_dir
                    raise ServerError(
                        f"{kind}: got one running on {got}, wanted {data_dir / kind}: `ringlog down` first"
                    )
            started: list[EmbeddedServer] = []
            try:
                for kind in kinds:
                    if kind in servers and self._is_ready(servers[kind]):
                        continue
                    path = servers[kind].data_dir if kind in servers else (data_dir or default_data_dir()) / kind

                    def known() -> None:
                        self._write(servers)

                    server = servers[kind] = KINDS[kind](path, detached=True, on_spawned=known)
                    started.append(server)
                    server.start()
            except BaseException:
                # Each is in the file until it is gone: should this be interrupted too, `status` and `down` know it.
                for server in started:
                    server.stop()
                self._write({kind: server for kind, server in servers.items() if server.running})
                raise
            return servers

    @staticmethod
    def _is_ready(server: EmbeddedServer) -> bool:
        """Waits for a server that another `up` started and did not wait for; False where it ended instead."""
        try:
            server.wait_until_ready()
        except ServerUnavailable:
            raise
        except ServerError:
            return False
        return True

    def down(self) -> list[str]:
        """Stops all; the data stays. The kinds that were still running."""
        with self._locked():
            servers = self.find()
            stopped = [kind for kind, server in servers.items() if server.running]
            try:
                for server in servers.values():
                    server.stop()
            finally:
                left = {kind: server for kind, server in servers.items() if server.running}
                if left:
                    self._write(left)
                else:
                    self._path.unlink(missing_ok=True)
            return stopped

    def _attached(self, entry: BackgroundServer) -> EmbeddedServer:
        server = KINDS[entry.kind](entry.data_dir, detached=True)
        server.attach(entry.pid, entry.started)
        return server

    def _read(self) -> list[BackgroundServer]:
        try:
            return msgspec.json.decode(read_private(self._path), type=list[BackgroundServer])
        except FileNotFoundError:
            return []
        except (OSError, LaneError, msgspec.MsgspecError) as error:
            raise ServerError(f"{self._path}: got {error}, wanted what `ringlog up` wrote") from None

    def _write(self, servers: dict[str, EmbeddedServer]) -> None:
        entries = [
            BackgroundServer(kind, server.pid or 0, server.started or 0.0, str(server.data_dir))
            for kind, server in servers.items()
        ]
        write_private(self._path, msgspec.json.encode(entries))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One `up` or `down` at a time in a runtime directory."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            check_private(self._directory)  # before anything in it is opened
            lock = (self._directory / "servers.lock").open("a")
        except OSError as error:
            raise ServerError(f"{self._directory}: wanted a writable runtime directory ({error.strerror})") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
