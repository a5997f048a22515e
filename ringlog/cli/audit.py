"""`ringlog audit`: is every accepted record where the ledger says?"""

from __future__ import annotations

import click
import msgspec

from ringlog.cli import FAILED
from ringlog.settings import Settings


@click.command("audit")
@click.option("--runtime-dir", help="The instance's runtime directory (RINGLOG_RUNTIME_DIR).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def audit(context: click.Context, runtime_dir: str | None, as_json: bool) -> None:
    """Prove the ledger against lanes, spool, dead letters and QuestDB, also while all of them are running.

    Changes nothing. Exits 1 where a record is lost, doubled or unexpected, naming its table, lane and seq, or where
    something could not be looked at.
    """
    from ringlog.audit import prove

    report = prove(Settings.from_environment(runtime_dir=runtime_dir))
    if as_json:
        click.echo(msgspec.json.encode({"exact": report.is_exact, **msgspec.to_builtins(report)}))
    else:
        for table, each in report.tables.items():
            facts = " ".join(f"{name}={value}" for name, value in msgspec.to_builtins(each).items())
            click.echo(f"{table}: {facts}")
        for difference in report.differences:
            click.echo(str(difference))
        for text in report.unproved:
            click.echo(f"not proved: {text}")
        click.echo("every accepted record is where it should be" if report.is_exact else "the proof has FAILED")
    if not report.is_exact:
        context.exit(FAILED)
