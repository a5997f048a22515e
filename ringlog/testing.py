"""A pytest plugin for code that appends: its records can be read back without a server or a writer.

    def test_every_fill_is_recorded(ringlog_memory):
        with ringlog_memory.producer(Trade) as producer:
            execute_one_order(producer)
        assert [row["executed_price"] for row in ringlog_memory.rows(Trade)] == [150.25]

Code that makes its own `Producer()` appends to the same instance: the fixture sets `RINGLOG_RUNTIME_DIR` for the test.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ringlog.producer import Producer
    from ringlog.records import Record
    from ringlog.settings import Settings

# Small lanes: a test claims them anew each time.
LANE_BYTES_MAX = 8 * 1024 * 1024


class MemoryInstance:
    """An instance of its own, drained into memory when its rows are asked for."""

    def __init__(self, settings: Settings) -> None:
        from ringlog.lanes.instance import Instance
        from ringlog.lanes.readers import LaneDirectory
        from ringlog.sinks.memory import MemorySink

        self.settings = settings
        self._instance = Instance(settings).open()
        self._directory = LaneDirectory(self._instance)
        self._sink = MemorySink()
        self._drains: dict[Any, Any] = {}
        self._producers: list[Producer] = []

    def producer(self, *records: type[Record], **options: Any) -> Producer:
        """A producer of these record types (all of the platform's if none is named), open, closed after the test.

        `options` are those of `Producer`.
        """
        from ringlog.producer import Producer
        from ringlog.records import PLATFORM_RECORDS

        producer = Producer(records or PLATFORM_RECORDS, settings=self.settings, **options)
        self._producers.append(producer)
        return producer.open()

    def rows(self, record_type: type[Record]) -> list[dict[str, Any]]:
        """Every record of a type that was accepted so far, in the order of its timestamps, as a dict; empties lanes.

        The dict has the record's fields (None is NULL, `timestamp` integer microseconds since the epoch), `lane` and
        `seq`. Raises LaneError where a lane cannot be read, AssertionError where its bytes are none that append wrote.
        """
        self._drain()
        return self._sink.rows(record_type)

    def refuse(self, refusing: bool = True) -> None:
        """Has every append return False, as in an outage with a full spool, or ends that."""
        from ringlog.lanes.claims import open_board
        from ringlog.layout import BoardReason

        open_board(self._instance).refuse(BoardReason.SPOOL_FULL if refusing else BoardReason.ACCEPTING)

    def _drain(self) -> None:
        from ringlog.errors import LaneError
        from ringlog.writer.drain import Drain

        self._directory.refresh()
        if self._directory.refused:
            raise LaneError("; ".join(self._directory.refused.values()))
        for lane in self._directory.lanes.values():
            drain = self._drains.setdefault(lane.layout, Drain(lane.layout, 1 << 14))
            while (taken := drain.take([lane])) is not None:
                (batch, corrupt, _), runs = taken
                assert not corrupt, f"lane {lane.lane:016x}: got slots that append never wrote: {corrupt}"  # noqa: S101
                self._sink.send(self._sink.encode(batch))
                lane.advance(runs[-1].first_seq + runs[-1].rows)
        self._directory.adopt()

    def close(self) -> None:
        """Closes the producers and removes every segment of the instance."""
        from ringlog.lanes.readers import remove_instance

        for producer in self._producers:
            producer.close()
        self._directory.close()
        remove_instance(self._instance)


@pytest.fixture
def ringlog_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryInstance]:
    """A `MemoryInstance` for one test, also for code that makes its own Producer from the environment."""
    from ringlog.settings import Settings

    directory = tmp_path / f"ringlog-{secrets.token_hex(4)}"
    monkeypatch.setenv("RINGLOG_RUNTIME_DIR", str(directory))
    monkeypatch.setenv("RINGLOG_LANE_BYTES_MAX", str(LANE_BYTES_MAX))
    instance = MemoryInstance(Settings.from_environment())
    yield instance
    instance.close()
