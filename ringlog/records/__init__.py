"""Record types: the classes, their fields, and the slot layout compiled from them."""

from ringlog.records.declaration import LANE, SEQ, TIMESTAMP, Record, RecordLayout, defaults_of, layout_of
from ringlog.records.fields import Double, Field, Json, Kind, Long, Symbol, Varchar
from ringlog.records.platform import (
    PLATFORM_RECORDS,
    LatencySample,
    MevMetric,
    PerformanceMetric,
    Position,
    Trade,
)

__all__ = [
    "LANE",
    "PLATFORM_RECORDS",
    "SEQ",
    "TIMESTAMP",
    "Double",
    "Field",
    "Json",
    "Kind",
    "LatencySample",
    "Long",
    "MevMetric",
    "PerformanceMetric",
    "Position",
    "Record",
    "RecordLayout",
    "Symbol",
    "Trade",
    "Varchar",
    "defaults_of",
    "layout_of",
]
