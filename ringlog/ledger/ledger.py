"""Where each accepted record is: sets of (lane, seq) by term, durable, compacting themselves."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from ringlog.disk import Directory, Reserve, close_quietly, refusal, write_all
from ringlog.errors import SpoolUnusable
from ringlog.ledger.balance import Balance, LiveLane
from ringlog.ledger.entries import (
    VERSION,
    Closed,
    Entry,
    Heads,
    LaneEntry,
    Recorded,
    Retired,
    Term,
    Version,
    from_line,
    to_line,
)
from ringlog.spans import SeqSet, Span

logger = logging.getLogger(__name__)

NAME = "ledger"
COMPACT_BYTES = 1024 * 1024
CLOSED_LANES_MAX = 10_000  # with all their records settled; older ones live on as totals


class _Lane:
    """One lane's records by term; a record is in at most one set."""

    __slots__ = ("boot_id", "head", "is_closed", "sets", "table")

    def __init__(self, table: str, boot_id: str) -> None:
        self.table = table
        self.boot_id = boot_id
        self.head = 0  # the largest one known; final once closed
        self.is_closed = False
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
        waiting = self.sets.get(Term.SPOOLED) or self.sets.get(Term.DEAD_LETTERS)
        return self.is_closed and not waiting and len(self.known()) == self.head


class Ledger:
    """The ledger of one instance, written by its writer alone: `directory` is the spool's.

    Every entry may be given again: the sets stay the same. `record` is cheap and survives the death of the process;
    `sync` (or `durable=True`) makes it survive the machine's, and must come before a lane or spool file is unlinked.
    Raises SpoolUnusable where the file is of another version; broken lines are kept in quarantine by name and counted
    in `broken_lines`. All methods that write raise SpoolFull or SpoolUnusable, and then may be called again.
    """

    def __init__(self, directory: Directory, reserve: Reserve, boot_id: str) -> None:
        self._directory = directory
        self._reserve = reserve
        self._boot_id = boot_id
        self._lanes: dict[int, _Lane] = {}
        self._retired: dict[str, dict[Term, int]] = {}
        self._descriptor = -1  # none: what is in memory is not all on disk, and must be written whole
        self._length = 0
        self._compact_at = 0
        self.broken_lines = 0
        self._load()
        for lane, state in self._lanes.items():
            if state.boot_id != boot_id and not state.is_closed:
                self._lose(lane, state)
        self._compact()

    def _load(self) -> None:
        content = self._directory.read(NAME) or b""
        lines = content.split(b"\n")
        for number, line in enumerate(lines):
            entry = from_line(line) if line else None
            if isinstance(entry, Version) and entry.version != VERSION:
                path = self._directory.path / NAME
                raise SpoolUnusable(f"{path}: got version {entry.version}, wanted {VERSION}; it is left as it is")
            if entry is not None:
                self._apply(entry)
            elif line and number < len(lines) - 1:  # the last may be torn by a crash: it was never relied on
                self.broken_lines += 1
        if self.broken_lines:
            logger.error("ledger has broken lines=%d, the file is kept as %s.broken", self.broken_lines, NAME)
            self._reserve.spend(lambda: self._directory.replace(f"{NAME}.broken", content))

    def _apply(self, entry: Entry) -> None:
        match entry:
            case Recorded():
                for lane, first_seq, rows in entry.spans:
                    state = self._lane(lane, entry.table, entry.boot_id)
                    state.assign(entry.term, first_seq, first_seq + rows)
            case Heads():
                for lane, head in entry.heads:
                    state = self._lane(lane, entry.table, entry.boot_id)
                    state.head = state.head if state.is_closed else max(state.head, head)
            case Closed():
                state = self._lane(entry.lane, entry.table, entry.boot_id)
                state.head, state.is_closed = entry.head, True
            case LaneEntry():
                state = self._lane(entry.lane, entry.table, entry.boot_id)
                state.head, state.is_closed = entry.head, entry.is_closed
                state.sets = {term: SeqSet(ranges) for term, ranges in entry.ranges.items()}
            case Retired():
                self._retired[entry.table] = entry.rows
            case Version():
                pass

    def _lane(self, lane: int, table: str, boot_id: str) -> _Lane:
        state = self._lanes.get(lane)
        if state is None:
            state = self._lanes[lane] = _Lane(table, boot_id)
        return state

    def record(self, term: Term, table: str, spans: Iterable[Span], *, durable: bool = False) -> None:
        """Records of a table are now there. Call it before the lane's tail or the spool's cursor moves."""
        entry = Recorded(term, table, self._boot_id, [span for span in spans if span.rows])
        if entry.spans:
            self._write(entry)
        if durable:
            self.sync()

    def see(self, table: str, heads: Mapping[int, int]) -> None:
        """How far the lanes of a table have got: what a reboot then takes is counted from here."""
        known = self._lanes
        moved = [(lane, head) for lane, head in heads.items() if lane not in known or known[lane].head < head]
        if moved:
            self._write(Heads(table, self._boot_id, moved))

    def close_lane(self, table: str, lane: int, head: int) -> None:
        """The lane took its last record, and its segment may be unlinked once this returns: it is durable."""
        self._write(Closed(table, self._boot_id, lane, head))
        self.sync()

    def lose_lane(self, lane: int) -> None:
        """The lane's segment is gone with what had no term yet (another boot, another IPC namespace)."""
        state = self._lanes.get(lane)
        if state is not None and not state.is_closed:
            self._lose(lane, state)
            self._compact()

    def _lose(self, lane: int, state: _Lane) -> None:
        lost = list(state.known().gaps(0, state.head))
        for start, end in lost:
            state.assign(Term.LOST_AT_REBOOT, start, end)
        state.is_closed = True
        if lost:
            rows = sum(end - start for start, end in lost)
            logger.error("lane=%016x table=%s lost at reboot rows=%d ranges=%s", lane, state.table, rows, lost[:10])

    def reconcile(self, spooled: Iterable[tuple[str, Span]]) -> list[Span]:
        """Compares with what the spool can give (table and span), at start; returns what it cannot give.

        What a spool file has and the ledger does not know becomes SPOOLED (the process died between the two); what the
        ledger has as SPOOLED and no file has becomes QUARANTINED: a file, or the end of one, was destroyed.
        """
        on_disk: dict[int, SeqSet] = {}
        for table, span in spooled:
            on_disk.setdefault(span.lane, SeqSet()).add(span.first_seq, span.first_seq + span.rows)
            self._lane(span.lane, table, self._boot_id)
        for lane, members in on_disk.items():
            spans = [Span(lane, start, end - start) for start, end in members]
            self.record(Term.SPOOLED, self._lanes[lane].table, spans)
        destroyed: list[Span] = []
        for lane, state in self._lanes.items():
            found = on_disk.get(lane, SeqSet())
            parts = [part for range_ in state.sets.get(Term.SPOOLED, SeqSet()) for part in found.gaps(*range_)]
            destroyed += [Span(lane, start, end - start) for start, end in parts]
        for span in destroyed:
            self.record(Term.QUARANTINED, self._lanes[span.lane].table, [span])
        self.sync()
        return destroyed

    def enter_retried(self, table: str, delivered: Iterable[Span]) -> None:
        """Dead letters that a retry delivered become CONFIRMED; what is no dead letter here is left as it is."""
        parts = [
            Span(span.lane, start, end - start)
            for span in delivered
            if span.lane in self._lanes
            for start, end in self._lanes[span.lane]
            .sets.get(Term.DEAD_LETTERS, SeqSet())
            .within(span.first_seq, span.first_seq + span.rows)
        ]
        self.record(Term.CONFIRMED, table, parts)

    def spans(self, term: Term, table: str) -> list[Span]:
        """The records of a table that have a term, as spans; lanes that are over and settled are not listed."""
        return [
            Span(lane, start, end - start)
            for lane, state in self._lanes.items()
            if state.table == table
            for start, end in state.sets.get(term, ())
        ]

    def balance(self, live: Mapping[int, LiveLane]) -> dict[str, Balance]:
        """The equation for each table; `live` are the lanes whose segments exist, read before this call."""
        balances: dict[str, Balance] = {}
        for table, rows in self._retired.items():
            balance = balances.setdefault(table, Balance())
            balance.accepted += sum(rows.values())
            for term, count in rows.items():
                balance.rows[term] += count
        for lane in self._lanes.keys() | live.keys():
            state = self._lanes.get(lane) or _Lane(live[lane].table, self._boot_id)
            balance = balances.setdefault(state.table, Balance())
            tail = head = state.head
            if lane in live and not state.is_closed:
                tail, head = live[lane].tail, live[lane].head
            known = state.known()
            balance.accepted += head
            balance.in_lanes += sum(end - start for start, end in known.gaps(tail, head))
            balance.missing += [Span(lane, start, end - start) for start, end in known.gaps(0, tail)]
            balance.excess += [Span(lane, start, end - start) for start, end in known.within(head, known.end)]
            for term, members in state.sets.items():
                balance.rows[term] += len(members)
        return balances

    def sync(self) -> None:
        """Makes all entries so far durable."""
        if self._descriptor < 0:
            self._compact()
            return
        try:
            self._directory.system.fsync(self._descriptor)  # SYNC POINT: before a lane or spool file is unlinked
        except OSError as error:
            logger.error("ledger fsync failed, writing a new file: %s", error)
            self._give_up_file()
            self._compact()

    def _write(self, entry: Entry) -> None:
        self._apply(entry)
        if self._descriptor < 0 or self._length > self._compact_at:
            self._compact()
            return
        try:
            self._length += write_all(self._directory.system, self._descriptor, [to_line(entry)], self._length)
        except OSError as error:
            logger.error("ledger write failed, writing a new file: %s", error)
            self._give_up_file()
            self._compact()

    def _give_up_file(self) -> None:
        close_quietly(self._descriptor)
        self._descriptor = -1

    def _compact(self) -> None:
        """Writes all that is known to a new file, durable when this returns."""
        self._retire()
        entries: list[Entry] = [Version(VERSION)]
        entries += [Retired(table, rows) for table, rows in self._retired.items()]
        for lane, state in self._lanes.items():
            ranges = {term: list(members) for term, members in state.sets.items() if members}
            entries.append(LaneEntry(lane, state.table, state.boot_id, state.head, state.is_closed, ranges))
        content = b"".join(map(to_line, entries))
        self._give_up_file()
        try:
            self._descriptor = self._reserve.spend(lambda: self._directory.create(NAME, [content]))
        except OSError as error:
            raise refusal(self._directory.path / NAME, error, "a disk that takes writes") from error
        self._length = len(content)
        self._compact_at = max(COMPACT_BYTES, 4 * len(content))

    def _retire(self) -> None:
        """Turns the oldest settled lanes into totals, so that a million short-lived lanes cost nothing."""
        closed = [lane for lane, state in self._lanes.items() if state.is_closed]
        for lane in closed[: max(0, len(closed) - CLOSED_LANES_MAX)]:
            state = self._lanes[lane]
            if state.is_settled:
                del self._lanes[lane]
                rows = self._retired.setdefault(state.table, {})
                for term, members in state.sets.items():
                    rows[term] = rows.get(term, 0) + len(members)

    def close(self) -> None:
        """Makes all durable and closes the file."""
        self.sync()
        self._give_up_file()
