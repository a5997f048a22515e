"""What the pool does to a new connection, seen on a real QuestDB."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from ringlog.questdb import pools
from ringlog.questdb.async_queries import AsyncQueries
from ringlog.questdb.queries import Queries
from ringlog.settings import Settings

ROWS, TEXT_BYTES = 8_000, 256
ANSWER = f"SELECT rpad('', {TEXT_BYTES}, 'x') FROM long_sequence({ROWS})"
# libpq's buffer, as it is before a longer value came (pqMakeEmptyPGconn), and the bytes of the answer at the least.
LIBPQ_BUFFER_BYTES = 16 * 1024
WAITS_OF_A_SMALL_BUFFER = ROWS * TEXT_BYTES // LIBPQ_BUFFER_BYTES


class Waits:
    """Counts how often a connection waits for the server to send more."""

    def __init__(self, wait: Callable[..., Any]) -> None:
        self._wait = wait
        self.count = 0

    def __call__(self, steps: Generator[Any, Any, Any], *arguments: Any, **options: Any) -> Any:
        return self._wait(self._counted(steps), *arguments, **options)

    def _counted(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        ready = None
        while True:
            try:
                state = steps.send(ready)
            except StopIteration as stop:
                return stop.value
            self.count += 1
            ready = yield state


def test_a_long_answer_takes_few_waits(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pooled connection takes an answer of 2 MB in a fraction of the waits that libpq's first buffer would need."""
    counts = {}
    for name, first in (("as pooled", pools.WIDE_VALUE), ("not widened", "SELECT 1")):
        monkeypatch.setattr(pools, "WIDE_VALUE", first)
        with Queries(settings) as queries, queries._pool.connection() as connection:
            waits = connection.wait = Waits(connection.wait)
            assert len(connection.execute(ANSWER).fetchall()) == ROWS
            counts[name] = waits.count
    assert counts["not widened"] > WAITS_OF_A_SMALL_BUFFER
    assert counts["as pooled"] < WAITS_OF_A_SMALL_BUFFER // 2


async def test_a_long_answer_takes_few_waits_in_asyncio(settings: Settings) -> None:
    """The same with AsyncQueries."""
    async with AsyncQueries(settings) as queries, queries._pool.connection() as connection:
        waits = connection.wait = Waits(connection.wait)
        assert len(await (await connection.execute(ANSWER)).fetchall()) == ROWS
    assert waits.count < WAITS_OF_A_SMALL_BUFFER // 2


def test_a_server_that_sends_no_long_value_serves(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that refuses the first statement costs nothing but the wider buffer."""
    monkeypatch.setattr(pools, "WIDE_VALUE", "SELECT no_such_function()")
    with Queries(settings) as queries:
        assert queries.execute_query("SELECT 1 x").rows()[0].x == 1
        assert queries.statistics().get("connections_errors", 0) == 0
