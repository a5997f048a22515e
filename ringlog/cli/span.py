"""The options that say which time is meant: the same words, and the same errors, as in the calls of `Queries`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from ringlog.errors import QueryError
from ringlog.times import bounds, duration_us, point

NAMES = ("since", "start", "end", "duration")


class _TimeText(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A text that `check` takes, passed on as it is."""

    def __init__(self, name: str, check: Callable[[str, str], object]) -> None:
        self.name = name
        self._check = check

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> str:
        try:
            self._check("", value)
        except QueryError as error:
            self.fail(str(error).removeprefix(": "), parameter, context)
        return str(value)


TIME = _TimeText("time", point)
DURATION = _TimeText("duration", duration_us)
_OPTIONS = (
    click.option("--since", type=TIME, help="From then on: 1h, 2d, 2026-11-30, 2026-11-30T10:00+01:00."),
    click.option("--start", type=TIME, help="Another word for --since."),
    click.option("--end", type=TIME, help="Before then, in the same words."),
    click.option(
        "--duration", type=DURATION, help="So long, such as 15m or 7d: behind --start, or up to --end or now."
    ),
)


def span_options(default: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command its `span`, arguments of a query; the last `default` where nothing but an end is given."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_span(**given: Any) -> Any:
            span = {name: value for name in NAMES if (value := given.pop(name)) is not None}
            if default is not None and not span.keys() - {"end"}:
                span["duration"] = default
            try:
                bounds(click.get_current_context().info_name or "", **span)
            except QueryError as error:
                raise click.UsageError(str(error)) from None
            return command(span=span, **given)

        for option in reversed(_OPTIONS):
            with_span = option(with_span)
        return with_span

    return decorate
