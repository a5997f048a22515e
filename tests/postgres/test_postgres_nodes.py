"""RPC nodes: latency and errors, the breaker that all processes share, and which node is chosen."""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from postgres_platform import execute, start_python

from ringlog.errors import PostgresValueError
from ringlog.postgres import AsyncNodes, AsyncPool, Choice, Node, Nodes, Pool
from ringlog.settings import Secret, Settings

URL = "https://rpc.example/?api-key=canary"
A, B, C = (Node(name=name, url=Secret(URL), failures_max=3) for name in "abc")


def pass_cooldown(settings: Settings) -> None:
    """Moves the opening of every breaker, and the end of every trial, into the past."""
    past = "update node_health set opened_at = opened_at - interval '1 hour', trial_until = trial_until - interval '1h'"
    execute(settings, past)


def test_nodes_come_back_as_saved_and_their_urls_are_never_shown(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """A URL may hold an API key: it is in no repr, no error and no log; saving again keeps the health."""
    caplog.set_level(logging.DEBUG)
    nodes = Nodes(pool)
    nodes.save(A)
    assert nodes.get_all() == {"a": A}
    assert nodes.get_all()["a"].url.reveal() == URL
    nodes.record_success("a", 500.0)
    nodes.save(msgspec.structs.replace(A, cooldown_s=1.5, enabled=False))
    assert nodes.get_all()["a"].cooldown_s == 1.5
    assert nodes.health()["a"].successes == 1
    with pytest.raises(PostgresValueError) as refused:
        nodes.save(msgspec.structs.replace(A, url=Secret("ftp://canary")))
    assert "canary" not in f"{A!r}{Choice(A)!r}{refused.value}{caplog.text}"


def test_latency_and_errors_are_weighted_towards_the_newest(pool: Pool) -> None:
    """The first latency is taken whole, the next ones by a fifth; errors by a tenth; counts are exact."""
    nodes = Nodes(pool)
    nodes.save(A)
    assert nodes.health()["a"].latency_us is None
    nodes.record_success("a", 1_000.0)
    nodes.record_success("a", 2_000.0)
    assert nodes.health()["a"].latency_us == pytest.approx(1_200.0)
    nodes.record_failure("a")
    health = nodes.health()["a"]
    assert (health.latency_us, health.error_ratio) == (pytest.approx(1_200.0), pytest.approx(0.1))
    assert (health.successes, health.failures, health.consecutive_failures) == (2, 1, 1)
    nodes.record_success("a", 1_200)
    assert nodes.health()["a"].error_ratio == pytest.approx(0.09)
    assert nodes.health()["a"].consecutive_failures == 0


def test_the_breaker_opens_tries_once_and_closes(database: Settings, pool: Pool) -> None:
    """closed -> open after failures_max in a row -> one trial after the cool-down -> closed, or open again."""
    nodes = Nodes(pool)
    nodes.save(A)
    assert nodes.record_failure("a") == nodes.record_failure("a") == "closed"
    nodes.record_success("a", 10)
    assert [nodes.record_failure("a") for _ in range(3)] == ["closed", "closed", "open"]
    assert (nodes.choose(), nodes.probe()) == (None, None), "cooling down"
    opened_at = nodes.health()["a"].opened_at
    assert nodes.record_failure("a") == "open"
    assert nodes.health()["a"].opened_at == opened_at, "a late failure does not prolong the cool-down"
    assert nodes.record_success("a", 10) == "open", "a late success of an older call does not close it"

    pass_cooldown(database)
    choice = nodes.choose()
    assert choice == Choice(A, trial=1)
    assert (nodes.choose(), nodes.probe()) == (None, None), "one trial at a time"
    assert nodes.record_success("a", 10) == "half_open", "not the trial's outcome"
    assert nodes.record_failure("a") == "half_open", "not the trial's outcome"
    assert nodes.record_failure("a", trial=1) == "open"

    pass_cooldown(database)
    assert nodes.probe() == Choice(A, trial=2)
    assert nodes.record_success("a", 10, trial=1) == "half_open", "an earlier trial's outcome"
    assert nodes.record_success("a", 10, trial=2) == "closed"
    assert nodes.health()["a"].opened_at is None
    assert nodes.choose() == Choice(A)


def test_a_trial_whose_process_died_is_given_to_another(database: Settings, pool: Pool) -> None:
    """Without an outcome within trial_timeout_s, the trial is due again; the dead one's outcome no longer counts."""
    nodes = Nodes(pool)
    nodes.save(msgspec.structs.replace(A, failures_max=1, cooldown_s=0))
    nodes.record_failure("a")
    assert nodes.probe().trial == 1
    assert nodes.probe() is None
    pass_cooldown(database)
    assert nodes.probe().trial == 2
    assert nodes.record_success("a", 10, trial=1) == "half_open"
    assert nodes.record_success("a", 10, trial=2) == "closed"


def test_failures_of_all_processes_count_together_and_one_gets_the_trial(database: Settings, pool: Pool) -> None:
    """Three processes with one failure each open the breaker of all; of three that ask, one gets the trial."""
    nodes = Nodes(pool)
    nodes.save(A)
    source = """
from ringlog.postgres import Nodes, Pool
with Pool(settings) as pool:
    nodes = Nodes(pool)
    print(nodes.record_failure("a"), flush=True)
    sys.stdin.readline()
    print(nodes.probe() is not None, flush=True)
"""
    with contextlib.ExitStack() as started:
        processes = [started.enter_context(start_python(database, source)) for _ in range(3)]
        assert sorted(process.stdout.readline() for process in processes) == [b"closed\n", b"closed\n", b"open\n"]
        assert nodes.choose() is None
        pass_cooldown(database)
        for process in processes:
            process.stdin.write(b"go\n")
            process.stdin.flush()
        assert sorted(process.stdout.readline() for process in processes) == [b"False\n", b"False\n", b"True\n"]


def test_counts_are_exact_under_concurrent_outcomes(pool: Pool) -> None:
    """400 outcomes from 20 threads: none is lost to another's update."""
    nodes = Nodes(pool)
    nodes.save(msgspec.structs.replace(A, failures_max=1_000))
    with ThreadPoolExecutor(20) as callers:
        list(callers.map(lambda n: nodes.record_failure("a") if n % 4 else nodes.record_success("a", n), range(400)))
    health = nodes.health()["a"]
    assert (health.successes, health.failures) == (100, 300)


def test_the_best_node_is_the_one_with_the_least_expected_time_to_a_success(database: Settings, pool: Pool) -> None:
    """Latency over the ratio of successes; unmeasured last, disabled and open never; a trial only as a last resort."""
    nodes = Nodes(pool)
    assert nodes.choose() is None
    for node in (A, B, C):
        nodes.save(node)
    nodes.record_success("b", 300)
    nodes.record_success("a", 200)
    assert nodes.choose().node == A
    nodes.record_failure("a")
    nodes.record_failure("a")
    assert nodes.health()["a"].error_ratio == pytest.approx(0.19)
    assert nodes.choose().node == A, "200 / 0.81 is still less than 300"
    execute(database, "update node_health set error_ratio = 0.5 where node = 'a'")
    assert nodes.choose().node == B, "200 / 0.5 is more than 300"
    nodes.save(msgspec.structs.replace(B, enabled=False))
    assert nodes.choose().node == A
    nodes.record_failure("a")
    assert nodes.choose().node == C, "a is open, b disabled, c not measured yet"
    pass_cooldown(database)
    assert nodes.choose() == Choice(C), "no trial while a closed node is left"
    assert nodes.choose("a") == Choice(A, trial=1), "asked for by name, a gets its trial"
    assert nodes.choose("b") is None
    assert nodes.choose("c") == Choice(C)
    assert nodes.choose("nobody") is None


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda nodes: nodes.save(msgspec.structs.replace(A, name="")), "node.name"),
        (lambda nodes: nodes.save(msgspec.structs.replace(A, url="https://x")), "node.url.*Secret"),
        (lambda nodes: nodes.save(msgspec.structs.replace(A, failures_max=0)), "failures_max"),
        (lambda nodes: nodes.save(msgspec.structs.replace(A, cooldown_s=float("nan"))), "cooldown_s"),
        (lambda nodes: nodes.save(msgspec.structs.replace(A, trial_timeout_s=0.0)), "trial_timeout_s"),
        (lambda nodes: nodes.save(msgspec.structs.replace(A, enabled="yes")), "enabled"),
        (lambda nodes: nodes.record_success("a", -1.0), "latency_us"),
        (lambda nodes: nodes.record_success("a", float("nan")), "latency_us"),
        (lambda nodes: nodes.record_success("a", True), "latency_us"),
    ],
)
def test_bad_nodes_and_latencies_are_named_before_anything_is_sent(call: Any, names: str) -> None:
    """Each raises PostgresValueError naming the part, without a server: the pool was never opened."""
    with pytest.raises(PostgresValueError, match=names):
        call(Nodes(Pool(Settings(postgres_port=1))))


async def test_async_nodes_answer_the_same(database: Settings) -> None:
    """AsyncNodes: the same names, awaited; an unknown node is named."""
    async with AsyncPool(database) as pool:
        nodes = AsyncNodes(pool)
        await nodes.save(msgspec.structs.replace(A, failures_max=1, cooldown_s=0))
        assert await nodes.record_success("a", 100) == "closed"
        assert (await nodes.choose()).node.name == "a"
        assert await nodes.record_failure("a") == "open"
        assert await nodes.probe() == Choice((await nodes.get_all())["a"], trial=1)
        assert (await nodes.health())["a"].state == "half_open"
        with pytest.raises(PostgresValueError, match="'nobody', wanted the name of a saved node"):
            await nodes.record_failure("nobody")
