"""`ringlog query`, `ringlog trades`, `ringlog percentiles`: what is stored, as a table, CSV, JSON or Parquet."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ringlog.cli.number import Number
from ringlog.cli.output import say, say_exactly
from ringlog.errors import QueryError
from ringlog.questdb.filters import DURATION_US_MAX, LIMIT_MAX
from ringlog.questdb.queries import Queries
from ringlog.questdb.results import Result
from ringlog.records import Trade, layout_of
from ringlog.settings import Settings
from ringlog.text import shown

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
BINARY = "parquet"

format_option = click.option(
    "--format",
    "as_format",
    type=click.Choice(["table", "csv", "json", BINARY]),
    default="table",
    show_default=True,
    help="How rows are printed; json is one object with columns and rows.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
output_option = click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file instead of stdout."
)
timeout_option = click.option("--timeout-ms", type=Number(1, 3_600_000), help="RINGLOG_QUERY_TIMEOUT_MS for this call.")


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Seconds from `90s`, `15m`, `24h` or `7d`."""

    name = "duration"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(value)
        seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
        if not 1 <= seconds * 1_000_000 <= DURATION_US_MAX:
            self.fail(
                f"got {value!r}, wanted above 0 and at most 3660 days, such as 90s, 15m, 24h or 7d", parameter, context
            )
        return seconds


def choice_option(flag: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option that takes what the field of a trade may have, and no other text."""
    choices = layout_of(Trade).field(flag.removeprefix("--").replace("-", "_")).choices
    return click.option(flag, type=click.Choice(list(map(str, choices))))


@click.command()
@click.argument("sql")
@format_option
@json_option
@output_option
@timeout_option
def query(sql: str, as_format: str, as_json: bool, output: Path | None, timeout_ms: float | None) -> None:
    """Run SQL as it is. What takes longer than the timeout fails; nothing is ever cut in silence."""
    with _queries() as queries:
        _show(queries.execute_query(sql, timeout_ms=timeout_ms), as_format, as_json, output)


@click.command()
@click.option("--trader", "trader_id", help="A trader's id.")
@choice_option("--mode")
@choice_option("--action")
@click.option("--token", help="Base or quote token.")
@choice_option("--mev-status")
@click.option("--start", type=click.DateTime(), help="From this time on (UTC).")
@click.option("--end", type=click.DateTime(), help="Before this time (UTC).")
@click.option("--limit", type=click.IntRange(1, LIMIT_MAX), default=20, show_default=True, help="Rows at most.")
@click.option("--order", type=click.Choice(["newest", "oldest"]), default="newest", show_default=True)
@format_option
@json_option
@output_option
@timeout_option
def trades(as_format: str, as_json: bool, output: Path | None, timeout_ms: float | None, **fields: Any) -> None:
    """The newest trades that match every option given."""
    import datetime

    for name in ("start", "end"):
        if fields[name] is not None:
            fields[name] = fields[name].replace(tzinfo=datetime.UTC)
    with _queries() as queries:
        _show(queries.get_trades(timeout_ms=timeout_ms, **fields), as_format, as_json, output)


@click.command()
@click.argument("service", required=False)
@click.argument("operation", required=False)
@click.option("--duration", type=Duration(), default="24h", show_default=True, help="How far back, such as 15m or 7d.")
@click.option(
    "--percentile",
    "-p",
    "asked",
    type=Number(0, 100, min_open=True),
    multiple=True,
    show_default="50 95 99",
    help="May be given several times.",
)
@format_option
@json_option
@output_option
@timeout_option
def percentiles(
    service: str | None,
    operation: str | None,
    duration: float,
    asked: tuple[float, ...],
    as_format: str,
    as_json: bool,
    output: Path | None,
    timeout_ms: float | None,
) -> None:
    """Percentiles of the latencies of SERVICE and OPERATION (all without them), within 1 %, in microseconds."""
    options: dict[str, Any] = {"percentiles": asked} if asked else {}
    with _queries() as queries:
        result = queries.get_latency_percentiles(service, operation, duration, timeout_ms=timeout_ms, **options)
        _show(result, as_format, as_json, output)


def _queries() -> Queries:
    return Queries(Settings.from_environment(query_pool_size_min=1, query_pool_size_max=1))


def _show(result: Result[Any], as_format: str, as_json: bool, output: Path | None) -> None:
    as_format = "json" if as_json else as_format
    if as_format == BINARY and output is None and sys.stdout.isatty():
        raise QueryError("--format parquet: got a terminal, wanted --output FILE or a pipe")
    if as_format == BINARY:
        _write_parquet(result, output)
    else:
        text = {"table": _table, "csv": _csv, "json": _json}[as_format](result)
        if output is None and as_format == "csv" and sys.stdout.isatty():
            for line in text.removesuffix("\n").split("\n"):
                say(line)
        elif output is None:
            say_exactly(text)
        else:
            output.write_text(text, encoding="utf-8")
    if result.partial:
        say(f"ringlog: partial: out of time, the rows cover {_span(result)}", err=True)
    elif result.limited:
        say(f"ringlog: {len(result)} rows, the limit: there may be more", err=True)


def _span(result: Result[Any]) -> str:
    return "" if result.span is None else f"{result.span.start.isoformat()} to {result.span.end.isoformat()}"


def _write_parquet(result: Result[Any], output: Path | None) -> None:
    import pyarrow.parquet

    target: Any = sys.stdout.buffer if output is None else output
    pyarrow.parquet.write_table(result.to_arrow(), target)


def _values(result: Result[Any]) -> list[list[Any]]:
    """The rows with times as ISO 8601 texts."""
    columns = [column.to_pylist() for column in result.to_arrow().columns]
    return [
        [value.isoformat() if hasattr(value, "isoformat") else value for value in row]
        for row in zip(*columns, strict=True)
    ]


def _csv(result: Result[Any]) -> str:
    """As PostgreSQL writes it: NULL is nothing, an empty text is `""`."""
    lines = [result.columns, *_values(result)]
    return "".join(",".join(_csv_field(value) for value in line) + "\n" for line in lines)


def _csv_field(value: Any) -> str:
    if value is None:
        return ""
    text = str(value)
    quoted = not text or any(character in text for character in ',"\r\n')
    return '"' + text.replace('"', '""') + '"' if quoted else text


def _json(result: Result[Any]) -> str:
    span = None if result.span is None else [time.isoformat() for time in result.span]
    facts = {"columns": result.columns, "rows": _values(result), "partial": result.partial, "limited": result.limited}
    return json.dumps({**facts, "span": span}, default=str) + "\n"


def _table(result: Result[Any]) -> str:
    """Columns aligned, control characters escaped; NULL shows as `null`: for values as they are, use csv or json."""
    rows = [["null" if value is None else shown(value) for value in row] for row in [result.columns, *_values(result)]]
    widths = [max(len(row[index]) for row in rows) for index in range(len(result.columns))]
    lines = ["  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n" if widths else ""
