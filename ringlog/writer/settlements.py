"""What people settle beside a running writer, and what they still have to: discards, retries, records in quarantine."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ringlog.dead_letters import DeadLetters
from ringlog.disk import Directory
from ringlog.errors import SpoolError
from ringlog.ledger import Discards, Ledger, Term
from ringlog.pressure import Alert, Level, Resource

logger = logging.getLogger("ringlog.writer")


class Settlements:
    """Enters into the ledger what commands marked, and alerts when records are quarantined, or all are settled."""

    def __init__(self, ledger: Ledger, spool: Directory, letters: DeadLetters, alert: Callable[[Alert], None]) -> None:
        self._ledger = ledger
        self._discards = Discards(spool)
        self._letters = letters
        self._alert = alert
        self._entered = (0, 0)  # bytes of the marks that are in the ledger
        self.quarantined_rows = 0

    def look(self) -> None:
        """Once a second; cheap while nobody settled anything. A ledger that cannot be written is tried again."""
        try:
            self._enter()
        except SpoolError as error:
            logger.error("ledger cannot be written: %s", error)
        before, self.quarantined_rows = self.quarantined_rows, self._ledger.rows(Term.QUARANTINED)
        if self.quarantined_rows > before:
            text = (
                f"{self.quarantined_rows - before} more accepted records are in quarantine and not in QuestDB, "
                f"{self.quarantined_rows} in all: `ringlog quarantine list` shows them"
            )
            self._alert(Alert(Resource.QUARANTINE, Level.WARN, text))
        elif before and not self.quarantined_rows:
            self._alert(Alert(Resource.QUARANTINE, Level.OK, "every record in quarantine is settled"))

    def _enter(self) -> None:
        marked = (self._discards.bytes, self._letters.retried_bytes)
        if marked == self._entered:
            return
        for table, delivered in self._letters.delivered_spans().items():
            self._ledger.enter_retried(table, delivered)
        rows = self._ledger.enter_discarded(self._discards.marks())
        self._entered = marked
        if rows:
            logger.warning("records discarded by hand rows=%d", rows)
