"""A server that is down, hangs, dies or refuses: a named error in bounded time, and no secret in it."""

from __future__ import annotations

import http.server
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest
from sink_batches import batch_of, deliver, fresh_layout, numbered, stored, wait_until

from ringlog.errors import ConfigurationError, RinglogError, ServerRefused, ServerTooOld, ServerUnavailable
from ringlog.questdb.conf import client_conf
from ringlog.questdb.connection import CONNECT_TIMEOUT_S, Connection, _is_new_enough
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import RecordLayout
from ringlog.servers import QuestDBServer
from ringlog.servers.embedded import bound_socket
from ringlog.settings import Secret, Settings
from ringlog.sinks import Receipt, Request

ROWS = list(numbered(20))
CANARY = "canary-7f3a"


def everything_said(error: BaseException | None, caplog: pytest.LogCaptureFixture) -> str:
    """The error with its whole chain of causes and contexts, and every log line."""
    said = [caplog.text, *(str(record.args) for record in caplog.records)]
    while error is not None:
        said += [repr(error), str(error), str(error.args), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return "\n".join(said)


def test_a_server_that_is_down(caplog: pytest.LogCaptureFixture) -> None:
    """With no server a sink can be made and batches encoded; sending names the address, not the secret."""
    layout = fresh_layout()
    # Bound, never listening: connections are refused, and nobody else can come to listen there.
    with bound_socket(0) as http, bound_socket(0) as pg, caplog.at_level(logging.DEBUG):
        http_port, pg_port = (held.getsockname()[1] for held in (http, pg))
        settings = Settings(questdb_http_port=http_port, questdb_pg_port=pg_port, questdb_password=Secret(CANARY))
        sink = QuestdbSink(settings)
        request = sink.encode(batch_of(layout, ROWS))
        with pytest.raises(ServerUnavailable, match=str(settings.questdb_pg_port)) as sending:
            sink.send(request)
        with pytest.raises(ServerUnavailable) as verifying:
            sink.verify(layout)
        sink.close()
    for found in (sending, verifying):
        assert CANARY not in everything_said(found.value, caplog)


@pytest.mark.parametrize("wire", ["both", "http", "pg"])
def test_a_wrong_password_is_named_without_being_shown(
    settings: Settings, layout: RecordLayout, caplog: pytest.LogCaptureFixture, wire: str
) -> None:
    """A refused password is an error that names the user or the status, and the password is in no error and no log."""
    conf = f"http::addr=127.0.0.1:{settings.questdb_http_port};username={settings.questdb_user};password={CANARY};"
    wrong = {
        "both": {"questdb_password": Secret(CANARY)},
        "http": {"questdb_client_conf": conf},
        "pg": {
            "questdb_client_conf": conf.replace(CANARY, settings.questdb_password.reveal()),
            "questdb_password": Secret(CANARY),
        },
    }[wire]
    with caplog.at_level(logging.DEBUG):
        sink = QuestdbSink(msgspec.structs.replace(settings, request_timeout_ms=15_000, **wrong))
        request = sink.encode(batch_of(layout, ROWS))
        expected = (ServerUnavailable, "401") if wire == "http" else (ServerRefused, f"'{settings.questdb_user}'")
        with pytest.raises(expected[0], match=expected[1]) as found:
            sink.send(request)
        sink.close()
    said = everything_said(found.value, caplog)
    assert CANARY not in said
    assert settings.questdb_password.reveal() not in said


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        (f"http::addr=db.example:9000;username=u;password={CANARY};", "credentials over plain HTTP to 'db.example'"),
        (f"http::addr=10.0.0.7:9000;token={CANARY};", "credentials over plain HTTP to '10.0.0.7'"),
        (f"http::addr=127.0.0.1.example:9000;token={CANARY};", "credentials over plain HTTP"),
        (f"https::addr=db.example:9000;token={CANARY};tls_verify=unsafe_off;", "tls_verify=unsafe_off, wanted on"),
        (f"tcp::addr=localhost:9009;token={CANARY};", "got scheme 'tcp', wanted http"),
        (f"{CANARY}", "got no '::'"),
        (
            f"http::addr=127.0.0.1:9000;username=u;password={CANARY};;x;token=other-token;",
            "Inconsistent HTTP authentication",
        ),
        ("http::addr=127.0.0.1:9000;request_timeout=soon;", "QDB_CLIENT_CONF: "),
    ],
)
def test_a_configuration_that_is_refused(conf: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    """What would send a secret in the clear, skip TLS checks or lack an acknowledgement is refused at once."""
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigurationError, match=message) as found:
        QuestdbSink(Settings(questdb_client_conf=conf))
    assert CANARY not in everything_said(found.value, caplog)


@pytest.mark.parametrize(
    ("conf", "host"),
    [
        ("http::addr=localhost:9000;username=u;password=p;", "localhost"),
        ("http::addr=127.8.0.1:9000;username=u;password=p;", "127.8.0.1"),
        ("http::addr=[::1]:9000;username=u;password=p;", "::1"),
        ("http::addr=db.example:9000;", "db.example"),
        ("https::addr=db.example;username=u;password=p;;q;", "db.example"),
    ],
)
def test_a_configuration_that_is_taken(conf: str, host: str) -> None:
    """Loopback in each form may have credentials, other hosts under TLS; the PostgreSQL wire goes to the same host."""
    assert client_conf(Settings(questdb_client_conf=conf)).host == host
    assert conf not in repr(client_conf(Settings(questdb_client_conf=conf)))


def test_a_password_with_semicolons_reaches_the_server_whole() -> None:
    """A semicolon in a password ends no option of the configuration string that is made of the settings."""
    conf = client_conf(Settings(questdb_password=Secret("a;b;;c=d;")))
    assert conf.secrets == (Secret("a;b;;c=d;"),)


def test_a_stopped_server_costs_bounded_time(
    mortal_server: QuestDBServer, own_sink: QuestdbSink, own_settings: Settings, own_layout: RecordLayout
) -> None:
    """Against a server that hangs (SIGSTOP) send and confirm give up in the stated time; the same sink then goes on."""
    sink = QuestdbSink(msgspec.structs.replace(own_settings, request_timeout_ms=500))
    request = sink.encode(batch_of(own_layout, ROWS))
    receipts: list[Receipt] = []
    wait_until(lambda: sent(sink, request, receipts), "sent")
    mortal_server.stop_signal()
    # Against 30 s and more without bounds; a busy machine adds to the 4 s that are stated.
    bound_s = CONNECT_TIMEOUT_S + 4 * 0.5 + 10
    for call in (lambda: sink.send(request), lambda: sink.confirm(receipts), lambda: sink.send(request)):
        started = time.monotonic()
        with pytest.raises(ServerUnavailable):
            call()
        assert time.monotonic() - started < bound_s
    mortal_server.continue_signal()
    wait_until(lambda: sent(sink, request, receipts), "the same sink sends again")
    wait_until(lambda: applied(own_sink, receipts[-1]), "rows applied")
    sink.close()
    assert len(stored(own_sink, own_layout)) == len(ROWS)


def applied(sink: QuestdbSink, receipt: Receipt) -> bool:
    try:
        return all(sink.confirm([receipt]))
    except ServerUnavailable:
        return False


def test_a_server_killed_between_send_and_confirm(
    mortal_server: QuestDBServer, own_sink: QuestdbSink, own_layout: RecordLayout
) -> None:
    """After a kill -9 the receipt is confirmed by the server that came back; sent again, each row is there once."""
    for first_seq in range(0, 200, 20):
        request = own_sink.encode(batch_of(own_layout, ROWS, first_seq=first_seq))
        receipt = own_sink.send(request)
        own_sink.release(request)
    mortal_server.kill()
    with pytest.raises(ServerUnavailable):
        own_sink.confirm([receipt])
    mortal_server.start()
    wait_until(lambda: applied(own_sink, receipt), "rows applied after the restart")
    assert len(stored(own_sink, own_layout)) == 200
    deliver(own_sink, batch_of(own_layout, ROWS, first_seq=180))
    assert len(stored(own_sink, own_layout)) == 200


def test_encoding_goes_on_while_a_send_hangs(
    mortal_server: QuestDBServer, own_sink: QuestdbSink, own_settings: Settings, own_layout: RecordLayout
) -> None:
    """While one thread waits for a hanging server, another encodes: the request in flight keeps its rows."""
    rows = list(numbered(40))
    batch = batch_of(own_layout, rows)
    deliver(own_sink, batch.take(0, 1))
    sink = QuestdbSink(msgspec.structs.replace(own_settings, request_timeout_ms=2_000))
    first = sink.encode(batch.take(0, 20))
    mortal_server.stop_signal()
    failed: list[Exception] = []
    encoded: list[Request] = []

    def encoded_meanwhile() -> bool:
        """Whether the send lasted until the other request was encoded; not where this thread paused for seconds."""
        thread = threading.Thread(target=lambda: collect(failed, lambda: sink.send(first)))
        thread.start()
        encoded.append(sink.encode(batch.take(20, 40)))
        meanwhile = thread.is_alive()
        thread.join(timeout=60)
        if not meanwhile:
            sink.release(encoded.pop())
        return meanwhile

    wait_until(encoded_meanwhile, "encoded while a send hangs", 60)
    assert {type(error) for error in failed} == {ServerUnavailable}
    mortal_server.continue_signal()
    (second,) = encoded
    receipts: list[Receipt] = []
    wait_until(lambda: sent(sink, first, receipts) and sent(sink, second, receipts), "both sent")
    wait_until(lambda: applied(own_sink, receipts[-1]), "rows applied")
    sink.close()
    assert [row["text"] for row in stored(own_sink, own_layout)] == [row["text"] for row in rows]


def collect(failed: list[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except RinglogError as error:
        failed.append(error)


def sent(sink: QuestdbSink, request: Request, receipts: list[Receipt]) -> bool:
    try:
        receipts.append(sink.send(request))
    except ServerUnavailable:
        return False
    return True


class Answers(http.server.BaseHTTPRequestHandler):
    """What stands in the server's place when a proxy, another program or a broken server answers."""

    status = 500
    body = b"internal error"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@contextmanager
def answering(status: int, body: bytes) -> Iterator[int]:
    handler = type("Handler", (Answers,), {"status": status, "body": body})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"internal error"),
        (503, b""),
        (429, b"slow down"),
        (421, b'{"code":"not writable","message":"read-only"}'),
        (400, b"<html>a proxy's page</html>"),
        (204, b""),
        (200, b"not QuestDB at all"),
    ],
)
def test_34_another_answer_is_no_verdict_on_the_rows(
    settings: Settings, layout: RecordLayout, status: int, body: bytes
) -> None:
    """No answer but QuestDB's own "invalid" blames the rows, and a 2xx of something else is not taken for its ack.

    Defence: only QuestDB's own refusal blames rows.
    """
    with answering(status, body) as port:
        conf = f"http::addr=127.0.0.1:{port};"
        sink = QuestdbSink(msgspec.structs.replace(settings, questdb_client_conf=conf))
        with pytest.raises(ServerUnavailable):
            sink.send(sink.encode(batch_of(layout, ROWS)))
        sink.close()


def old_server(listener: socket.socket, build: str) -> None:
    """Just enough of the PostgreSQL wire to answer one query with one text."""

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("!i", len(body) + 4) + body

    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        ready = message(b"Z", b"I")
        connection.sendall(message(b"R", struct.pack("!i", 0)) + message(b"S", b"client_encoding\0UTF8\0") + ready)
        connection.recv(4096)
        field = b"build\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0)
        text = build.encode()
        connection.sendall(
            message(b"1", b"")
            + message(b"2", b"")
            + message(b"T", struct.pack("!h", 1) + field)
            + message(b"D", struct.pack("!hi", 1, len(text)) + text)
            + message(b"C", b"SELECT 1\0")
            + ready
        )
        connection.recv(4096)


@pytest.mark.parametrize("build", ["Build Information: QuestDB 9.2.1, JDK 17", "PostgreSQL 16.1 on x86_64"])
def test_a_server_that_is_too_old_is_refused(build: str) -> None:
    """A server below 9.2.2, or one that does not say it is QuestDB, is refused by name before anything else."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=old_server, args=(listener, build))
        thread.start()
        connection = Connection("127.0.0.1", listener.getsockname()[1], "admin", Secret("quest"), 15_000)
        with pytest.raises(ServerTooOld, match=r"got .*(QuestDB 9\.2\.1|PostgreSQL).* wanted QuestDB 9\.2\.2"):
            connection.execute("select 1")
        connection.close()
        thread.join()


@pytest.mark.parametrize(
    ("build", "taken"),
    [
        ("Build Information: QuestDB 9.2.2, JDK 24.0.2, Commit Hash 9ea", True),
        ("Build Information: QuestDB 10.0.0, JDK 25", True),
        ("Build Information: QuestDB Enterprise 9.3.4, JDK 25", True),
        ("Build Information: QuestDB 9.2.1, JDK 24", False),
        ("Build Information: QuestDB 8.3.3, JDK 24", False),
        ("", False),
    ],
)
def test_the_oldest_version_that_is_taken(build: str, taken: bool) -> None:
    """9.2.2 is the first version without the corruption of identical rewrites under DEDUP."""
    assert _is_new_enough(build) is taken
