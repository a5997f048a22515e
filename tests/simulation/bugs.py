"""Known bugs to be planted, each of which the simulation must catch: by name, what is put in place of what."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any
from unittest import mock

from ringlog.lanes import readers
from ringlog.lanes.readers import LaneReader
from ringlog.ledger import Ledger, Term
from ringlog.spool import Spool
from ringlog.writer.delivery import Delivery, Settled
from ringlog.writer.refuge import Refuge

if TYPE_CHECKING:
    from simulation.simulation import Simulation

Bug = Callable[["Simulation"], AbstractContextManager[Any]]


def early_tail(_: Simulation) -> AbstractContextManager[Any]:
    """Records count as safe when they were handed to the sender."""
    submit = Delivery.submit

    def early(self: Delivery, batch: Any, settle: Callable[[Settled], None]) -> None:
        submit(self, batch, lambda _settled: None)
        settle(Settled())

    return mock.patch.object(Delivery, "submit", early)


def tail_over_a_gap(_: Simulation) -> AbstractContextManager[Any]:
    """A tail moves over records although earlier ones are nowhere yet."""

    def over(self: LaneReader, first_seq: int, rows: int) -> bool:
        if self.tail < first_seq + rows:
            self.advance(first_seq + rows)
        return True

    return mock.patch.object(LaneReader, "advance_over", over)


def tail_moves_back(_: Simulation) -> AbstractContextManager[Any]:
    """A tail moves back over slots that were given back."""

    def over(self: LaneReader, first_seq: int, rows: int) -> bool:
        if first_seq > self.tail:
            return False
        self.advance(first_seq + rows)
        return True

    return mock.patch.object(LaneReader, "advance_over", over)


def seq_reuse(simulation: Simulation) -> AbstractContextManager[Any]:
    """A producer gives the number of its last record to the next one."""
    return mock.patch.object(simulation, "reuses_seqs", True)


def skipped_fsync(simulation: Simulation) -> AbstractContextManager[Any]:
    """No fsync keeps anything."""
    return mock.patch.object(simulation.world.disk, "remember")


def skipped_file_fsync(simulation: Simulation) -> AbstractContextManager[Any]:
    """An fsync of a file keeps nothing of it, one of a directory its names."""
    remember = simulation.world.disk.remember

    def directories_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            remember(descriptor)

    return mock.patch.object(simulation.world.disk, "remember", directories_alone)


def skipped_directory_fsync(simulation: Simulation) -> AbstractContextManager[Any]:
    """An fsync of a directory keeps no names, one of a file its content."""
    remember = simulation.world.disk.remember

    def files_alone(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            remember(descriptor)

    return mock.patch.object(simulation.world.disk, "remember", files_alone)


def acknowledged_is_applied(simulation: Simulation) -> AbstractContextManager[Any]:
    """What the server acknowledged counts as applied."""
    return mock.patch.object(simulation.world.server, "confirm", lambda receipts: [True] * len(receipts))


def live_lane_adopted(_: Simulation) -> AbstractContextManager[Any]:
    """Every owner seems dead, and is not told that its lane was taken."""
    stack = ExitStack()
    stack.enter_context(mock.patch.object(readers, "is_locked", return_value=False))
    stack.enter_context(mock.patch.object(LaneReader, "retire"))
    return stack


def cursor_over_failure(_: Simulation) -> AbstractContextManager[Any]:
    """What came back from the spool and failed is not read again."""
    return mock.patch.object(Spool, "rewind")


def refused_rows_dropped(_: Simulation) -> AbstractContextManager[Any]:
    """Rows that the server refuses are kept nowhere."""
    return mock.patch.object(Refuge, "_bury")


def expired_not_written_down(_: Simulation) -> AbstractContextManager[Any]:
    """Records that came too late are passed without a word."""
    return mock.patch.object(Refuge, "expire", return_value=True)


def corrupt_slots_dropped(_: Simulation) -> AbstractContextManager[Any]:
    """Slots that append could not have written are passed without a word."""
    return mock.patch.object(Refuge, "quarantine", return_value=True)


def _ledger_without(term: Term) -> Bug:
    record = Ledger.record

    def forgetful(self: Ledger, given: Term, table: str, spans: Any, **options: Any) -> None:
        if given != term:
            record(self, given, table, spans, **options)

    return lambda _: mock.patch.object(Ledger, "record", forgetful)


def ledger_not_synced(_: Simulation) -> AbstractContextManager[Any]:
    """Lanes and spool files go before the ledger's word on them is durable."""
    return mock.patch.object(Ledger, "sync")


BUGS: dict[str, Bug] = {
    "early-tail": early_tail,
    "tail-over-a-gap": tail_over_a_gap,
    "tail-moves-back": tail_moves_back,
    "seq-reuse": seq_reuse,
    "skipped-fsync": skipped_fsync,
    "skipped-file-fsync": skipped_file_fsync,
    "skipped-directory-fsync": skipped_directory_fsync,
    "204-is-applied": acknowledged_is_applied,
    "live-lane-adopted": live_lane_adopted,
    "cursor-over-failure": cursor_over_failure,
    "refused-rows-dropped": refused_rows_dropped,
    "expired-not-written-down": expired_not_written_down,
    "corrupt-slots-dropped": corrupt_slots_dropped,
    "ledger-without-confirmed": _ledger_without(Term.CONFIRMED),
    "ledger-without-spooled": _ledger_without(Term.SPOOLED),
    "ledger-not-synced": ledger_not_synced,
}
