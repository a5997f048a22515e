"""The QuestDB server jar: fetched once, checked every time, never taken when it is another."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ringlog.errors import ServerError
from ringlog.servers import QuestDBServer, questdb

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens there
GARBAGE = b"this is not a jar"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to the network leads nowhere."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, NOWHERE)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ringlog"


class GarbageRepository(http.server.BaseHTTPRequestHandler):
    """A Maven repository that answers every jar with the same wrong bytes."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path.endswith(".jar") else 404)
        self.send_header("Content-Length", str(len(GARBAGE)))
        self.end_headers()
        self.wfile.write(GARBAGE)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def garbage_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """jgo is configured to ask a repository of this test first."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), GarbageRepository)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    configuration = tmp_path / "jgo.conf"
    configuration.write_text(f"[repositories]\nnear = http://127.0.0.1:{server.server_port}\n")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def jar_of(server: QuestDBServer) -> str:
    """The jar that a running server was started with."""
    arguments = psutil.Process(server.pid).cmdline()
    return arguments[arguments.index("-p") + 1]


def test_second_start_needs_no_network(questdb_server: QuestDBServer, offline: None) -> None:
    """Once the jar is cached, the command to start the server is made without a network."""
    assert questdb.sha256_of(questdb.questdb_jar()) == questdb.JAR_SHA256


def test_first_start_without_network_says_what_is_missing(empty_cache: Path, offline: None) -> None:
    """With an empty cache and no network the error names server, version and source, and leaves no partial jar."""
    with pytest.raises(ServerError, match=r"QuestDB 9\.3\.4: got no jar from Maven Central"):
        questdb.questdb_jar()
    assert list(empty_cache.rglob("*.jar")) == []


def test_damaged_jar_is_never_run(questdb_server: QuestDBServer, empty_cache: Path, offline: None) -> None:
    """A cached jar with one changed byte is not taken: it is fetched again, or the start fails."""
    jar = empty_cache / f"questdb-{questdb.VERSION}.jar"
    jar.parent.mkdir(parents=True)
    shutil.copy(jar_of(questdb_server), jar)
    with jar.open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)[0]
        file.seek(1_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ServerError, match="got no jar"):
        questdb.questdb_jar()


def test_jar_with_another_sha256_is_refused(empty_cache: Path, garbage_repository: None) -> None:
    """What a repository serves under the right name but with other bytes is refused with got and wanted."""
    with pytest.raises(ServerError, match=rf"got a jar with sha256 [0-9a-f]{{64}}, wanted {questdb.JAR_SHA256}"):
        questdb.questdb_jar()
    assert list(empty_cache.rglob("*.jar")) == []
