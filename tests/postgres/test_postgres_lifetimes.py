"""Pools that are not closed, used in a second event loop, or inherited by a forked process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from ringlog.errors import ServerRefused
from ringlog.postgres.pools import AsyncPool, Pool, Statement, Steps, operation
from ringlog.settings import Settings

SCRIPT = """
import asyncio
from ringlog.postgres.pools import AsyncPool, Pool, Statement, operation
from ringlog.settings import Settings

@operation
def one():
    return (yield Statement("select 1"))[0][0]

settings = Settings.from_environment()
pool, async_pool = Pool(settings), AsyncPool(settings)
pool.open()
print(pool.run(one()))

async def use():
    await async_pool.open()
    print(await async_pool.run(one()))

asyncio.run(use())
asyncio.run(use())
"""


@operation
def one() -> Steps[int]:
    rows = yield Statement("select 1")
    value: int = rows[0][0]
    return value


def test_a_script_ends_without_close(database: Settings) -> None:
    """Finding 31: a script that leaves Pool and AsyncPool open, in two event loops, ends by itself without a word."""
    environment = {
        "RINGLOG_POSTGRES_HOST": database.postgres_host,
        "RINGLOG_POSTGRES_PORT": str(database.postgres_port),
        "RINGLOG_POSTGRES_USER": database.postgres_user,
        "RINGLOG_POSTGRES_PASSWORD": database.postgres_password.reveal(),
        "RINGLOG_POSTGRES_DATABASE": database.postgres_database,
        "RINGLOG_POSTGRES_TIMEOUT_MS": "30000",
    }
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n1\n1\n", "")


async def test_two_loops_at_once(database: Settings) -> None:
    """Finding 31: an event loop beside the one that runs is refused by name, and the first one goes on."""
    async with AsyncPool(database) as pool:
        assert await pool.run(one()) == 1
        with pytest.raises(ServerRefused, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(pool.run(one())))
        assert await pool.run(one()) == 1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # other tests have threads
def test_a_forked_process(database: Settings) -> None:
    """Finding 31: children and parent go on with the same Pool and AsyncPool, each with connections of its own."""
    with asyncio.Runner() as runner, Pool(database) as pool:
        async_pool = AsyncPool(database)
        runner.run(async_pool.open())
        assert (pool.run(one()), runner.run(async_pool.run(one()))) == (1, 1)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if (pool.run(one()), asyncio.run(async_pool.run(one()))) == (1, 1) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (pool.run(one()), runner.run(async_pool.run(one()))) == (1, 1)
        assert pool.statistics().get("connections_lost", 0) == 0
        runner.run(async_pool.close())
