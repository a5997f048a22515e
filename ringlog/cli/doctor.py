"""`ringlog doctor` and `ringlog validate`: what is wrong, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ringlog.cli import FAILED
from ringlog.cli.migrate import record_named
from ringlog.cli.output import say, say_json
from ringlog.errors import ConfigurationError
from ringlog.records import PLATFORM_RECORDS, RecordLayout, layout_of
from ringlog.settings import Settings, variable_names

if TYPE_CHECKING:
    from ringlog.monitor.finding import Finding

record_option = click.option(
    "--record", "names", multiple=True, metavar="MODULE:CLASS", help="A record type of your own; may be repeated."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command("validate")
@record_option
@json_option
def validate(names: tuple[str, ...], as_json: bool) -> None:
    """Check configuration and record types; needs no server and touches nothing. Exits 1 if anything is wrong."""
    _run(names, as_json, is_live=False)


@click.command("doctor")
@record_option
@json_option
def doctor(names: tuple[str, ...], as_json: bool) -> None:
    """Check the live system: configuration, shared memory, lanes, writer, disks, servers, clocks, tables.

    Changes nothing. Each finding comes with its fix; exits 1 if something must be done.
    """
    _run(names, as_json, is_live=True)


def _run(names: tuple[str, ...], as_json: bool, *, is_live: bool) -> None:
    from ringlog.monitor.finding import Finding
    from ringlog.monitor.findings import diagnosed, validated

    try:
        settings = Settings.from_environment()
    except ConfigurationError as error:
        found = [Finding("settings", "fail", str(error), "mend or unset the variable that it names")]
    else:
        layouts: list[RecordLayout] = [layout_of(each) for each in (*PLATFORM_RECORDS, *map(record_named, names))]
        found = list(diagnosed(settings, layouts, variable_names()) if is_live else validated(settings, layouts))
    _show(found, as_json)
    if any(finding.level == "fail" for finding in found):
        raise click.exceptions.Exit(FAILED)


def _show(found: list[Finding], as_json: bool) -> None:
    if as_json:
        healthy = all(finding.level != "fail" for finding in found)
        say_json({"healthy": healthy, "findings": found})
        return
    for finding in found:
        say(f"{finding.level:<5} {finding.check:<15} {finding.text}")
        if finding.fix:
            say(f"{'':<21} fix: {finding.fix}")
