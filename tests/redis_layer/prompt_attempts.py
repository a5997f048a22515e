"""Attempts at what has to be seen within the two seconds that a price is fresh."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PROMPT_SECONDS = 0.5
DEADLINE_SECONDS = 60.0


def promptly(attempt: Callable[[], T]) -> T:
    """What an attempt returned. One that failed is made again only where it was held up: then it had no fair chance."""
    deadline_s = time.monotonic() + DEADLINE_SECONDS
    while True:
        began_s = time.monotonic()
        try:
            return attempt()
        except Exception:
            ended_s = time.monotonic()
            if ended_s - began_s < PROMPT_SECONDS or ended_s > deadline_s:
                raise
