"""Hours of ordinary load: does anything creep?

QuestDB, `ringlog writer`, and four producer processes that append trades and latencies one by one, each append timed.
About once a second a sample goes to samples.csv in the directory given; in the end, or on Ctrl-C, report.json there has
the figures against their bars, and soak.svg the plot. Exits 1 where a bar is missed. At 10,000 records/s the server
takes some 4 GB of disk an hour, which it gives back in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from bench.figures import Result, percentiles, show
from bench.producers import TYPES, AppendTimes, Load, producing
from bench.samples import Sample, figures, plot
from bench.stack import connect, count, fresh, lanes, server, wait_for, writer
from ringlog.cli import quiet_libraries
from ringlog.lanes.board import Board
from ringlog.lanes.instance import Instance
from ringlog.lanes.views import LaneView
from ringlog.records import layout_of
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

SAMPLE_SECONDS = 1.0
POLL_SECONDS = 0.02  # five looks a tick: none is missed
STALL, STALL_SECONDS_MAX = 0.005, 4.0  # of the run, and at most
OUT = Path("build/soak")


def resident_bytes(pid: int) -> tuple[int, int]:
    """A process's resident bytes and its proportional ones, shared memory left out of both."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return int(psutil.Process(pid).memory_full_info().uss), 0  # macOS
    return (
        kibibytes(status, "RssAnon:", "RssFile:") * 1024,
        kibibytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss_Anon:", "Pss_File:") * 1024,
    )


def stall(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Stops the writer for so long, after which its batches are as large as they get, and with them what it allocates.

    Else the first stall of a busy machine, whenever it comes, would look like a leak.
    """
    process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    process.send_signal(signal.SIGCONT)


def kibibytes(path: Path, *names: str) -> int:
    return sum(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(names))


class Watch:
    """Takes the samples of one run."""

    def __init__(
        self, settings: Settings, writer: int, producers: Sequence[int], views: list[LaneView], directory: str
    ) -> None:
        self._writer, self._producers, self._views = psutil.Process(writer), producers, views
        self._times = AppendTimes(directory, len(producers))
        self._board = wait_for(lambda: Board.look(Instance(settings)), "board")
        self._beat_us = self._board.beat_us
        self._began = time.monotonic()

    def samples(self, seconds: float, is_stopped: threading.Event) -> Iterator[Sample]:
        """A sample a second until the time is over, or it is stopped. Raises psutil.NoSuchProcess."""
        for number in itertools.count(1):
            deadline = self._began + min(number * SAMPLE_SECONDS, seconds)
            tick_ms = []
            while time.monotonic() < deadline and not is_stopped.is_set():
                time.sleep(POLL_SECONDS)  # not a wait for the event: it holds a lock that a signal's handler wants
                beat_us = self._board.beat_us
                if beat_us != self._beat_us:
                    tick_ms.append((beat_us - self._beat_us) / 1e3)
                    self._beat_us = beat_us
            append_ns = self._times.latest()
            if tick_ms and len(append_ns):
                yield self._sample(tick_ms, append_ns)
            if is_stopped.is_set() or number * SAMPLE_SECONDS >= seconds:
                return

    def _sample(self, tick_ms: list[float], append_ns: NDArray[np.int64]) -> Sample:
        resident, share = resident_bytes(self._writer.pid)
        tails = sum(view.tail for view in self._views)  # first, so that the lag is never too small
        heads = sum(view.head for view in self._views)
        return Sample(
            round(time.monotonic() - self._began, 3), resident, share,
            self._writer.num_fds(), self._writer.num_threads(),
            sum(resident_bytes(pid)[0] for pid in self._producers),
            heads, sum(sum(view.refused) for view in self._views), heads - tails,
            float(np.median(tick_ms)), max(tick_ms), *percentiles(append_ns).values(),
        )  # fmt: skip


def soak(
    seconds: float, rate: float, out: Path, is_stopped: threading.Event, running: QuestDBServer | None = None
) -> Result:
    """One run; leaves samples, report and plot in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    load = Load(rate)
    samples: list[Sample] = []
    tables = [layout_of(record).table for record in TYPES[: load.types]]
    with (
        contextlib.ExitStack() as held,
        server(running) as questdb,
        fresh(questdb) as settings,
        writer(settings) as process,
        tempfile.TemporaryDirectory(prefix="ringlog-soak-") as directory,
    ):

        def rows() -> int:
            with connect(settings) as connection:  # the server ends one that was not used for minutes
                return sum(count(connection, table) for table in tables)

        before = rows()
        with producing(settings, directory, load) as producers, (out / "samples.csv").open("w") as file:
            views = lanes(settings, held)
            stall(process, min(STALL * seconds, STALL_SECONDS_MAX))
            table = csv.writer(file)
            table.writerow(Sample.__struct_fields__)
            for sample in Watch(settings, process.pid, producers, views, directory).samples(seconds, is_stopped):
                table.writerow(msgspec.structs.astuple(sample))
                file.flush()
                samples.append(sample)
        accepted, refused = sum(view.head for view in views), sum(sum(view.refused) for view in views)
        with contextlib.suppress(TimeoutError):  # then the figures say how many are missing
            wait_for(lambda: rows() - before >= accepted, "rows that were accepted", poll_seconds=0.1)
        stored = rows() - before
    result = Result(
        benchmark="soak",
        what=f"{rate:,.0f} records/s for hours",
        figures=figures(samples, rate, accepted, refused, stored),
        details={"accepted": accepted, "stored": stored, "samples": len(samples)},
    )
    (out / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    plot(samples, out / "soak.svg")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--tiny", action="store_true", help="a few seconds of it; the figures then mean little")
    parser.add_argument("--rate", type=float, default=10_000.0, help="records/s of all producers together")
    parser.add_argument("--out", type=Path, default=OUT, help=f"where samples, report and plot go ({OUT})")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    given = parser.parse_args()
    quiet_libraries()
    is_stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: is_stopped.set())
    result = soak(5.0 if given.tiny else given.hours * 3600, given.rate, given.out, is_stopped)
    show(result, given.json)
    return 1 if any(figure.verdict == "not met" for figure in result.figures) else 0


if __name__ == "__main__":
    sys.exit(main())
