"""Every option, read from the environment in one place.

An option `lane_bytes_max` is set by `RINGLOG_LANE_BYTES_MAX`. A secret may instead be named by a file:
`RINGLOG_POSTGRES_PASSWORD_FILE=/run/secrets/postgres`. Secrets mask themselves wherever they are shown.
`RINGLOG_SETTINGS_FILE` may name a file of such variables, a line each, which a writer can be told to read again.
Flags of the command line go over the environment, the environment over that file, the file over the defaults below.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from ringlog.errors import ConfigurationError
from ringlog.naming import nearest

PREFIX = "RINGLOG_"
Tls = Literal["auto", "on", "off"]  # auto: on, verified, unless the server is on this machine


class Secret:
    """A text that shows as `[REDACTED]` in repr, str, format and logs; `reveal()` gives it up."""

    __slots__ = ("_text",)

    def __init__(self, text: str | Secret = "") -> None:
        self._text: str = text._text if isinstance(text, Secret) else text

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


SPOOL_NAME = "spool"


def _default_runtime_dir() -> str:
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.access(base, os.W_OK):
        return str(Path(base) / "ringlog")
    return str(Path(tempfile.gettempdir()) / f"ringlog-{os.getuid()}")


def _default_runtime_dirs() -> set[str]:
    """What is the default for this user in one environment or another: cron knows no XDG_RUNTIME_DIR, say."""
    temporary = Path(tempfile.gettempdir()) / f"ringlog-{os.getuid()}"
    return {_default_runtime_dir(), str(temporary), f"/run/user/{os.getuid()}/ringlog"}


def _state_dir() -> Path:
    """`$XDG_STATE_HOME`, which must be absolute to count, else ~/.local/state."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if base.startswith("/"):
        return Path(base)
    home = os.path.expanduser("~")  # Path.home() raises RuntimeError where there is none
    if not home.startswith("/"):
        wanted = "a directory on disk for the spool: set RINGLOG_SPOOL_DIR or XDG_STATE_HOME"
        raise ConfigurationError(f"HOME: got {home!r} for uid {os.getuid()}, wanted {wanted}")
    return Path(home) / ".local" / "state"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All options with their defaults; times and sizes carry their unit in the name."""

    # The instance: lanes, locks and lease live under runtime_dir, the disk queue under spool_dir.
    runtime_dir: str = msgspec.field(default_factory=_default_runtime_dir)
    spool_dir: str = ""  # empty: see `spool_path`

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
    # Run with resource, level and text as its last arguments when one of them changes; it may hold a webhook's token.
    alert_command: Secret = Secret()

    # QuestDB: client_conf is a QDB_CLIENT_CONF string, taken unchanged; it may hold a password or token
    questdb_client_conf: Secret = Secret()
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
    postgres_tls: Tls = "auto"
    postgres_tls_roots: str = ""  # a file of trusted authorities; empty: the machine's
    postgres_pool_size_max: int = 20
    postgres_timeout_ms: int = 5_000
    postgres_prepare_threshold: int = 5  # executions after which a statement is prepared; 0: never
    postgres_retry_timeout_ms: int = 10_000  # how long a call is tried again while PostgreSQL is away; 0: not at all

    # Redis
    redis_sink: bool = False  # the writer also publishes trades and latest prices to Redis
    redis_host: str = "127.0.0.1"
    redis_port: int = 6379
    redis_user: str = ""
    redis_password: Secret = Secret()
    redis_tls: Tls = "auto"
    redis_tls_roots: str = ""
    redis_key_prefix: str = ""
    redis_timeout_ms: int = 1_000
    redis_retry_timeout_ms: int = 5_000  # how long a call is tried again while Redis is away; 0: not at all
    redis_fresh_ttl_ms: int = 2_000  # of prices and pools, counted from the observation
    redis_last_ttl_s: int = 3_600  # how long the last value is remembered after it has gone stale
    redis_stream_entries_max: int = 10_000
    redis_seen_ttl_s: int = 86_400  # of a group's memory of (lane, seq), renewed by every read that delivers
    redis_tick_interval_ms: int = 100  # of publishers

    def __post_init__(self) -> None:
        """Masks a secret that was given as a plain str. Raises ConfigurationError for a URL in place of a host."""
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            if field.type is Secret and not isinstance(value, Secret):
                msgspec.structs.force_setattr(self, field.name, Secret(value))
            elif field.name.endswith(_PLAIN_NAMES) and (
                "://" in value or ("@" in value[1:] and field.name.endswith("_host"))
            ):
                # A traceback may show this object, and the URL's password with it.
                msgspec.structs.force_setattr(self, field.name, "[REDACTED]")
                variable = f"{PREFIX}{field.name.upper()}"
                part = field.name.rpartition("_")[2]
                raise ConfigurationError(
                    f"{variable}: got a URL or an @, wanted the {part} alone: port, user, password and database have "
                    "settings of their own"
                )

    @property
    def spool_path(self) -> Path:
        """`spool_dir`; else where a writer left the way to it below the runtime directory; else `default_spool_path`.

        Raises ConfigurationError where that is needed and there is no home directory.
        """
        if self.spool_dir:
            return Path(self.spool_dir)
        below = Path(self.runtime_dir) / SPOOL_NAME
        try:
            status = below.lstat()
        except OSError:
            return self.default_spool_path
        if stat.S_ISLNK(status.st_mode) and status.st_uid == os.geteuid():
            return Path(os.readlink(below))
        return below

    @property
    def default_spool_path(self) -> Path:
        """Below a runtime directory that was chosen; else on disk, for the default one may lie in memory."""
        if self.runtime_dir not in _default_runtime_dirs():
            return Path(self.runtime_dir) / SPOOL_NAME
        digest = hashlib.sha256(os.fsencode(Path(self.runtime_dir).absolute())).hexdigest()[:8]
        return _state_dir() / "ringlog" / f"{SPOOL_NAME}-{digest}"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **flags: Any) -> Settings:
        """Settings from `RINGLOG_*` variables, with `flags` (those that are not None) over them.

        Raises ConfigurationError for an unknown `RINGLOG_*` variable, a value of the wrong type, or a settings file
        that cannot be read.
        """
        try:
            values, wrong = _values(_variables(environ)), ""
        except ConfigurationError as error:
            wrong = str(error)
        del environ  # a traceback may show the locals of a frame: none that an error passes through holds a secret
        if wrong:
            raise ConfigurationError(wrong)
        values.update({name: value for name, value in flags.items() if value is not None})
        return cls(**values)

    def save(self, path: Path) -> None:
        """Writes a settings file, for its owner alone, that gives another process these settings, secrets and all.

        Raises ConfigurationError for a value of more than one line, which such a file cannot hold.
        """
        lines = []
        for name in self.__struct_fields__:
            value = getattr(self, name)
            text = value.reveal() if isinstance(value, Secret) else str(value)
            if "\n" in text:
                raise ConfigurationError(f"{PREFIX}{name.upper()}: got more than one line, wanted one")
            if text:
                lines.append(f"{PREFIX}{name.upper()}={shlex.quote(text)}\n")
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(lines)
        os.replace(temporary, path)

    def to_environment(self) -> dict[str, str]:
        """The `RINGLOG_*` variables that give another process these settings, secrets revealed; empty ones left out.

        A process's environment is inherited by all that it starts: for other programs `save` is better.
        """
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {
            f"{PREFIX}{name.upper()}": value.reveal() if isinstance(value, Secret) else str(value)
            for name, value in values.items()
            if value not in ("", Secret())
        }


# The least and the most; a stream of a million entries has some GB.
REDIS_BOUNDS = {
    "redis_fresh_ttl_ms": (1, 86_400_000),
    "redis_last_ttl_s": (1, 31_536_000),
    "redis_stream_entries_max": (1, 1_000_000),
    "redis_seen_ttl_s": (1, 31_536_000),
    "redis_tick_interval_ms": (10, 60_000),
}

# Read elsewhere: which ring implementation runs must be known before any settings object exists.
SETTINGS_FILE = "RINGLOG_SETTINGS_FILE"
NOT_SETTINGS = frozenset({"RINGLOG_RING", SETTINGS_FILE})


def redis_out_of_bounds(settings: Settings) -> Iterator[str]:
    """What `validate` and every connection refuse, since it would else be noticed first by those who read."""
    for name, (least, most) in REDIS_BOUNDS.items():
        if not least <= (value := getattr(settings, name)) <= most:
            yield f"{PREFIX}{name.upper()}: got {value}, wanted {least} to {most}"
    fresh_ms, last_s = settings.redis_fresh_ttl_ms, settings.redis_last_ttl_s
    if last_s * 1_000 < fresh_ms:
        yield f"{PREFIX}REDIS_LAST_TTL_S: got {last_s}, wanted no less than RINGLOG_REDIS_FRESH_TTL_MS ({fresh_ms} ms)"


# Settings that errors show, and that must not be URLs: those may hold a password.
_PLAIN_NAMES = ("_host", "_user", "_database")


def variable_names(environ: Mapping[str, str] | None = None) -> frozenset[str]:
    """Names of what is set in the environment, or in the file that it names as RINGLOG_SETTINGS_FILE.

    Raises ConfigurationError naming file and line; never what stands in the line, which may be a secret.
    """
    try:
        return frozenset(_variables(environ))
    except ConfigurationError as error:
        wrong = str(error)
    del environ
    raise ConfigurationError(wrong)


def _variables(environ: Mapping[str, str] | None) -> dict[str, str]:
    """The environment, over what its settings file sets.

    A line of the file is `RINGLOG_NAME=value`, quoted as in a shell, or a comment after `#`.
    """
    environ = os.environ if environ is None else environ
    path = environ.get(SETTINGS_FILE, "")
    if not path:
        return dict(environ)
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # splitlines() would split at more than that
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


def _values(environ: Mapping[str, str]) -> dict[str, Any]:
    fields = {field.name: field for field in msgspec.structs.fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name.endswith("_file") and name.removesuffix("_file") in fields:
            name, text = name.removesuffix("_file"), _read_secret(variable, text)
        if name not in fields:
            raise ConfigurationError(_unknown(variable, fields))
        values[name] = _converted(variable, text, fields[name].type)
    values.setdefault("questdb_client_conf", Secret(environ.get("QDB_CLIENT_CONF", "")))
    return values


def _unknown(variable: str, fields: Mapping[str, Any]) -> str:
    files = [f"{name}_file" for name, field in fields.items() if field.type is Secret]
    others = [name.removeprefix(PREFIX) for name in NOT_SETTINGS]
    near = nearest(variable.removeprefix(PREFIX), [*(name.upper() for name in (*fields, *files)), *others])
    hint = f", did you mean {PREFIX}{near}?" if near else ": docs/operations.md lists all options"
    return f"{variable}: got an unknown option{hint}"


def _read_secret(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"{variable}: got {path!r}, wanted a readable file ({reason})") from None


def _converted(variable: str, text: str, wanted: Any) -> Any:
    if wanted is Secret:
        return Secret(text)
    try:
        return msgspec.convert(text, wanted, strict=False)
    except msgspec.ValidationError:
        raise ConfigurationError(f"{variable}: got {text!r}, wanted {type_name(wanted)}") from None


def type_name(wanted: Any) -> str:
    """A setting's type for a person."""
    return " or ".join(map(str, get_args(wanted))) or str(wanted.__name__)
