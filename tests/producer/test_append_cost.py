"""What an append may cost: no memory and no system call, once warm. Times live in bench/."""

from __future__ import annotations

import gc
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from lane_samples import Child

from ringlog import Producer
from ringlog.lanes.claims import open_board
from ringlog.layout import BoardReason, Refused
from ringlog.records import Trade
from ringlog.ring import IMPLEMENTATION
from ringlog.settings import Settings

FIXED = {
    "trader_id": "trader-1",
    "mode": "paper",
    "action": "buy",
    "base_token": "So11111111111111111111111111111111111111112",
    "quote_token": "USDC",
}
VARYING = (1.5, 225.25, 150.125, 5000, 100, 0.001, -0.002, "protected", True, 0.5, "5" * 88, '{"route":"jupiter"}')
REFUSALS = ["accepting", "full", "board", "budget", "closed"]


def allocated(call: Any, count: int) -> int:
    """Bytes that `count` calls leave allocated at their highest, beyond what was there before.

    Other threads (of pytest-xdist, or of a client that an earlier test used) do not run meanwhile: what they allocate
    counts too.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)  # first: a thread that has asked for its turn by now gets it while this one collects
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(100):
            call()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(count):
            call()
        _, peak = tracemalloc.get_traced_memory()
        return peak - before
    finally:
        tracemalloc.stop()
        gc.enable()
        sys.setswitchinterval(interval)


@pytest.mark.skipif(
    IMPLEMENTATION == "python", reason="the Python ring makes Python objects; C is for those who must not"
)
@pytest.mark.parametrize("state", REFUSALS)
def test_an_append_allocates_nothing(instance_dir: Path, state: str) -> None:
    """Thousands of appends, accepted or refused, by position, bound and by keyword: not one byte at their peak."""
    settings = Settings(runtime_dir=str(instance_dir))
    producer = Producer([Trade], settings=settings, lane_bytes={Trade: 4096 if state == "full" else 8 << 20}).open()
    appender = producer.appender(Trade)
    bound = appender.bind(**FIXED)
    row = (*FIXED.values(), *VARYING)
    accepted = appender.append(*row)
    assert accepted
    if state == "board":
        open_board(producer.instance).refuse(BoardReason.DISK_FULL)
    elif state == "closed":
        producer.close()
    elif state == "budget":
        appender._ring.detach()
        appender._pauses._reason, appender._pauses._not_before = Refused.BUDGET, float("inf")
    elif state == "full":
        while appender.append(*row):
            pass

    def positional() -> None:
        appender.append(*row)

    def by_bound() -> None:
        bound(*VARYING)

    def by_keyword() -> None:
        bound(1.5, 2.5, 3.5, 1, 2, 0.1, 0.2, mev_status="at_risk", mev_protected=False)

    calls = [positional, by_bound] if state in ("budget", "closed") else [positional, by_bound, by_keyword]
    # Measuring itself costs an int and a tuple, and a claim that must wait looks at the clock: one float at a time.
    measuring = allocated(lambda: None, 3000) + (100 if state == "budget" else 0)
    for call in calls:
        assert allocated(call, 3000) <= measuring, call.__name__
    assert sum(appender.refused().values()) > 0 or state == "accepting"
    producer.close()


COUNTED = (
    f"FIXED = {FIXED!r}\nVARYING = {VARYING!r}\n"
    + """
import os, sys
from ringlog import Producer
from ringlog.records import Trade
from ringlog.lanes.claims import open_board
from ringlog.layout import BoardReason, Refused
state, count = sys.argv[1], int(sys.argv[2])
size = 4096 if state == "full" else 64 << 20
producer = Producer([Trade], lane_bytes={Trade: size}).open()
appender = producer.appender(Trade)
append = appender.bind(**FIXED)
if state == "board":
    open_board(producer.instance).refuse(BoardReason.DISK_FULL)
elif state == "closed":
    producer.close()
elif state == "budget":
    appender._ring.detach()
    appender._pauses._reason, appender._pauses._not_before = Refused.BUDGET, float("inf")
for _ in range(1000):
    append(*VARYING)
os.write(1, b"begin\\n")
for _ in range(count):
    append(*VARYING)
os.write(1, b"end\\n")
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="strace is Linux's")
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt-get install strace")
@pytest.mark.parametrize("state", REFUSALS)
def test_an_append_makes_no_system_call(instance_dir: Path, tmp_path: Path, state: str) -> None:
    """Between two marks strace sees 20,000 appends, accepted or refused, no writer running: and no system call."""
    log = tmp_path / "strace"
    script = tmp_path / "counted.py"
    script.write_text(COUNTED)
    # Without threads of its own: numpy has some, which come to their first wait at any time, also between the marks.
    environment = {
        **Child.environment(Settings(runtime_dir=str(instance_dir), lane_bytes_max=80 << 20)),
        "OPENBLAS_NUM_THREADS": "1",
    }
    ran = subprocess.run(
        [shutil.which("strace") or "strace", "-f", "-o", str(log), sys.executable, str(script), state, "20000"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if "ptrace" in ran.stderr and "Operation not permitted" in ran.stderr:
        pytest.skip("this machine does not let strace trace")
    assert ran.returncode == 0, ran.stderr
    calls = [re.sub(r"^\d+ +", "", line) for line in log.read_text().splitlines()]
    begin = next(place for place, line in enumerate(calls) if line.startswith('write(1, "begin'))
    end = next(place for place, line in enumerate(calls) if line.startswith('write(1, "end'))
    assert calls[begin + 1 : end] == []
