"""Accepted and refused records, read from the lanes themselves: what executors do costs them nothing more."""

from __future__ import annotations

import contextlib
from collections.abc import Container

from ringlog.errors import RinglogError
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneReader


class Heads:
    """The lanes of an instance as a spectator sees them, but for those in `others`; ones that have gone still count."""

    def __init__(self, instance: Instance, others: Container[int] = ()) -> None:
        self._instance = instance
        self._others = others
        self._readers: dict[int, LaneReader] = {}
        self.lane_bytes = 0

    def read(self) -> tuple[int, int]:
        """Records accepted and refused so far, over all tables."""
        counts = self.by_table().values()
        return sum(accepted for accepted, _ in counts), sum(refused for _, refused in counts)

    def by_lane(self) -> dict[str, dict[str, int]]:
        """Records accepted so far, by table and lane (hexadecimal); owners that died are counted too."""
        self.by_table()
        found: dict[str, dict[str, int]] = {}
        for lane, reader in self._readers.items():
            found.setdefault(reader.card.table, {})[f"{lane:016x}"] = reader.head
        return found

    def by_table(self) -> dict[str, tuple[int, int]]:
        """Records accepted and refused so far, by table."""
        present = cards(self._instance)
        for card in present:
            if card.lane not in self._readers and card.lane not in self._others:
                with contextlib.suppress(RinglogError, FileNotFoundError):
                    self._readers[card.lane] = LaneReader.attach(card)
        self.lane_bytes = max(self.lane_bytes, sum(card.size_bytes for card in present))
        found: dict[str, tuple[int, int]] = {}
        for reader in self._readers.values():
            accepted, refused = found.get(reader.card.table, (0, 0))
            found[reader.card.table] = accepted + reader.head, refused + sum(reader.refused)
        return found

    def __contains__(self, lane: int) -> bool:
        """Whether the records of this lane were counted in the latest look."""
        return lane in self._readers

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
