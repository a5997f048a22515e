"""The questdb client's configuration string: the user's own (`QDB_CLIENT_CONF`), or one made of the settings."""

from __future__ import annotations

import base64
import re
from typing import NamedTuple

from ringlog.errors import ConfigurationError
from ringlog.settings import Secret, Settings
from ringlog.transport import is_loopback

# A pair of the string; a semicolon in a value is written twice.
_PAIR = re.compile(r"([A-Za-z0-9_]+)=((?:[^;]|;;)*)(?:;|$)")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%A-Za-z_-]+\]|[^\s:/@\[\]]+)(?::[0-9]+)?")
_CREDENTIALS = ("username", "password", "token")
# Options whose values may be shown. A name that is not among them may be a misspelt `password`.
_SHOWN = re.compile(
    r"addr|bind_interface|username|protocol_version|tls_(ca|roots|verify)|auto_flush\w*|(init|max)_(buf_size|name_len)"
    r"|re(quest|try)_\w+|auth_timeout"
)
_OTHER_SCHEMES = ("tcp", "tcps", "ws", "wss", "udp", "qwpws", "qwpwss", "HTTP", "HTTPS")
REDACTED = "[REDACTED]"


class ClientConf(NamedTuple):
    """A checked configuration string. `options` hold no secrets: their values are left out."""

    text: Secret
    source: str
    options: dict[str, str]
    secrets: tuple[Secret, ...] = ()
    is_encrypted: bool = False

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
        """`text`, which somebody else wrote, with every form of a secret masked."""
        user = self.options.get("username", "")
        forms = set()
        for secret in self.secrets:
            value = secret.reveal()
            basic = base64.b64encode(f"{user}:{value}".encode()).decode()
            forms |= {value, value.replace(";", ";;"), repr(value)[1:-1], basic}
        for form in sorted(forms - {""}, key=len, reverse=True):
            text = text.replace(form, REDACTED)
        return text

    def __repr__(self) -> str:
        return f"ClientConf({self.source}, {self.address})"


def client_conf(settings: Settings) -> ClientConf:
    """The configuration string of the settings; `questdb_client_conf` is taken as it is where it is given.

    Raises ConfigurationError for a transport other than HTTP, TLS that is not verified, and credentials that would
    travel in the clear.
    """
    source = "QDB_CLIENT_CONF" if settings.questdb_client_conf else "RINGLOG_QUESTDB_*"
    conf, wrong = _checked(source, settings.questdb_client_conf or _own(settings))
    if wrong:  # raised here, where no local variable holds a secret: a traceback may show them
        raise ConfigurationError(f"{source}: {wrong}")
    return conf


def _checked(source: str, secret: Secret) -> tuple[ClientConf, str]:
    """The string in parts, and what is wrong with it; that names nothing of the string which may be a secret."""
    scheme, separator, rest = secret.reveal().partition("::")
    pairs = [(name, value.replace(";;", ";")) for name, value in _PAIR.findall(rest)]
    options = {name: value if _SHOWN.fullmatch(name) else REDACTED for name, value in pairs}
    secrets = tuple(Secret(value) for name, value in pairs if not _SHOWN.fullmatch(name))
    if not _ADDRESS.fullmatch(options.get("addr", "")):
        options["addr"] = REDACTED
    conf = ClientConf(secret, source, options, secrets, scheme == "https")
    if not separator or scheme not in ("http", "https"):
        # The text before `::` may be anything, a secret too.
        got = f"scheme {scheme!r}" if scheme in _OTHER_SCHEMES else "another scheme" if separator else "no '::'"
        return conf, f"got {got}, wanted http::addr=host:port;... or https::..."
    if conf.address == REDACTED:
        return conf, "got an addr that is no host:port, wanted addr=host:port; (credentials are options of their own)"
    if options.get("tls_verify", "on") != "on":
        got = "unsafe_off" if options["tls_verify"] == "unsafe_off" else "another value"
        return conf, f"got tls_verify={got}, wanted on: it is never turned off"
    if scheme == "http" and any(name in options for name in _CREDENTIALS) and not is_loopback(conf.host):
        return conf, (
            f"got credentials over plain HTTP to {conf.host!r}, wanted https::addr={conf.address};... (tls_roots= "
            "names the file of an authority of your own), or a server of this machine at 127.0.0.1"
        )
    return conf, ""


def _own(settings: Settings) -> Secret:
    host = f"[{settings.questdb_host}]" if ":" in settings.questdb_host else settings.questdb_host
    conf = f"http::addr={host}:{settings.questdb_http_port};"
    if not settings.questdb_password:
        return Secret(conf)
    user = settings.questdb_user.replace(";", ";;")
    return Secret(f"{conf}username={user};password={settings.questdb_password.reveal().replace(';', ';;')};")
