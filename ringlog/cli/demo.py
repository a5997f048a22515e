"""`ringlog demo`: the main job, end to end, with a real server."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path

import click

from ringlog.cli import FAILED, INTERRUPTED
from ringlog.cli.number import Number
from ringlog.cli.output import log_lines, say, say_json
from ringlog.errors import RinglogError

READING = """
To read the data back, start its server again (`ringlog down --runtime-dir {run}` stops it):
  $ eval "$(ringlog up questdb --data-dir {directory} --runtime-dir {run})"
In Python, with psycopg:
import os, psycopg
connection = psycopg.connect(host="127.0.0.1", port=os.environ["RINGLOG_QUESTDB_PG_PORT"], dbname="qdb",
    user=os.environ["RINGLOG_QUESTDB_USER"], password=os.environ["RINGLOG_QUESTDB_PASSWORD"], autocommit=True)
connection.execute("SELECT * FROM trades LIMIT 10").fetchall()
And with pandas:
import pandas
cursor = connection.execute("SELECT * FROM trades")
pandas.DataFrame(cursor.fetchall(), columns=[column.name for column in cursor.description])
"""


def _reading(keep: Path | None) -> str:
    # A runtime directory of its own: in the user's another server may run, and `up` leaves what runs as it is.
    directory = shlex.quote(str(keep.absolute())) if keep else "DIR"
    run = shlex.quote(str(keep.absolute() / "run")) if keep else "DIR/run"
    text = READING.format(directory=directory, run=run)
    return text if keep else "The data is gone with its server: `ringlog demo --keep DIR` keeps it." + text


@click.command("demo")
@click.option("--input", "recording", type=click.Path(path_type=Path), help="A recorded exchange feed to trade.")
@click.option("--producers", type=click.IntRange(1, 64), default=4, show_default=True, help="Executor processes.")
@click.option(
    "--rate", type=Number(0, min_open=True, or_max=True), help="Records/s of all executors together, or max.",
    show_default="10000; of a recording --speed",
)  # fmt: skip
@click.option("--seconds", type=Number(0.1, 3600), default=10.0, show_default=True, help="Of a generated market.")
@click.option("--speed", type=Number(0.01), default=30.0, show_default=True, help="Of the recording.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the generated market.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep the data in this directory.")
@click.option(
    "--session/--no-session",
    default=True,
    show_default=True,
    help="Also trade with limits from PostgreSQL and prices from Redis, and write a report.",
)
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), help="Where that report goes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
def demo(
    recording: Path | None, producers: int, rate: float | None, seconds: float, speed: float, seed: int,
    keep: Path | None, session: bool, report: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Paper-trade a market through executor processes, a writer and an embedded QuestDB, and check every record.

    The market is a recorded exchange feed (--input; --speed or --rate set the pace) or a generated random walk. Exits 0
    only if every accepted record is in QuestDB exactly once and no part failed; what failed is named in `error`, and
    the rest is printed all the same.
    """

    from ringlog.demo.options import Options
    from ringlog.demo.session import run_session
    from ringlog.demo.view import View

    log_lines(sys.stderr, logging.WARNING, "%(levelname)s %(name)s %(message)s")
    pace = rate if rate is not None else (0.0 if recording else 10_000.0)
    options = Options(
        recording=recording, producers=producers, rate=pace, seconds=seconds,
        speed=0.0 if rate == 0.0 else speed, seed=seed, keep=keep, session=session,
        report=report,
    )  # fmt: skip
    with View(quiet=as_json) as view:
        outcome = run_session(options, view)
    if outcome.error:
        say(f"ringlog: {outcome.error}", err=True)
    try:
        if as_json:
            say_json(outcome, indent=2)
        elif outcome.accepted is not None:
            view.summarise(outcome, _reading(keep))
    except OSError as error:
        raise RinglogError(f"stdout: got {error.strerror}, wanted to print the demo's report") from None
    if outcome.is_interrupted:
        return INTERRUPTED
    return FAILED if outcome.error else 0
