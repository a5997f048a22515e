"""An AsyncConnection in a second event loop, in two at once, and in a forked process."""

from __future__ import annotations

import asyncio
import os
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from ringlog.errors import ServerRefused
from ringlog.redis import AsyncCache, AsyncConnection, Connection

if TYPE_CHECKING:
    from ringlog.settings import Settings


@pytest.fixture
def settings(connection: Connection) -> Settings:
    return connection.settings


async def written_and_read(cache: AsyncCache) -> bool:
    prices: dict[str, Any] = {f"S{number}": number + 1 for number in range(10)}
    await asyncio.gather(*[cache.set_price(symbol, price) for symbol, price in prices.items()])
    found = await cache.prices(list(prices))
    return [cached.value for cached in found.values()] == [Decimal(price) for price in prices.values()]


def test_a_second_event_loop(settings: Settings) -> None:
    """Finding 31: AsyncCache works in each `asyncio.run` of a program, and leaves no connection open after one."""
    cache = AsyncCache(AsyncConnection(settings))
    assert [asyncio.run(written_and_read(cache)) for _ in range(3)] == [True] * 3


async def test_two_loops_at_once(settings: Settings) -> None:
    """Finding 31: a loop beside the one that runs is refused by name, and the first one goes on."""
    async with AsyncConnection(settings) as connection:
        cache = AsyncCache(connection)
        assert await written_and_read(cache)
        with pytest.raises(ServerRefused, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(written_and_read(cache)))
        assert await written_and_read(cache)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # other tests have threads
def test_a_forked_process(settings: Settings) -> None:
    """Finding 31: a forked child goes on with connections of its own, and the parent with its old ones."""
    with asyncio.Runner() as runner:
        connection = AsyncConnection(settings)
        cache = AsyncCache(connection)
        assert runner.run(written_and_read(cache))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if asyncio.run(written_and_read(cache)) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert runner.run(written_and_read(cache))
        runner.run(connection.close())
