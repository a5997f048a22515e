"""Dead letters sent again: one record a request, under its own lane and seq, followed until it is applied."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from ringlog.dead_letters import DeadLetter
from ringlog.dead_letters.letter import slot_of
from ringlog.decode import Slots
from ringlog.errors import SchemaMismatch, ServerRefused, ServerUnavailable
from ringlog.records import RecordLayout
from ringlog.sinks import Sink
from ringlog.writer.drain import Drain

CONFIRM_INTERVAL_SECONDS = 0.01


class Resender:
    """Resender(sink, timeout_seconds)(letter, layout): None once the row is applied, or why it is refused again.

    `cuts`: microseconds before which a table's records have expired; those are refused, and stay dead letters.
    Raises ServerUnavailable where the server cannot be asked, or has not applied the row after `timeout_seconds`.
    """

    def __init__(self, sink: Sink, timeout_seconds: float, cuts: Mapping[str, int] | None = None) -> None:
        self._sink = sink
        self._cuts = cuts or {}
        self._timeout = timeout_seconds

    def __call__(self, letter: DeadLetter, layout: RecordLayout) -> str | None:
        slot = np.frombuffer(slot_of(layout, letter.seq, letter.record), np.uint8)
        slots = [Slots(letter.lane, letter.seq, 1, slot)]
        batch, corrupt, expired = Drain(layout, 1).decode(slots, self._cuts.get(letter.table))
        if corrupt:
            return "the kept fields are not a record that append could have written"
        if expired:
            return "expired: it is older than the last cut that retention made, and would bring a partition back"
        request = self._sink.encode(batch)
        try:
            receipt = self._sink.send(request)
        except (ServerRefused, SchemaMismatch) as error:
            return str(error)
        finally:
            self._sink.release(request)
        deadline = time.monotonic() + self._timeout
        while not self._sink.confirm([receipt])[0]:
            if time.monotonic() > deadline:
                raise ServerUnavailable(
                    f"table {letter.table}: got a row acknowledged but not applied for {self._timeout:.0f} s"
                )
            time.sleep(CONFIRM_INTERVAL_SECONDS)
        return None
