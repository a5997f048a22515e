"""What a ledger's entries say together: each record's term, by lane; in memory, without a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ringlog.errors import SpoolUnusable
from ringlog.ledger.balance import Balance, LiveLane
from ringlog.ledger.entries import (
    VERSIONS_READ,
    Closed,
    Entry,
    Heads,
    LaneEntry,
    Recorded,
    Retired,
    Term,
    Vanished,
    Version,
    from_line,
)
from ringlog.spans import SeqSet, Span

SETTLED_BY_HAND = (Term.QUARANTINED, Term.DEAD_LETTERS)
RETIRED_LANE = 0  # in marks: records of lanes that are over and no longer listed; no lane has this number


class LaneAccount:
    """One lane's records by term; a record is in at most one set."""

    __slots__ = ("boot_id", "head", "is_closed", "is_vanished", "sets", "table")

    def __init__(self, table: str, boot_id: str) -> None:
        self.table = table
        self.boot_id = boot_id
        self.head = 0  # the largest one known; final once closed
        self.is_closed = False
        self.is_vanished = False  # its segment was removed: the head is only what was seen of it
        self.sets: dict[Term, SeqSet] = {}

    def assign(self, term: Term, start: int, end: int) -> None:
        self.head = self.head if self.is_closed else max(self.head, end)
        if term is Term.CONFIRMED:
            parts = [(start, end)]
        else:  # confirmed is the last word: a copy that is spooled or refused later changes nothing
            parts = list(self.sets.get(Term.CONFIRMED, SeqSet()).gaps(start, end))
        for part in parts:
            for other, members in self.sets.items():
                if other is not term:
                    members.discard(*part)
            self.sets.setdefault(term, SeqSet()).add(*part)

    def vanish(self) -> list[tuple[int, int]]:
        """The segment is gone: the ranges without a term, which become VANISHED."""
        gone = list(self.known().gaps(0, self.head))
        for start, end in gone:
            self.assign(Term.VANISHED, start, end)
        self.is_vanished = not self.is_closed
        return gone

    def restore(self) -> None:
        """The segment is there after all: what had vanished with it is where it was."""
        self.is_vanished = False
        self.sets.pop(Term.VANISHED, None)

    def known(self) -> SeqSet:
        """All records that have a term."""
        known = SeqSet()
        for members in self.sets.values():
            for start, end in members:
                known.add(start, end)
        return known

    @property
    def is_settled(self) -> bool:
        """Whether nothing about this lane can change any more."""
        is_waiting = any(self.sets.get(term) for term in (Term.SPOOLED, Term.DEAD_LETTERS, Term.QUARANTINED))
        return self.is_closed and not is_waiting and len(self.known()) == self.head


class Accounts:
    """All lanes of an instance, built from entries; the ledger keeps one, and whoever reads its file builds one.

    `lanes` maps lane to account; `retired` has the totals by table and term of lanes that are over and not listed;
    `broken_lines` counts lines that do not prove themselves.
    """

    def __init__(self, boot_id: str) -> None:
        self.boot_id = boot_id
        self.lanes: dict[int, LaneAccount] = {}
        self.retired: dict[str, dict[Term, int]] = {}
        self.broken_lines = 0

    def load(self, content: bytes, path: Path) -> None:
        """Applies the lines of a ledger's file. Raises SpoolUnusable, naming `path`, where it is of another version."""
        lines = content.split(b"\n")
        for number, line in enumerate(lines):
            entry = from_line(line) if line else None
            if isinstance(entry, Version) and entry.version not in VERSIONS_READ:
                wanted = " or ".join(map(str, VERSIONS_READ))
                raise SpoolUnusable(f"{path}: got version {entry.version}, wanted {wanted}; it is left as it is")
            if entry is not None:
                self.apply(entry)
            elif line and number < len(lines) - 1:  # the last may be torn by a crash: it was never relied on
                self.broken_lines += 1

    def apply(self, entry: Entry) -> None:
        match entry:
            case Recorded():
                for lane, first_seq, rows in entry.spans:
                    account = self.lane(lane, entry.table, entry.boot_id)
                    account.assign(entry.term, first_seq, first_seq + rows)
            case Heads():
                for lane, head in entry.heads:
                    account = self.lane(lane, entry.table, entry.boot_id)
                    account.head = account.head if account.is_closed else max(account.head, head)
                    account.restore()
            case Closed():
                account = self.lane(entry.lane, entry.table, entry.boot_id)
                account.restore()
                account.head, account.is_closed = entry.head, True
            case Vanished():
                self.lane(entry.lane, entry.table, entry.boot_id).vanish()
            case LaneEntry():
                account = self.lane(entry.lane, entry.table, entry.boot_id)
                account.head, account.is_closed, account.is_vanished = entry.head, entry.is_closed, entry.is_vanished
                account.sets = {term: SeqSet(ranges) for term, ranges in entry.ranges.items()}
            case Retired():
                self.retired[entry.table] = entry.rows
            case Version():
                pass

    def lane(self, lane: int, table: str, boot_id: str) -> LaneAccount:
        """The lane's account, opened where it is new."""
        account = self.lanes.get(lane)
        if account is None:
            account = self.lanes[lane] = LaneAccount(table, boot_id)
        return account

    def lose(self, lane: int) -> list[tuple[int, int]]:
        """What has no term is gone with the lane's segment: the ranges that became LOST_AT_REBOOT."""
        account = self.lanes[lane]
        lost = list(account.known().gaps(0, account.head))
        for start, end in lost:
            account.assign(Term.LOST_AT_REBOOT, start, end)
        account.is_closed = True
        return lost

    def lose_other_boots(self) -> dict[int, list[tuple[int, int]]]:
        """Shared memory does not outlive a boot: what every open lane of another boot lost, by lane.

        A lane that had vanished before stays so: no reboot took its records.
        """
        over = [
            lane
            for lane, account in self.lanes.items()
            if account.boot_id != self.boot_id and not account.is_closed and not account.is_vanished
        ]
        return {lane: self.lose(lane) for lane in over}

    def to_discard(self, table: str, spans: Iterable[Span], terms: Iterable[Term] = SETTLED_BY_HAND) -> list[Span]:
        """Those of `spans` that are in quarantine or dead letters now (or have one of `terms`)."""
        found = []
        for lane, first_seq, rows in spans:
            if lane == RETIRED_LANE:
                there = self.retired.get(table, {}).get(Term.QUARANTINED, 0) if Term.QUARANTINED in terms else 0
                found += [Span(lane, 0, min(rows, there))] if there else []
            elif lane in self.lanes and self.lanes[lane].table == table:
                for term in terms:
                    parts = self.lanes[lane].sets.get(term, SeqSet()).within(first_seq, first_seq + rows)
                    found += [Span(lane, start, end - start) for start, end in parts]
        return found

    def discard(self, table: str, spans: Iterable[Span]) -> list[Span]:
        """Gives up those of `spans` that are in quarantine or dead letters; returns them. May be repeated."""
        given_up = self.to_discard(table, spans)
        for lane, first_seq, rows in given_up:
            if lane == RETIRED_LANE:
                totals = self.retired[table]
                totals[Term.QUARANTINED] -= rows
                totals[Term.DISCARDED] = totals.get(Term.DISCARDED, 0) + rows
            else:
                self.lanes[lane].assign(Term.DISCARDED, first_seq, first_seq + rows)
        return given_up

    def spans(self, term: Term, table: str) -> list[Span]:
        """The records of a table that have a term, as spans; lanes that are over and settled are not listed."""
        return [
            Span(lane, start, end - start)
            for lane, account in self.lanes.items()
            if account.table == table
            for start, end in account.sets.get(term, ())
        ]

    def balance(self, live: Mapping[int, LiveLane]) -> dict[str, Balance]:
        """The equation for each table.

        `live` are the lanes whose segments exist. While a writer and producers run, tails must be read before the
        entries and heads after them: a tail only passes records that have a term, a term is only given below a head.
        """
        balances: dict[str, Balance] = {}
        for table, rows in self.retired.items():
            balance = balances.setdefault(table, Balance())
            balance.accepted += sum(rows.values())
            for term, count in rows.items():
                balance.rows[term] += count
        for lane in self.lanes.keys() | live.keys():
            account = self.lanes.get(lane) or LaneAccount(live[lane].table, self.boot_id)
            balance = balances.setdefault(account.table, Balance())
            tail = head = account.head
            if lane in live and not account.is_closed:
                tail, head = live[lane].tail, live[lane].head
            known = account.known()
            balance.accepted += head
            balance.in_lanes += sum(end - start for start, end in known.gaps(tail, head))
            balance.missing += [Span(lane, start, end - start) for start, end in known.gaps(0, tail)]
            balance.excess += [Span(lane, start, end - start) for start, end in known.within(head, known.end)]
            for term, members in account.sets.items():
                balance.rows[term] += len(members)
        return balances
