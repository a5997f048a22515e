"""The demo from its servers to its report: the load, the paper-trading session, and the check of every record."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from ringlog.demo.failures import Failures
from ringlog.demo.feed import Survey, survey
from ringlog.demo.generation import write_generated
from ringlog.demo.load import run_load
from ringlog.demo.options import Options
from ringlog.demo.orphans import clearing
from ringlog.demo.platform import Platform, running_platform
from ringlog.demo.report import Report, SessionReport
from ringlog.demo.stage import Run, Stage
from ringlog.demo.view import View
from ringlog.demo.warm_up import warm_up
from ringlog.demo.writer_process import running_writer
from ringlog.errors import RinglogError
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import remove_instance
from ringlog.questdb.migrations import migrate
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.ring import IMPLEMENTATION
from ringlog.servers.background import default_data_dir
from ringlog.settings import Settings

GENERATED_SECONDS = 120.0  # of a market for the session, where there is no recording
GENERATED_SPEED = 15.0
MIGRATION_TIMEOUT_MS = 60_000  # of a server that has just started, beside two others that start
INTERRUPTED = "interrupted"


def run_session(options: Options, view: View) -> Report:
    """Runs the demo once, and reports in any case; leaves no process and no segment behind.

    What fails is in the report's `error`, and so is an interruption; what was found out until then is in the rest.
    """
    demo = Demo(options, view)
    with _interruptible():
        try:
            with demo.failures.part(""):
                demo.run()
        except KeyboardInterrupt:
            demo.is_interrupted = True
            demo.failures.add("", INTERRUPTED)
        return demo.report()


class Demo:
    """One run of the demo, and what it found so far."""

    def __init__(self, options: Options, view: View) -> None:
        self.failures = Failures()
        self.is_interrupted = False
        self._options, self._view = options, view
        self._found: Survey | None = None
        self._stages: list[Stage] = []
        self._session: SessionReport | None = None

    def run(self) -> None:
        """Raises RinglogError, OSError where not even the load can run, KeyboardInterrupt."""
        options, view = self._options, self._view
        if options.recording:
            self._found = survey(options.recording)
            view.note(_surveyed(options.recording.name, self._found))
            for line, reason in self._found.first_broken:
                view.note(f"{options.recording.name} line {line}: {reason}")
        with contextlib.ExitStack() as stack:
            directory = _directory(options.keep, stack)
            stack.enter_context(clearing(str(directory / "run"), "" if options.keep else str(directory)))
            view.note(f"starting {'QuestDB, PostgreSQL and Valkey' if options.session else 'QuestDB'} ...")
            platform = stack.enter_context(
                running_platform(directory if options.keep else None, complete=options.session)
            )
            # A recording keeps the times it was made at, however long ago: nothing here is too old.
            settings = Settings(runtime_dir=str(directory / "run"), retention_days=0, **platform.settings)
            instance = Instance(settings).open()
            stack.callback(_clean, instance)
            patient = msgspec.structs.replace(settings, request_timeout_ms=MIGRATION_TIMEOUT_MS)
            migrate(patient, [layout_of(record) for record in PLATFORM_RECORDS])
            stack.callback(self._note_ended, platform)
            view.begin("warming up")
            with self.failures.part("warm-up"):
                warm_up(patient)
            self._trade(platform, settings, instance, directory)
            if self._session is not None:
                self.analyse(platform, settings, self._session)

    def _trade(self, platform: Platform, settings: Settings, instance: Instance, directory: Path) -> None:
        """A generated market is a load first; a recording is traded once, by the session where that can run."""
        found = self._found
        skipped = "" if self._options.session else "not asked for"
        if found and len(found.symbols) != 1:
            skipped = skipped or f"got a recording of {len(found.symbols)} markets, wanted one"
        if platform.missing:
            self.failures.add("paper session", f"{platform.missing} (--no-session leaves it out)")
        elif skipped and self._options.session:
            self._view.note(f"without the paper-trading session: {skipped}")
        has_session = not skipped and not platform.missing
        if not has_session or not found:
            with self._running("load", platform, settings, instance, directory) as run:
                self._add(run_load(self._options, found, run))
        if has_session and "QuestDB" in platform.ended():
            self.failures.add("paper session", "not begun: QuestDB is gone")
        elif has_session:
            with self.failures.part("paper session"):
                self._run_paper_session(platform, settings, instance, directory)

    def _run_paper_session(self, platform: Platform, settings: Settings, instance: Instance, directory: Path) -> None:
        from ringlog.demo.paper_session import run_paper_session

        options, found, view = self._options, self._found, self._view
        source = f"recording {options.recording.name}" if options.recording else _generated(options)
        if not found:
            path = directory / "generated.gz"
            write_generated(path, options.seed, GENERATED_SECONDS)
            found = survey(path)
            speed = GENERATED_SPEED if options.rate else 0.0
            options = msgspec.structs.replace(options, recording=path, rate=0.0, speed=speed)
        view.note(f"paper trading {found.symbols[0]}: {found.trades:,} trades of {found.seconds:.0f} s ...")
        view.begin("preparing")
        published = msgspec.structs.replace(settings, redis_sink=True)
        with self._running("paper session", platform, published, instance, directory) as run:
            before = self._stages[-1].lanes if self._stages else {}
            stage, self._session = run_paper_session(options, found, run, before)
            self._session.source = source
            self._add(stage)

    @contextlib.contextmanager
    def _running(
        self, part: str, platform: Platform, settings: Settings, instance: Instance, directory: Path
    ) -> Iterator[Run]:
        """A writer, and all else that a stage needs; a writer that ends by itself is a failure of its own."""
        with self.failures.part(""), running_writer(settings, directory / "writer.log") as writer:

            def has_ended() -> bool:
                return writer.poll() is not None or "QuestDB" in platform.ended()

            with self.failures.part(part):
                yield Run(settings, instance, directory, self._view, self.failures, has_ended)

    def _add(self, stage: Stage) -> None:
        self._stages.append(stage)
        if stage.is_interrupted:
            raise KeyboardInterrupt

    def _note_ended(self, platform: Platform) -> None:
        for name in platform.ended():
            self.failures.add(name, "its process ended during the run")

    def analyse(self, platform: Platform, settings: Settings, session: SessionReport) -> None:
        """Writes the session's report; where it cannot, there is none, and the rest is as true."""
        options = self._options
        directory = options.report or (options.keep / "report" if options.keep else default_data_dir() / "demo-report")
        self._view.begin("correlating")
        if "QuestDB" in platform.ended():
            self.failures.add("report", "QuestDB is gone")
            return
        with self.failures.part("report"):
            from ringlog.demo.page import write_report

            try:
                directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                wanted = "wanted a directory to write to (--report)"
                raise RinglogError(f"{directory}: got {error.strerror}, {wanted}") from None
            write_report(settings, session, directory.absolute(), self.failures)

    def report(self) -> Report:
        """Counts cover every stage; times and rates are of the first, which is the main job."""
        options = self._options
        report = Report(
            market=options.recording.name if options.recording else _generated(options),
            producers=options.producers,
            ring=IMPLEMENTATION,
            broken_lines=self._found.broken if self._found else 0,
            session=self._session,
            is_interrupted=self.is_interrupted,
        )
        if self._stages:
            self._count(report)
            self._measure(report, self._stages[0])
        report.error = "; ".join(self.failures.lines)
        return report

    def _count(self, report: Report) -> None:
        last, verdict = self._stages[-1], self._stages[-1].verdict
        for result in (result for stage in self._stages for result in stage.results):
            for reason, count in result.refused.items():
                report.refused_by_reason[reason] = report.refused_by_reason.get(reason, 0) + count
        report.refused = sum(report.refused_by_reason.values())
        report.dead_letters = sum(stage.dead_letters for stage in self._stages)
        report.accepted = sum(sum(lanes.values()) for lanes in last.lanes.values())
        if verdict is None:
            return
        report.stored, report.lost = verdict.stored, verdict.lost
        report.duplicated, report.foreign = verdict.duplicated, verdict.foreign
        report.is_exact = verdict.is_exact
        if not verdict.is_exact:
            found = f"{verdict.lost:,} records lost, {verdict.duplicated:,} duplicated, {verdict.foreign:,} foreign"
            self.failures.add("verification", f"got {found}, wanted every accepted record in QuestDB exactly once")

    @staticmethod
    def _measure(report: Report, main: Stage) -> None:
        report.append_ns, report.timer_ns = main.append_ns, _timer_ns()
        report.freshness_ms, report.tick_ms, report.write_ms = main.freshness_ms, main.tick_ms, main.write_ms
        report.lane_bytes, report.writer_rss_bytes = main.lane_bytes, main.writer_rss_bytes
        if main.seconds:
            report.seconds, report.records_per_second = main.seconds, main.accepted / main.seconds


def _generated(options: Options) -> str:
    return f"generated random walk (seed {options.seed})"


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A hang-up or SIGTERM ends the session as Ctrl-C does: in order, with nothing left behind."""
    numbers = (signal.SIGHUP, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _surveyed(name: str, found: Survey) -> str:
    counts = f"{found.messages:,} messages over {found.seconds:.0f} s, {found.trades:,} trades"
    offset = f"clock offset {found.clock_offset_us / 1e6:+.3f} s removed, so what is stored as latency is jitter"
    return f"{name}: {counts}, {found.timed:,} with an event time; {offset}"


def _directory(keep: Path | None, stack: contextlib.ExitStack) -> Path:
    if keep is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringlog-demo-")))
    try:
        keep.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(keep.iterdir()):
            raise RinglogError(f"--keep {keep}: got a directory with something in it, wanted an empty or a new one")
    except OSError as error:
        raise RinglogError(f"--keep {keep}: got {error.strerror}, wanted a directory to write to") from None
    return keep.absolute()


def _clean(instance: Instance) -> None:
    with contextlib.suppress(RinglogError):
        remove_instance(instance)


def _timer_ns() -> int:
    """What an append's time holds of the clock itself: the median of two readings in a row."""
    clock: Callable[[], int] = time.perf_counter_ns
    return int(np.median([-(clock() - clock()) for _ in range(10_001)]))
