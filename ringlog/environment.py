"""The environment of programs that ringlog starts: what they need to run, and no secret of this process."""

from __future__ import annotations

import os

# Where programs, libraries, homes and sockets are, and how text and time are written.
_KEPT = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR", "PYTHONPATH",
        "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
        "DBUS_SESSION_BUS_ADDRESS", "JDK_JAVA_OPTIONS", "JAVA_TOOL_OPTIONS", "RINGLOG_RING",
    }
)  # fmt: skip
_KEPT_PREFIXES = ("LC_", "XDG_")


def child_environment() -> dict[str, str]:
    """Named variables alone are passed on: which of the others is a secret, nobody can tell by its name."""
    return {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
