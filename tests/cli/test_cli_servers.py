"""`ringlog up`, `status` and `down` on real servers in the background."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from lane_samples import eventually

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs `ringlog` with runtime and data directories of this test; at the end its servers are stopped."""
    environment = {
        **os.environ,
        "RINGLOG_RUNTIME_DIR": str(tmp_path / "runtime"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ringlog", *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)

    yield run
    run("down")


def test_up_status_down(run: Run, tmp_path: Path) -> None:
    """Servers outlive `up`, `status` shows them ready and prints working settings, `down` ends them and keeps data."""
    up = run("up", "postgres", "valkey", "--json")
    assert up.returncode == 0, up.stderr
    settings = json.loads(up.stdout)
    with psycopg.connect(
        host=settings["postgres_host"],
        port=settings["postgres_port"],
        dbname=settings["postgres_database"],
        user=settings["postgres_user"],
        password=settings["postgres_password"],
    ) as connection:
        connection.execute("create table kept as select 42 as x")
    with redis.Redis(port=settings["redis_port"], password=settings["redis_password"]) as client:
        assert client.ping()
    state_file = tmp_path / "runtime" / "servers.json"
    assert stat.S_IMODE(state_file.stat().st_mode) == 0o600
    facts = json.loads(ready(run).stdout)
    assert {kind: server["state"] for kind, server in facts["servers"].items()} == {
        "postgres": "ready",
        "valkey": "ready",
    }
    assert facts["settings"] == settings
    assert f"export RINGLOG_REDIS_PORT={settings['redis_port']}" in run("status").stdout.splitlines()
    assert json.loads(run("down", "--json").stdout) == {"stopped": ["postgres", "valkey"]}
    assert not any(alive(server["pid"]) for server in facts["servers"].values())
    assert json.loads(run("up", "postgres", "--json").stdout)["postgres_password"] == settings["postgres_password"]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ready(run: Run) -> subprocess.CompletedProcess[str]:
    """A status that shows every server ready: one that takes two seconds to answer is shown silent for that moment."""
    return eventually(lambda: (shown := run("status", "--json")).returncode == 0 and shown, "every server to be ready")


def test_up_leaves_what_runs_and_restarts_what_died(run: Run) -> None:
    """A second `up` changes nothing; a killed server shows as dead, `status` exits 1, and `up` brings it back."""
    first = run("up", "valkey", "--json").stdout
    assert run("up", "valkey", "--json").stdout == first
    pid = json.loads(run("status", "--json").stdout)["servers"]["valkey"]["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid), "the server to be dead")
    status = run("status", "--json")
    assert status.returncode == 1
    assert json.loads(status.stdout)["servers"]["valkey"]["state"] == "dead"
    assert run("up", "valkey", "--json").stdout == first
    ready(run)


def test_up_names_a_server_of_another_data_dir(run: Run, tmp_path: Path) -> None:
    """A server that runs on other data than is asked for is named, with what to do, and goes on."""
    assert run("up", "valkey", "--data-dir", str(tmp_path / "one")).returncode == 0
    assert run("up", "valkey", "--data-dir", str(tmp_path / "one")).returncode == 0
    other = run("up", "valkey", "--data-dir", str(tmp_path / "other"))
    assert other.returncode == 1
    assert f"valkey: got one running on {tmp_path}/one/valkey, wanted {tmp_path}/other/valkey" in other.stderr
    ready(run)
    assert run("up", "valkey").returncode == 0


def test_status_without_servers_exits_1(run: Run) -> None:
    """Nothing started: status says so, exits 1, and `down` is no error."""
    status = run("status")
    assert (status.returncode, status.stdout) == (1, "no servers: start them with `ringlog up`\n")
    assert run("down").returncode == 0


def test_damaged_state_file_is_named(run: Run, tmp_path: Path) -> None:
    """A state file that cannot be read is an error naming the file; nothing is killed by a guess."""
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "servers.json").write_text("[{]")
    done = run("status")
    assert done.returncode == 1
    assert "servers.json: got" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "runtime" / "servers.json").unlink()
