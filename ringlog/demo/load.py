"""The load: executors that append as many records as they are told to, or replay a recording without any database."""

from __future__ import annotations

from pathlib import Path

from ringlog.demo import results as result_files
from ringlog.demo.executor import RECORDS, Orders
from ringlog.demo.executor import run as execute
from ringlog.demo.feed import Survey
from ringlog.demo.options import Options
from ringlog.demo.probe import Probe
from ringlog.demo.processes import Processes
from ringlog.demo.results import Result
from ringlog.demo.stage import Run, Stage, Watched
from ringlog.lanes.claims import cards
from ringlog.records import layout_of
from ringlog.settings import Settings

CLAIMS_MAX = 4  # producers that find enough: each claim takes a part of what is left, so the last of many find nothing
STARTING_MAX = 8  # at a time: more would wait for each other's claims, and only for so long
TABLES = [layout_of(record).table for record in RECORDS]


def run_load(options: Options, found: Survey | None, run: Run) -> Stage:
    """Runs the executors to their end, and waits until all they appended is stored; failures are noted."""
    results = run.directory / "results"
    results.mkdir(mode=0o700)
    watched = Watched(Probe(run.settings, TABLES), run.instance, results, options.producers, run.view, {})

    def done(accepted: int) -> float:
        return accepted / (found.trades + found.timed) if found else watched.elapsed / options.seconds

    with Processes() as processes, watched.probing():
        with watched.running(processes, run.failures, "load"):
            executors = []
            for i in range(options.producers):
                orders = _orders(options, found, run.settings, results, i)
                executors.append(
                    processes.start(f"executor {i}", execute, orders, processes.is_started, processes.is_stopped)
                )
                ready = (i + 1 if i + 1 == options.producers else i + 1 - STARTING_MAX) * len(RECORDS)
                processes.wait_until(lambda ready=ready: len(cards(run.instance)) >= ready, "lanes")  # type: ignore[misc]
            run.view.begin("load" if found is None else "trading")
            watched.begin(processes)
            watched.follow(processes, executors, done)
        return watched.stage(run, processes, result_files.read(results, "executor-*", Result))


def lane_bytes(executors: int, settings: Settings) -> int:
    """The bytes of each executor's lanes, an equal share of half the budget; 0 where each may claim what it finds."""
    return settings.lane_bytes_max // 2 // (executors * len(RECORDS)) if executors > CLAIMS_MAX else 0


def _orders(options: Options, found: Survey | None, settings: Settings, results: Path, index: int) -> Orders:
    return Orders(
        index=index,
        executors=options.producers,
        runtime_dir=settings.runtime_dir,
        result_dir=str(results),
        rate=options.rate / options.producers,
        seconds=options.seconds,
        seed=options.seed,
        recording=str(options.recording or ""),
        speed=0.0 if options.rate else options.speed,
        clock_offset_us=found.clock_offset_us if found else 0,
        first_us=found.first_us if found else 0,
        lane_bytes=lane_bytes(options.producers, settings),
    )
