"""How far each process of a session has read the recording, so that none trades on prices of another time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

LEAD_LINES = 64  # below a tenth of a second of a busy market
POLL_S = 0.0005
STOP_POLLS = 100  # asking the event costs more than all the rest
DONE = sys.maxsize


class Lockstep:
    """Lines reached, in shared memory: word 0 is the market's, then one word an executor.

    Whoever is paced by the recording's own clock hardly ever waits here; as fast as possible, the market stays at most
    LEAD_LINES ahead of the slowest executor, and no executor is further ahead of the market.
    """

    def __init__(self, lines: Any, is_stopped: Any) -> None:
        self._lines = lines
        self._is_stopped = is_stopped

    def reach(self, word: int, line: int) -> None:
        self._lines[word] = line

    def follow_market(self, line: int) -> bool:
        """Waits until prices of about this line are out; False once stopped."""
        return self._wait(lambda: self._lines[0] >= max(1, line - LEAD_LINES))

    def follow_executors(self, line: int) -> bool:
        """Waits until every executor has come near this line; False once stopped."""
        return self._wait(lambda: min(self._lines[1:]) >= line - LEAD_LINES)

    def _wait(self, is_near: Callable[[], bool]) -> bool:
        polls = 0
        while not is_near():
            polls += 1
            if polls % STOP_POLLS == 0 and self._is_stopped.is_set():
                return False
            time.sleep(POLL_S)
        return True
