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

from ringlog.demo.feed import Survey, survey
from ringlog.demo.generation import write_generated
from ringlog.demo.load import run_load
from ringlog.demo.options import Options
from ringlog.demo.orphans import clearing
from ringlog.demo.platform import Platform, running_platform
from ringlog.demo.report import AppendTimes, Report, SessionReport
from ringlog.demo.stage import Stage
from ringlog.demo.view import View
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


def run_session(options: Options, view: View) -> Report:
    """Runs the demo once. Raises RinglogError where a part cannot run; leaves no process and no segment behind."""
    found = survey(options.recording) if options.recording else None
    if found and options.recording:
        view.note(_surveyed(options.recording.name, found))
        for line, reason in found.first_broken:
            view.note(f"{options.recording.name} line {line}: {reason}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_interruptible())
        directory = _directory(options.keep, stack)
        stack.enter_context(clearing(str(directory / "run"), "" if options.keep else str(directory)))
        view.note(f"starting {'QuestDB, PostgreSQL and Valkey' if options.session else 'QuestDB'} ...")
        platform = stack.enter_context(
            running_platform(directory if options.keep else None, complete=options.session)
        )  # fmt: skip
        # A recording keeps the times it was made at, however long ago: nothing here is too old.
        settings = Settings(runtime_dir=str(directory / "run"), retention_days=0, **platform.settings)
        instance = Instance(settings).open()
        stack.callback(_clean, instance)
        patient = msgspec.structs.replace(settings, request_timeout_ms=MIGRATION_TIMEOUT_MS)
        migrate(patient, [layout_of(record) for record in PLATFORM_RECORDS])
        stages, session = _stages(options, found, platform, settings, instance, directory, view)
        if session is not None:
            _analyse(options, settings, session, view)
        return _report(options, found, stages, session)


def _stages(
    options: Options, found: Survey | None, platform: Platform, settings: Settings, instance: Instance,
    directory: Path, view: View,
) -> tuple[list[Stage], SessionReport | None]:  # fmt: skip
    """A generated market is a load first; a recording is traded once, by the session where that can run."""
    reason = platform.missing if options.session else "not asked for"
    if found and len(found.symbols) != 1:
        reason = reason or f"got a recording of {len(found.symbols)} markets, wanted one"
    stages: list[Stage] = []
    log = directory / "writer.log"
    if reason or not found:
        with running_writer(settings, log):
            stages.append(run_load(options, found, settings, instance, directory, view))
    if reason:
        if options.session:
            view.note(f"without the paper-trading session: {reason}")
        return stages, None
    from ringlog.demo.paper_session import run_paper_session

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
    with running_writer(published, log):
        before = stages[-1].lanes if stages else {}
        stage, session = run_paper_session(options, found, published, instance, directory, view, before)
    session.source = source
    return [*stages, stage], session


def _generated(options: Options) -> str:
    return f"generated random walk (seed {options.seed})"


def _analyse(options: Options, settings: Settings, session: SessionReport, view: View) -> None:
    """Writes the session's report; where it cannot, there is none, and the demo says why: the rest is as true."""
    directory = options.report or (options.keep / "report" if options.keep else default_data_dir() / "demo-report")
    view.begin("correlating")
    try:
        from ringlog.demo.page import write_report

        session.report_html, session.report_png = write_report(settings, session, directory.absolute())
    except ImportError as error:
        view.note(f'no report: {error} (pip install "ringlog[demo]")')
    except OSError as error:
        view.note(f"no report: {directory}: got {error.strerror}, wanted a directory to write to (--report)")


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


def _report(options: Options, found: Survey | None, stages: list[Stage], session: SessionReport | None) -> Report:
    """Counts cover every stage; times and rates are of the first, which is the main job."""
    main, verdict = stages[0], stages[-1].verdict
    refused: dict[str, int] = {}
    for result in (result for stage in stages for result in stage.results):
        for reason, count in result.refused.items():
            refused[reason] = refused.get(reason, 0) + count
    return Report(
        market=options.recording.name if options.recording else _generated(options),
        producers=options.producers,
        ring=IMPLEMENTATION,
        accepted=verdict.accepted,
        stored=verdict.stored,
        refused=sum(refused.values()),
        refused_by_reason=refused,
        lost=verdict.lost,
        duplicated=verdict.duplicated,
        foreign=verdict.foreign,
        dead_letters=sum(stage.dead_letters for stage in stages),
        broken_lines=found.broken if found else 0,
        seconds=main.seconds,
        records_per_second=main.accepted / main.seconds,
        append_ns=AppendTimes(*main.append_ns),
        timer_ns=_timer_ns(),
        freshness_ms=main.freshness_ms,
        tick_ms=main.tick_ms,
        write_ms=main.write_ms,
        lane_bytes=main.lane_bytes,
        writer_rss_bytes=main.writer_rss_bytes,
        is_exact=verdict.is_exact,
        session=session,
    )


def _timer_ns() -> int:
    """What an append's time holds of the clock itself: the median of two readings in a row."""
    clock: Callable[[], int] = time.perf_counter_ns
    return int(np.median([-(clock() - clock()) for _ in range(10_001)]))
