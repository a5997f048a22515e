"""The session's report: one HTML file that needs nothing else, and a picture of its plots where matplotlib is there."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from ringlog.demo.analysis import Findings, findings, sentences
from ringlog.demo.failures import Failures
from ringlog.demo.report import SessionReport
from ringlog.questdb.queries import Queries
from ringlog.settings import Settings

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --muted: #6b7785; --line: #e4e8ed; --card: #fff; --blue: #2f6fde }
* { box-sizing: border-box }
body { margin: 0; background: #f5f7f9; color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  "Helvetica Neue", Arial, sans-serif }
main { max-width: 1240px; margin: 0 auto; padding: 36px 24px 64px }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px } h2 { font-size: 17px; margin: 36px 0 12px }
.sub { color: var(--muted); margin: 0 0 24px }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px }
.card, .plot, .table { background: var(--card); border: 1px solid var(--line); border-radius: 10px }
.card { padding: 14px 16px } .card b { display: block; font-size: 22px; line-height: 1.25;
  font-variant-numeric: tabular-nums } .card span { color: var(--muted); font-size: 13px }
ul { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--blue); border-radius: 10px;
  margin: 0; padding: 14px 18px 14px 34px } li + li { margin-top: 6px }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 16px }
.plot { padding: 12px } .plot svg { display: block; width: 100%; height: auto }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 16px;
  align-items: start }
.table { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: 14px } caption { text-align: left; font-weight: 600; padding: 12px 16px 6px }
th, td { padding: 7px 16px; text-align: right; border-top: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { color: var(--muted); font-weight: 500 }
p.note { color: var(--muted); font-size: 13px; margin: 24px 0 0 }
"""
LIMITS = {
    "holding": "more than is held",
    "exiting": "a rule is being executed",
    "trade_max": "trade_max",
    "position_max": "position_max",
    "slippage_max_bps": "slippage_max_bps",
    "daily_loss_max": "daily_loss_max",
    "disabled": "disabled",
}


def write_report(settings: Settings, session: SessionReport, directory: Path, failures: Failures) -> None:
    """Writes `index.html` and `report.png` into `directory`, over an older report, and notes their paths in `session`.

    Plots that cannot be drawn are among the failures, and the page goes without them. Raises QueryError,
    ServerUnavailable, OSError where there is nothing to write, or no place.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with Queries(msgspec.structs.replace(settings, query_pool_size_min=1, query_pool_size_max=1)) as queries:
        found = findings(queries)
    document, picture = directory / "index.html", directory / "report.png"
    drawings: dict[str, str] = {}
    with failures.part("plots"):
        from ringlog.demo import plots

        plots.write_png(found, session, picture)
        session.report_png = str(picture)
        for name in plots.PANELS:
            drawings[name] = plots.svg(found, session, name)
    document.write_text(page(found, session, drawings), encoding="utf-8")
    session.report_html = str(document)


def page(found: Findings, session: SessionReport, drawings: Mapping[str, str]) -> str:
    """The document; `drawings` are SVG elements."""
    cards = [
        ("trades", f"{session.trades:,}"),
        ("records stored", f"{sum(session.records.values()):,}"),
        ("traders", f"{len(session.traders)}"),
        ("rules triggered", f"{session.rules.get('stop_loss', 0) + session.rules.get('take_profit', 0):,}"),
        ("attacks avoided", f"{found.protected.avoided:,}"),
        ("seconds", f"{session.seconds:.1f}"),
    ]
    shown = "".join(f'<div class="card"><b>{value}</b><span>{name}</span></div>' for name, value in cards)
    plots = "".join(f'<div class="plot">{drawing}</div>' for drawing in drawings.values())
    plots = f'<h2>Plots</h2><div class="plots">{plots}</div>' if plots else ""
    said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences(found, session))
    title = f"Paper trading {html.escape(session.market)}"
    source = html.escape(session.source)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}</style></head><body><main>
<h1>{title}</h1>
<p class="sub">{source}; prices from Redis, limits and order rules from PostgreSQL, every record in QuestDB through
ringlog</p>
<div class="cards">{shown}</div>
<h2>What goes with what</h2><ul>{said}</ul>
{plots}
<h2>Figures</h2><div class="tables">{_traders(session)}<div class="tables">{_counts(session)}</div></div>
<p class="note">Executed prices, quantities and times are those of the {source}. The liquidity pool (constant product,
its price held at the market's middle) and the probability of an attack are models: see docs/integrations.md. P&amp;L is
in {html.escape(session.market.partition("/")[2])} with pool and transfer fees paid; network fees are stored in
lamports. Ages are of this machine's clock: at a speed of n the market moves n times as far in them.</p>
</main></body></html>
"""


def _traders(session: SessionReport) -> str:
    rows = [
        (
            html.escape(trader.trader_id),
            f"{trader.trades:,}",
            f"{trader.quantity:.6f}",
            f"{trader.realized_pnl:+,.2f}",
            f"{trader.unrealized_pnl:+,.2f}",
        )
        for trader in session.traders
    ]
    return _table("Traders", ("trader", "trades", "holds", "realized", "unrealized"), rows)


def _counts(session: SessionReport) -> str:
    limits = [
        (LIMITS.get(name, html.escape(name)), f"{count:,}")
        for name, count in sorted(session.limits.items(), key=lambda item: -item[1])
    ]
    rules = [(html.escape(name.replace("_", "-")), f"{count:,}") for name, count in sorted(session.rules.items())]
    records = [(html.escape(name), f"{count:,}") for name, count in sorted(session.records.items())]
    return (
        _table("Trades a trader could not take, by limit", ("limit", "times"), limits)
        + _table("Order rules", ("outcome", "rules"), rules)
        + _table("Records", ("table", "rows"), records)
    )


def _table(caption: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heading = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><caption>{caption}</caption><tr>{heading}</tr>{body}</table></div>'
