"""How long keys live, how long streams are and how often states are published, as the settings say."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ringlog.errors import ConfigurationError
from ringlog.settings import Settings, redis_out_of_bounds


class Limits(NamedTuple):
    """The settings `redis_*` of these names. All processes of an instance need the same ones."""

    fresh_ttl_ms: int
    last_ttl_s: int
    stream_entries_max: int
    seen_ttl_s: int
    tick_interval_ms: int

    @property
    def seen_members_max(self) -> int:
        """What a group remembers: twice what a stream can hold."""
        return 2 * self.stream_entries_max


def limits_of(settings: Settings) -> Limits:
    """Raises ConfigurationError that names each setting out of its bounds."""
    if wrong := "; ".join(redis_out_of_bounds(settings)):
        raise ConfigurationError(wrong)
    return Limits(*(getattr(settings, f"redis_{name}") for name in Limits._fields))


_defaults = {field.name: field.default for field in msgspec.structs.fields(Settings)}
DEFAULTS = Limits(*(_defaults[f"redis_{name}"] for name in Limits._fields))
