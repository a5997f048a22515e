"""The refuge: where records go that the server does not take now, and how they come back from there.

A table that failed is away: its records go from the lanes to the spool, and only what comes back from the spool is
offered to the server, until all of it is on its way. So lanes never wait for a server that is down, one table never
waits for another, and the server gets a table's records in the order of time: rows that come after newer ones cost it
half as much again.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ringlog.dead_letters import DeadLetters, Refused
from ringlog.decode import Corrupt, Slots
from ringlog.errors import SegmentRefused, SpoolError
from ringlog.lanes.readers import LaneReader
from ringlog.ledger import Ledger, Term
from ringlog.records import RecordLayout
from ringlog.sinks import Batch, Mirror, Span
from ringlog.sinks.bisection import RefusedRow
from ringlog.spans import SeqSet
from ringlog.spool import Replay, Spool
from ringlog.spool.reader import READ_BYTES_MAX
from ringlog.writer.delivery import Delivery, Settled
from ringlog.writer.drain import BATCH_BYTES_MAX, Drain
from ringlog.writer.shares import shares

logger = logging.getLogger("ringlog.writer")

# Below this part of its cap a spool that was full takes records again.
RESUME_RATIO = 0.9
REPLAYS_MAX = 3  # under way of a table: one is read and encoded, one sent, one waits to be applied
# A batch from the spool is this part of one from lanes: its slots are held as well, until it is applied.
REPLAY_PARTS = 2


def _holds(run: Slots, row: RefusedRow) -> bool:
    return run.lane == row.lane and run.first_seq <= row.seq < run.first_seq + run.rows


def _slot(run: Slots, seq: int, slot_bytes: int) -> bytes:
    at = (seq - run.first_seq) * slot_bytes
    return bytes(memoryview(run.memory)[at : at + slot_bytes])


def _gaps(rows: Iterable[int], end: int) -> Iterator[tuple[int, int]]:
    """The ranges of 0 to `end` between `rows`."""
    start = 0
    for row in [*sorted(rows), end]:
        if start < row:
            yield start, row
        start = row + 1


def _without(spans: Iterable[Span], refused: Sequence[RefusedRow]) -> list[Span]:
    if not refused:
        return list(spans)
    left: dict[int, SeqSet] = {}
    for span in spans:
        left.setdefault(span.lane, SeqSet()).add(span.first_seq, span.first_seq + span.rows)
    for row in refused:
        left[row.lane].discard(row.seq, row.seq + 1)
    return [Span(lane, start, end - start) for lane, members in left.items() for start, end in members]


@dataclasses.dataclass(slots=True, eq=False)
class _UnderWay:
    """What was read from the spool and is not behind its cursor yet."""

    replay: Replay
    is_settled: bool = False


class Refuge:
    """The spool as the writer uses it: which tables are away, what is put away for them, and the replays under way."""

    def __init__(self, spool: Spool, ledger: Ledger, rows_max: int, mirror: Mirror | None = None) -> None:
        self.spool = spool
        self._ledger = ledger
        self._letters_directory = spool.directory.subdirectory("dead_letters")
        self.letters = DeadLetters(self._letters_directory, spool.reserve)
        self.dead_letters = 0
        self._corrupt: set[tuple[int, int]] = set()
        self.spooled_rows = 0
        self.replayed_rows = 0
        self.expired_rows = 0
        self.confirmed_rows = 0
        self._rows_max = rows_max
        self.batch_bytes = BATCH_BYTES_MAX  # of slots, of one batch; the writer sets it by what lanes leave of memory
        self._mirror = mirror
        self._away: set[str] = set(spool.tables())
        self._hurried: set[str] = set()  # of those, the tables that failed at nothing: the writer was not ready yet
        self._answered: set[str] = set()  # of those the tables of which a replay was confirmed since they left
        self._drains: dict[RecordLayout, Drain] = {}
        self._replays: dict[str, list[_UnderWay]] = {}  # in the order of the spool
        self._is_full = False
        self._refused = self._took = False  # since the last look
        for span in ledger.reconcile(spool.spans()):
            logger.error("spool cannot give lane=%016x seq=%d rows=%d: destroyed", span.lane, span.first_seq, span.rows)

    @property
    def rows_max(self) -> int:
        """The most rows of one request."""
        return self._rows_max

    @rows_max.setter
    def rows_max(self, rows: int) -> None:
        self._rows_max = rows
        self._drains.clear()

    def close(self) -> None:
        """Closes the spool, the dead letters and the ledger."""
        self._ledger.close()
        self._letters_directory.close()
        if self._mirror is not None:
            self._mirror.close()
        self.spool.close()

    @property
    def corrupt(self) -> int:
        """Slots that append could not have written, since the start."""
        return len(self._corrupt)

    @property
    def is_full(self) -> bool:
        """Whether the spool refused records and has no room for them yet: producers must be refused instead."""
        return self._is_full

    def look(self, *, in_lanes: bool) -> None:
        """After each round over all tables, `in_lanes`: are records nowhere else; is there room again?

        That is seen by records that were taken, here or by the server. Free bytes are not asked for: on a disk that was
        full they may be too few for what comes next, and the board would accept and refuse in turn.
        """
        is_relieved = not self._refused and (self._took or not in_lanes)
        if self._is_full and is_relieved and self.spool.bytes < RESUME_RATIO * self.spool.bytes_max:
            self._is_full = not self.spool.reserve.refill()
        self._refused = self._took = False

    @property
    def away(self) -> frozenset[str]:
        """The tables whose records are put away rather than sent."""
        return frozenset(self._away)

    def is_away(self, table: str) -> bool:
        """Whether a table's records are to be put away rather than sent."""
        return table in self._away

    def leave(self, table: str) -> None:
        """From now on the table's records are put away."""
        self._away.add(table)
        self._answered.discard(table)
        self._hurried.discard(table)

    def hurry(self, table: str) -> None:
        """What is put away of the table now is only there because nothing can be sent yet."""
        if table not in self._away:
            self._hurried.add(table)

    @property
    def is_hurried(self) -> bool:
        """Whether some of that has not come back yet."""
        self._hurried = {table for table in self._hurried if self.spool.rows(table)}
        return bool(self._hurried)

    def put_away(self, layout: RecordLayout, lanes: Iterable[LaneReader]) -> Iterator[list[Slots]]:
        """Writes what lanes hold durably into the spool, frame by frame; after each, the runs that are safe now.

        All lanes share a frame while it has room: each costs an fsync.
        """
        readers = list(lanes)
        left = {lane.lane: self._rows_max for lane in readers}
        while runs := self._taken(layout, readers, left):
            spans = [Span(run.lane, run.first_seq, run.rows) for run in runs]
            try:
                for lane in {run.lane for run in runs}:
                    self._ledger.meet(layout.table, lane)
                self.spool.append(layout, spans, [run.memory for run in runs])
                self._ledger.record(Term.SPOOLED, layout.table, spans)
            except SpoolError as error:
                for reader in readers:
                    reader.rewind()
                self._stop_taking(error)
                break
            self.spooled_rows += sum(run.rows for run in runs)
            self._took = True
            self._away.add(layout.table)
            if self._mirror is not None:
                self._mirror.offer(self._drain(layout).decode(runs).batch)
            yield runs

    def _taken(self, layout: RecordLayout, readers: Sequence[LaneReader], left: dict[int, int]) -> list[Slots]:
        """What lanes hold next, as much as goes into a frame; `left`: how many rows may still be taken of each."""
        # A part where the cap leaves no room for all: so a spool that refuses is full to a few pages, not to a batch,
        # and does not take records again before something was replayed.
        rows_max = min(self._rows_max, self._replay_bytes // layout.slot_bytes)
        room = max(min(rows_max, self.spool.rows_room(layout, len(readers))), 1)
        runs: list[Slots] = []
        for reader, rows in zip(readers, shares(readers, [left[reader.lane] for reader in readers], room), strict=True):
            try:
                taken = reader.take(rows)
            except SegmentRefused:  # its head cannot be: the drain has said so
                continue
            left[reader.lane] -= sum(run.rows for run in taken)
            runs += taken
        return runs

    def replay(self, delivery: Delivery, cuts: Mapping[str, int]) -> None:
        """Offers the next spooled records of each table to the server: one request is encoded while another is sent.

        `cuts`: microseconds before which a table's records have expired.
        """
        for table in self.spool.tables():
            if delivery.has_room and delivery.is_open(table) and self._may_read(table):
                try:
                    self._replay(table, delivery, cuts.get(table))
                except SpoolError as error:
                    logger.error("spool of table=%s cannot be read: %s", table, error)
        for table in [table for table in self._away if self._is_over(table)]:
            self._away.discard(table)

    @property
    def _replay_bytes(self) -> int:
        """How many bytes of slots a frame, and a read of the spool, may have."""
        return min(READ_BYTES_MAX, self.batch_bytes // REPLAY_PARTS)

    def _may_read(self, table: str) -> bool:
        """Whether there is memory for another read: always for the first of a table, none waits for another's."""
        under_way = self._replays.get(table)
        if not under_way:
            return True
        held = sum(entry.replay.slots.nbytes for entries in self._replays.values() for entry in entries)
        return len(under_way) < REPLAYS_MAX and held < REPLAYS_MAX * self._replay_bytes

    def _is_over(self, table: str) -> bool:
        """Whether a table's records may be sent again: the server takes them, and what was put away goes first."""
        if not self.spool.rows(table):
            return True
        return table in self._answered and not self.spool.unread_rows(table)

    def _replay(self, table: str, delivery: Delivery, cut_us: int | None) -> None:
        replay = self.spool.read(table, self._rows_max, self._replay_bytes)
        if replay is None:
            return
        try:
            for damage in replay.damages:
                self._ledger.record(Term.QUARANTINED, table, damage.spans)
        except SpoolError:
            self._rewind(table)  # or the cursor would pass what was read beside the damage
            raise
        entry = _UnderWay(replay)
        self._replays.setdefault(table, []).append(entry)
        if replay.layout is None or not replay.rows:
            self._confirm(entry)
            return
        runs = [Slots(span.lane, span.first_seq, span.rows, memory) for span, memory in replay.runs()]
        batch, corrupt, expired = self._drain(replay.layout).decode(runs, cut_us)
        if not self.quarantine(replay.layout, corrupt) or not self.expire(replay.layout, expired):
            self._rewind(table)
        elif not batch.rows:
            self._confirm(entry)
        else:
            delivery.submit(batch, lambda settled: self._settle(entry, batch, settled))

    def _rewind(self, table: str) -> None:
        """All that was read and not confirmed is read again; what is still under way of it is a copy, and folded."""
        self.spool.rewind(table)
        self._replays.pop(table, None)
        self.leave(table)

    def _drain(self, layout: RecordLayout) -> Drain:
        drain = self._drains.get(layout)
        if drain is None:
            drain = self._drains[layout] = Drain(layout, self._rows_max)
        return drain

    def settle(
        self, layout: RecordLayout, batch: Batch, settled: Settled, runs: Sequence[Slots], *, replayed: bool = False
    ) -> bool:
        """Writes down that a batch's rows are applied, and keeps those that were refused; False where the disk failed.

        Only after True may a tail or a cursor pass them.
        """
        try:
            self._bury(layout, settled.refused, runs)
            self._ledger.record(Term.CONFIRMED, layout.table, _without(batch.spans, settled.refused))
        except (SpoolError, OSError) as error:
            self._stop_taking(error)
            return False
        self._took = True
        self.confirmed_rows += batch.rows - len(settled.refused)
        if self._mirror is not None:
            for start, stop in _gaps([row.row for row in settled.refused], batch.rows):
                self._mirror.offer(batch.take(start, stop), replayed)
        return True

    def _bury(self, layout: RecordLayout, refused: Sequence[RefusedRow], runs: Sequence[Slots]) -> None:
        if not refused:
            return
        slots = [next(_slot(run, row.seq, layout.slot_bytes) for run in runs if _holds(run, row)) for row in refused]
        letters = [Refused(row.lane, row.seq, row.reason, slot) for row, slot in zip(refused, slots, strict=True)]
        self.dead_letters += self.letters.keep(layout, letters)
        spans = [Span(row.lane, row.seq, 1) for row in refused]
        self._ledger.record(Term.DEAD_LETTERS, layout.table, spans, durable=True)
        logger.error("dead letters table=%s rows=%d first reason: %s", layout.table, len(refused), refused[0].reason)

    def quarantine(self, layout: RecordLayout, corrupt: Sequence[Corrupt]) -> bool:
        """Keeps the bytes of corrupt slots durably; only after True may their lane advance.

        A file for each run of them, not for each: a whole lane of garbage must not cost the others a thousand fsyncs.
        """
        new = [slot for slot in corrupt if (slot.lane, slot.seq) not in self._corrupt]  # a lane may be read again
        try:
            for _, run in itertools.groupby(enumerate(new), lambda item: (item[1].lane, item[1].seq - item[0])):
                slots = [slot for _, slot in run]
                lane, seq, rows = slots[0].lane, slots[0].seq, len(slots)
                kept = self.spool.quarantine.keep_slots(
                    layout, Span(lane, seq, rows), b"".join(slot.slot for slot in slots)
                )
                self._corrupt.update((slot.lane, slot.seq) for slot in slots)
                logger.error("lane=%016x seq=%d rows=%d corrupt slots, not sent, kept=%s", lane, seq, rows, kept)
            spans = [Span(slot.lane, slot.seq, 1) for slot in corrupt]
            self._ledger.record(Term.QUARANTINED, layout.table, spans, durable=bool(corrupt))
        except (SpoolError, OSError) as error:
            self._stop_taking(error)
            return False
        return True

    def expire(self, layout: RecordLayout, expired: Sequence[Span]) -> bool:
        """Writes down durably which records came after retention had cut their day; only then may they be passed."""
        rows = sum(span.rows for span in expired)
        if not rows:
            return True
        try:
            self._ledger.record(Term.EXPIRED, layout.table, expired, durable=True)
        except SpoolError as error:
            self._stop_taking(error)
            return False
        before, self.expired_rows = self.expired_rows, self.expired_rows + rows
        if before.bit_length() != self.expired_rows.bit_length():  # each doubling: a backlog is no flood of log lines
            logger.warning(
                "records came after retention had cut their day, not sent table=%s rows=%d since start=%d",
                *(layout.table, rows, self.expired_rows),
            )
        return True

    def _stop_taking(self, error: Exception) -> None:
        if not self._is_full:
            logger.error("spool takes no records: %s", error)
        self._is_full = self._refused = True

    def _settle(self, entry: _UnderWay, batch: Batch, settled: Settled) -> None:
        replay = entry.replay
        if entry not in self._replays.get(replay.table, ()):
            return
        runs = [Slots(span.lane, span.first_seq, span.rows, memory) for span, memory in replay.runs()]
        if settled.error is not None or not self.settle(batch.layout, batch, settled, runs, replayed=True):
            self._rewind(replay.table)
            return
        self.replayed_rows += replay.rows
        if self._confirm(entry):
            self._answered.add(replay.table)
        if not self.spool.rows(replay.table):
            logger.info("spool of table=%s is empty again", replay.table)

    def _account_destroyed(self, table: str) -> None:
        """Once nothing is left to be read: what the ledger still has as spooled lay in frames without a header."""
        destroyed = self._ledger.spans(Term.SPOOLED, table)
        for span in destroyed:
            logger.error("spool cannot give lane=%016x seq=%d rows=%d: destroyed", span.lane, span.first_seq, span.rows)
        try:
            self._ledger.record(Term.QUARANTINED, table, destroyed, durable=bool(destroyed))
        except SpoolError as error:  # the next start finds it
            logger.error("ledger cannot be written: %s", error)

    def _confirm(self, entry: _UnderWay) -> bool:
        """Moves the spool's cursor over what is settled, if all before it is; False where the disk failed.

        A cursor that passed a replay under way would lose it.
        """
        entry.is_settled = True
        table = entry.replay.table
        under_way = self._replays[table]
        while under_way and under_way[0].is_settled:
            try:
                self._ledger.sync()
                self.spool.confirm(under_way[0].replay)
            except SpoolError as error:  # read again, and folded
                self._stop_taking(error)
                self._rewind(table)
                return False
            under_way.pop(0)
        if not self.spool.rows(table):
            self._account_destroyed(table)
        return True
