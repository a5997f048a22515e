"""What the writer says when it gets nowhere: a table that stays away, records that nobody takes."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ringlog.pressure import Alert, Level, Pressure, Resource

logger = logging.getLogger("ringlog.writer")

AWAY_SECONDS_MAX = 60.0  # a table that is away for longer is an alert
STALL_SECONDS = 10.0  # records that wait while none is delivered for so long are told of


class Progress:
    """Told once a second how things stand. `stalled` says why nothing is delivered; empty while all is well."""

    def __init__(self, pressure: Pressure) -> None:
        self._pressure = pressure
        self._away_since: dict[str, float] = {}
        self._alerted: set[str] = set()
        self._delivered = 0
        self._since: float | None = None  # when records began to wait, or the last were delivered
        self.stalled = ""

    def look(self, now: float, away: Mapping[str, str], delivered: int, waiting: int, why: str) -> None:
        """`away`: tables whose records go to the spool, each with why. `delivered`: rows that QuestDB has, since the
        start. `waiting`: rows that it lacks. `why`: what they wait for, as far as that is known."""
        self._look_at_tables(now, away)
        if not waiting or delivered != self._delivered or self._since is None:
            if self.stalled:
                logger.info("records are delivered again rows=%d waiting=%d", delivered, waiting)
            self._delivered, self.stalled = delivered, ""
            self._since = now if waiting else None
        elif now - self._since >= STALL_SECONDS:
            if not self.stalled:
                logger.warning("nothing delivered for %.0f s, %d records wait: %s", now - self._since, waiting, why)
            self.stalled = why

    def _look_at_tables(self, now: float, away: Mapping[str, str]) -> None:
        for table, why in away.items():
            since = self._away_since.setdefault(table, now)
            if now - since >= AWAY_SECONDS_MAX and table not in self._alerted:
                self._alerted.add(table)
                text = f"table {table}: away for {now - since:.0f} s, its records wait in the spool: {why}"
                self._pressure.alert(Alert(Resource.TABLE, Level.WARN, text), logging.ERROR)
        for table in self._away_since.keys() - away.keys():
            seconds = now - self._away_since.pop(table)
            if table in self._alerted:
                self._alerted.discard(table)
                text = f"table {table}: takes records again, after {seconds:.0f} s"
                self._pressure.alert(Alert(Resource.TABLE, Level.OK, text), logging.WARNING)
