"""`ringlog up`, `ringlog down`, `ringlog status`: embedded servers in the background."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Any

import click

from ringlog.cli import FAILED
from ringlog.cli.output import say, say_json
from ringlog.ring import told
from ringlog.servers.background import KINDS, Background
from ringlog.servers.embedded import EmbeddedServer
from ringlog.settings import PREFIX, Secret, Settings

SIGNALLED = 128  # a shell reports a process that a signal ended by this and the signal's number

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
runtime_dir_option = click.option(
    "--runtime-dir", help="Where the instance keeps its state (RINGLOG_RUNTIME_DIR; by default of the user)."
)


@click.command()
@click.argument("servers", nargs=-1, type=click.Choice(list(KINDS)))
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the servers keep their data (by default below ~/.local/share/ringlog).",
)
@runtime_dir_option
@json_option
def up(servers: tuple[str, ...], data_dir: Path | None, runtime_dir: str | None, as_json: bool) -> None:
    """Start SERVERS (by default all three) in the background, on loopback, and print how to reach them.

    What runs already is left as it is; where it keeps its data elsewhere than --data-dir says, that is an error. The
    settings contain passwords.
    """
    end_on_signals()
    background = Background(instance_dir(runtime_dir))
    found = background.up(servers or tuple(KINDS), data_dir and data_dir.absolute())
    if as_json:
        say_json(settings_of(found))
    else:
        for line in export_lines(found):
            say(line)


@click.command()
@runtime_dir_option
@json_option
def down(runtime_dir: str | None, as_json: bool) -> None:
    """Stop the servers that `ringlog up` started; their data stays."""
    stopped = Background(instance_dir(runtime_dir)).down()
    if as_json:
        say_json({"stopped": stopped})
    else:
        say(f"stopped: {', '.join(stopped) or 'none was running'}")


@click.command()
@runtime_dir_option
@json_option
def status(runtime_dir: str | None, as_json: bool) -> None:
    """Show each server's state and the lines to export; exits 1 unless all that were started answer."""
    found = Background(instance_dir(runtime_dir)).find()
    states = {kind: state_of(server) for kind, server in found.items()}
    if as_json:
        facts = {
            kind: {
                "state": states[kind],
                "pid": server.pid,
                "ports": server.ports,
                "data_dir": str(server.data_dir),
                "log": str(server.log_path),
            }
            for kind, server in found.items()
        }
        say_json({"servers": facts, "settings": settings_of(found), "ring": told()})
    elif not found:
        say("no servers: start them with `ringlog up`")
    else:
        for kind, server in found.items():
            ports = " ".join(f"{name}={port}" for name, port in server.ports.items())
            say(f"# {kind:<9} {states[kind]:<8} pid={server.pid} {ports} data={server.data_dir}")
        say(f"# this interpreter runs the {told()}")
        for line in export_lines(found):
            say(line)
    if not found or set(states.values()) != {"ready"}:
        raise click.exceptions.Exit(FAILED)


def end_on_signals() -> None:
    """SIGTERM and SIGHUP end this process as Ctrl-C does: servers that are still starting are stopped first."""

    def end(number: int, _: Any) -> None:
        raise SystemExit(SIGNALLED + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)


def instance_dir(flag: str | None) -> str:
    return Settings.from_environment(runtime_dir=flag).runtime_dir


def state_of(server: EmbeddedServer) -> str:
    """`dead`, `silent` (lives and does not answer) or `ready`."""
    if not server.running:
        return "dead"
    return "ready" if server.answers() else "silent"


def settings_of(servers: dict[str, EmbeddedServer]) -> dict[str, Any]:
    """The fields of Settings that lead to the servers, secrets in clear."""
    return {
        name: value.reveal() if isinstance(value, Secret) else value
        for server in servers.values()
        for name, value in server.settings().items()
    }


def export_lines(servers: dict[str, EmbeddedServer]) -> list[str]:
    """Shell lines that make every ringlog process of this shell use the servers."""
    return [f"export {PREFIX}{name.upper()}={shlex.quote(str(value))}" for name, value in settings_of(servers).items()]
