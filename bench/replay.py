"""`ringlog replay` of a million trades in CSV, with the writer and QuestDB beside it: rows/s into the lane, and memory.

The file has all 18 fields; the rate is the command's own, from its start of reading until the last row is accepted. It
is the median of three files, after a smaller one with which the server warms up: a Java program compiles itself while
it runs. Memory is the command's, without what is shared, after a fifth of a file and at its end.

    python -m bench.replay [--json] [--tiny]
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from bench.figures import Figure, Result, main
from bench.stack import connect, count, instance, private_bytes, server, wait_until_applied
from bench.trades import FIELDS, trades
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

ROWS = 1_000_000
ROUNDS = 3
WARM_ROWS = 200_000
DIFFERENT = 20_000  # trades that are made; the file has them again and again, each with a time of its own


def write_trades(path: Path, rows: int) -> None:
    made = trades(min(rows, DIFFERENT))
    first_us = time.time_ns() // 1000 - rows
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*FIELDS, "timestamp"))
        for start in range(0, rows, len(made)):
            writer.writerows((*trade, first_us + start + i) for i, trade in enumerate(made[: rows - start]))


def replayed(path: Path, settings: Settings) -> tuple[dict[str, Any], list[int]]:
    """What the command says, and its private memory every 100 ms."""
    environment = {**os.environ, "RINGLOG_RUNTIME_DIR": settings.runtime_dir}
    process = subprocess.Popen(
        [sys.executable, "-m", "ringlog", "replay", str(path), "--record", "Trade", "--json"],
        env=environment, stdout=subprocess.PIPE,
    )  # fmt: skip
    samples = []
    while process.poll() is None:
        try:
            samples.append(private_bytes(process.pid))
        except OSError:
            break  # it ended
        time.sleep(0.1)
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the replay ended with status {process.returncode}")
    return dict(msgspec.json.decode(out)), samples


def grown_bytes(samples: list[int]) -> int:
    """By how much memory grew since a fifth of a run, when all is loaded; the last sample may have met no process."""
    early, late = samples[len(samples) // 5], samples[-1] or samples[-2]
    return late - early


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    sizes = [20_000] if tiny else [WARM_ROWS] + [ROWS] * ROUNDS
    runs = []
    with (
        tempfile.TemporaryDirectory(prefix="ringlog-bench-") as directory,
        server(running) as questdb,
        instance(questdb) as settings,
        connect(settings) as connection,
    ):
        before = count(connection, "trades")
        for number, rows in enumerate(sizes):
            path = Path(directory) / f"trades-{number}.csv"
            write_trades(path, rows)
            runs.append(replayed(path, settings))
            wait_until_applied(connection, "trades", before + sum(sizes[: number + 1]))
            size_bytes = path.stat().st_size
            path.unlink()
        stored = count(connection, "trades") - before
    measured = runs[-ROUNDS:]
    rates = [said["accepted"] / said["seconds"] for said, _ in measured]
    return Result(
        benchmark="replay",
        what="ringlog replay of CSV",
        figures=[
            Figure(name="accepted", value=statistics.median(rates), unit="rows/s", at_least=100_000),
            Figure(
                name="stored, of what the files have",
                value=100 * stored / sum(sizes),
                unit="%",
                at_least=100,
                at_most=100,
            ),
            Figure(name="memory", value=max(max(samples) for _, samples in measured) / 1e6, unit="MB"),
            Figure(
                name="memory grown since a fifth",
                value=max(grown_bytes(samples) for _, samples in measured) / 1e6,
                unit="MB",
                at_most=20,
            ),
            Figure(name="file", value=size_bytes / 1e6, unit="MB"),
        ],
        details={"outcomes": [said for said, _ in runs], "private_bytes": [samples for _, samples in runs]},
    )


if __name__ == "__main__":
    main(run)
