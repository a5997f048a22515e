"""A TCP proxy before a real server, with the faults of a network and of what may stand in a server's place."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close sends RST

Fault = Callable[["Connection"], None]


class Connection:
    """One connection through the proxy: what a fault may do with it."""

    def __init__(self, client: socket.socket, port: int) -> None:
        self.client = client
        self.port = port
        self.server: socket.socket | None = None

    def connect(self) -> socket.socket:
        if self.server is None:
            self.server = socket.create_connection(("127.0.0.1", self.port))
        return self.server

    def reset(self) -> None:
        for end in (self.client, self.server):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    def close(self) -> None:
        for end in (self.client, self.server):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def request(self) -> bytes:
        """One whole HTTP request, as far as its headers say; b"" at the end."""
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.client.recv(65_536)
            if not part:
                return b""
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        while len(body) < length:
            part = self.client.recv(65_536)
            if not part:
                return b""
            body += part
        return head + b"\r\n\r\n" + body

    def pump(self) -> None:
        """Passes everything on, both ways, until one end closes."""
        server = self.connect()
        back = threading.Thread(target=_copy, args=(server, self.client), daemon=True)
        back.start()
        _copy(self.client, server)
        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def passed(connection: Connection) -> None:
    """No fault."""
    connection.pump()


def reset_in_the_middle(connection: Connection) -> None:
    """Half of the first request reaches the server, then both ends get an RST."""
    request = connection.request()
    if request:
        connection.connect().sendall(request[: len(request) // 2])
    connection.reset()


def lost_reply(connection: Connection) -> None:
    """The whole request is taken and answered by the server, but the client gets an RST instead of the answer."""
    request = connection.request()
    if request:
        server = connection.connect()
        server.sendall(request)
        server.recv(65_536)
    connection.reset()


def blackhole(connection: Connection) -> None:
    """Everything is taken and nothing is ever answered: what a half-open connection looks like."""
    with contextlib.suppress(OSError):
        while connection.client.recv(65_536):
            pass
    connection.close()


def slow(seconds: float) -> Fault:
    """Answers come so much later than the server gives them."""

    def fault(connection: Connection) -> None:
        while request := connection.request():
            server = connection.connect()
            server.sendall(request)
            answer = server.recv(65_536)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                time.sleep(0.01)
            connection.client.sendall(answer)
        connection.close()

    return fault


def answering(*chunks: bytes) -> Fault:
    """These bytes are the answer to every request, whatever it is, and the end of its connection."""

    def fault(connection: Connection) -> None:
        if connection.request():
            for chunk in chunks:
                connection.client.sendall(chunk)
        connection.close()

    return fault


def endless(connection: Connection) -> None:
    """The answer to a request has a header and a body that never ends."""
    if connection.request():
        connection.client.sendall(b"HTTP/1.1 500 Internal Server Error\r\n\r\n")
        while True:
            connection.client.sendall(b"x" * 1024)
            time.sleep(0.01)


class TcpProxy:
    """`port` leads to `target_port` through `fault`, which may be changed for connections made from then on.

    Changing it resets those that are open. `hits` counts connections that met a fault. With `tls` clients speak TLS,
    as to a PostgreSQL server with `is_postgres`.
    """

    def __init__(self, target_port: int, tls: ssl.SSLContext | None = None, *, is_postgres: bool = False) -> None:
        self._target_port = target_port
        self._is_postgres = is_postgres
        self._tls = tls
        self._fault: Fault = passed
        self._open: set[Connection] = set()
        self._lock = threading.Lock()
        self.hits = 0
        self.served = 0
        self.refused = 0  # TLS handshakes that the client broke off
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def inject(self, fault: Fault) -> None:
        with self._lock:  # with it: a connection under the fault before is one that is reset
            self._fault = fault
            for connection in list(self._open):
                connection.reset()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self._tls is not None:
            try:
                if self._is_postgres:
                    client.recv(8)  # the client's SSLRequest
                    client.sendall(b"S")
                client = self._tls.wrap_socket(client, server_side=True)
            except OSError:
                with self._lock:
                    self.refused += 1
                client.close()
                return
        connection = Connection(client, self._target_port)
        with self._lock:
            fault = self._fault
            self.served += 1
            self._open.add(connection)
            self.hits += fault is not passed
        with contextlib.suppress(OSError):
            fault(connection)
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.inject(passed)


@contextlib.contextmanager
def proxied(port: int, tls: ssl.SSLContext | None = None, *, is_postgres: bool = False) -> Iterator[TcpProxy]:
    proxy = TcpProxy(port, tls, is_postgres=is_postgres)
    try:
        yield proxy
    finally:
        proxy.close()
