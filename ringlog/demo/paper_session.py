"""The paper-trading session: the four integrations at work on one recording, until everything is stored and judged."""

from __future__ import annotations

import collections
import time
from pathlib import Path
from typing import Any

import msgspec

from ringlog.demo import market, monitor, paper, simulator
from ringlog.demo import results as result_files
from ringlog.demo.configuration import configure
from ringlog.demo.feed import Survey, split_symbol
from ringlog.demo.options import Options
from ringlog.demo.plan import Plan
from ringlog.demo.probe import Probe
from ringlog.demo.processes import Processes
from ringlog.demo.report import SessionReport
from ringlog.demo.results import ExecutorResult, Result, SimulatorResult
from ringlog.demo.stage import STORE_TIMEOUT_SECONDS, Lanes, Stage, Watched, merged
from ringlog.demo.verification import verify
from ringlog.demo.view import View
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.postgres import Pool, migrations
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.settings import Settings

TABLES = [layout_of(record).table for record in PLATFORM_RECORDS]
LANES_OF_AN_EXECUTOR = len(paper.RECORDS)
PROBE_SECONDS = 0.1  # the session is no benchmark: its parts are to have the machine
EXECUTORS_MAX = 16
OTHER_LANES = 4  # the market's, the monitor's two, the simulator's


def run_paper_session(
    options: Options, found: Survey, settings: Settings, instance: Instance, directory: Path, view: View, before: Lanes
) -> tuple[Stage, SessionReport]:
    """Trades the recording, and waits until all of it is stored and simulated. Raises RinglogError."""
    if options.producers > EXECUTORS_MAX:
        view.note(f"the session has {EXECUTORS_MAX} executors: more would need more connections than PostgreSQL has")
        options = msgspec.structs.replace(options, producers=EXECUTORS_MAX)
    results = directory / "session"
    results.mkdir(mode=0o700)
    plan = _plan(options, found, settings, results)
    _configure(plan, settings, options.producers)
    watched = Watched(Probe(settings, TABLES, PROBE_SECONDS), instance, results, options.producers, view, before)
    with Processes() as processes:
        started, stopped = processes.is_started, processes.is_stopped
        lines = processes.context.RawArray("q", options.producers + 1)
        expected = processes.context.Value("q", -1)
        is_ready, is_finishing = processes.context.Event(), processes.context.Event()
        simulating = processes.start("mev simulator", simulator.run, plan, expected, is_ready, stopped)
        trading = [processes.start("market", market.run, plan, lines, started, stopped)]
        for i in range(options.producers):
            trading.append(processes.start(f"executor {i}", paper.run, plan, i, lines, started, stopped))
        monitoring = processes.start("performance monitor", monitor.run, plan, is_finishing, stopped)
        lanes_wanted = options.producers * LANES_OF_AN_EXECUTOR + OTHER_LANES
        own = {lane for of_table in before.values() for lane in of_table}
        processes.wait_until(
            lambda: (
                is_ready.is_set() and sum(f"{card.lane:016x}" not in own for card in cards(instance)) >= lanes_wanted
            ),
            "lanes",
        )
        view.begin("trading")
        with watched.probing() as began:
            started.set()
            watched.attach()
            watched.follow(processes, trading, lambda _accepted: lines[1] / found.messages)
            executors = result_files.read(results, "executor-*", ExecutorResult)
            trades = sum(trader.trades for executor in executors for trader in executor.traders)
            expected.value = trades
            _finish(processes, simulating)
            is_finishing.set()
            _finish(processes, monitoring)
            outcome: list[Result] = [
                *executors,
                *result_files.read(results, "market", Result),
                *result_files.read(results, "monitor", Result),
                *result_files.read(results, "simulator", SimulatorResult),
            ]
            lanes = merged(outcome, before)
            verdict = verify(settings, lanes, STORE_TIMEOUT_SECONDS)
            seconds = time.monotonic() - began
    (mev,) = result_files.read(results, "simulator", SimulatorResult)
    stage = watched.measured(outcome, lanes, verdict, seconds)
    return stage, _report(plan, trades, executors, mev, outcome, seconds)


def _finish(processes: Processes, process: Any) -> None:
    processes.wait_until(lambda: not process.is_alive(), f"end of the {process.name}")
    processes.check()


def _plan(options: Options, found: Survey, settings: Settings, results: Path) -> Plan:
    base, quote = split_symbol(found.symbols[0])
    return Plan(
        environment=settings.to_environment(),
        result_dir=str(results),
        recording=str(options.recording),
        base=base,
        quote=quote,
        executors=options.producers,
        # One of the two sets the pace, as in the load: at the recording's own, no rate above it could be kept.
        speed=0.0 if options.rate else options.speed,
        rate=options.rate / options.producers,
        seed=options.seed,
        first_us=found.first_us,
        clock_offset_us=found.clock_offset_us,
        lane_bytes=settings.lane_bytes_max // 2 // (options.producers * LANES_OF_AN_EXECUTOR + OTHER_LANES),
    )


def _configure(plan: Plan, settings: Settings, executors: int) -> None:
    """PostgreSQL as the session wants it. One RPC node is QuestDB's HTTP port, of the other nobody answers."""
    migrations.migrate(settings)
    nodes = {
        "local": f"http://{settings.questdb_host}:{settings.questdb_http_port}/ping",
        "unreachable": "http://127.0.0.1:9/",
    }
    with Pool(msgspec.structs.replace(settings, postgres_pool_size_max=1)) as pool:
        configure(pool, plan.base, plan.quote, executors, nodes)


def _report(
    plan: Plan, trades: int, executors: list[ExecutorResult], mev: SimulatorResult, outcome: list[Result],
    seconds: float,
) -> SessionReport:  # fmt: skip
    records: collections.Counter[str] = collections.Counter()
    for result in outcome:
        for table, lanes in result.accepted.items():
            records[table] += sum(lanes.values())
    limits, rules, nodes = (collections.Counter[str]() for _ in range(3))
    for executor in executors:
        limits.update(executor.limits)
        rules.update(executor.rules)
        nodes.update(executor.nodes)
    return SessionReport(
        market=f"{plan.base}/{plan.quote}",
        seconds=seconds,
        trades=trades,
        records=dict(records),
        traders=[trader for executor in executors for trader in executor.traders],
        limits=dict(limits),
        rules=dict(rules),
        nodes=dict(nodes),
        simulated=mev.simulated,
        missed=mev.missed,
    )
