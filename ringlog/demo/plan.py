"""What every process of a paper-trading session is told."""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from ringlog.demo.configuration import paper_address
from ringlog.producer import Producer
from ringlog.records import Record
from ringlog.settings import SETTINGS_FILE, Settings


class Plan(msgspec.Struct, kw_only=True):
    """One session. `speed` is that of the recording, 0 for as fast as it goes; `rate` is records/s of one executor."""

    settings_file: str  # a Secret is never pickled, and nothing of it is in `ps` or in an environment
    result_dir: str
    recording: str
    base: str
    quote: str
    executors: int
    speed: float
    rate: float
    seed: int
    first_us: int
    clock_offset_us: int
    lane_bytes: int  # of each lane: left to themselves, the first of so many would leave the last none

    def producer(self, records: Iterable[type[Record]], settings: Settings) -> Producer:
        """The producer of one of the session's processes."""
        types = tuple(records)
        return Producer(types, settings=settings, lane_bytes=dict.fromkeys(types, self.lane_bytes))

    def settings(self) -> Settings:
        return Settings.from_environment({SETTINGS_FILE: self.settings_file})

    @property
    def pool_address(self) -> str:
        return paper_address(f"pool {self.base}/{self.quote}")

    def wait_for(self, receive_us: int, started: float) -> float:
        """Seconds until a message of the recording is due; `started` is when the first one was (monotonic)."""
        if not self.speed:
            return 0.0
        return started + (receive_us - self.first_us) / 1e6 / self.speed - time.monotonic()
