"""`ringlog tap`: records as they are appended, and `ringlog dump`: what a lane still holds."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ringlog.cli.output import say, say_json
from ringlog.errors import ConfigurationError
from ringlog.naming import nearest
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.settings import Settings
from ringlog.text import shown, shown_json

if TYPE_CHECKING:
    from ringlog.monitor.rows import Condition

POLL_SECONDS = 0.02
runtime_dir_option = click.option("--runtime-dir", help="The instance's runtime directory (RINGLOG_RUNTIME_DIR).")


@click.command("tap")
@click.argument("table")
@runtime_dir_option
@click.option("--count", type=click.IntRange(1), help="Stop after so many records.")
@click.option("--where", "conditions", multiple=True, metavar="FIELD=VALUE", help="Only such records; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def tap(table: str, runtime_dir: str | None, count: int | None, conditions: tuple[str, ...], as_json: bool) -> None:
    """Show records of TABLE (or of a record type) as they are appended, straight from shared memory, until Ctrl-C.

    Nothing is consumed, and no producer or writer is slowed: a tap that is too slow is overtaken, and says how many
    records it skipped (with --json as an object {"skipped": ...} in their place).
    """
    from ringlog.lanes.instance import Instance
    from ringlog.monitor.tap import Tap, tables_of

    instance = Instance(Settings.from_environment(runtime_dir=runtime_dir))
    _check_table(table, tables_of(instance))
    source = Tap(instance, table)
    shown = _Shown(_conditions(table, conditions), count, as_json)
    try:
        is_waiting = False
        while not shown.is_done:
            busy = False
            for tapped in source.poll():
                busy = True
                shown.show(tapped)
                if shown.is_done:
                    break
            sys.stdout.flush()
            while source.refused:
                say(f"ringlog tap: {source.refused.pop()}", err=True)
            if not source.lanes and not is_waiting:
                is_waiting = True
                found = ", ".join(tables_of(instance)) or "none"
                say(f"ringlog tap: no lane of {table} yet, waiting (tables with lanes: {found})", err=True)
            if not busy:
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads any more: an end like any other
    finally:
        source.close()
    say(f"ringlog tap: {shown.records} records shown, {shown.skipped} skipped", err=True)


def _check_table(name: str, found: list[str]) -> None:
    """Refuses a name that is most likely a mistyped one: its lanes would be waited for in vain."""
    known = [*found, *(each for record in PLATFORM_RECORDS for each in (record.__table__, record.__name__))]
    meant = nearest(name, known, near=0.8)
    if name not in known and meant is not None:
        later = "(a table of your own of that name can be tapped once it has a lane)"
        raise click.UsageError(f"got no lane of {name!r}, did you mean {meant}? {later}")


def _conditions(table: str, texts: tuple[str, ...]) -> list[Condition]:
    """The conditions, held against the fields of a built-in type at once, of another with its first record."""
    from ringlog.monitor.rows import Condition

    layouts = [layout_of(record) for record in PLATFORM_RECORDS if table in (record.__table__, record.__name__)]
    try:
        found = [Condition(text) for text in texts]
        for layout in layouts:
            for condition in found:
                condition.bind(layout)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None
    return found


class _Shown:
    """Prints what was tapped, and counts it."""

    def __init__(self, conditions: list[Any], count: int | None, as_json: bool) -> None:
        self._conditions = conditions
        self._count = count
        self._as_json = as_json
        self._encoder = msgspec.json.Encoder()
        self.records = 0
        self.skipped = 0

    @property
    def is_done(self) -> bool:
        return self._count is not None and self.records >= self._count

    def show(self, tapped: Any) -> None:
        from ringlog.monitor.rows import rows_of_columns
        from ringlog.monitor.tap import as_row

        try:
            wanted = {condition.field: condition.bind(tapped.layout) for condition in self._conditions}
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from None
        if tapped.skipped or tapped.unreadable:
            self.skipped += tapped.skipped + tapped.unreadable
            self._print(as_row(tapped))
        rows = rows_of_columns(tapped.columns)
        if wanted:
            rows = (row for row in rows if all(row[field] == value for field, value in wanted.items()))
        lines = []
        for row in rows:
            if self.is_done:
                break
            self.records += 1
            lines.append(self._line(row))
        sys.stdout.write("".join(lines))

    def _print(self, row: dict[str, Any]) -> None:
        sys.stdout.write(self._line(row))

    def _line(self, row: dict[str, Any]) -> str:
        return (shown_json(self._encoder.encode(row).decode()) if self._as_json else shown(line_of(row))) + "\n"


def line_of(row: dict[str, Any]) -> str:
    """A row for a person: time of day, then the fields that are not NULL; the lane as logs name it."""
    if "skipped" in row:
        what = f"... skipped {row['skipped']:,} records from seq {row['from_seq']:,} on"
        return f"{what}, {row['unreadable']:,} unreadable, lane={row['lane']:016x}"
    rest = " ".join(
        f"{name}={value}"
        for name, value in row.items()
        if value is not None and name not in ("timestamp", "lane", "confirmed")
    )
    return f"{row['timestamp'][11:26]} {row['lane']:016x} {rest}"


@click.command("dump")
@click.argument("segment")
@runtime_dir_option
@click.option("--last", type=click.IntRange(0), help="Only so many of the newest records.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def dump(segment: str, runtime_dir: str | None, last: int | None, as_json: bool) -> None:
    """Show what the lane SEGMENT (its name, or a file that is a copy of it) still holds, also confirmed records.

    Changes nothing. A segment is a file of /dev/shm on Linux: copy it off a crashed machine before it is rebooted.
    """
    from ringlog.lanes.instance import Instance
    from ringlog.monitor.flight_record import flight_record

    found = flight_record(segment, Instance(Settings.from_environment(runtime_dir=runtime_dir)), last)
    if as_json:
        say_json(found)
        return
    facts = {name: getattr(found, name) for name in found.__struct_fields__ if name not in ("rows", "refused")}
    facts["lane"] = f"{found.lane:016x}"
    facts["refused"] = " ".join(f"{reason}={count}" for reason, count in found.refused.items() if count) or "0"
    for name, value in facts.items():
        say(f"{name:<13} {value:,}" if type(value) is int and name != "owner_pid" else f"{name:<13} {value}")
    say(f"{'readable':<13} {len(found.rows):,}, of which {sum(not r['confirmed'] for r in found.rows):,} waiting")
    for row in found.rows:
        say(f"{'confirmed' if row['confirmed'] else 'WAITING  '} {line_of(row)}")
