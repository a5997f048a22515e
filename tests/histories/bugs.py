"""Known bugs to be planted, each of which the simulation must catch: by name, what is put in place of what."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from histories.world import Server
from ringlog.lanes import readers
from ringlog.lanes.readers import LaneReader
from ringlog.ledger import Ledger
from ringlog.spool import Spool
from ringlog.writer.delivery import Delivery, Settled
from ringlog.writer.refuge import Refuge


@contextlib.contextmanager
def _early_tail() -> Iterator[None]:
    submit = Delivery.submit

    def early(self: Delivery, batch: Any, settle: Callable[[Settled], None]) -> None:
        submit(self, batch, lambda _settled: None)
        settle(Settled())

    with mock.patch.object(Delivery, "submit", early):
        yield


@contextlib.contextmanager
def _acknowledged_is_applied() -> Iterator[None]:
    with mock.patch.object(Server, "confirm", lambda _self, receipts: [True] * len(receipts)):
        yield


@contextlib.contextmanager
def _live_lane_adopted() -> Iterator[None]:
    with (
        mock.patch.object(readers, "is_locked", return_value=False),
        mock.patch.object(LaneReader, "retire"),
    ):
        yield


@contextlib.contextmanager
def _cursor_over_failure() -> Iterator[None]:
    with mock.patch.object(Spool, "rewind"):
        yield


@contextlib.contextmanager
def _refused_rows_dropped() -> Iterator[None]:
    with mock.patch.object(Refuge, "_bury"):
        yield


@contextlib.contextmanager
def _ledger_without_confirmed() -> Iterator[None]:
    record = Ledger.record

    def forgetful(self: Ledger, term: Any, table: str, spans: Any, **options: Any) -> None:
        if term != "confirmed":
            record(self, term, table, spans, **options)

    with mock.patch.object(Ledger, "record", forgetful):
        yield


@contextlib.contextmanager
def _in_the_simulation() -> Iterator[None]:
    """These two are made by the simulation itself."""
    yield


BUGS = {
    "early-tail": _early_tail,
    "seq-reuse": _in_the_simulation,
    "skipped-fsync": _in_the_simulation,
    "204-is-applied": _acknowledged_is_applied,
    "live-lane-adopted": _live_lane_adopted,
    "cursor-over-failure": _cursor_over_failure,
    "refused-rows-dropped": _refused_rows_dropped,
    "ledger-without-confirmed": _ledger_without_confirmed,
}
