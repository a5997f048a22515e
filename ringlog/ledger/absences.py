"""Which accepted records are not in QuestDB, in words: how many, where they are, and what can be done about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from ringlog.ledger.accounts import Accounts
from ringlog.ledger.entries import Term
from ringlog.settings import Settings
from ringlog.spans import SeqSet

DEAD_LETTERS = "dead_letters"
QUARANTINE = "quarantine"
TAKEN = "taken_by_retention"


class _Words(NamedTuple):
    """What is said of one kind; `place` is a directory below the spool, or nothing."""

    text: str
    next_step: str
    place: str = ""


WORDS = {
    Term.DEAD_LETTERS: _Words(
        "in dead letters",
        "`ringlog dead-letters list` says why the server refused them, `retry` sends again, `discard` gives up",
        DEAD_LETTERS,
    ),
    Term.QUARANTINED: _Words(
        "in quarantine",
        "their bytes were destroyed: `ringlog quarantine list` shows what was kept, `export` saves, `discard` settles",
        QUARANTINE,
    ),
    Term.EXPIRED: _Words(
        "expired",
        "they came after retention had cut their day (RINGLOG_RETENTION_DAYS) and were not sent",
    ),
    Term.LOST_AT_REBOOT: _Words(
        "lost at reboot",
        "shared memory did not outlive the machine; the writer's log names their lanes and seqs",
    ),
    Term.VANISHED: _Words(
        "vanished with their lane",
        "somebody removed its segment from /dev/shm: find out who, and append them again from where they came from",
    ),
    Term.DISCARDED: _Words(
        "discarded by hand", "somebody gave them up with `ringlog quarantine` or `dead-letters discard`"
    ),
}
TAKEN_WORDS = _Words(
    "taken by retention", "they were stored, and went with their day: the table retention_lanes has them"
)


class Absence(msgspec.Struct, frozen=True, kw_only=True):
    """`rows` accepted records of a table that are not in QuestDB; `kind` is a term of the ledger, or TAKEN."""

    kind: str
    table: str
    rows: int
    text: str
    place: str  # a path; "" where nothing is kept of them
    next_step: str

    def __str__(self) -> str:
        where = f", in {self.place}" if self.place else ""
        return f"{self.table}: {self.rows} {self.text}{where}: {self.next_step}"


def absences(
    settings: Settings, accounts: Accounts, delivered: Mapping[int, SeqSet], taken: Mapping[str, int]
) -> list[Absence]:
    """By table and kind. `delivered`: the dead letters that a retry delivered, `taken`: rows that retention took."""
    rows: dict[tuple[str, Term], int] = {}
    for table, totals in accounts.retired.items():
        for term, count in totals.items():
            rows[table, term] = rows.get((table, term), 0) + count
    for lane, account in accounts.lanes.items():
        for term, seqs in account.sets.items():
            count = len(seqs)
            if term is Term.DEAD_LETTERS:
                known = delivered.get(lane, SeqSet())
                count -= sum(end - start for range_ in seqs for start, end in known.within(*range_))
            rows[account.table, term] = rows.get((account.table, term), 0) + count
    found = []
    for (table, term), count in sorted(rows.items()):
        if count and term in WORDS:
            found.append(_absence(settings, term.value, WORDS[term], table, count))
    return found + [
        _absence(settings, TAKEN, TAKEN_WORDS, table, count) for table, count in sorted(taken.items()) if count
    ]


def _absence(settings: Settings, kind: str, words: _Words, table: str, rows: int) -> Absence:
    place = str(settings.spool_path / words.place) if words.place else ""
    return Absence(kind=kind, table=table, rows=rows, text=words.text, place=place, next_step=words.next_step)


def summary(found: Iterable[Absence]) -> str:
    """One line: how many in all, and of which kinds; "" where none is absent."""
    rows: dict[str, int] = {}
    for absence in found:
        rows[absence.text] = rows.get(absence.text, 0) + absence.rows
    if not rows:
        return ""
    total = sum(rows.values())
    noun = "accepted record is" if total == 1 else "accepted records are"
    return f"{total} {noun} not in QuestDB: {', '.join(f'{count} {text}' for text, count in rows.items())}"
