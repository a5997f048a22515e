"""`ringlog up`, `status` and `down` on real servers in the background."""

from __future__ import annotations

import json
import os
import shutil
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

from ringlog.servers.embedded import started_at
from ringlog.servers.questdb import questdb_jar

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


@pytest.mark.slow
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
    (tmp_path / "runtime").mkdir(mode=0o700)
    (tmp_path / "runtime" / "servers.json").write_text("[{]")
    done = run("status")
    assert done.returncode == 1
    assert "servers.json: got" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "runtime" / "servers.json").unlink()


@pytest.mark.parametrize("mode", [0o777, pytest.param(0o700, marks=pytest.mark.root)])
def test_a_state_file_that_others_can_write_is_not_believed(run: Run, tmp_path: Path, mode: int) -> None:
    """Finding 22: in a directory that is another user's, or open to others, `servers.json` could have `down` end any
    process and `status` lead to any server: refused by name, and nothing ends. (root: another user's.)"""
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "server.json").write_text('{"password": "", "ports": {"redis": 6379}}')
    with subprocess.Popen(["sleep", "60"]) as victim:
        started = started_at(psutil.Process(victim.pid))
        entry = {"kind": "valkey", "pid": victim.pid, "started": started, "data_dir": str(tmp_path / "data")}
        (runtime / "servers.json").write_text(json.dumps([entry]))
        os.mkfifo(runtime / "servers.lock")
        runtime.chmod(mode)
        if mode == 0o700:
            os.chown(runtime, 12345, 12345)
        try:
            for command in ("status", "down", "up"):
                done = run(command)
                assert (done.returncode, done.stdout) == (1, "")
                assert f"{runtime}: got {'owner uid 12345' if mode == 0o700 else 'mode 0777'}, wanted" in done.stderr
            assert victim.poll() is None
        finally:
            victim.kill()
    os.chown(runtime, os.geteuid(), os.getegid())
    shutil.rmtree(runtime)


# What of `up` can be seen from outside: by kind, the name of the step and the file that shows it.
STEPS = {
    "valkey spawned": ("valkey", "runtime/servers.json"),
    "postgres initdb": ("postgres", "data/ringlog/postgres/initdb-*/global"),
    "postgres spawned": ("postgres", "runtime/servers.json"),
    "questdb data": ("questdb", "data/ringlog/questdb/server.json"),
    "questdb spawned": ("questdb", "runtime/servers.json"),
    "questdb at work": ("questdb", "data/ringlog/questdb/db/tables.d*"),
    "questdb recorded": ("questdb", "cache/ringlog/questdb-*-making-*"),
}
QUICK = (("valkey spawned", "SIGTERM"), ("postgres initdb", "SIGKILL"))
# Who runs the tests in the background may have ignored SIGINT, and a child inherits that.
UP = "import signal; signal.signal(2, signal.default_int_handler); from ringlog.cli import main; main()"
SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT", "SIGKILL")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("step", "name"),
    [
        pytest.param(step, name, marks=() if (step, name) in QUICK else pytest.mark.slow, id=f"{step}, {name}")
        for step in STEPS
        for name in SIGNALS
    ],
)
def test_68_up_ended_at_any_step(
    step: str, name: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 21: `up` ended by a signal while it starts a server leaves none that `status` and `down` do not know.

    After SIGTERM, SIGHUP and Ctrl-C nothing runs at all; the next `up` works. Defences: a detached server waits for
    its parent to write it down; signals end `up` by way of its clean-up; initdb and Java's recording have a guard.
    """
    kind, seen = STEPS[step]
    if step == "questdb recorded":
        (tmp_path / "cache" / "ringlog").mkdir(parents=True)
        jar = questdb_jar()
        shutil.copy(jar, tmp_path / "cache" / "ringlog" / jar.name)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    environment = {
        **os.environ,
        "RINGLOG_RUNTIME_DIR": str(tmp_path / "runtime"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    with subprocess.Popen(
        [sys.executable, "-c", UP, "up", kind], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as up:
        eventually(lambda: up.poll() is not None or any(tmp_path.glob(seen)), step)
        assert up.poll() is None, "it ended before it could be ended"
        up.send_signal(getattr(signal, name))
        _, errors = up.communicate()
    assert up.returncode != 0
    assert b"Traceback" not in errors
    known = {
        server["pid"] for server in json.loads(run_with(environment, "status", "--json").stdout)["servers"].values()
    }
    if name != "SIGKILL":
        assert known == set()
    eventually(lambda: at_work(tmp_path) <= known, f"{at_work(tmp_path)} to be only {known}")
    again = run_with(environment, "up", kind, "--json")
    assert again.returncode == 0, again.stderr
    down = run_with(environment, "down", "--json")
    assert json.loads(down.stdout) == {"stopped": [kind]}
    assert at_work(tmp_path) == set()


def run_with(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ringlog", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


def at_work(directory: Path) -> set[int]:
    """The servers, and what else was started for them, whose command lines name the directory; not their children."""
    found = {}
    for process in psutil.process_iter(["pid", "ppid", "cmdline", "status"]):
        words = process.info["cmdline"] or []
        if any(str(directory) in word for word in words) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found[process.info["pid"]] = process.info["ppid"]
    return {pid for pid, parent in found.items() if parent not in found}
