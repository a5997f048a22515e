"""What commands print: lines for a person, in which nothing acts on the terminal, and JSON for a program."""

from __future__ import annotations

import json
import logging
from typing import Any, TextIO

import click

from ringlog.text import LineFormatter, shown, shown_json


def say(line: object, *, err: bool = False) -> None:
    """Prints one line: control characters in it, a line break too, are shown escaped."""
    click.echo(shown(line), err=err)


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Prints one JSON value."""
    import msgspec

    if indent is None:
        click.echo(shown_json(msgspec.json.encode(value).decode()))
    else:
        click.echo(json.dumps(msgspec.to_builtins(value), indent=indent))


def say_exactly(text: str) -> None:
    """Prints a text for a program as it is, or one for a person whose parts were escaped."""
    click.echo(text, nl=False)


def log_lines(stream: TextIO, level: int, form: str) -> None:
    """Logs to `stream`, a line a record."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(form))
    logging.basicConfig(level=level, handlers=[handler])
