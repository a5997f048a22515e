"""The ring: which implementation runs is decided here and nowhere else.

`RINGLOG_RING=c` or `python` forces one; otherwise the C ring runs where it was built, the Python ring elsewhere.
"""

from __future__ import annotations

import importlib
import os
import sysconfig
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringlog.errors import ConfigurationError, RecordError
from ringlog.layout import REFUSED_WORDS
from ringlog.records import Field, Kind, RecordLayout
from ringlog.shielded_logger import ShieldedLogger

logger = ShieldedLogger("ringlog.ring")


# How much longer an append of the Python ring takes: about 2.6 us for a trade, against 0.2 us.
PYTHON_RING_TIMES = 13


def _chosen() -> tuple[Any, str, str]:
    """The implementation, its name, and why it is not the C ring although nobody forced that: "" where it is or was."""
    wanted = os.environ.get("RINGLOG_RING", "")
    if wanted not in ("", "c", "python"):
        raise ConfigurationError(f"RINGLOG_RING: got {wanted!r}, wanted 'c', 'python' or nothing")
    missing = ""
    if wanted != "python":
        try:
            _ring = importlib.import_module("ringlog._ring")
        except ImportError as error:
            missing = str(error)
            if wanted == "c":
                raise ConfigurationError(
                    f"RINGLOG_RING: got 'c', but the C ring was not built here ({error})"
                ) from None
        else:
            return _ring, "c", ""
    from ringlog import _ring_python

    return _ring_python, "python", "" if wanted else missing


_implementation, IMPLEMENTATION, MISSING_C = _chosen()
logger.debug("ring implementation=%s", IMPLEMENTATION)

if TYPE_CHECKING:
    from ringlog._ring_python import Appender, Ring, load, store
else:
    Ring = _implementation.Ring
    Appender = _implementation.Appender
    load = _implementation.load
    store = _implementation.store


__all__ = ["IMPLEMENTATION", "MISSING_C", "Ring", "advice", "load", "new_appender", "new_ring", "store", "told"]


def told() -> str:
    """Which ring this interpreter runs, in words for a person."""
    if IMPLEMENTATION == "c":
        return "C ring"
    if not MISSING_C:
        return "Python ring (RINGLOG_RING=python)"
    return f"Python ring, whose appends take about {PYTHON_RING_TIMES} times as long as the C ring's ({MISSING_C})"


def advice() -> str:
    """How to get the C ring where it was not built; "" where nothing is amiss."""
    if not MISSING_C:
        return ""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "use an interpreter with the GIL (free-threaded ones have no C ring), or set RINGLOG_RING=python"
    return (
        "install gcc or clang and Python's headers (Debian: gcc and python3-dev), then ringlog again with pip's "
        "--force-reinstall --no-deps --no-cache-dir; or set RINGLOG_RING=python, if that ring is meant"
    )


def new_ring(
    layout: RecordLayout,
    coerce: Callable[..., Any],
    recover: Callable[[], Any],
    invalid: Callable[[RecordError], bool] | None = None,
) -> Ring:
    """A producer's ring for records of `layout`, not yet attached to a lane.

    `coerce(index, value)` makes a value exact or raises; `recover()` is called where no lane can be written: it
    attaches one and returns True, or returns the Refused reason. `invalid(error)` is told what coerce raised, once it
    was counted, and says whether the append returns False instead of raising it.
    """
    fields = tuple(_description(field) for field in layout.fields)
    return Ring(fields, layout.slot_bytes, REFUSED_WORDS, coerce, recover, invalid)


def new_appender(ring: Ring, presets: dict[str, Any], defaults: dict[str, Any]) -> Callable[..., bool]:
    """append(*fields, timestamp=None) -> bool, for the fields that are not preset, in their order; the time by name."""
    return Appender(Ring, ring, presets, defaults).append


def _description(field: Field) -> tuple[Any, ...]:
    limits: tuple[Any, Any] = (0, 0)
    if field.kind in (Kind.DOUBLE, Kind.LONG):
        limits = (field.minimum, field.maximum)
    return (
        field.name,
        int(field.kind),
        field.offset,
        field.width_bytes,
        field.nullable,
        *limits,
        field.choices,
    )
