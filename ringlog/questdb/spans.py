"""Cutting a time span into pieces, so that a query that runs out of time has whole pieces to show for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

HOUR_US = 3_600_000_000
MINUTE_US = 60_000_000
GROWTH = 5
# A piece is cut so that, at the rate of the piece before, it takes at most this share of the time that is left.
SHARE = 0.5
_TOOK_MIN_S = 0.002


def pieces(
    start_us: int,
    end_us: int,
    deadline: float,
    *,
    order: str = "newest",
    first_us: int = HOUR_US,
    unit_us: int = MINUTE_US,
) -> Iterator[tuple[int, int]]:
    """Half-open pieces that cover `start_us` to `end_us` without a gap, from the newest or from the oldest end.

    The inner borders lie on whole units. `deadline` is in monotonic seconds; the time between two steps of this
    iterator counts as what the piece cost.
    """
    low, high, length = start_us, end_us, first_us
    while low < high:
        # What would be left over is taken along while it is small.
        length = high - low if high - low <= length * 3 // 2 else length
        if order == "newest":
            piece = (max(low, (high - length) // unit_us * unit_us), high)
            high = piece[0]
        else:
            piece = (low, min(high, -(-(low + length) // unit_us) * unit_us))
            low = piece[1]
        began = time.monotonic()
        yield piece
        now = time.monotonic()
        affordable = (piece[1] - piece[0]) * SHARE * (deadline - now) / max(now - began, _TOOK_MIN_S)
        length = max(unit_us, min(length * GROWTH, int(affordable)))
