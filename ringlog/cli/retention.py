"""`ringlog retention run` and `ringlog retention plan`: the daily cut, by hand or from cron."""

from __future__ import annotations

from typing import Any

import click

from ringlog.cli import FAILED
from ringlog.cli.output import say, say_json
from ringlog.questdb.retention import Report, Retention
from ringlog.questdb.retention_window import run_if_due
from ringlog.settings import Settings
from ringlog.times import time_of

days_option = click.option(
    "--days", "retention_days", type=click.IntRange(1), help="RINGLOG_RETENTION_DAYS for this call."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def retention() -> None:
    """Keep the last 30 days of every table: whole days go, and the table retention_audit says which."""


@retention.command()
@days_option
@click.option("--dry-run", is_flag=True, help="Change nothing: the same as `plan`.")
@click.option("--all-days", is_flag=True, help="Cut also what is held because it goes back more than two days.")
@click.option("--if-due", is_flag=True, help="Only inside the low-activity window, once a day.")
@json_option
def run(retention_days: int | None, dry_run: bool, all_days: bool, if_due: bool, as_json: bool) -> int:
    """Cut every table now; the exit status is 1 where a table failed or was refused."""
    if if_due and (dry_run or all_days):
        raise click.UsageError("got --if-due with --dry-run or --all-days, wanted it without them")
    settings = Settings.from_environment(retention_days=retention_days)
    if if_due:
        report = run_if_due(settings)
        if report is None:
            say("{}" if as_json else "not due")
            return 0
    else:
        with Retention(settings) as done:
            report = done.run(dry_run=dry_run, all_days=all_days)
    _show(report, as_json)
    return FAILED if report.failed else 0


@retention.command()
@days_option
@json_option
def plan(retention_days: int | None, as_json: bool) -> int:
    """Show what `run` would cut."""
    with Retention(Settings.from_environment(retention_days=retention_days)) as planned:
        report = planned.run(dry_run=True)
    _show(report, as_json)
    return FAILED if report.failed else 0


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        say_json(report)
        return
    verb = "would cut" if report.dry_run else "cut"
    say(f"{verb} everything before {time_of(report.cut_us).isoformat()}")
    for table in report.tables:
        parts: list[Any] = [f"{table.table}: {table.outcome}"]
        if table.partitions:
            parts += [f"{len(table.partitions)} partitions, {table.rows:,} rows, {table.bytes:,} bytes"]
        say(", ".join([*parts, *([table.reason] if table.reason else [])]))
    if report.disk_free_bytes_after is not None:
        say(f"disk free: {report.disk_free_bytes_before:,} bytes before, {report.disk_free_bytes_after:,} after")
