"""`ringlog writer`: the writer in the foreground, for a supervisor."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import click

from ringlog.cli import FAILED
from ringlog.cli.output import log_lines, say
from ringlog.errors import ConfigurationError, RinglogError, ServerUnavailable
from ringlog.settings import Settings
from ringlog.sinks import Cuts, Mirror, Sink

if TYPE_CHECKING:
    from ringlog.monitor.metrics import MetricsServer

logger = logging.getLogger("ringlog.writer")


@click.command("writer")
@click.option("--runtime-dir", help="The instance's runtime directory (RINGLOG_RUNTIME_DIR).")
@click.option("--drain-interval-ms", type=click.IntRange(1, 10_000), help="How often lanes are drained.")
@click.option("--batch-rows-max", type=click.IntRange(1), help="The most rows of one request.")
@click.option(
    "--stop-timeout-ms", type=click.IntRange(0), help="How long SIGTERM may take to deliver what is in lanes."
)
@click.option("-v", "--verbose", is_flag=True, help="Log at level DEBUG.")
def writer(verbose: bool, **flags: Any) -> None:
    """Drain the instance's lanes into QuestDB until SIGTERM or Ctrl-C; logs go to stdout.

    SIGHUP makes it read RINGLOG_SETTINGS_FILE again; its log says what changed, and what needs a restart.

    Exits 0 after SIGTERM, 1 where another writer runs already (naming it) or a request never returns.
    """
    from ringlog.writer import Writer
    from ringlog.writer.descriptors import raise_descriptor_limit
    from ringlog.writer.supervisor import Supervisor

    log_lines(sys.stdout, logging.DEBUG if verbose else logging.INFO, "%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = _checked(Settings.from_environment(**flags))
    raise_descriptor_limit()
    supervisor = Supervisor.from_environment()
    metrics = _metrics(settings)
    cuts: Future[Cuts | None] = Future()
    sink: Future[Sink] = Future()
    process = Writer(settings, sink, _mirror(settings), cuts, supervisor)
    # Only now, or it would take its time from the writer, which has to open its spool first.
    threading.Thread(target=_load, args=(settings, cuts, sink), name="ringlog-load", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.stop())
    signal.signal(signal.SIGHUP, lambda *_: process.reload(lambda: _checked(Settings.from_environment(**flags))))
    try:
        process.run()
    except ServerUnavailable as error:  # a thread hangs in a request, and would keep this process for ever
        say(f"ringlog: {error}", err=True)
        logging.shutdown()
        os._exit(FAILED)
    finally:
        if metrics is not None:
            metrics.close()


def _checked(settings: Settings) -> Settings:
    """The settings, if a writer can work with them. Raises ConfigurationError."""
    from ringlog.monitor.findings import validated

    for finding in validated(settings, ()):
        if finding.level == "fail":
            raise ConfigurationError(f"{finding.text}: {finding.fix}")
    return settings


def _load(settings: Settings, cuts: Future[Cuts | None], sink: Future[Sink]) -> None:
    """What needs a server's library, beside a writer that reads lanes already."""
    for future, make in ((cuts, _cuts), (sink, _sink)):
        try:
            future.set_result(make(settings))  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 (it is raised on the writer's thread, and ends it)
            future.set_exception(error)
    _greet(settings)


def _greet(settings: Settings) -> None:
    """Says at once where the server does not answer, rather than with the first records for it."""
    from ringlog.questdb.connection import Connection

    connection = Connection.from_settings(settings)
    try:
        connection.execute("select 1")
    except RinglogError as error:
        logger.warning("no server, records wait in the spool until it answers: %s", error)
    finally:
        connection.close()


def _sink(settings: Settings) -> Sink:
    from ringlog.questdb.sink import QuestdbSink

    return QuestdbSink(settings)


def _metrics(settings: Settings) -> MetricsServer | None:
    """Prometheus metrics on threads of their own, which read shared memory and nothing of the writer's."""
    if not settings.metrics_port:
        return None
    try:
        from ringlog.monitor.metrics import MetricsServer
    except ImportError:
        wanted = "pip install 'ringlog[metrics]'"
        raise ConfigurationError(f"RINGLOG_METRICS_PORT: got {settings.metrics_port}, wanted {wanted} first") from None
    return MetricsServer(settings, settings.metrics_port)


def _cuts(settings: Settings) -> Cuts | None:
    """Retention on a thread; with `retention_days` 0 there is none, and no record is too old."""
    if settings.retention_days == 0:
        return None
    from ringlog.questdb.retention_thread import RetentionThread

    return RetentionThread(settings).start()


def _mirror(settings: Settings) -> Mirror | None:
    if not settings.redis_sink:
        return None
    import msgspec

    from ringlog.redis.connection import Connection
    from ringlog.redis.sink import RedisSink

    # It keeps a backoff of its own: a call that retried as well would hold up what is published after it.
    sink = RedisSink(Connection(msgspec.structs.replace(settings, redis_retry_timeout_ms=0)))
    sink.start()
    return sink
