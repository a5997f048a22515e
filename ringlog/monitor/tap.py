"""The tap: records of all live lanes of one table as they are appended, without consuming or slowing them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from ringlog.columns import Column
from ringlog.decode import Decoder
from ringlog.errors import LaneError, SegmentRefused
from ringlog.lanes.claims import Card, cards
from ringlog.lanes.instance import Instance
from ringlog.lanes.segments import SegmentBlank
from ringlog.lanes.views import MappedLane
from ringlog.records import RecordLayout

ROWS_MAX = 2_048  # of one copy: small enough to be made long before a lane comes round
SETTLED_NS = 100_000_000


class Tapped(NamedTuple):
    """Records of one lane, in order: `rows` of them in `columns`.

    Before them `skipped` records, from `skipped_from` on, were overwritten before they could be copied; `unreadable`
    ones among them hold values that no append could have written.
    """

    layout: RecordLayout
    lane: int
    rows: int
    columns: dict[str, Column]
    skipped: int
    skipped_from: int
    unreadable: int


class _Lane(MappedLane):
    """A lane under the tap, and the seq of the record to show next."""

    next_seq = 0


class Tap:
    """Taps the lanes whose table or record type is called `name`, also those that are claimed later.

    Lanes that are there at the first `poll` are shown from then on, later ones from their first record.
    """

    def __init__(self, instance: Instance, name: str) -> None:
        self._instance = instance
        self._name = name
        self._lanes: dict[int, _Lane] = {}
        self._here: dict[int, Card] = {}
        self._pending: dict[int, Card] = {}
        self._known: set[int] = set()
        self._decoders: dict[RecordLayout, Decoder] = {}
        self._changed_ns = -1
        self._is_settled = False
        self._is_first = True
        self.refused: list[str] = []

    @property
    def lanes(self) -> int:
        """How many lanes are tapped now."""
        return len(self._lanes)

    def poll(self) -> Iterator[Tapped]:
        """What was appended since the last poll, at most ROWS_MAX records a lane."""
        self._list()
        self._attach()
        for number, lane in list(self._lanes.items()):
            try:
                tapped = self._read(lane)
            except SegmentRefused as error:
                self.refused.append(str(error))
                lane.close()
                del self._lanes[number]
                continue
            if tapped.rows or tapped.skipped or tapped.unreadable:
                yield tapped
            elif number not in self._here:
                lane.close()
                del self._lanes[number]

    def _list(self) -> None:
        """Reads the cards again if the directory changed, or just had when they were last read: its time is coarse."""
        with contextlib.suppress(OSError):
            now_ns = time.time_ns()
            changed_ns = self._instance.lanes_dir.stat().st_mtime_ns
            if changed_ns != self._changed_ns or not self._is_settled:
                self._changed_ns, self._is_settled = changed_ns, now_ns - changed_ns >= SETTLED_NS
                found = cards(self._instance)
                self._here = {card.lane: card for card in found if self._name in (card.table, card.record)}
                self._pending.update({lane: card for lane, card in self._here.items() if lane not in self._known})
                self._known |= self._here.keys()

    def _attach(self) -> None:
        for number, card in list(self._pending.items()):
            try:
                lane = self._lanes[number] = _Lane(card.segment, card.lane)
                if self._is_first:
                    lane.next_seq = lane.head
            except (FileNotFoundError, SegmentBlank):
                if number in self._here:
                    continue  # its claim is not complete yet
            except LaneError as error:
                self.refused.append(str(error))
            del self._pending[number]
        self._is_first = False

    def _read(self, lane: _Lane) -> Tapped:
        at = lane.next_seq
        copied = lane.copied(at, ROWS_MAX)
        lane.next_seq = copied.next_seq
        layout = lane.layout
        decoder = self._decoders.setdefault(layout, Decoder(layout))
        columns, sound, corrupt = decoder.decode(copied.slots)
        rows = sum(run.rows for run in sound)
        return Tapped(layout, lane.lane, rows, columns, copied.skipped, at, len(corrupt))

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()


def tables_of(instance: Instance) -> list[str]:
    """The tables, and the record types, that have lanes now."""
    return sorted({name for card in cards(instance) for name in (card.table, card.record)})


def as_row(tapped: Tapped) -> dict[str, Any]:
    """What is said of records that cannot be shown."""
    return {
        "skipped": tapped.skipped,
        "unreadable": tapped.unreadable,
        "lane": tapped.lane,
        "from_seq": tapped.skipped_from,
    }
