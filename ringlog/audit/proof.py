"""The proof: the ledger held against lanes, spool, dead letters and QuestDB, while all of them go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ringlog.audit.report import Difference, Kind, Place, RecordRange, Report, TableReport, differences
from ringlog.audit.retention import excused
from ringlog.audit.snapshot import Snapshot, spool_directory, take
from ringlog.audit.stored import Stored, stored
from ringlog.dead_letters import DeadLetters
from ringlog.disk import Directory
from ringlog.errors import QueryError, ServerError
from ringlog.lanes.instance import Instance
from ringlog.ledger import Term
from ringlog.ledger.absences import DEAD_LETTERS, absences
from ringlog.questdb import taken
from ringlog.questdb.connection import Connection
from ringlog.settings import Settings
from ringlog.spans import SeqSet
from ringlog.spool.holdings import holdings


def prove(settings: Settings) -> Report:
    """Looks at everything an instance has; changes nothing, and needs no writer to be running.

    The ledger is read before and after all else: what it says at both times was so all the while, so that records on
    their way are never taken for lost ones. Raises LaneError (no such instance), SpoolError (another version).
    """
    instance = Instance(settings)
    with spool_directory(instance) as directory:
        first = take(instance, directory)
        kept, delivered = _letters(directory)
        held = holdings(directory) if directory is not None else {}
        rows, lacking, unproved = _stored(settings, first, delivered)
        last = take(instance, directory)
    found = _vanished_differences(last, rows)
    found += _balance_differences(last)
    for lane in first.accounts.lanes:
        found += _kept_differences(first, last, lane, held, kept)
    found += [difference for each in lacking.values() for difference in each.lost]
    found += _table_differences(first, last, rows)
    unproved += [f"lane {lane:016x}: {reason}" for lane, reason in last.unreadable.items()]
    if last.accounts.broken_lines:
        unproved.append(f"ledger: got {last.accounts.broken_lines} broken lines, wanted none")
    return Report(
        tables=_tables(last, rows, lacking),
        differences=found,
        unproved=unproved,
        taken_by_retention=[part for each in lacking.values() for part in each.taken],
        absences=absences(
            settings,
            last.accounts,
            delivered,
            {table: sum(part.rows for part in each.taken) for table, each in lacking.items()},
        ),
    )


def _letters(directory: Directory | None) -> tuple[dict[int, SeqSet], dict[int, SeqSet]]:
    """The records that are kept as dead letters, and those of them that a retry has delivered, by lane."""
    kept: dict[int, SeqSet] = {}
    delivered: dict[int, SeqSet] = {}
    if directory is None or DEAD_LETTERS not in directory.names():
        return kept, delivered
    letters_directory = directory.subdirectory(DEAD_LETTERS)
    try:
        letters = DeadLetters(letters_directory)
        for letter, _ in letters.letters(retried=True):
            kept.setdefault(letter.lane, SeqSet()).add(letter.seq, letter.seq + 1)
        for spans in letters.delivered_spans().values():
            for span in spans:
                delivered.setdefault(span.lane, SeqSet()).add(span.first_seq, span.first_seq + span.rows)
    finally:
        letters_directory.close()
    return kept, delivered


class Lacking(NamedTuple):
    """Confirmed records that a table lacks: those that retention took, and the others."""

    taken: list[RecordRange]
    lost: list[Difference]


def _stored(
    settings: Settings, snapshot: Snapshot, delivered: Mapping[int, SeqSet]
) -> tuple[dict[str, Stored], dict[str, Lacking], list[str]]:
    """What QuestDB has, by table; what it lacks of what was confirmed; and what it would not answer."""
    tables: dict[str, set[int]] = {table: set() for table in snapshot.accounts.retired}
    for lane, account in snapshot.accounts.lanes.items():
        tables.setdefault(account.table, set()).add(lane)
    for lane, live in snapshot.live.items():
        tables.setdefault(live.table, set()).add(lane)
    rows: dict[str, Stored] = {}
    lacking: dict[str, Lacking] = {}
    unproved: list[str] = []
    connection = Connection.from_settings(settings)
    try:
        for table, lanes in tables.items():
            try:
                rows[table] = stored(connection, table, lanes)
            except QueryError as error:
                unproved.append(f"table {table}: {error}")
                if "does not exist" not in str(error):
                    continue
                rows[table] = Stored()
            missing = _missing(snapshot, table, rows[table], delivered)
            # Asked for last: what went before the table was read is written down by now.
            counted = taken.taken(connection, table, missing.keys())
            lacking[table] = Lacking(*excused(table, missing, counted))
    except ServerError as error:
        unproved.append(str(error))
    finally:
        connection.close()
    return rows, lacking, unproved


def _missing(snapshot: Snapshot, table: str, seen: Stored, delivered: Mapping[int, SeqSet]) -> dict[int, SeqSet]:
    """By lane, the records that were confirmed, or delivered by a retry, and are not in the table."""
    found: dict[int, SeqSet] = {}
    for lane, account in snapshot.accounts.lanes.items():
        if account.table == table:
            safe = SeqSet(account.sets.get(Term.CONFIRMED, ()))
            for start, end in delivered.get(lane, ()):
                safe.add(start, end)
            there = seen.lanes[lane].seqs if lane in seen.lanes else SeqSet()
            missing = SeqSet(part for range_ in safe for part in there.gaps(*range_))
            if missing:
                found[lane] = missing
    return found


def _vanished_differences(snapshot: Snapshot, rows: dict[str, Stored]) -> list[Difference]:
    """Lanes whose segment was removed in this boot: always one, since nobody knows how far they had got."""
    found = []
    for lane, account in snapshot.accounts.lanes.items():
        if not account.is_vanished:
            continue
        missing = SeqSet(account.sets.get(Term.VANISHED, ()))
        seen = rows.get(account.table, Stored()).lanes.get(lane)
        for start, end in seen.seqs if seen is not None else ():  # applied, and its writer died before it said so
            missing.discard(start, end)
        first = missing.start if missing else account.head
        found.append(
            Difference(
                kind=Kind.VANISHED,
                place=Place.SHARED_MEMORY,
                table=account.table,
                lane=f"{lane:016x}",
                first_seq=first,
                last_seq=max(account.head, first) - 1,
                rows=len(missing),
                is_at_least=True,
            )
        )
    return found


def _balance_differences(snapshot: Snapshot) -> list[Difference]:
    found = []
    for table, balance in snapshot.balance().items():
        for kind, spans in ((Kind.LOST, balance.missing), (Kind.UNEXPECTED, balance.excess)):
            for span in spans:
                ranges = [(span.first_seq, span.first_seq + span.rows)]
                found += differences(kind, Place.LEDGER, table, span.lane, ranges)
    return found


def _kept_differences(
    first: Snapshot, last: Snapshot, lane: int, held: dict[int, SeqSet], kept: dict[int, SeqSet]
) -> list[Difference]:
    """Records that were spooled, or dead letters, before and after: those that the disk does not have."""
    account, after = first.accounts.lanes[lane], last.accounts.lanes.get(lane)
    found = []
    for term, place, there in ((Term.SPOOLED, Place.SPOOL, held), (Term.DEAD_LETTERS, Place.DEAD_LETTERS, kept)):
        still = SeqSet(
            part
            for range_ in account.sets.get(term, ())
            for part in (after.sets.get(term, SeqSet()).within(*range_) if after is not None else ())
        )
        missing = [part for range_ in still for part in there.get(lane, SeqSet()).gaps(*range_)]
        found += differences(Kind.LOST, place, account.table, lane, missing)
    return found


def _table_differences(first: Snapshot, last: Snapshot, rows: dict[str, Stored]) -> list[Difference]:
    found: list[Difference] = []
    for table, seen in rows.items():
        for lane, state in seen.lanes.items():
            found += differences(Kind.DOUBLED, Place.QUESTDB, table, lane, state.doubled)
            if lane in last.accounts.lanes and last.accounts.lanes[lane].is_vanished:
                continue  # how far it had got is not known
            head = max(first.head(lane), last.head(lane))
            beyond = SeqSet(state.seqs)
            beyond.discard(0, head)
            found += differences(Kind.UNEXPECTED, Place.QUESTDB, table, lane, beyond)
    return found


def _tables(snapshot: Snapshot, rows: dict[str, Stored], lacking: dict[str, Lacking]) -> dict[str, TableReport]:
    return {
        table: TableReport(
            accepted=balance.accepted,
            in_lanes=balance.in_lanes,
            **{term.value: balance.rows[term] for term in Term},
            stored=rows[table].rows - rows[table].other_rows if table in rows else None,
            other_rows=rows[table].other_rows if table in rows else None,
            taken_by_retention=sum(part.rows for part in lacking[table].taken) if table in lacking else 0,
        )
        for table, balance in sorted(snapshot.balance().items())
    }
