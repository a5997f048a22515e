"""ringlog: records from latency-sensitive processes into QuestDB, exactly once, without making them wait."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringlog.arrays import rows_of
    from ringlog.producer import Appender, AsyncProducer, Producer
    from ringlog.questdb.async_queries import AsyncQueries
    from ringlog.questdb.filters import TradeFilter
    from ringlog.questdb.queries import Queries
    from ringlog.records import LatencySample, MevMetric, PerformanceMetric, Position, Record, Trade
    from ringlog.settings import Settings

__version__ = "0.1.0"

logging.getLogger("ringlog").addHandler(logging.NullHandler())

# Loaded on first use: a producer process pays for numpy and msgspec, never for a database client.
_HOMES = {
    "AsyncQueries": "ringlog.questdb.async_queries",
    "Queries": "ringlog.questdb.queries",
    "TradeFilter": "ringlog.questdb.filters",
    "Appender": "ringlog.producer",
    "AsyncProducer": "ringlog.producer",
    "Producer": "ringlog.producer",
    "rows_of": "ringlog.arrays",
    "Settings": "ringlog.settings",
    **dict.fromkeys(
        ("LatencySample", "MevMetric", "PerformanceMetric", "Position", "Record", "Trade"), "ringlog.records"
    ),
}

__all__ = [
    "Appender",
    "AsyncProducer",
    "AsyncQueries",
    "LatencySample",
    "MevMetric",
    "PerformanceMetric",
    "Position",
    "Producer",
    "Queries",
    "Record",
    "Settings",
    "Trade",
    "TradeFilter",
    "rows_of",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ringlog' has no attribute {name!r}")
    if sys.platform == "win32":  # here: the modules below ask for what Windows lacks as soon as they are loaded
        raise ImportError("ringlog: got Windows, wanted Linux or macOS (WSL 2 is Linux)")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
