"""The other end of sd_notify: a real Unix datagram socket, as systemd holds one."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Self

DEADLINE_SECONDS = 30.0


class NotifySocket:
    """`next()` waits for the next state that a service sends; `until(word)` for one that begins with a word."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)

    def next(self, timeout_seconds: float = DEADLINE_SECONDS) -> str:
        """Raises TimeoutError where none comes."""
        self._socket.settimeout(timeout_seconds)
        return self._socket.recv(4096).decode()

    def until(self, word: str) -> list[str]:
        """All states up to the one that begins with `word`."""
        seen = [self.next()]
        while not seen[-1].startswith(word):
            seen.append(self.next())
        return seen

    def discard(self) -> None:
        """What has come so far is not looked at."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(4096)
        except BlockingIOError:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()
