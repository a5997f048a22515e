"""The questdb client's sender over HTTP: opened from the settings, with every wait bounded and secrets kept in."""

from __future__ import annotations

import json
import re
from typing import Any

from questdb import QuestDBError, QuestDBErrorCode, Sender

from ringlog.errors import ConfigurationError, RinglogError, ServerRefused, ServerUnavailable
from ringlog.questdb.connection import is_loopback
from ringlog.settings import Settings

# 2: doubles travel as their eight bytes, so every finite value arrives unchanged.
PROTOCOL_VERSION = 2
# A pair of a configuration string; a semicolon in a value is written twice.
_PAIR = re.compile(r"([A-Za-z0-9_]+)=((?:[^;]|;;)*)(?:;|$)")
_CREDENTIALS = ("username", "password", "token")


def open_sender(settings: Settings) -> Sender:
    """A sender that is ready; nothing is sent yet, and the server need not be up.

    `questdb_client_conf` is taken as it is; what it leaves open is set so that no call waits longer than
    `request_timeout_ms` (about three times that for a body of 10 MB) and nothing is retried inside.
    Raises ConfigurationError, without the string's secrets in it.
    """
    conf = settings.questdb_client_conf or _own_conf(settings)
    source = "QDB_CLIENT_CONF" if settings.questdb_client_conf else "RINGLOG_QUESTDB_*"
    scheme, options = parse_conf(conf)
    if scheme not in ("http", "https"):
        raise ConfigurationError(f"{source}: got scheme {scheme!r}, wanted http or https")
    if options.get("tls_verify", "on") != "on":
        raise ConfigurationError(f"{source}: got tls_verify={options['tls_verify']}, wanted on: it is never turned off")
    host = host_of(options)
    if scheme == "http" and not is_loopback(host) and any(name in options for name in _CREDENTIALS):
        raise ConfigurationError(f"{source}: got credentials over plain HTTP to {host!r}, wanted https")
    wanted: dict[str, Any] = {
        "auto_flush": False,
        "protocol_version": PROTOCOL_VERSION,
        "request_min_throughput": 0,
        "request_timeout": settings.request_timeout_ms,
        "retry_timeout": 0,
    }
    try:
        sender = Sender.from_conf(conf, **{name: value for name, value in wanted.items() if name not in options})
        sender.establish()  # type: ignore[no-untyped-call]
    except (QuestDBError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{source}: {without_secrets(str(error), options)}") from None
    return sender


def parse_conf(conf: str) -> tuple[str, dict[str, str]]:
    """Scheme and options of a configuration string; ConfigurationError where it is none."""
    scheme, separator, rest = conf.partition("::")
    if not separator:
        raise ConfigurationError("QDB_CLIENT_CONF: got no '::', wanted schema::key=value;...")
    return scheme, {name: value.replace(";;", ";") for name, value in _PAIR.findall(rest)}


def host_of(options: dict[str, str]) -> str:
    """The host of the option `addr` (`host`, `host:port` or `[v6]:port`)."""
    address = options.get("addr", "")
    return address[: address.index("]") + 1] if address.startswith("[") else address.rpartition(":")[0] or address


def mapped(error: QuestDBError, options: dict[str, str]) -> RinglogError:
    """The error of a flush as one of ours.

    Only an answer in QuestDB's own form which calls the request invalid is ServerRefused. Everything else may pass
    with time: no connection, a timeout, wrong credentials, read-only, overloaded, a proxy's page.
    """
    text = without_secrets(str(error).removeprefix("Could not flush buffer: "), options)
    if error.code is QuestDBErrorCode.ServerFlushError:
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and answer.get("code") == "invalid":
            return ServerRefused(f"QuestDB refused the request: {answer.get('message', text)}")
    return ServerUnavailable(f"QuestDB at {options.get('addr')}: {text.strip()}")


def without_secrets(text: str, options: dict[str, str]) -> str:
    for name in ("password", "token", "tls_roots_password"):
        if options.get(name):
            text = text.replace(options[name], "[REDACTED]")
    return text


def _own_conf(settings: Settings) -> str:
    conf = f"http::addr={settings.questdb_host}:{settings.questdb_http_port};"
    if not settings.questdb_password:
        return conf
    user = settings.questdb_user.replace(";", ";;")
    password = settings.questdb_password.reveal().replace(";", ";;")
    return f"{conf}username={user};password={password};"
