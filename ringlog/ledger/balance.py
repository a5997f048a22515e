"""The equation of the ledger, for one table."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ringlog.ledger.entries import Term
from ringlog.spans import Span


class LiveLane(NamedTuple):
    """A lane whose segment exists: its table, and the cursors in the segment."""

    table: str
    tail: int
    head: int


class Balance(msgspec.Struct):
    """accepted = confirmed + spooled + in lanes + dead letters + expired + quarantined + lost at reboot + vanished.

    All in records. `missing` are accepted records that are nowhere, `excess` records with a term that no lane accepted:
    both are empty at every moment, or something is wrong.
    """

    accepted: int = 0
    in_lanes: int = 0
    rows: dict[Term, int] = msgspec.field(default_factory=lambda: dict.fromkeys(Term, 0))
    missing: list[Span] = msgspec.field(default_factory=list)
    excess: list[Span] = msgspec.field(default_factory=list)

    @property
    def is_balanced(self) -> bool:
        return not self.missing and not self.excess and self.accepted == self.in_lanes + sum(self.rows.values())
