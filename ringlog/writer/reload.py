"""Settings that a running writer takes over when it is told to read them again."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ringlog.settings import Secret, Settings

# The others decide what is open already (sockets, directories, threads) and need a restart, which loses nothing.
LIVE = frozenset(
    {
        "drain_interval_ms", "batch_rows_max", "high_water_ratio", "stop_timeout_ms", "confirm_timeout_ms",
        "spool_bytes_max", "disk_free_bytes_min", "alert_command",
    }
)  # fmt: skip


class Change(NamedTuple):
    """One setting that differs from what the writer runs with; texts as a log may show them."""

    name: str
    before: str
    after: str

    @property
    def is_live(self) -> bool:
        return self.name in LIVE

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.after}"


def changes(before: Settings, after: Settings) -> list[Change]:
    """What differs between two settings, in their order."""
    found = []
    for field in msgspec.structs.fields(Settings):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old != new:
            shown = ("a secret", "another one") if isinstance(old, Secret) else (repr(old), repr(new))
            found.append(Change(field.name, *shown))
    return found


def taken_over(before: Settings, after: Settings) -> Settings:
    """`before` with the live settings of `after`."""
    return msgspec.structs.replace(before, **{name: getattr(after, name) for name in LIVE})
