"""The examples of docs/redis.md, its ACL, and its benchmark, run."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from prompt_attempts import promptly
from test_redis_keys import USERS

from bench.figures import Result
from ringlog.monitor.databases import servers
from ringlog.redis import Connection, StreamConsumer, StreamProducer, Subscriber, Topic, UiEvent
from ringlog.settings import Secret

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "redis.md").read_text()


def test_the_examples_run(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example of the page runs, in order, with nothing set but the environment it names."""
    monkeypatch.setenv("RINGLOG_REDIS_PORT", str(server.port))
    monkeypatch.setenv("RINGLOG_REDIS_PASSWORD", server.password)
    monkeypatch.setenv("RINGLOG_REDIS_TIMEOUT_MS", "10000")  # a machine that stands still is no server that is away
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(examples) >= 6
    names: dict[str, Any] = {}
    for number, example in enumerate(examples):
        code = compile(example, f"docs/redis.md example {number}", "exec")
        if "Freshness.FRESH" in example:
            promptly(lambda code=code: exec(code, names))  # noqa: S102 - our own page
        else:
            exec(code, names)  # noqa: S102
    for name in ("connection", "impatient"):
        names[name].close()


def test_the_page_lists_every_error_and_freshness() -> None:
    """The tables name each error the layer raises and each state a read can have."""
    from ringlog.redis import Freshness

    for name in ("ServerUnavailable", "ServerRefused", "ConsumerGroupMissing", "RedisValueError"):
        assert f"| `{name}` |" in PAGE
    for freshness in Freshness:
        assert f"| {freshness.name} |" in PAGE


@pytest.mark.each_server
@pytest.mark.parametrize("prefix", ["", "demo:"])
def test_the_documented_user_can_do_all_and_no_more(server: Any, raw: redis.Redis, prefix: str) -> None:
    """Finding 40: with the rights of the page's ACL line every part works on each server, and nothing else is tried.

    The server's ACL LOG has every command that was refused, those too whose refusal the client library hides.
    """
    (line,) = re.findall(r"^ACL SETUSER ringlog .*$", PAGE, re.M)
    line = line.replace("PASSWORD", "canary").replace("~", f"~{prefix}").replace("&", f"&{prefix}")
    raw.execute_command(*line.split(" "))
    raw.acl_log_reset()
    try:
        settings = server.settings_for(
            redis_user="ringlog", redis_password=Secret("canary"), redis_key_prefix=prefix, redis_retry_timeout_ms=0
        )
        with Connection(settings) as connection:
            for use in USERS.values():
                use(connection)
            subscriber = Subscriber(connection, Topic.UI_EVENTS)
            subscriber.read(wait_ms=1)
            subscriber.close()
            overtaken(connection, raw)
            findings = [found for found in servers(settings, [], {"RINGLOG_REDIS_HOST"}) if found.check == "redis"]
            assert [found.level for found in findings] == ["ok", "ok"]
            assert raw.acl_log() == []
            with pytest.raises(redis.exceptions.NoPermissionError):
                connection.client.set("other", "x")
    finally:
        raw.acl_deluser("ringlog")


def overtaken(connection: Connection, raw: redis.Redis) -> None:
    """Uses a consumer that has lost events to the trimming."""
    reader = StreamConsumer(connection, Topic.UI_EVENTS, "group", "one")
    StreamProducer(connection).publish(Topic.UI_EVENTS, [UiEvent("x")] * 9)
    raw.xtrim(connection.keys.stream(Topic.UI_EVENTS), maxlen=3, approximate=False)
    assert [gap.entries for gap in reader.read().gaps] == [6]


@pytest.mark.slow
async def test_the_benchmark_still_runs() -> None:
    """A tiny run of `python -m bench.redis_layer` goes through every case and says which bars it met."""
    command = (sys.executable, "-m", "bench.redis_layer", "--tiny", "--json")
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )  # fmt: skip
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    result = msgspec.json.decode(out, type=Result)
    assert set(result.details) == {"reads", "async_reads", "burst", "ticks", "restart", "drains", "publish_rate"}
    # Of the bars, those that no load of the machine can change.
    verdicts = {figure.name: figure.verdict for figure in result.figures}
    certain = (
        "round trips for 100 prices", "longest stream meanwhile", "errors while the server was killed and started"
    )  # fmt: skip
    assert [verdicts[name] for name in certain] == ["met"] * 3
