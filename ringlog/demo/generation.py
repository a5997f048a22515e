"""A generated market as a recording: the same format as a real one, so that one code path trades both."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import numpy as np

from ringlog.demo.feed import random_walk

STEPS_PER_SECOND = 100
TRADE_SHARE = 0.25  # of the steps: the others only move the book
SIZE_FACTOR = 6.0
JITTER_SCALE_US = 400.0
MOVES = 6  # steps of the random walk between two messages
SYMBOL = "SOLUSDC"


def write_generated(path: Path, seed: int, seconds: float) -> None:
    """Writes `seconds` of a seeded random walk that ends now, as `feed.read_recording` reads it."""
    generator = np.random.default_rng(seed)
    steps = int(seconds * STEPS_PER_SECOND)
    gaps_us = generator.exponential(1e6 / STEPS_PER_SECOND, steps).cumsum()
    jitter_us = generator.exponential(JITTER_SCALE_US, steps)
    is_trade = generator.random(steps) < TRADE_SHARE
    start_us = time.time_ns() // 1_000 - int(gaps_us[-1] + 1e6)
    walk = random_walk(seed)
    with gzip.open(path, "wt", compresslevel=1) as file:
        for i in range(steps):
            for _ in range(MOVES):
                trade, book = next(walk)
            event_us = start_us + int(gaps_us[i])
            receive_ns = (event_us + int(jitter_us[i])) * 1_000
            if is_trade[i]:
                data = (
                    f'"e":"trade","E":{event_us // 1_000},"s":"{SYMBOL}","t":{i + 1},"p":"{trade.price:.4f}",'
                    f'"q":"{max(trade.quantity * SIZE_FACTOR, 0.0001):.4f}","m":{str(trade.is_buyer_maker).lower()}'
                )
                stream = "trade"
            else:
                data = f'"s":"{SYMBOL}","b":"{book.bid:.4f}","B":"1","a":"{book.ask:.4f}","A":"1"'
                stream = "bookTicker"
            file.write(f'{receive_ns} {{"stream":"{SYMBOL.lower()}@{stream}","data":{{{data}}}}}\n')
