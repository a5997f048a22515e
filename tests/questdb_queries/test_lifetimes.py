"""Clients that are not closed, used in a second event loop, or inherited by a forked process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from ringlog.errors import QueryError
from ringlog.questdb.async_queries import AsyncQueries
from ringlog.questdb.queries import Queries
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

# A script that never ends would take this long; one that waits for the workers of its pool 5 s for each of them.
ENDS_WITHIN_S = 60
OPENED = """
import asyncio
from ringlog.questdb.async_queries import AsyncQueries
from ringlog.questdb.queries import Queries

queries, async_queries = Queries().open(), AsyncQueries()

async def use(answers):
    await async_queries.open()
    for _ in range(answers):
        print(len(await async_queries.execute_query("SELECT 1")))
"""
SCRIPTS = {
    "used": OPENED + "print(len(queries.execute_query('SELECT 1')))\nasyncio.run(use(1))\nasyncio.run(use(1))",
    "only opened": OPENED + "asyncio.run(use(0))",
    "in loops that nobody closes": OPENED + "loops = [asyncio.new_event_loop() for _ in range(3)]\n"
    "for loop in loops: loop.run_until_complete(use(1))",
    "ended by an error": OPENED + "async def fail():\n    await use(1)\n    raise SystemExit(0)\nasyncio.run(fail())",
}
ANSWERS = {"used": 3, "only opened": 0, "in loops that nobody closes": 3, "ended by an error": 1}


def run(script: str, server: QuestDBServer) -> subprocess.CompletedProcess[str]:
    settings = server.settings()
    environment = {
        "RINGLOG_QUESTDB_PG_PORT": str(settings["questdb_pg_port"]),
        "RINGLOG_QUESTDB_USER": settings["questdb_user"],
        "RINGLOG_QUESTDB_PASSWORD": settings["questdb_password"].reveal(),
        "RINGLOG_QUERY_TIMEOUT_MS": "30000",
    }
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=ENDS_WITHIN_S)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_ends_without_close(name: str, server: QuestDBServer) -> None:
    """Finding 31: a script that leaves Queries and AsyncQueries open ends by itself, and without a word on stderr."""
    done = run(SCRIPTS[name], server)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1\n" * ANSWERS[name]


def test_a_script_ends_while_the_server_hangs(own_server: QuestDBServer) -> None:
    """Finding 31: the workers of a pool that are connecting to a server that hangs keep no script from ending."""
    own_server.stop_signal()
    try:
        done = run(OPENED + "asyncio.run(use(0))", own_server)
    finally:
        own_server.continue_signal()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_second_event_loop(settings: Settings) -> None:
    """Finding 31: AsyncQueries goes on in a second `asyncio.run`, with connections of that loop's own."""
    queries = AsyncQueries(settings)

    async def ask() -> int:
        answers = await asyncio.gather(*[queries.execute_query("SELECT 1 x") for _ in range(20)])
        return sum(answer.rows()[0].x for answer in answers)

    async def close() -> None:
        assert await ask() == 20
        await queries.close()
        with pytest.raises(QueryError, match="closed"):
            await queries.execute_query("SELECT 1")

    asyncio.run(queries.open())
    assert [asyncio.run(ask()) for _ in range(3)] == [20] * 3
    asyncio.run(close())


async def test_two_loops_at_once(settings: Settings) -> None:
    """Finding 31: another loop is refused by name while the first one runs, and the first one goes on."""
    async with AsyncQueries(settings) as queries:
        with pytest.raises(QueryError, match=r"another event loop.*wanted one object for each loop"):
            await asyncio.to_thread(lambda: asyncio.run(queries.execute_query("SELECT 1")))
        assert len(await queries.execute_query("SELECT 1")) == 1


async def test_not_open(settings: Settings) -> None:
    """Finding 31: what is not open says so at once, and does not wait for a server."""
    with pytest.raises(QueryError, match=r"not open yet.*wanted it used inside `with`"):
        Queries(settings).execute_query("SELECT 1")
    with pytest.raises(QueryError, match=r"not open yet.*wanted it used inside `with`"):
        await AsyncQueries(settings).get_trades()


def child_of(ask: Callable[[], int]) -> int:
    """The pid of a forked process that exits with 0 where `ask` gives 1."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if ask() == 1 else 2
        finally:
            os._exit(status)
    return pid


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # other tests have threads
def test_a_forked_process(settings: Settings) -> None:
    """Finding 31: parent and children go on with the same Queries at once, and no connection breaks in the parent."""
    with Queries(settings) as queries:
        queries.execute_query("SELECT 1")
        stop = threading.Event()
        asked = [0] * 3

        def ask_on(number: int) -> None:
            while not stop.is_set():
                asked[number] += len(queries.execute_query("SELECT 1"))

        threads = [threading.Thread(target=ask_on, args=(number,)) for number in range(len(asked))]
        for thread in threads:
            thread.start()
        try:
            children = [child_of(lambda: len(queries.execute_query("SELECT 1"))) for _ in range(4)]
            statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert statuses == [0] * 4
        assert len(queries.execute_query("SELECT 1")) == 1
        assert queries.statistics().get("connections_lost", 0) == 0
        assert all(asked)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_in_asyncio(settings: Settings) -> None:
    """Finding 31: a child asks in an event loop of its own, with connections of its own."""
    with asyncio.Runner() as runner:
        queries = runner.run(AsyncQueries(settings).open())
        assert len(runner.run(queries.execute_query("SELECT 1"))) == 1
        child = child_of(lambda: len(asyncio.run(queries.execute_query("SELECT 1"))))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(runner.run(queries.execute_query("SELECT 1"))) == 1
        assert queries.statistics().get("connections_lost", 0) == 0
        runner.run(queries.close())
