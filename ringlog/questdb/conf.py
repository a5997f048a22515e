"""The questdb client's configuration string: the user's own (`QDB_CLIENT_CONF`), or one made of the settings."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from ringlog.errors import ConfigurationError
from ringlog.settings import Settings

# A pair of the string; a semicolon in a value is written twice.
_PAIR = re.compile(r"([A-Za-z0-9_]+)=((?:[^;]|;;)*)(?:;|$)")
_CREDENTIALS = ("username", "password", "token")
_SECRETS = ("password", "token", "tls_roots_password")


class ClientConf(NamedTuple):
    """A checked configuration string. It holds secrets: never show `text` or `options`."""

    text: str
    source: str
    options: dict[str, str]

    @property
    def address(self) -> str:
        return self.options.get("addr", "")

    @property
    def host(self) -> str:
        """The host of `addr` (`host`, `host:port` or `[v6]:port`)."""
        if self.address.startswith("["):
            return self.address[1 : self.address.index("]")]
        return self.address.rpartition(":")[0] or self.address

    @property
    def tls_roots(self) -> str:
        """The file of the authorities that are trusted; `system`, as libpq has it, for the machine's own."""
        return self.options.get("tls_roots") or "system"

    def without_secrets(self, text: str) -> str:
        for name in _SECRETS:
            if self.options.get(name):
                text = text.replace(self.options[name], "[REDACTED]")
        return text

    def __repr__(self) -> str:
        return f"ClientConf({self.source}, {self.address})"


def client_conf(settings: Settings) -> ClientConf:
    """The configuration string of the settings; `questdb_client_conf` is taken as it is where it is given.

    Raises ConfigurationError for a transport other than HTTP, TLS that is not verified, and credentials that would
    travel in the clear.
    """
    source = "QDB_CLIENT_CONF" if settings.questdb_client_conf else "RINGLOG_QUESTDB_*"
    text = settings.questdb_client_conf or _own(settings)
    scheme, separator, rest = text.partition("::")
    if not separator or scheme not in ("http", "https"):
        # The text before `::` may be anything, a secret too, where the separator is missing.
        got = f"scheme {scheme!r}" if separator else "no '::'"
        raise ConfigurationError(f"{source}: got {got}, wanted http::addr=host:port;... or https::...")
    options = {name: value.replace(";;", ";") for name, value in _PAIR.findall(rest)}
    conf = ClientConf(text, source, options)
    if options.get("tls_verify", "on") != "on":
        raise ConfigurationError(f"{source}: got tls_verify={options['tls_verify']}, wanted on: it is never turned off")
    if scheme == "http" and not is_loopback(conf.host) and any(name in options for name in _CREDENTIALS):
        raise ConfigurationError(f"{source}: got credentials over plain HTTP to {conf.host!r}, wanted https")
    return conf


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine itself: `localhost`, 127.0.0.0/8 or ::1."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _own(settings: Settings) -> str:
    host = f"[{settings.questdb_host}]" if ":" in settings.questdb_host else settings.questdb_host
    conf = f"http::addr={host}:{settings.questdb_http_port};"
    if not settings.questdb_password:
        return conf
    user = settings.questdb_user.replace(";", ";;")
    password = settings.questdb_password.reveal().replace(";", ";;")
    return f"{conf}username={user};password={password};"
