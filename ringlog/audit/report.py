"""What an audit says: the equation of each table in numbers, and every record that is not where it should be."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from ringlog.ledger import Term
from ringlog.ledger.absences import Absence
from ringlog.spans import SeqSet


class Kind(enum.StrEnum):
    """Of a difference."""

    LOST = "lost"  # the ledger says where it is, and it is not there; or it was accepted and is nowhere
    DOUBLED = "doubled"  # more than one row has its lane and seq
    UNEXPECTED = "unexpected"  # no lane ever accepted it
    VANISHED = "vanished"  # its lane's segment was removed in this boot


class Place(enum.StrEnum):
    """Where a difference was found."""

    LEDGER = "ledger"
    SHARED_MEMORY = "shared memory"
    SPOOL = "spool"
    DEAD_LETTERS = "dead letters"
    QUESTDB = "questdb"


class RecordRange(msgspec.Struct, frozen=True, kw_only=True):
    """`rows` records of one lane (hexadecimal, as the logs show it) from `first_seq` to `last_seq`, both included."""

    table: str
    lane: str
    first_seq: int
    last_seq: int
    rows: int

    def __str__(self) -> str:
        return f"table={self.table} lane={self.lane} seq={self.first_seq}-{self.last_seq} rows={self.rows}"


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Records of one lane (hexadecimal, as the logs show it) from `first_seq` to `last_seq`, both included.

    All of these, or where `rows` is less, so many of them. Of a lane that vanished nobody knows how many it had
    accepted: `rows` are those that were seen, `is_at_least` says that there may be more after `last_seq`, which is one
    less than `first_seq` where none were seen.
    """

    kind: Kind
    place: Place
    table: str
    lane: str
    first_seq: int
    last_seq: int
    rows: int
    is_at_least: bool = False

    def __str__(self) -> str:
        text = f"{self.kind} in {self.place}: table={self.table} lane={self.lane} "
        if self.is_at_least:
            return (
                f"{text}rows=at least {self.rows}, seq={self.first_seq} and after: its segment was removed, so how "
                "many it had accepted is not known"
            )
        return f"{text}seq={self.first_seq}-{self.last_seq} rows={self.rows}"


def differences(
    kind: Kind, place: Place, table: str, lane: int, ranges: Iterable[tuple[int, int]] | SeqSet
) -> list[Difference]:
    """One for each half-open range."""
    return [
        Difference(
            kind=kind,
            place=place,
            table=table,
            lane=f"{lane:016x}",
            first_seq=start,
            last_seq=end - 1,
            rows=end - start,
        )
        for start, end in ranges
    ]


class TableReport(msgspec.Struct, kw_only=True):
    """One table, in records: `accepted` is the sum of the nine that follow; `stored` is what QuestDB has of them.

    `stored` is None where the server could not be asked. `other_rows` in the table are of lanes that this instance does
    not list: other instances, the writer's own metrics, lanes that were over long ago. `taken_by_retention` were
    confirmed, and went with their day: retention counted each of them in its lane.
    """

    accepted: int
    confirmed: int
    spooled: int
    in_lanes: int
    dead_letters: int
    expired: int
    quarantined: int
    lost_at_reboot: int
    discarded: int
    vanished: int
    stored: int | None = None
    other_rows: int | None = None
    taken_by_retention: int = 0


class Report(msgspec.Struct, kw_only=True):
    """`unproved` says in words what could not be looked at; with it, or with any difference, the proof has failed.

    `absences` are the accepted records that are not in QuestDB and accounted for; `taken_by_retention` names each of
    those that were there.
    """

    tables: dict[str, TableReport]
    differences: list[Difference]
    unproved: list[str]
    taken_by_retention: list[RecordRange] = []
    absences: list[Absence] = []

    @property
    def is_exact(self) -> bool:
        return not self.differences and not self.unproved

    @property
    def is_settled(self) -> bool:
        """Whether no record waits in quarantine for somebody to settle it."""
        return not any(absence.kind == Term.QUARANTINED for absence in self.absences)
