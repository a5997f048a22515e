"""The check at the end: every accepted record is in QuestDB exactly once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

import msgspec

from ringlog.errors import ServerUnavailable
from ringlog.questdb.connection import Connection
from ringlog.settings import Settings

TIMEOUT_SECONDS = 60.0  # of one question


class Verdict(msgspec.Struct):
    """Counts over all tables; `lost` and `duplicated` are records that are not in their table, or more than once."""

    accepted: int = 0
    stored: int = 0
    lost: int = 0
    duplicated: int = 0
    foreign: int = 0  # rows of lanes that none of the executors owned

    @property
    def is_exact(self) -> bool:
        return self.lost == self.duplicated == self.foreign == 0 and self.stored == self.accepted


def verify(
    settings: Settings,
    accepted: Mapping[str, Mapping[str, int]],
    timeout_seconds: float,
    has_ended: Callable[[], bool] = lambda: False,
) -> Verdict:
    """Compares table by table and lane by lane: `accepted` maps table to lane (hexadecimal) to its records.

    A lane that accepted n records must have exactly the rows of seq 0 to n - 1. Asks until that is so, at most for
    `timeout_seconds`, and only once more where server or writer `has_ended`. Raises ServerError where the server cannot
    be asked.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        is_last = has_ended() or time.monotonic() > deadline
        try:
            verdict = _compare(settings, accepted)
        except ServerUnavailable:  # a busy server may take longer to let us in than a connection waits for it
            if is_last:
                raise
        else:
            if verdict.is_exact or is_last:
                return verdict
        time.sleep(0.1)


def ranged(table: str) -> str:
    """The check's question: lane, its rows, its distinct, least and largest seq."""
    return f"SELECT lane, count(), count_distinct(seq), min(seq), max(seq) FROM {table}"  # noqa: S608 (a record type's own)


def _compare(settings: Settings, accepted: Mapping[str, Mapping[str, int]]) -> Verdict:
    verdict = Verdict()
    with contextlib.closing(Connection.from_settings(settings)) as connection:
        for table, lanes in accepted.items():
            query = ranged(table)
            if table == "performance_metrics":  # the writer's own go by no lane
                query += " WHERE operation NOT LIKE 'writer.%'"
            rows = {lane: rest for lane, *rest in connection.execute(query, timeout_s=TIMEOUT_SECONDS)}
            for name, wanted in lanes.items():
                count, distinct, first, last = rows.pop(int(name, 16), (0, 0, 0, -1))
                outside = max(0, last - wanted + 1) + max(0, -first)
                verdict.accepted += wanted
                verdict.stored += count
                verdict.duplicated += count - distinct
                verdict.lost += max(0, wanted - distinct)
                verdict.foreign += outside
            verdict.foreign += sum(count for count, *_ in rows.values())
    return verdict
