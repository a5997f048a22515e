"""The `ringlog` command: subcommands are loaded when they are called, so that `--help` is quick.

Exit status: 0 done, 1 failed (one line on stderr says why), 2 wrong usage. Commands that print facts take `--json`
and then print one JSON object on stdout. Flags go over `RINGLOG_*` variables, those over the defaults.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import sys
from collections.abc import Sequence
from typing import Any

import click

from ringlog import __version__
from ringlog.cli.output import say
from ringlog.errors import RinglogError, system_error
from ringlog.naming import did_you_mean
from ringlog.text import LineFormatter

FAILED = 1
INTERRUPTED = 130  # what a shell reports for Ctrl-C

# name: (where the command is, its help in one line: kept here so that --help loads none of them)
COMMANDS = {
    "audit": ("ringlog.cli.audit:audit", "Prove that every accepted record is where the ledger says."),
    "dead-letters": (
        "ringlog.cli.dead_letters:dead_letters",
        "List, export, retry and discard what the server refused.",
    ),
    "demo": ("ringlog.cli.demo:demo", "Trade a market through every part of ringlog, and check every record."),
    "doctor": ("ringlog.cli.doctor:doctor", "Find what is wrong with the live system, each with its fix."),
    "dump": ("ringlog.cli.tap:dump", "Show what a lane's segment, or a copy of it, still holds."),
    "migrate": ("ringlog.cli.migrate:migrate", "Make and verify the tables of QuestDB and PostgreSQL."),
    "mev": ("ringlog.cli.query:mev", "Trades with and without MEV protection: counts, losses, fees."),
    "nodes": ("ringlog.cli.catalogue:nodes_group", "List, show, set and import RPC nodes, with their health."),
    "percentiles": ("ringlog.cli.query:percentiles", "Latency percentiles of services and operations."),
    "performance": ("ringlog.cli.query:performance", "Latency, throughput or error rate by operation."),
    "positions": ("ringlog.cli.query:positions", "The latest position of each trader, mode and token."),
    "quarantine": ("ringlog.cli.quarantine:quarantine", "List, export and discard records whose bytes were destroyed."),
    "query": ("ringlog.cli.query:query", "Run SQL on QuestDB and print or save what it gives."),
    "records": ("ringlog.cli.query:records", "Rows of any record type, your own too, by its columns."),
    "replay": ("ringlog.cli.replay:replay", "Append the records of a CSV, NDJSON or Parquet file, each once."),
    "retention": ("ringlog.cli.retention:retention", "Plan or run the cut to the last 30 days, with an audit."),
    "rules": ("ringlog.cli.catalogue:rules", "List, show, arm, cancel and import order rules."),
    "tap": ("ringlog.cli.tap:tap", "Show records as they are appended, without consuming them."),
    "tokens": ("ringlog.cli.catalogue:tokens", "List, show, set and import tokens and their extensions."),
    "top": ("ringlog.cli.top:top", "Watch producers, lanes, the writer, spool, disks and servers."),
    "traders": ("ringlog.cli.catalogue:traders", "List, show, set and import traders' configurations."),
    "trades": ("ringlog.cli.query:trades", "The last trades, of a trader, mode, action, token or MEV status."),
    "validate": ("ringlog.cli.doctor:validate", "Check configuration and record types, without any server."),
    "writer": ("ringlog.cli.writer:writer", "Drain the instance's lanes into QuestDB, in the foreground."),
    "up": ("ringlog.cli.servers:up", "Start the embedded servers in the background."),
    "down": ("ringlog.cli.servers:down", "Stop the embedded servers that `up` started."),
    "status": ("ringlog.cli.servers:status", "Show the embedded servers and how to reach them."),
}


class LazyGroup(click.Group):
    """A group whose commands are listed in COMMANDS and imported when one is called."""

    def list_commands(self, _: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            hint = did_you_mean(name, COMMANDS, ": `ringlog --help` lists all")
            raise click.UsageError(f"got no command {name!r}{hint}", context)
        quiet_libraries()  # here, so that --help does not load what it needs
        module, attribute = COMMANDS[name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from ringlog.ring import told

        say(f"ringlog {__version__} ({told()})")
        context.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def ringlog() -> None:
    """Records from latency-sensitive processes into QuestDB, exactly once, without making them wait."""


def quiet_libraries() -> None:
    """What libraries log of each try is not for a user: the error of the last one says what happened and what to do.

    stamina logs its retries through structlog wherever that is installed, and structlog prints to stdout.
    """
    for name in ("stamina", "psycopg"):
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
    if importlib.util.find_spec("structlog") is not None:
        structlog = importlib.import_module("structlog")

        def drop_retries(_: object, __: str, event: dict[str, Any]) -> dict[str, Any]:
            if event.get("event") == "stamina.retry_scheduled":
                raise structlog.DropEvent
            return event

        # The stream is asked for at each line: the stderr of now may be closed by then.
        structlog.configure(
            processors=[drop_retries, *structlog.get_config()["processors"]],
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its status."""
    if sys.platform == "win32":
        say("ringlog: got Windows, wanted Linux or macOS (WSL 2 is Linux)", err=True)
        sys.exit(FAILED)
    if logging.lastResort is not None:  # it prints what libraries warn of while nobody set up logging
        logging.lastResort.setFormatter(LineFormatter())
    try:
        status = ringlog.main(args=arguments, prog_name="ringlog", standalone_mode=False)
    except click.ClickException as error:
        text = io.StringIO()
        error.show(file=text)
        for line in text.getvalue().removesuffix("\n").split("\n"):
            say(line, err=True)
        sys.exit(error.exit_code)
    except RinglogError as error:
        say(f"ringlog: {error}", err=True)
        sys.exit(FAILED)
    except OSError as error:  # a file that this user cannot use, a disk, a limit: nothing that a traceback explains
        logging.getLogger("ringlog.cli").debug("ended by a system call", exc_info=True)
        say(f"ringlog: {system_error(error)}", err=True)
        sys.exit(FAILED)
    except (click.Abort, KeyboardInterrupt):
        say("ringlog: interrupted", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)
