"""The security bar: secrets that never show, files for their owner alone, and input that is never trusted."""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest
from lane_samples import Child, Sample, eventually, segments
from whole_path import WholePath

from ringlog import Producer
from ringlog.cli import main
from ringlog.errors import ConfigurationError, RinglogError
from ringlog.lanes.claims import cards, open_board
from ringlog.lanes.segments import attach_segment
from ringlog.questdb import pools
from ringlog.questdb.connection import Connection
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import layout_of
from ringlog.settings import Secret, Settings

ROOT = Path(__file__).parents[2]
CANARIES = {
    "questdb_password": "canary-questdb-1f2e",
    "postgres_password": "canary-postgres-3d4c",
    "redis_password": "canary-redis-5b6a",
}


def shows(text: bytes | str) -> list[str]:
    """The secrets that a text gives away."""
    raw = text.encode() if isinstance(text, str) else text
    return [canary for canary in CANARIES.values() if canary.encode() in raw]


@pytest.fixture
def unreachable(instance_dir: Path) -> Iterator[Settings]:
    """Settings with secrets and no server behind any of them."""
    secrets = {name: Secret(canary) for name, canary in CANARIES.items()}
    limits = {
        "query_timeout_ms": 300,
        "postgres_timeout_ms": 300,
        "postgres_retry_timeout_ms": 100,
        "redis_retry_timeout_ms": 100,
        "redis_sink": True,
    }
    with socket.socket() as held:  # bound and not listening, for as long as it must be nobody's
        held.bind(("127.0.0.1", 0))
        names = ("questdb_http_port", "questdb_pg_port", "postgres_port", "redis_port")
        ports = dict.fromkeys(names, held.getsockname()[1])
        yield Settings(runtime_dir=str(instance_dir), lane_bytes_max=4 << 20, **secrets, **ports, **limits)


COMMANDS = (
    ["audit", "--json"],
    ["migrate"],
    ["trades"],
    ["query", "select 1"],
    ["retention", "run"],
    ["dead-letters", "list"],
)


def files_below(directory: Path) -> Iterator[Path]:
    yield from (path for path in directory.rglob("*") if path.is_file())


def modes_of(paths: Iterable[Path]) -> dict[Path, int]:
    """The modes of files and directories; one that a writer at work has removed meanwhile is left out."""
    modes = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            modes[path] = stat.S_IMODE(path.stat().st_mode)
    return modes


def test_no_secret_shows_wherever_things_fail(
    unreachable: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Every server away and DEBUG on: no secret in output, logs, argv, board, lanes, spool or any file.

    Defence: the type that masks itself, and errors raised outside the client's own (a client's error holds them).
    """
    environment = {**Child.environment(unreachable), **unreachable.to_environment()}
    log = tmp_path / "writer.txt"
    with log.open("wb") as output, Producer([Sample], settings=unreachable) as producer:
        append = producer.appender(Sample).append
        assert append(1, "a record")
        writer = subprocess.Popen(
            [sys.executable, "-m", "ringlog", "writer", "--verbose"], env=environment, stdout=output, stderr=output
        )
        try:
            board = open_board(producer.instance)
            eventually(lambda: b'"spooled":1' in board.read_status(), "the record to be spooled")
            # A writer puts records away before its sink is there: only then is the server asked, and away.
            eventually(lambda: b"failures=1" in log.read_bytes(), "the server to be asked")
            assert shows(Path(f"/proc/{writer.pid}/cmdline").read_bytes() if sys.platform == "linux" else b"") == []
            shared = [attach_segment(card.segment) for card in cards(producer.instance)]
            assert [shows(bytes(each.memory)) for each in (*shared, board.segment)] == [[]] * (len(shared) + 1)
            for each in shared:
                each.close()
            for name, value in unreachable.to_environment().items():
                monkeypatch.setenv(name, value)
            for command in COMMANDS:
                with caplog.at_level(logging.DEBUG), contextlib.suppress(SystemExit):
                    main(command)
                said = capfd.readouterr()
                assert shows(said.out + said.err + caplog.text) == [], command
                caplog.clear()
        finally:
            writer.send_signal(signal.SIGTERM)
            writer.wait(60)
    text = log.read_bytes()
    assert b"failures=1" in text
    assert shows(text) == []
    assert {path.name: shows(path.read_bytes()) for path in files_below(Path(unreachable.runtime_dir))} == {
        path.name: [] for path in files_below(Path(unreachable.runtime_dir))
    }


def test_settings_and_errors_mask_secrets(unreachable: Settings) -> None:
    """Neither repr, str, format, JSON, pickle nor a traceback with its locals' reprs gives a secret away."""
    for text in (
        repr(unreachable),
        str(unreachable),
        f"{unreachable.questdb_password}",
        f"{unreachable.redis_password}",
    ):
        assert shows(text) == []
    with pytest.raises(TypeError):
        msgspec.json.encode(unreachable)
    with pytest.raises(TypeError):
        pickle.dumps(unreachable.questdb_password)
    sink = QuestdbSink(unreachable)
    try:
        sink.verify(layout_of(Sample))
    except RinglogError as error:
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        assert shows("".join(shown.format())) == []
    sink.close()


def test_secrets_come_from_files(tmp_path: Path) -> None:
    """A secret may be named by a file; one that cannot be read is an error that names the variable, not a secret."""
    file = tmp_path / "secret"
    file.write_text(CANARIES["questdb_password"] + "\n")
    settings = Settings.from_environment({"RINGLOG_QUESTDB_PASSWORD_FILE": str(file)})
    assert settings.questdb_password.reveal() == CANARIES["questdb_password"]
    with pytest.raises(ConfigurationError, match=r"RINGLOG_QUESTDB_PASSWORD_FILE: got .*missing"):
        Settings.from_environment({"RINGLOG_QUESTDB_PASSWORD_FILE": str(tmp_path / "missing")})


def test_everything_is_for_its_owner_alone(path: WholePath) -> None:
    """With a umask of 0: every file of an instance is 0600, every directory 0700, every segment 0600."""
    before = os.umask(0)
    try:
        path.start_writer()
        with path.producing() as append:
            append(64)
            eventually(lambda: path.stored() == 64, "the records")
            root = Path(path.settings.runtime_dir)
            files = modes_of(files_below(root))
            directories = modes_of(each for each in root.rglob("*") if each.is_dir())
            shared = [Path("/dev/shm") / name for name in segments(append.instance)]  # noqa: S108
            assert {stat.S_IMODE(each.stat().st_mode) for each in shared} == {0o600}
        assert path.end_writer(signal.SIGTERM) == 0
    finally:
        os.umask(before)
    assert {file.name: oct(mode) for file, mode in files.items() if mode != 0o600} == {}
    assert {each.name: oct(mode) for each, mode in directories.items() if mode != 0o700} == {}
    assert {"ledger", "reserve", "writer.lease"} <= {file.name for file in files}


def test_the_postgresql_wire_is_verified_away_from_this_machine() -> None:
    """Beyond loopback the PostgreSQL wire is used under verified TLS only; to loopback, in the clear."""
    secret = Secret("x")
    assert Connection("db.example", 8812, "u", secret, 1000)._options["sslmode"] == "verify-full"
    assert Connection("10.0.0.7", 8812, "u", secret, 1000)._options["sslmode"] == "verify-full"
    assert Connection("127.0.0.1", 8812, "u", secret, 1000)._options["sslmode"] == "disable"


def test_the_postgresql_wire_trusts_what_the_http_client_trusts() -> None:
    """A custom authority of the client conf is the one for the PostgreSQL wire too; without one, the machine's are."""

    def trusted(conf: str) -> list[str | None]:
        settings = Settings(questdb_client_conf=conf)
        wires = (Connection.from_settings(settings)._options, pools._options(settings, pools.Health(), None)["kwargs"])
        return [wire.get("sslrootcert") for wire in wires]

    assert trusted("https::addr=db.example:9000;tls_roots=/etc/our;;own.pem;") == ["/etc/our;own.pem"] * 2
    assert trusted("https::addr=db.example:9000;") == ["system"] * 2
    assert trusted("https::addr=127.0.0.1:9000;tls_roots=/etc/own.pem;") == [None] * 2


def test_nothing_is_unpickled_or_evaluated() -> None:
    """No module of the package can run what it reads: no pickle, marshal, shelve, eval or exec.

    The one exec compiles the Python ring's append: tests/rings/test_ring_quick.py gives it hostile names.
    """
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    found = []
    for file in sorted((ROOT / "ringlog").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if ast.unparse(node) == "exec(compile(source, '<append of the Python ring>', 'exec'), found)":
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if forbidden & {name.split(".")[0] for name in names} or called in {"eval", "exec"}:
                found.append(f"{file.name}:{node.lineno}")
    assert found == []
