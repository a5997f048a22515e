"""`ringlog top`: a live view of an instance."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import click

from ringlog.cli.number import Number
from ringlog.cli.output import say_json
from ringlog.settings import Settings

if TYPE_CHECKING:
    from ringlog.monitor.snapshot import Snapshot


@click.command("top")
@click.option("--runtime-dir", help="The instance's runtime directory (RINGLOG_RUNTIME_DIR).")
@click.option("--interval", type=Number(0.1, 60), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Show it once, with the rates of one interval, and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def top(runtime_dir: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch producers and their lanes, the writer, spool, disks and servers, until Ctrl-C.

    Everything but the servers is read from shared memory and files, so it works while QuestDB is down and while no
    writer runs, and costs the producers nothing.
    """
    settings = Settings.from_environment(runtime_dir=runtime_dir)
    looks = _looks(settings, interval, once=once or (not as_json and not sys.stdout.isatty()))
    try:
        if as_json:
            for snapshot in looks:
                say_json(snapshot)
        else:
            _draw(looks)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more: an end like any other


def _looks(settings: Settings, interval: float, *, once: bool) -> Iterator[Snapshot]:
    """A look every `interval` seconds; servers are asked on another thread, so that a silent one holds up nothing."""
    from ringlog.monitor.probes import ServerFigures, probed, targets
    from ringlog.monitor.snapshot import Observer

    observer, asked = Observer(settings), targets(settings)
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ringlog-probe")
    servers: list[ServerFigures] = []
    answers: Future[list[ServerFigures]] = pool.submit(probed, asked)
    try:
        observer.look()
        next_look = time.monotonic()
        while True:
            next_look = max(next_look + interval, time.monotonic())
            time.sleep(max(next_look - time.monotonic(), 0))
            if once or answers.done():
                servers = answers.result()
                answers = answers if once else pool.submit(probed, asked)
            snapshot = observer.look()
            snapshot.servers = servers
            yield snapshot
            if once:
                return
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        observer.close()


def _draw(looks: Iterator[Snapshot]) -> None:
    from rich.console import Console
    from rich.live import Live

    from ringlog.monitor.screen import drawn

    console = Console()
    if not console.is_terminal:
        for snapshot in looks:
            console.print(drawn(snapshot, console.width))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for snapshot in looks:
            live.update(drawn(snapshot, console.width, console.height), refresh=True)
