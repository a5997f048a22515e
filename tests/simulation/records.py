"""What the simulated producers append, and what each record must look like wherever it is found again."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from ringlog.records import Record, Symbol, Varchar
from ringlog.sinks.memory import Row

TIMESTAMP_US = 1_700_000_000_000_000
DAY_US = 86_400_000_000
CUT_US = TIMESTAMP_US - DAY_US  # where retention cuts once it has run

Key = tuple[int, int]  # lane and seq


class Tick(Record):
    """A record of fixed width."""

    __table__ = "ticks"

    venue: Annotated[str, Symbol(8)]
    number: int


class Note(Record):
    """A record with a text of any length."""

    __table__ = "notes"

    text: Annotated[str, Varchar(24)]
    number: int


TEXTS: dict[type[Record], str] = {Tick: "venue", Note: "text"}
TABLES = tuple(record.__table__ for record in TEXTS)


class Accepted(NamedTuple):
    """A record as it was accepted; `is_old`: retention would have taken its day."""

    record: type[Record]
    number: int
    is_old: bool

    @property
    def text(self) -> str:
        return f"v{self.number % 7}" if self.record is Tick else "x" * (self.number % 24)

    @property
    def timestamp_us(self) -> int:
        return TIMESTAMP_US + self.number - 2 * DAY_US * self.is_old

    @property
    def is_poison(self) -> bool:
        return is_poison({"number": self.number})

    def is_in(self, row: Row) -> bool:
        """Whether a row is this record."""
        return (row[TEXTS[self.record]], row["number"], row["timestamp"]) == (
            self.text,
            self.number,
            self.timestamp_us,
        )


def is_poison(row: Row) -> bool:
    """Whether the server refuses a record, whenever it is sent; the writer's own metrics have no number."""
    return row.get("number", 0) % 29 == 11
