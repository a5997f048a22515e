"""The paper-trading session: the four integrations at work on one recording, until everything is stored and judged."""

from __future__ import annotations

import collections
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
from ringlog.demo.stage import Lanes, Run, Stage, Watched
from ringlog.lanes.claims import cards
from ringlog.postgres import Pool, migrations
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.settings import Settings

TABLES = [layout_of(record).table for record in PLATFORM_RECORDS]
LANES_OF_AN_EXECUTOR = len(paper.RECORDS)
PROBE_SECONDS = 0.1  # the session is no benchmark: its parts are to have the machine
EXECUTORS_MAX = 16
OTHER_LANES = 4  # the market's, the monitor's two, the simulator's


def run_paper_session(options: Options, found: Survey, run: Run, before: Lanes) -> tuple[Stage, SessionReport]:
    """Trades the recording, and waits until all of it is stored and simulated. What fails once it trades is among the
    failures; raises RinglogError, OSError where it cannot begin."""
    if options.producers > EXECUTORS_MAX:
        run.view.note(
            f"the session has {EXECUTORS_MAX} executors: more would need more connections than PostgreSQL has"
        )
        options = msgspec.structs.replace(options, producers=EXECUTORS_MAX)
    results = run.directory / "session"
    results.mkdir(mode=0o700)
    plan = _plan(options, found, run.settings, results)
    _configure(plan, run.settings, options.producers)
    watched = Watched(
        Probe(run.settings, TABLES, PROBE_SECONDS), run.instance, results, options.producers, run.view, before
    )
    with Processes() as processes, watched.probing():
        lines = processes.context.RawArray("q", options.producers + 1)
        helpers = _Helpers(processes, plan)
        with watched.running(processes, run.failures, "paper session"):
            started, stopped = processes.is_started, processes.is_stopped
            helpers.start()
            trading = [processes.start("market", market.run, plan, lines, started, stopped)]
            for i in range(options.producers):
                trading.append(processes.start(f"executor {i}", paper.run, plan, i, lines, started, stopped))
            own = {lane for of_table in before.values() for lane in of_table}
            lanes_wanted = options.producers * LANES_OF_AN_EXECUTOR + 1
            processes.wait_until(
                lambda: (
                    helpers.are_ready
                    and sum(f"{card.lane:016x}" not in own for card in cards(run.instance))
                    >= lanes_wanted + helpers.lanes
                ),
                "lanes",
            )
            run.view.begin("trading")
            watched.begin(processes)
            watched.follow(processes, trading, lambda _accepted: lines[1] / found.messages)
            helpers.finish(_trades(result_files.read(results, "executor-*", ExecutorResult)))
        executors = result_files.read(results, "executor-*", ExecutorResult)
        simulators = result_files.read(results, "simulator", SimulatorResult)
        others = [*result_files.read(results, "market", Result), *result_files.read(results, "monitor", Result)]
        stage = watched.stage(run, processes, [*executors, *others, *simulators])
        return stage, _report(plan, executors, simulators, stage, before)


class _Helpers:
    """The MEV simulator and the performance monitor: the session goes on without one that fails."""

    def __init__(self, processes: Processes, plan: Plan) -> None:
        self._processes, self._plan = processes, plan
        self._expected = processes.context.RawValue("q", -1)
        self._is_ready, self._is_finishing = processes.flag(), processes.flag()

    def start(self) -> None:
        stopped = self._processes.is_stopped
        self._simulator = self._processes.start(
            "mev simulator", simulator.run, self._plan, self._expected, self._is_ready, stopped, is_helper=True
        )
        self._monitor = self._processes.start(
            "performance monitor", monitor.run, self._plan, self._is_finishing, stopped, is_helper=True
        )

    @property
    def are_ready(self) -> bool:
        return self._is_ready.is_set() or not self._simulator.is_alive()

    @property
    def lanes(self) -> int:
        """How many lanes those that live will have."""
        return int(self._simulator.is_alive()) + int(self._monitor.is_alive()) * len(monitor.RECORDS)

    def finish(self, trades: int) -> None:
        """Waits until so many trades are simulated, then until the monitor has looked once more."""
        self._expected.value = trades
        self._wait(self._simulator)
        self._is_finishing.set()
        self._wait(self._monitor)

    def _wait(self, process: Any) -> None:
        self._processes.wait_until(lambda: not process.is_alive(), f"end of the {process.name}")


def _trades(executors: list[ExecutorResult]) -> int:
    return sum(trader.trades for executor in executors for trader in executor.traders)


def _plan(options: Options, found: Survey, settings: Settings, results: Path) -> Plan:
    base, quote = split_symbol(found.symbols[0])
    settings_file = results / "session.env"
    settings.save(settings_file)
    return Plan(
        settings_file=str(settings_file),
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
    plan: Plan, executors: list[ExecutorResult], simulators: list[SimulatorResult], stage: Stage, before: Lanes
) -> SessionReport:
    records = {
        table: count
        for table, lanes in stage.lanes.items()
        if (count := sum(lanes.values()) - sum(before.get(table, {}).values()))
    }
    limits, rules, nodes = (collections.Counter[str]() for _ in range(3))
    for executor in executors:
        limits.update(executor.limits)
        rules.update(executor.rules)
        nodes.update(executor.nodes)
    return SessionReport(
        market=f"{plan.base}/{plan.quote}",
        seconds=stage.seconds,
        trades=_trades(executors),
        records=records,
        traders=[trader for executor in executors for trader in executor.traders],
        limits=dict(limits),
        rules=dict(rules),
        nodes=dict(nodes),
        simulated=sum(each.simulated for each in simulators),
        missed=sum(each.missed for each in simulators),
    )
