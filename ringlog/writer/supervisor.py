"""What the writer tells its supervisor, as sd_notify(3) of systemd describes it: one datagram for each state.

Own code, since the protocol is one `send`: the packages for it bind libsystemd, or have had no release for years.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

logger = logging.getLogger("ringlog.writer")

# systemd kills a service that is silent for WatchdogSec: three signs of life fit into it.
SIGNS_PER_WATCHDOG = 3


class Supervisor:
    """Who started the writer and wants to hear of it; with no `address` nobody does. Nothing here waits or raises."""

    def __init__(self, address: str = "", watchdog_seconds: float = 0.0) -> None:
        """`address`: a Unix datagram socket, an abstract one with a leading `@`. `watchdog_seconds` 0: no watchdog."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._interval = watchdog_seconds / SIGNS_PER_WATCHDOG
        self._sign_at = 0.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Supervisor:
        """From NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as systemd sets them for `Type=notify`."""
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):  # vsock, say: for virtual machines as a whole
            address = ""
        is_ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_us = environ.get("WATCHDOG_USEC", "0") if is_ours else "0"
        return cls(address, int(watchdog_us) / 1e6 if watchdog_us.isdecimal() else 0.0)

    def ready(self) -> None:
        """The writer holds the lease and drains; also the end of a reload."""
        self._send("READY=1")

    def alive(self) -> None:
        """A sign of life for the watchdog; call it freely."""
        now = time.monotonic()
        if self._interval and now >= self._sign_at:
            self._sign_at = now + self._interval
            self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """The settings are being read again; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The writer delivers what is in its lanes, and ends."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.setblocking(False)
                connection.sendto(state.encode(), self._address)
        except OSError as error:
            logger.warning("NOTIFY_SOCKET %r takes no %s: %s", self._address, state.partition("=")[0], error)
