"""Lanes and boards whose segments are gone: what the ledger keeps of them, and who is told."""

from __future__ import annotations

import logging

from ringlog.errors import LaneError, SpoolError
from ringlog.lanes.board import Board
from ringlog.lanes.claims import Card
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import Absent, LaneDirectory
from ringlog.lanes.segments import inode_of
from ringlog.ledger import Ledger
from ringlog.pressure import Alert, Level, Pressure, Resource

logger = logging.getLogger("ringlog.writer")


class MissingLanes:
    """For one writer. A lane that vanished stays in the ledger, so that no audit takes its records for stored ones."""

    def __init__(self, instance: Instance, ledger: Ledger, pressure: Pressure) -> None:
        self._instance = instance
        self._ledger = ledger
        self._pressure = pressure

    def lose(self, card: Card, reason: Absent) -> bool:
        """A lane has no segment: True once the ledger knows durably what became of it, so that its card may go."""
        if reason is Absent.VANISHED:
            return self._vanish(card.lane, card.table)
        try:
            if reason is Absent.REBOOTED:
                self._ledger.lose_lane(card.lane)
        except SpoolError as error:
            logger.error("lane=%016x: the ledger cannot be written: %s", card.lane, error)
            return False
        return True

    def renew(self, board: Board) -> bool:
        """Whether the board was removed, and is another one now."""
        try:
            is_other = board.renew(self._instance)
        except (LaneError, OSError) as error:
            logger.error("the board was removed and cannot be made anew yet: %s", error)
            return False
        if is_other:
            text = "the board: somebody removed its segment; it is made anew, and producers attach it"
            self._pressure.alert(Alert(Resource.LANES, Level.WARN, text))
        return is_other

    def look(self, directory: LaneDirectory) -> None:
        """Lanes that the ledger has as open, and that neither a card nor a segment leads to any more."""
        for lane, table in self._ledger.open_lanes().items():
            if lane in directory.lanes or lane in directory.refused or self._instance.card_path(lane).exists():
                continue
            try:
                if inode_of(self._instance.segment_name(lane)) is None:
                    self._vanish(lane, table)
            except LaneError:  # not to be told now
                continue

    def tell_unlinked(self, card: Card) -> None:
        """A lane lost its name while this writer has it mapped: nothing of it is lost as long as the writer lives."""
        text = (
            f"lane {card.lane:016x} of {card.table}: somebody removed its segment; it is read to its end all the same"
        )
        self._pressure.alert(Alert(Resource.LANES, Level.WARN, text))

    def _vanish(self, lane: int, table: str) -> bool:
        try:
            self._ledger.vanish_lane(table, lane)
        except SpoolError as error:
            logger.error("lane=%016x: the ledger cannot be written: %s", lane, error)
            return False
        text = f"lane {lane:016x} of {table}: {Absent.VANISHED.value}; `ringlog audit` names it"
        self._pressure.alert(Alert(Resource.LANES, Level.REFUSE, text))
        return True
