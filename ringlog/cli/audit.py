"""`ringlog audit`: is every accepted record where the ledger says?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from ringlog.cli import FAILED
from ringlog.cli.output import say, say_json
from ringlog.settings import Settings

if TYPE_CHECKING:
    from ringlog.audit import Report

TAKEN_SHOWN = 10
NOT_EXCUSED = (
    "retention did not count the rows that QuestDB lacks: somebody dropped a partition or emptied the table by hand, "
    "or the server was restored from an older copy, or retention of a version that did not count by lane took them"
)


@click.command("audit")
@click.option("--runtime-dir", help="The instance's runtime directory (RINGLOG_RUNTIME_DIR).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def audit(context: click.Context, runtime_dir: str | None, as_json: bool) -> None:
    """Prove the ledger against lanes, spool, dead letters and QuestDB, also while all of them are running.

    Changes nothing. Exits 1 where a record is lost, doubled or unexpected, naming its table, lane and seq, where
    something could not be looked at, and while records are in quarantine that nobody has settled.
    """
    from ringlog.audit import prove

    settings = Settings.from_environment(runtime_dir=runtime_dir)
    report = prove(settings)
    if as_json:
        facts = {"exact": report.is_exact, "settled": report.is_settled, **msgspec.to_builtins(report)}
        say_json(facts)
    else:
        _show(report, settings)
    if not (report.is_exact and report.is_settled):
        context.exit(FAILED)


def _show(report: Report, settings: Settings) -> None:
    from ringlog.ledger.absences import summary

    for table, each in report.tables.items():
        facts = " ".join(f"{name}={value}" for name, value in msgspec.to_builtins(each).items())
        say(f"{table}: {facts}")
    for difference in report.differences:
        say(str(difference))
    if any(difference.place == "questdb" and difference.kind == "lost" for difference in report.differences):
        say(NOT_EXCUSED)
    for text in report.unproved:
        say(f"not proved: {text}")
    spooled, in_lanes = (
        sum(getattr(each, name) for each in report.tables.values()) for name in ("spooled", "in_lanes")
    )
    if spooled + in_lanes:
        where = f"{in_lanes} in lanes, {spooled} in the spool at {settings.spool_path}"
        say(f"{spooled + in_lanes} accepted records are on their way to QuestDB: {where}")
    absent = summary(report.absences)
    if absent:
        say(absent)
    for absence in report.absences:
        say(f"  {absence}")
    for taken in report.taken_by_retention[:TAKEN_SHOWN]:
        say(f"  taken by retention: {taken}")
    if len(report.taken_by_retention) > TAKEN_SHOWN:
        say(f"  and {len(report.taken_by_retention) - TAKEN_SHOWN} more ranges: `--json` names them all")
    say(_verdict(report, absent))


def _verdict(report: Report, absent: str) -> str:
    if not report.is_exact:
        return "the proof has FAILED"
    if not report.is_settled:
        return (
            "the proof has FAILED: records are in quarantine, and nobody has settled them (`ringlog quarantine list`)"
        )
    if absent:
        return "every other accepted record is where it should be"
    return "every accepted record is where it should be"
