"""How servers are reached: what is sent in the clear stays on this machine, everything else goes under verified TLS."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from typing import Literal

from ringlog.errors import ConfigurationError
from ringlog.settings import PREFIX, Settings


def is_loopback(host: str) -> bool:
    """Whether `host` can be nothing but this machine: 127.0.0.0/8, ::1, or `localhost` that resolves to such alone.

    No other name is: what it resolves to now says nothing of the next time, and an answer of DNS is anybody's.
    """
    if host.lower() == "localhost":
        try:
            found = {str(each[4][0]) for each in socket.getaddrinfo(host, None)}
        except OSError:
            return True  # nobody can connect to it either
        return all(map(_is_loopback_address, found))
    return _is_loopback_address(host)


def is_local(hosts: str) -> bool:
    """Whether all of `hosts` (separated by commas, as libpq has it) are loopback or the path of a unix socket."""
    return all(host.startswith("/") or is_loopback(host) for host in hosts.split(","))


def _is_loopback_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def is_encrypted(settings: Settings, server: Literal["postgres", "redis"]) -> bool:
    """Whether TLS is spoken to a server: by default wherever it is not on this machine.

    Raises ConfigurationError where a password would travel in the clear, and for a file of authorities that is none.
    """
    host, tls, roots = (getattr(settings, f"{server}_{part}") for part in ("host", "tls", "tls_roots"))
    prefix = f"{PREFIX}{server.upper()}"
    if roots:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(roots)
        except (OSError, ValueError) as error:  # ssl's own errors are OSErrors
            reason = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else "no PEM"
            raise ConfigurationError(
                f"{prefix}_TLS_ROOTS: got {roots!r}, wanted a readable PEM file ({reason})"
            ) from None
    if tls != "auto":
        if tls == "off" and getattr(settings, f"{server}_password") and not is_local(host):
            raise ConfigurationError(
                f"{prefix}_TLS: got off with a password for {host!r}, wanted auto or on: a password is sent in the "
                f"clear to this machine alone (127.0.0.1, or a unix socket); {prefix}_TLS_ROOTS names the file of an "
                "authority of your own"
            )
        return bool(tls == "on")
    return not is_local(host)


def untrusted(reason: str, settings: Settings, server: Literal["postgres", "redis"]) -> str:
    """What to do about a handshake that failed for `reason`, the words of OpenSSL or libpq; empty for other trouble."""
    prefix = f"{PREFIX}{server.upper()}"
    low = reason.lower()
    if any(words in low for words in ("does not support ssl", "wrong version number", "record layer failure")):
        return f"got no TLS from it, wanted TLS ({prefix}_TLS=off for a server without, which then takes no password)"
    if "certificate" in low and ("verify failed" in low or "does not match" in low):
        roots = getattr(settings, f"{server}_tls_roots")
        by = (
            f"the authorities in {roots!r} ({prefix}_TLS_ROOTS)"
            if roots
            else f"this machine ({prefix}_TLS_ROOTS empty)"
        )
        host = getattr(settings, f"{server}_host")
        return f"got a certificate that does not hold, wanted a valid one for {host!r} that is trusted by {by}"
    return ""
