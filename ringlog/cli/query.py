"""`ringlog query` for any SQL, and a command for each typed query: what is stored, in the format that is asked for.

Nothing but click is loaded here: options are checked, and completed by the shell, before a client library is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ringlog.cli.number import Number
from ringlog.cli.results import Output, result_options
from ringlog.cli.span import span_options

if TYPE_CHECKING:
    from ringlog.questdb.queries import Queries
    from ringlog.records import RecordLayout

# The choices of the record types' fields, which a test compares: to load those types takes longer than all else here.
MODES = ("paper", "live")
ACTIONS = ("buy", "sell", "swap")
MEV_STATUSES = ("protected", "at_risk", "impacted")
METRIC_TYPES = ("latency", "throughput", "error_rate")
LIMIT_MAX = 1_000_000
# What a table of trades shows by default: about 120 characters.
TRADE_COLUMNS = (
    "timestamp",
    "trader_id",
    "mode",
    "action",
    "base_token",
    "quote_token",
    "base_amount",
    "executed_price",
    "mev_status",
)
DEFAULT_DURATION = "24h"
mode_option = click.option("--mode", type=click.Choice(MODES))
limit_option = click.option(
    "--limit", type=click.IntRange(1, LIMIT_MAX), default=20, show_default=True, help="Rows at most."
)
order_option = click.option("--order", type=click.Choice(["newest", "oldest"]), default="newest", show_default=True)
trader_option = click.option("--trader", "trader_id", help="A trader's id.")


def columns_of(name: str) -> Callable[[], Sequence[str]]:
    """What gives the columns of a row type of `ringlog.questdb.rows`, once they are needed."""

    def columns() -> Sequence[str]:
        from ringlog.questdb import rows

        found: Sequence[str] = getattr(rows, name).__struct_fields__
        return found

    return columns


def _queries() -> Queries:
    from ringlog.questdb.queries import Queries
    from ringlog.settings import Settings

    return Queries(Settings.from_environment(query_pool_size_min=1, query_pool_size_max=1))


def _parameters(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name or name in found:
            raise click.BadParameter(f"got {pair!r}, wanted NAME=VALUE, each name once")
        found[name] = _value(text)
    return found or None


def _value(text: str) -> Any:
    """A value that is JSON is what it says: 5 is a number, "5" in double quotes and five are texts."""
    import json

    try:
        value = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, list | dict) else value


@click.command()
@click.argument("sql")
@click.option(
    "--param", "-p", "params", multiple=True, callback=_parameters, metavar="NAME=VALUE",
    help="The value of %(NAME)s in the SQL; may be repeated.",
)  # fmt: skip
@result_options()
def query(sql: str, params: dict[str, Any] | None, output: Output, timeout_ms: float | None) -> None:
    """Run SQL as it is. What takes longer than the timeout fails; nothing is ever cut in silence."""
    with _queries() as queries:
        output.show(queries.execute_query(sql, params, timeout_ms=timeout_ms))


@click.command()
@trader_option
@mode_option
@click.option("--action", type=click.Choice(ACTIONS))
@click.option("--token", help="Base or quote token.")
@click.option("--mev-status", type=click.Choice(MEV_STATUSES))
@span_options()
@limit_option
@order_option
@result_options(columns_of("TradeRow"), TRADE_COLUMNS)
def trades(span: dict[str, Any], output: Output, **fields: Any) -> None:
    """The newest trades that match every option given; a table has the chief columns, other formats have all."""
    with _queries() as queries:
        output.show(queries.get_trades(**span, **fields))


_CONDITION = re.compile(r"(\w+)( ?)(!=|<=|>=|=|<|>)\2(.*)", re.DOTALL)


def _where(layout: RecordLayout, texts: Sequence[str]) -> dict[str, Any]:
    """What `records` takes: the value of a text column as it stands there, of another one as JSON has it."""
    kinds = {field.name: field.kind for field in layout.fields}
    found: dict[str, Any] = {}
    for text in texts:
        parts = _CONDITION.fullmatch(text)
        name, _, operator, value = ("", "", "", "") if parts is None else parts.groups()
        key = f"{name} {operator}"
        if parts is None or key in found:
            wanted = "wanted COLUMN=VALUE (or != < <= > >=), each once"
            raise click.BadParameter(f"got {text!r}, {wanted}", param_hint="--where")
        is_text = name in kinds and kinds[name].is_text and value != "null"
        found[key] = value if is_text else _value(value)
    return found


@click.command()
@click.argument("record")
@click.option(
    "--where", "conditions", multiple=True, metavar="CONDITION",
    help="Such as venue=kraken, price>=1.5 or note!=null; may be repeated, and each must hold.",
)  # fmt: skip
@span_options()
@limit_option
@order_option
@result_options()
def records(
    record: str, conditions: tuple[str, ...], span: dict[str, Any], limit: int, order: str, output: Output,
    timeout_ms: float | None,
) -> None:  # fmt: skip
    """The newest rows of RECORD: Trade, ..., a table's name, or MODULE:CLASS of your own."""
    from ringlog.cli.migrate import record_type_of
    from ringlog.records import layout_of

    record_type = record_type_of(record, "RECORD")
    where = _where(layout_of(record_type), conditions)
    with _queries() as queries:
        output.show(queries.records(record_type, **span, where=where, limit=limit, order=order, timeout_ms=timeout_ms))


@click.command()
@trader_option
@mode_option
@click.option("--token", help="A token.")
@span_options()
@result_options(columns_of("PositionRow"))
def positions(span: dict[str, Any], output: Output, **fields: Any) -> None:
    """The latest position of each trader, mode and token."""
    with _queries() as queries:
        output.show(queries.get_positions(**span, **fields))


@click.command()
@span_options(DEFAULT_DURATION)
@result_options(columns_of("MevRow"))
def mev(span: dict[str, Any], output: Output, timeout_ms: float | None) -> None:
    """Trades with and without MEV protection, of the last 24 hours by default: counts, losses in basis points, fees."""
    with _queries() as queries:
        output.show(queries.get_mev_analysis(**span, timeout_ms=timeout_ms))


@click.command()
@click.argument("metric_type", type=click.Choice(METRIC_TYPES))
@click.argument("operation", required=False)
@span_options(DEFAULT_DURATION)
@result_options(columns_of("PerformanceRow"))
def performance(
    metric_type: str, operation: str | None, span: dict[str, Any], output: Output, timeout_ms: float | None
) -> None:
    """Count, mean, minimum, maximum and last value of a metric by OPERATION, of the last 24 hours by default."""
    with _queries() as queries:
        output.show(queries.get_performance_metrics(metric_type, operation=operation, **span, timeout_ms=timeout_ms))


@click.command()
@click.argument("service", required=False)
@click.argument("operation", required=False)
@span_options(DEFAULT_DURATION)
@click.option(
    "--percentile",
    "-p",
    "asked",
    type=Number(0, 100, min_open=True),
    multiple=True,
    show_default="50 95 99",
    help="May be given several times.",
)
@result_options(columns_of("PercentileRow"))
def percentiles(
    service: str | None,
    operation: str | None,
    span: dict[str, Any],
    asked: tuple[float, ...],
    output: Output,
    timeout_ms: float | None,
) -> None:
    """Percentiles of the latencies of SERVICE and OPERATION (all without them), within 1 %, in microseconds.

    Of the last 24 hours, unless other times are given.
    """
    options: dict[str, Any] = {"percentiles": asked} if asked else {}
    with _queries() as queries:
        output.show(queries.get_latency_percentiles(service, operation, **span, timeout_ms=timeout_ms, **options))
