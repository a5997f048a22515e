"""`ringlog replay`: records from a file."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ringlog.cli import FAILED, INTERRUPTED
from ringlog.cli.migrate import record_type_of
from ringlog.cli.number import UNLIMITED, Number
from ringlog.cli.output import say, say_json
from ringlog.records import Record
from ringlog.settings import Settings
from ringlog.text import shown

if TYPE_CHECKING:
    from ringlog.replay.replay import Outcome
    from ringlog.replay.shape import Shape


def _pairs(_context: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        field, equals, value = pair.partition("=")
        if not (field and equals and (value or parameter.name == "constants")) or field in found:
            raise click.BadParameter(f"got {pair!r}, wanted {parameter.make_metavar(_context)}, each field once")
        found[field] = value
    return found


def _names(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))


@click.command("replay")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--record", "name", required=True, help="Trade, ..., a table's name, or MODULE:CLASS of your own.")
@click.option("--preset", "preset_name", help="A well-known file: binance-spot, bybit, okx, ... (docs/replay.md).")
@click.option(
    "--map", "mapping", multiple=True, callback=_pairs, metavar="FIELD=COLUMN",
    help="A column that is not called like its field; may be repeated.",
)  # fmt: skip
@click.option(
    "--set", "constants", multiple=True, callback=_pairs, metavar="FIELD=VALUE",
    help="A value that is not in the file, for every row; may be repeated.",
)  # fmt: skip
@click.option("--time-column", metavar="COLUMN", help="The column of the rows' times.  [default: timestamp]")
@click.option(
    "--time-unit", type=click.Choice(["s", "ms", "us", "ns", "auto"]),
    help="Of times that are numbers; auto tells them by their size.  [default: us]",
)  # fmt: skip
@click.option("--time-zone", metavar="ZONE", help="Of times that say none: UTC, Europe/Berlin, ...")
@click.option("--time-floor", is_flag=True, help="Cut times to microseconds; finer ones are rejected otherwise.")
@click.option("--stamp-now", is_flag=True, help="Stamp rows without a time when they are appended.")
@click.option(
    "--columns", callback=_names, metavar="NAME,NAME,...", help="The columns of a file without a header line."
)
@click.option("--skip-lines", type=click.IntRange(min=0), help="Lines before the header or the first row.")
@click.option("--delimiter", help="Between the fields of a CSV file: one character, or tab.  [default: ,]")
@click.option(
    "--format", "file_format", type=click.Choice(["csv", "ndjson", "parquet"]), help="Where the name does not say it."
)
@click.option(
    "--speed",
    type=Number(0, min_open=True, or_max=True),
    default=UNLIMITED,
    show_default=True,
    help="1 is as recorded.",
)
@click.option("--resume", is_flag=True, help="Go on behind what an earlier replay of the file stored.")
@click.option("--again", is_flag=True, help="Store it once more, whatever was stored before.")
@click.option("--rejects", type=click.Path(path_type=Path, dir_okay=False), help="[default: FILE.rejects.ndjson]")
@click.option("--runtime-dir", help="The instance's runtime directory (RINGLOG_RUNTIME_DIR).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay(
    file: Path, name: str, speed: float, resume: bool, again: bool, rejects: Path | None, runtime_dir: str | None,
    as_json: bool, **laid_out: Any,
) -> int:  # fmt: skip
    """Append the records of FILE: CSV, NDJSON or Parquet; the first two also packed (gz, zst, bz2, xz, zip).

    A writer stores them.
    Killed at any moment and run again with --resume, it stores every record once. Rows that no record can be made of go
    to a file with line number and reason. Exits 0 if all rows were accepted, 1 if not, 130 after Ctrl-C or SIGTERM.
    """
    from ringlog.replay.replay import Replay

    if resume and again:
        raise click.UsageError("got --resume and --again, wanted one of them")
    settings = Settings.from_environment(runtime_dir=runtime_dir)
    record_type = record_type_of(name)
    mode = "resume" if resume else "again" if again else "new"
    with Replay(
        file, record_type, settings, shape=_shape(record_type, **laid_out), speed=speed, mode=mode, rejects=rejects
    ) as going:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: going.stop())
        with _View(file, is_quiet=as_json) as view:
            outcome = going.run(view.show)
    if as_json:
        say_json(outcome)
    else:
        _summarise(outcome)
    if not outcome.is_finished and not outcome.broken_end:
        return INTERRUPTED
    return FAILED if outcome.rejected or outcome.broken_end else 0


def _shape(
    record_type: type[Record], *, preset_name: str | None, mapping: dict[str, str], constants: dict[str, str],
    time_column: str | None, file_format: str | None, delimiter: str | None, **options: Any,
) -> Shape:  # fmt: skip
    """What the options say, on top of the preset's."""
    from ringlog.records import TIMESTAMP, layout_of
    from ringlog.replay.presets import preset
    from ringlog.replay.shape import Shape, ShapeError

    fields = [field.name for field in layout_of(record_type).fields]
    base = Shape() if preset_name is None else preset(preset_name, fields)
    if time_column is not None:
        if mapping.get(TIMESTAMP, time_column) != time_column:
            raise click.UsageError(f"got --time-column and --map {TIMESTAMP}=, wanted one of them")
        mapping = {**mapping, TIMESTAMP: time_column}
    taken = {field: column for field, column in base.mapping.items() if field not in constants}
    given = {name: value for name, value in options.items() if value not in (None, False)}
    if file_format is not None:
        given["format"] = file_format
    if delimiter is not None:
        given["delimiter"] = "\t" if delimiter in ("tab", "\\t") else delimiter
    shape = msgspec.structs.replace(base, mapping={**taken, **mapping}, constants=constants, **given)
    try:
        shape.check()
    except ShapeError as error:
        raise click.UsageError(str(error)) from None
    return shape


def _summarise(outcome: Outcome) -> None:
    rate = f", {outcome.accepted / max(outcome.seconds, 1e-9):,.0f} records/s" if outcome.is_finished else ""
    say(f"{outcome.table}: {outcome.accepted:,} records accepted, {outcome.rejected:,} rows rejected{rate}")
    if outcome.rejects:
        say(f"rejected rows, with line numbers and reasons: {outcome.rejects}")
    if outcome.broken_end:
        say(f"{outcome.broken_end}: fix the file, then --resume goes on behind what was read")
    elif not outcome.is_finished:
        say("stopped before the end: --resume goes on")


class _View:
    """A progress bar on a terminal; elsewhere only why the lane takes nothing, once for each reason."""

    def __init__(self, file: Path, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._said = ""
        self._bar: Any = None
        self._bytes = file.stat().st_size
        self._name = shown(file.name)

    def __enter__(self) -> _View:
        if sys.stderr.isatty() and not self._is_quiet:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            text = TextColumn("{task.fields[counts]}", markup=False)
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                text,
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(self._name, total=None, counts="")
            self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, outcome: Outcome) -> None:
        if self._bar is not None:
            rate = outcome.accepted / max(outcome.seconds, 1e-9)
            counts = (
                f"{outcome.accepted:,} accepted {outcome.rejected:,} rejected {rate:,.0f}/s {shown(outcome.waiting)}"
            )
            self._bar.update(self._task, total=outcome.total or None, completed=outcome.done, counts=counts)
        elif outcome.waiting and outcome.waiting != self._said and not self._is_quiet:
            self._said = outcome.waiting
            say(f"ringlog replay: waiting, {outcome.waiting}", err=True)
