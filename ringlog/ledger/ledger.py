"""Where each accepted record is: sets of (lane, seq) by term, durable, compacting themselves."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from ringlog.disk import Directory, Reserve, close_quietly, refusal, write_all
from ringlog.ledger.accounts import RETIRED_LANE, Accounts
from ringlog.ledger.balance import Balance, LiveLane
from ringlog.ledger.discards import Discard, Discards
from ringlog.ledger.entries import (
    VERSION,
    Closed,
    Entry,
    Heads,
    LaneEntry,
    Recorded,
    Retired,
    Term,
    Vanished,
    Version,
    to_line,
)
from ringlog.spans import SeqSet, Span

logger = logging.getLogger(__name__)

NAME = "ledger"
COMPACT_BYTES = 1024 * 1024
CLOSED_LANES_MAX = 10_000  # with all their records settled; older ones live on as totals


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
        self._accounts = Accounts(boot_id)
        self._descriptor = -1  # none: what is in memory is not all on disk, and must be written whole
        self._length = 0
        self._compact_at = 0
        self._load()
        for lane, lost in self._accounts.lose_other_boots().items():
            self._tell_lost(lane, lost)
        self._compact()
        self._met = set(self._accounts.lanes)

    def _load(self) -> None:
        content = self._directory.read(NAME) or b""
        self._accounts.load(content, self._directory.path / NAME)
        if self.broken_lines:
            logger.error("ledger has broken lines=%d, the file is kept as %s.broken", self.broken_lines, NAME)
            self._reserve.spend(lambda: self._directory.replace(f"{NAME}.broken", content))

    @property
    def broken_lines(self) -> int:
        """Lines of the file, as it was at the start, that did not prove themselves."""
        return self._accounts.broken_lines

    def record(self, term: Term, table: str, spans: Iterable[Span], *, durable: bool = False) -> None:
        """Records of a table are now there. Call it before the lane's tail or the spool's cursor moves."""
        entry = Recorded(term, table, self._boot_id, [span for span in spans if span.rows])
        if entry.spans:
            self._write(entry)
        if durable:
            self.sync()

    def see(self, table: str, heads: Mapping[int, int]) -> None:
        """How far the lanes of a table have got: what a reboot then takes is counted from here."""
        known = self._accounts.lanes
        moved = [
            (lane, head)
            for lane, head in heads.items()
            if lane not in known or known[lane].head < head or known[lane].is_vanished
        ]
        if moved:
            self._write(Heads(table, self._boot_id, moved))

    def meet(self, table: str, lane: int) -> None:
        """Makes it durable that there is this lane, and in which boot: call it before its records outlive that boot."""
        if lane not in self._met:
            self._write(Heads(table, self._boot_id, [(lane, 0)]))
            self.sync()
            self._met.add(lane)

    def close_lane(self, table: str, lane: int, head: int) -> None:
        """The lane took its last record, and its segment may be unlinked once this returns: it is durable."""
        self._write(Closed(table, self._boot_id, lane, head))
        self.sync()

    def lose_lane(self, lane: int) -> None:
        """The lane's segment went with another boot, and what had no term yet went with it."""
        account = self._accounts.lanes.get(lane)
        if account is not None and not account.is_closed and not account.is_vanished:
            self._tell_lost(lane, self._accounts.lose(lane))
            self._compact()

    def vanish_lane(self, table: str, lane: int) -> None:
        """The lane's segment was removed in this boot: durable, and not closed over unless it is seen again."""
        account = self._accounts.lanes.get(lane)
        if account is None or not (account.is_closed or account.is_vanished):
            self._write(Vanished(table, self._boot_id, lane))
            self.sync()

    def open_lanes(self) -> dict[int, str]:
        """Lanes of this boot, and their tables, that neither came to their end nor vanished."""
        return {
            lane: account.table
            for lane, account in self._accounts.lanes.items()
            if account.boot_id == self._boot_id and not account.is_closed and not account.is_vanished
        }

    def _tell_lost(self, lane: int, lost: list[tuple[int, int]]) -> None:
        if lost:
            rows = sum(end - start for start, end in lost)
            table = self._accounts.lanes[lane].table
            logger.error("lane=%016x table=%s lost at reboot rows=%d ranges=%s", lane, table, rows, lost[:10])

    def reconcile(self, spooled: Iterable[tuple[str, Span]]) -> list[Span]:
        """Compares with what the spool can give (table and span), at start; returns what it cannot give.

        What a spool file has and the ledger does not know becomes SPOOLED (the process died between the two); what the
        ledger has as SPOOLED and no file has becomes QUARANTINED: a file, or the end of one, was destroyed.
        """
        on_disk: dict[int, SeqSet] = {}
        for table, span in spooled:
            on_disk.setdefault(span.lane, SeqSet()).add(span.first_seq, span.first_seq + span.rows)
            self._accounts.lane(span.lane, table, self._boot_id)
        for lane, members in on_disk.items():
            account = self._accounts.lanes[lane]
            account.head = max(account.head, members.end)  # accepted, though the power went before we had noted it
            spans = [Span(lane, start, end - start) for start, end in members]
            self.record(Term.SPOOLED, account.table, spans)
            if account.boot_id != self._boot_id:
                self._tell_lost(lane, self._accounts.lose(lane))
        destroyed: list[Span] = []
        for lane, state in self._accounts.lanes.items():
            found = on_disk.get(lane, SeqSet())
            parts = [part for range_ in state.sets.get(Term.SPOOLED, SeqSet()) for part in found.gaps(*range_)]
            destroyed += [Span(lane, start, end - start) for start, end in parts]
        for span in destroyed:
            self.record(Term.QUARANTINED, self._accounts.lanes[span.lane].table, [span])
        self._compact()  # heads and losses have no entries of their own
        return destroyed

    def enter_retried(self, table: str, delivered: Iterable[Span]) -> None:
        """Dead letters that a retry delivered become CONFIRMED; what is no dead letter here is left as it is.

        So do those that were discarded while the retry was under way: they are in QuestDB.
        """
        parts = self._accounts.to_discard(table, delivered, (Term.DEAD_LETTERS, Term.DISCARDED))
        self.record(Term.CONFIRMED, table, parts)

    def enter_discarded(self, marks: Iterable[Discard]) -> int:
        """Enters durably what a person gave up, once however often it is entered; returns how many records."""
        rows = 0
        for mark in marks:
            given_up = self._accounts.discard(mark.table, mark.spans)
            rows += sum(span.rows for span in given_up)
            self.record(Term.DISCARDED, mark.table, [span for span in given_up if span.lane != RETIRED_LANE])
            if any(span.lane == RETIRED_LANE for span in given_up):
                self._compact()  # totals have no entries of their own
        if rows:
            self.sync()
        return rows

    def rows(self, term: Term) -> int:
        """How many records of all tables have a term, those of lanes that are no longer listed included."""
        listed = sum(len(account.sets.get(term, ())) for account in self._accounts.lanes.values())
        return listed + sum(rows.get(term, 0) for rows in self._accounts.retired.values())

    def spans(self, term: Term, table: str) -> list[Span]:
        """The records of a table that have a term, as spans; lanes that are over and settled are not listed."""
        return self._accounts.spans(term, table)

    def balance(self, live: Mapping[int, LiveLane]) -> dict[str, Balance]:
        """The equation for each table; `live` are the lanes whose segments exist, read before this call."""
        return self._accounts.balance(live)

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
        self._accounts.apply(entry)
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
        entries += [Retired(table, rows) for table, rows in self._accounts.retired.items()]
        for lane, state in self._accounts.lanes.items():
            ranges = {term: list(members) for term, members in state.sets.items() if members}
            facts = (state.head, state.is_closed, ranges, state.is_vanished)
            entries.append(LaneEntry(lane, state.table, state.boot_id, *facts))
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
        closed = [lane for lane, state in self._accounts.lanes.items() if state.is_closed]
        for lane in closed[: max(0, len(closed) - CLOSED_LANES_MAX)]:
            state = self._accounts.lanes[lane]
            if state.is_settled:
                del self._accounts.lanes[lane]
                rows = self._accounts.retired.setdefault(state.table, {})
                for term, members in state.sets.items():
                    rows[term] = rows.get(term, 0) + len(members)

    def close(self) -> None:
        """Makes all durable and closes the file."""
        self.sync()
        self._give_up_file()


def read_accounts(directory: Directory, boot_id: str) -> Accounts:
    """What the ledger says, as another process than its writer sees it; `directory` is the spool's.

    Raises SpoolUnusable (the ledger's version).
    """
    accounts = Accounts(boot_id)
    accounts.load(directory.read(NAME) or b"", directory.path / NAME)
    accounts.lose_other_boots()
    for mark in Discards(directory).marks():
        accounts.discard(mark.table, mark.spans)
    return accounts
