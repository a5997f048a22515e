"""Finding 16: every setting that can hold a credential masks itself, whatever fails and whoever looks."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from lane_samples import Child, Sample, eventually

from ringlog.environment import child_environment
from ringlog.errors import ConfigurationError, RinglogError, ServerRefused
from ringlog.postgres import AsyncPool, ConfigWatch, Node, Nodes, Pool
from ringlog.postgres.migrations import migrate
from ringlog.questdb.conf import client_conf
from ringlog.questdb.queries import Queries
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import layout_of
from ringlog.redis import AsyncConnection, Connection
from ringlog.redis.connection import one
from ringlog.servers import PostgresServer, QuestDBServer
from ringlog.servers.embedded import bound_socket
from ringlog.settings import Secret, Settings, variable_names
from ringlog.writer.reload import changes

CANARY = "canary-9c41"
SECRETS = sorted(field.name for field in msgspec.structs.fields(Settings) if field.type is Secret)
# Of what hosts may be and credentials look like, as users paste them.
CONF = f"https::addr=db.example:9000;token={CANARY};"


def whole_traceback(error: BaseException) -> str:
    """What a program that shows locals makes of an error, of all that led to it, and of what was suppressed there."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    parts, waiting = [], [shown]
    while waiting:
        one_of_them = waiting.pop()
        parts += ["".join(one_of_them.format(chain=False)), *map(str, one_of_them.stack)]
        parts += [str(frame.locals) for frame in one_of_them.stack]
        waiting += [other for other in (one_of_them.__cause__, one_of_them.__context__) if other is not None]
    while error is not None:
        parts += [repr(error), str(getattr(error, "__notes__", ""))]
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return "\n".join(parts)


def test_every_credential_is_a_secret() -> None:
    """Passwords, the client's configuration string and the alert command (it may hold a webhook's token) are secrets,
    and no plain setting is called like one."""
    assert SECRETS == [
        "alert_command", "postgres_password", "questdb_client_conf", "questdb_password", "redis_password",
    ]  # fmt: skip
    plain = {field.name for field in msgspec.structs.fields(Settings)} - set(SECRETS)
    assert not [name for name in plain if any(word in name for word in ("password", "token", "secret", "key_file"))]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_masks_itself(name: str) -> None:
    """Finding 16: given as a Secret or as a plain str it shows in no text, encoding or copy, nor in a reload's log."""
    for value in (Secret(CANARY), CANARY):
        settings = Settings(**{name: value})
        secret = getattr(settings, name)
        assert secret.reveal() == CANARY
        changed = changes(Settings(**{name: "other-canary"}), settings)
        texts = [repr(settings), str(settings), f"{settings}", f"{secret} {secret!r}", f"{secret!s}", str(changed)]
        texts += [str(msgspec.structs.asdict(settings)), *map(str, changed), json.dumps(secret, default=str)]
        assert not [text for text in texts if "canary" in text]
        for encode in (msgspec.to_builtins, msgspec.json.encode, msgspec.msgpack.encode, pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError) as refused:
                encode(settings)
            assert "canary" not in str(refused.value)
        with pytest.raises(TypeError):
            json.dumps(secret)


@pytest.mark.parametrize("name", ["questdb_host", "postgres_host", "redis_host", "postgres_database", "redis_user"])
def test_a_url_in_place_of_a_name_is_refused(name: str) -> None:
    """A URL with a password is taken for no host, user or database: errors would show it."""
    url = f"redis://user:{CANARY}@db.example:6379/0"
    environ = {f"RINGLOG_{name.upper()}": url}
    with pytest.raises(ConfigurationError, match=f"RINGLOG_{name.upper()}: got a URL") as refused:
        Settings.from_environment(environ)
    assert CANARY not in str(refused.value)
    del environ, url
    assert CANARY not in "".join(traceback.TracebackException.from_exception(refused.value).format())


def wrong_value(tmp_path: Path) -> None:
    file = tmp_path / "settings.env"
    file.write_text(f"RINGLOG_POSTGRES_PASSWORD={CANARY}\nRINGLOG_REDIS_PORT=many\n")
    Settings.from_environment({"RINGLOG_SETTINGS_FILE": str(file), "QDB_CLIENT_CONF": CONF})


def wrong_line(tmp_path: Path) -> None:
    file = tmp_path / "settings.env"
    file.write_text(f"RINGLOG_POSTGRES_PASSWORD={CANARY}\nPASSWORD={CANARY}\n")
    variable_names({"RINGLOG_SETTINGS_FILE": str(file), "RINGLOG_ALERT_COMMAND": CANARY})


def wrong_variable(_: Path) -> None:
    Settings.from_environment({"RINGLOG_POSTGRES_PASWORD": CANARY, "RINGLOG_REDIS_PASSWORD": CANARY})


@pytest.mark.parametrize("fail", [wrong_value, wrong_line, wrong_variable])
def test_settings_that_cannot_be_read(fail: Callable[[Path], None], tmp_path: Path) -> None:
    """Neither the error nor a traceback with locals shows the secrets that were read beside the wrong value."""
    with pytest.raises(ConfigurationError) as refused:
        fail(tmp_path)
    inner = refused.value.__traceback__.tb_next.tb_next  # type: ignore[union-attr] # this test's own frames are its own
    assert CANARY not in whole_traceback(refused.value.with_traceback(inner))


@pytest.mark.parametrize(
    "conf",
    [
        f"http::addr=127.0.0.1:9000;pasword={CANARY};",
        f"http::addr=127.0.0.1:9000;password:{CANARY};",
        f"http::addr=127.0.0.1:9000;username=u;password=a{CANARY};b;",
        f"http::addr=u:{CANARY}@127.0.0.1:9000;",
        f"http::addr=127.0.0.1:{CANARY};",
        f"https::addr=127.0.0.1:9000;tls_verify={CANARY};",
        f"http:addr=127.0.0.1:9000;token={CANARY};",
        f"http:addr=h;token={CANARY}::",
        f"{CANARY}::addr=127.0.0.1:9000;",
        f"http::addr=db.example:9000;token={CANARY};",
        f"http::addr=127.0.0.1:9000;username=u;password={CANARY}\n;",
        f"http::addr=127.0.0.1:9000;token={CANARY};token_x={CANARY};token_y={CANARY};auth=x;",
    ],
)
def test_a_configuration_string_that_is_refused(conf: str) -> None:
    """However it is written wrong, no part of it that may be a secret shows in the error or in a traceback."""
    settings = Settings(questdb_client_conf=Secret(conf))
    try:
        QuestdbSink(settings).close()
    except ConfigurationError as error:
        # The first frame is this test's, whose parameter is the string itself.
        shown = whole_traceback(error.with_traceback(error.__traceback__.tb_next))  # type: ignore[union-attr]
        assert CANARY not in shown
    else:
        assert CANARY not in repr(client_conf(settings))


@pytest.fixture
def nobody() -> Iterator[Settings]:
    """Secrets, and no server behind them."""
    limits = {"query_timeout_ms": 300, "postgres_timeout_ms": 300, "postgres_retry_timeout_ms": 1}
    limits["redis_retry_timeout_ms"] = 0
    with bound_socket(0) as held:
        names = ("questdb_http_port", "questdb_pg_port", "postgres_port", "redis_port")
        ports = dict.fromkeys(names, held.getsockname()[1])
        yield Settings(**ports, **limits, **{name: Secret(CANARY) for name in SECRETS if name != "questdb_client_conf"})


def ping() -> Any:
    return (yield one("PING"))


def asked_postgres(settings: Settings) -> None:
    with Pool(settings) as pool:
        Nodes(pool).save(Node(name="a", url=Secret(f"https://rpc.example/{CANARY}")))


def asked_postgres_async(settings: Settings) -> None:
    from ringlog.postgres import AsyncNodes

    async def ask() -> None:
        async with AsyncPool(settings) as pool:
            await AsyncNodes(pool).save(Node(name="a", url=Secret(f"https://rpc.example/{CANARY}")))

    asyncio.run(ask())


def asked_redis(settings: Settings) -> None:
    with Connection(settings) as connection:
        connection.run(ping)


def asked_redis_async(settings: Settings) -> None:
    async def ask() -> None:
        async with AsyncConnection(settings) as connection:
            await connection.run(ping)

    asyncio.run(ask())


def asked_questdb(settings: Settings) -> None:
    with Queries(settings) as queries:
        queries.execute_query("select 1")


def verified_questdb(settings: Settings) -> None:
    sink = QuestdbSink(settings)
    try:
        sink.verify(layout_of(Sample))
    finally:
        sink.close()


ASKED = [
    asked_postgres, asked_postgres_async, migrate, asked_redis, asked_redis_async, asked_questdb, verified_questdb,
]  # fmt: skip


@pytest.mark.parametrize("ask", ASKED)
def test_a_server_that_is_away(
    ask: Callable[[Settings], Any], nobody: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Sync and async: no error, cause, context or local variable of their frames shows a secret, nor does a log line
    at DEBUG."""
    with caplog.at_level("DEBUG"), pytest.raises(RinglogError) as failed:
        ask(nobody)
    assert CANARY not in whole_traceback(failed.value)
    assert CANARY not in caplog.text


@pytest.mark.parametrize("ask", [asked_postgres, asked_postgres_async, migrate, asked_questdb, verified_questdb])
def test_a_wrong_password(
    ask: Callable[[Settings], Any], postgres_server: PostgresServer, questdb_server: QuestDBServer,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The servers' refusals show neither the password that was tried nor the right one."""
    wrong = {"postgres_password": Secret(CANARY), "questdb_password": Secret(CANARY)}
    settings = Settings(**{**postgres_server.settings(), **questdb_server.settings(), **wrong})
    with caplog.at_level("DEBUG"), pytest.raises(ServerRefused) as failed:
        ask(settings)
    shown = whole_traceback(failed.value) + caplog.text
    assert CANARY not in shown
    assert postgres_server.password not in shown
    assert questdb_server.password not in shown


def test_clients_and_pools_show_no_password(nobody: Settings) -> None:
    """Neither redis-py's pool nor psycopg's options hold the password as a text; a watch neither."""
    with Connection(nobody) as connection:
        assert CANARY not in repr(connection.client) + str(connection.client.connection_pool.connection_kwargs)
        assert isinstance(connection.client, redis.Redis)
    pool = Pool(nobody)
    assert CANARY not in str(pool._pool.kwargs) + str(vars(pool)) + str(vars(ConfigWatch(nobody)))
    with Queries(nobody) as queries:
        assert CANARY not in str(queries._pool.kwargs)


def test_servers_are_given_no_secret_by_environment_or_arguments(
    postgres_server: PostgresServer, questdb_server: QuestDBServer
) -> None:
    """Finding 16: what an embedded server was started with names neither its password nor a setting of ringlog's."""
    if sys.platform != "linux":
        pytest.skip("only Linux shows another process's environment")
    for server in (postgres_server, questdb_server):
        process = Path(f"/proc/{server.pid}")
        shown = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        assert server.password.encode() not in shown
        assert b"RINGLOG_" not in shown.replace(b"RINGLOG_RING", b"")


def test_programs_are_given_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only variables that are known to be harmless are passed on: a secret may have any name."""
    for name in ("RINGLOG_REDIS_PASSWORD", "QDB_CLIENT_CONF", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "ANY_NAME"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    given = child_environment()
    assert CANARY not in str(given)
    assert given["LC_ALL"] == "C.UTF-8"
    assert given["PATH"] == os.environ["PATH"]


def test_a_settings_file_is_private_and_gives_the_same_settings(tmp_path: Path) -> None:
    """What `save` writes is read as the same settings, in a file for its owner alone; it holds no broken lines."""
    settings = Settings(redis_password=Secret('a\'b "c" #d \x85\u2028 $e'), alert_command=Secret("notify --now 'x y'"))
    file = tmp_path / "settings.env"
    before = os.umask(0)
    try:
        settings.save(file)
        settings.save(file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    assert Settings.from_environment({"RINGLOG_SETTINGS_FILE": str(file)}) == settings
    with pytest.raises(ConfigurationError, match="RINGLOG_REDIS_PASSWORD: got more than one line"):
        Settings(redis_password=Secret("a\nb")).save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.env"]


def test_reloads_and_alerts_of_a_writer(instance_dir: Path, tmp_path: Path) -> None:
    """Finding 16: SIGHUP's log says which secrets changed and not what they are, and the alert command is started
    without any of them, whatever it fails of."""
    file, told = tmp_path / "settings.env", tmp_path / "told"
    told.mkdir()
    lines = {
        "RINGLOG_ALERT_COMMAND": f"'sh -c \"env > {told}/$2; echo alerted\" {CANARY}-1'",
        "QDB_CLIENT_CONF": f"'http::addr=127.0.0.1:9;username=u;password={CANARY}-1;'",
        "RINGLOG_POSTGRES_PASSWORD": f"{CANARY}-1",
        "RINGLOG_DISK_FREE_BYTES_MIN": str(1 << 60),
        "RINGLOG_RETENTION_DAYS": "0",
    }

    def write(number: int) -> None:
        text = "".join(f"{name}={value}\n" for name, value in lines.items())
        file.write_text(text.replace(f"{CANARY}-1", f"{CANARY}-{number}"))

    write(1)
    environment = {**Child.environment(Settings(runtime_dir=str(instance_dir))), "RINGLOG_SETTINGS_FILE": str(file)}
    environment["SOME_TOKEN"] = f"{CANARY}-0"
    log = tmp_path / "writer.txt"
    with log.open("wb") as output:
        writer = subprocess.Popen(
            [sys.executable, "-m", "ringlog", "writer", "--verbose"], env=environment, stdout=output, stderr=output
        )
        try:
            eventually(lambda: b"alerted" in log.read_bytes(), "the first alert")
            lines["RINGLOG_ALERT_COMMAND"] = f"{CANARY}-1-is-no-program"
            lines["RINGLOG_DISK_FREE_BYTES_MIN"] = "1"
            write(2)
            writer.send_signal(signal.SIGHUP)
            eventually(lambda: b"RINGLOG_ALERT_COMMAND: got No such file" in log.read_bytes(), "the second alert")
            lines["RINGLOG_ALERT_COMMAND"] = f'"notify \'{CANARY}-1"'
            write(3)
            writer.send_signal(signal.SIGHUP)
            eventually(lambda: b"RINGLOG_ALERT_COMMAND: got an open quote" in log.read_bytes(), "the refusal")
        finally:
            writer.send_signal(signal.SIGTERM)
            writer.wait(60)
    text = log.read_text()
    assert "questdb_client_conf: a secret -> another one" in text
    assert "alert_command: a secret -> another one" in text
    assert CANARY not in text
    found = [path.read_text() for path in told.iterdir()]
    assert found
    assert not [each for each in found if CANARY in each or "RINGLOG_" in each.replace("RINGLOG_RING", "")]
