"""The paper-trading session under faults: killed in each of its stages, its limits changed while it trades, crowded."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from demo_segments import segments_of
from test_paper_session import SPOT, TRADES

from ringlog.demo.results import ExecutorResult
from ringlog.postgres import Pool, TraderConfigs
from ringlog.questdb.connection import Connection
from ringlog.settings import PREFIX, Settings

pytestmark = [
    pytest.mark.skipif(not SPOT.exists(), reason=f"the recordings are not beside the checkout ({SPOT.name})"),
    pytest.mark.slow,
    pytest.mark.timeout(400),
]
DEADLINE_SECONDS = 240.0
EXECUTORS = 2


@contextlib.contextmanager
def demo(temporary: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The session over the recording, in a temporary directory of its own; killed in the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ringlog", "demo", "--json", "--input", str(SPOT), "--report", str(temporary / "report"),
         *options],
        env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(condition: Callable[[], Any], process: subprocess.Popen[str], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := condition()):
        assert process.poll() is None, f"the demo ended before {what}"
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS:g} s for {what}"
        time.sleep(0.002)
    return found


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, out + errors
    report: dict[str, Any] = json.loads(out)
    return report


# Each stage by a file that is there from its beginning. While servers start, the data directory of one (no process and
# no segment) may stay behind: the guard that removes it is not there yet.
STARTING = ("servers start",)
STAGES = {
    "servers start": "",
    "tables are made": "run",
    "limits are written": "session",
    "executors trade": "session/append-0.npy",
    "the simulator catches up": "session/result-executor-1.json",
    "the report is written": "session/result-simulator.json",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_session_killed_in_a_stage_leaves_nothing(stage: str, tmp_path: Path) -> None:
    """kill -9 of the demo in each stage: its servers, writer and executors end by themselves, and its segments go with
    them; so do its temporary directories once its servers are up."""
    with demo(tmp_path, "--producers", str(EXECUTORS), "--rate", "max") as process:
        until(lambda: list(tmp_path.glob(f"ringlog-demo-*/{STAGES[stage]}")), process, stage)
        (directory,) = tmp_path.glob("ringlog-demo-*")
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
    deadline = time.monotonic() + 60

    def left() -> list[Any]:
        temporary = [] if stage in STARTING else list(tmp_path.glob("ringlog-*"))
        return [*segments_of(directory / "run"), *temporary]

    while left():
        assert time.monotonic() < deadline, left()
        time.sleep(0.05)
    lines = [" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if str(directory) in line] == []


def settings_of(process: subprocess.Popen[str]) -> Settings | None:
    """The settings that the demo's writer runs with, once it does."""
    for each in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if each.cmdline()[-3:] == ["-m", "ringlog", "writer"]:
                environment = {name: text for name, text in each.environ().items() if name.startswith(PREFIX)}
                return Settings.from_environment(environment)
    return None


def test_a_limit_changed_while_the_session_trades(tmp_path: Path) -> None:
    """A trader whose largest trade becomes next to nothing buys no more from then on, others go on, and every record is
    stored once all the same."""
    kept = tmp_path / "kept"
    with demo(tmp_path, "--producers", str(EXECUTORS), "--speed", "10", "--keep", str(kept)) as process:
        settings = until(lambda: settings_of(process), process, "the writer")
        settings = msgspec.structs.replace(settings, request_timeout_ms=15_000, postgres_pool_size_max=1)
        connection = Connection.from_settings(settings)

        def bought(trader: str) -> int:
            sql = f"select count() from trades where trader_id = '{trader}' and action = 'buy'"
            return int(connection.execute(sql)[0][0])

        def traded() -> int:
            return int(connection.execute("select count() from trades")[0][0])

        until(lambda: (kept / "session/append-0.npy").exists() and bought("scalper-0") > 20, process, "trades")
        with Pool(settings) as pool:
            configs = TraderConfigs(pool)
            current = configs.get("scalper-0")
            assert current is not None
            limits = msgspec.structs.replace(current.limits, trade_max=Decimal("0.000001"))
            changed = msgspec.structs.replace(current, limits=limits)
            configs.save(changed, changed_by="test")
        before = traded()
        until(lambda: traded() > before + 500, process, "500 trades after the change")
        scalped, swung = bought("scalper-0"), bought("scalper-1")
        report = ended(process)
        connection.close()
    assert report["is_exact"] is True
    assert report["session"]["trades"] == TRADES
    results = [
        msgspec.json.decode(path.read_bytes(), type=ExecutorResult)
        for path in sorted((kept / "session").glob("result-executor-*.json"))
    ]
    assert [result.config_version for result in results] == [2, 1]
    assert final_buys(kept, "scalper-0") == scalped
    assert final_buys(kept, "scalper-1") > swung


def final_buys(kept: Path, trader: str) -> int:
    from ringlog.servers import QuestDBServer

    with QuestDBServer(kept / "questdb") as server:
        connection = Connection.from_settings(Settings(request_timeout_ms=15_000, **server.settings()))
        sql = f"select count() from trades where trader_id = '{trader}' and action = 'buy'"
        found = int(connection.execute(sql)[0][0])
        connection.close()
        return found


def test_sixteen_executors(tmp_path: Path) -> None:
    """With as many executors as the session takes, each recorded trade is one trade of one of 48 traders, once."""
    with demo(tmp_path, "--producers", "16", "--rate", "max") as process:
        report = ended(process)
    assert report["is_exact"] is True
    assert report["session"]["trades"] == report["session"]["simulated"] == TRADES
    assert report["session"]["records"]["positions"] == TRADES + 3 * 16
    assert len(report["session"]["traders"]) == 48
    assert sum(trader["trades"] for trader in report["session"]["traders"]) == TRADES
    assert Path(report["session"]["report_html"]).exists()
    assert list(tmp_path.glob("ringlog-*")) == []
