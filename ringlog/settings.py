"""Every option, read from the environment in one place.

An option `lane_bytes_max` is set by `RINGLOG_LANE_BYTES_MAX`. A secret may instead be named by a file:
`RINGLOG_POSTGRES_PASSWORD_FILE=/run/secrets/postgres`. Secrets mask themselves wherever they are shown.
`RINGLOG_SETTINGS_FILE` may name a file of such variables, a line each, which a writer can be told to read again.
Flags of the command line go over the environment, the environment over that file, the file over the defaults below.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ringlog.errors import ConfigurationError

PREFIX = "RINGLOG_"


class Secret:
    """A text that shows as `[REDACTED]` in repr, str, format and logs; `reveal()` gives it up."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "[REDACTED]" if self._text else "[EMPTY]"

    def __reduce__(self) -> Any:
        raise TypeError("a Secret is not pickled: read the settings again where they are needed")


def _default_runtime_dir() -> str:
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.access(base, os.W_OK):
        return str(Path(base) / "ringlog")
    return str(Path(tempfile.gettempdir()) / f"ringlog-{os.getuid()}")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All options with their defaults; times and sizes carry their unit in the name."""

    # The instance: lanes, locks, lease and board live under runtime_dir, the disk queue under spool_dir.
    runtime_dir: str = msgspec.field(default_factory=_default_runtime_dir)
    spool_dir: str = ""  # empty: `spool` below runtime_dir

    # Lanes
    lane_bytes_max: int = 64 * 1024 * 1024  # all lanes of the instance together
    lane_linger_ms: int = 1_000  # how long an adopted lane's head must stand still before it is unlinked

    # Writer
    drain_interval_ms: int = 100
    batch_rows_max: int = 20_000
    high_water_ratio: float = 0.5
    stop_timeout_ms: int = 5_000
    request_timeout_ms: int = 1_000
    confirm_timeout_ms: int = 5_000

    metrics_port: int = 0  # the writer serves Prometheus metrics on this port of 127.0.0.1; 0: not at all

    # Spool and pressure
    spool_bytes_max: int = 4 * 1024 * 1024 * 1024
    disk_free_bytes_min: int = 256 * 1024 * 1024
    alert_command: str = ""  # run with resource, level and text as its last arguments when one of them changes

    # QuestDB: client_conf is a QDB_CLIENT_CONF string, taken unchanged
    questdb_client_conf: str = ""
    questdb_host: str = "127.0.0.1"
    questdb_http_port: int = 9000
    questdb_pg_port: int = 8812
    questdb_data_dir: str = ""  # where the server is local: its disk is watched too
    questdb_user: str = "admin"
    questdb_password: Secret = Secret()
    query_pool_size_min: int = 5
    query_pool_size_max: int = 10
    query_timeout_ms: int = 5_000
    retention_days: int = 30  # 0: the writer runs no retention, and stores records of any age
    retention_hour: int = -1  # UTC hour at which the daily run may begin; -1: the quietest hours of the day before

    # PostgreSQL
    postgres_host: str = "127.0.0.1"
    postgres_port: int = 5432
    postgres_database: str = "ringlog"
    postgres_user: str = "ringlog"
    postgres_password: Secret = Secret()
    postgres_pool_size_max: int = 20
    postgres_timeout_ms: int = 5_000
    postgres_retry_timeout_ms: int = 10_000  # how long a call is tried again while PostgreSQL is away; 0: not at all

    # Redis
    redis_sink: bool = False  # the writer also publishes trades and latest prices to Redis
    redis_host: str = "127.0.0.1"
    redis_port: int = 6379
    redis_user: str = ""
    redis_password: Secret = Secret()
    redis_key_prefix: str = ""
    redis_timeout_ms: int = 1_000
    redis_retry_timeout_ms: int = 5_000  # how long a call is tried again while Redis is away; 0: not at all

    @property
    def spool_path(self) -> Path:
        return Path(self.spool_dir) if self.spool_dir else Path(self.runtime_dir) / "spool"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **flags: Any) -> Settings:
        """Settings from `RINGLOG_*` variables, with `flags` (those that are not None) over them.

        Raises ConfigurationError for an unknown `RINGLOG_*` variable, a value of the wrong type, or a settings file
        that cannot be read.
        """
        environ = variables(environ)
        fields = {field.name: field for field in msgspec.structs.fields(cls)}
        values: dict[str, Any] = {}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
                continue
            name = variable.removeprefix(PREFIX).lower()
            if name.endswith("_file") and name.removesuffix("_file") in fields:
                name, text = name.removesuffix("_file"), _read_secret(variable, text)
            if name not in fields:
                raise ConfigurationError(f"{variable}: got an unknown option, wanted one of {_options(fields)}")
            values[name] = _converted(variable, text, fields[name].type)
        values.setdefault("questdb_client_conf", environ.get("QDB_CLIENT_CONF", ""))
        values.update({name: value for name, value in flags.items() if value is not None})
        return cls(**values)

    def to_environment(self) -> dict[str, str]:
        """The `RINGLOG_*` variables that give another process these settings, secrets revealed; empty ones left out."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {
            f"{PREFIX}{name.upper()}": value.reveal() if isinstance(value, Secret) else str(value)
            for name, value in values.items()
            if value not in ("", Secret())
        }


# Read elsewhere: which ring implementation runs must be known before any settings object exists.
SETTINGS_FILE = "RINGLOG_SETTINGS_FILE"
NOT_SETTINGS = frozenset({"RINGLOG_RING", SETTINGS_FILE})


def variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment, over what the file that it names as RINGLOG_SETTINGS_FILE sets.

    A line of the file is `RINGLOG_NAME=value`, quoted as in a shell, or a comment after `#`. Raises ConfigurationError
    naming file and line; never what stands in the line, which may be a secret.
    """
    environ = os.environ if environ is None else environ
    path = environ.get(SETTINGS_FILE, "")
    if not path:
        return dict(environ)
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"{SETTINGS_FILE}: got {path!r}, wanted a readable file ({reason})") from None
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            words = ["an open quote"]
        if not words:
            continue
        name, equals, value = words[0].partition("=")
        is_setting = name.startswith(PREFIX) and name not in NOT_SETTINGS
        if len(words) != 1 or not equals or not (is_setting or name == "QDB_CLIENT_CONF"):
            raise ConfigurationError(f"{path} line {number}: got no RINGLOG_NAME=value, wanted one (quote a space)")
        found[name] = value
    return {**found, **environ}


def _options(fields: Mapping[str, Any]) -> str:
    return ", ".join(sorted(PREFIX + name.upper() for name in fields))


def _read_secret(variable: str, path: str) -> str:
    try:
        return Path(path).read_text().rstrip("\n")
    except OSError as error:
        raise ConfigurationError(f"{variable}: got {path!r}, wanted a readable file ({error.strerror})") from None


def _converted(variable: str, text: str, wanted: Any) -> Any:
    if wanted is Secret:
        return Secret(text)
    try:
        return msgspec.convert(text, wanted, strict=False)
    except msgspec.ValidationError:
        raise ConfigurationError(f"{variable}: got {text!r}, wanted {wanted.__name__}") from None
