"""The paper-trading session over a recorded market, judged by independent calculations over the file and the rows."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from decimal import Decimal, localcontext
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg
import pytest
from demo_segments import segments_of
from test_recorded_records import read

from ringlog.servers import PostgresServer, QuestDBServer

SPOT = Path(__file__).parents[2].parent / "shared" / "data" / "binance-spot-btcusdt-20240808.gz"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # the fixture's run is part of the first test
    pytest.mark.skipif(not SPOT.exists(), reason=f"the recordings are not beside the checkout ({SPOT.name})"),
]
TRADES = 9757
EXECUTORS = 2
# The session's configuration, written down a second time.
TRADE_MAX = {"scalper": 500, "swing": 5_000}
POSITION_MAX = {"scalper": 2_000, "swing": 20_000}


class Recorded(NamedTuple):
    """A trade of the file, read without ringlog."""

    receive_us: int
    price: Decimal
    quantity: Decimal
    is_sale: bool


class Session(NamedTuple):
    """What one run left."""

    kept: Path
    report: dict[str, Any]
    rows: dict[str, list[dict[str, Any]]]
    rules: list[tuple[str, str, str | None]]


@pytest.fixture(scope="module")
def recorded() -> dict[int, Recorded]:
    found = {}
    with gzip.open(SPOT) as lines:
        for line in lines:
            stamp, message = line.split(b" ", 1)
            data = json.loads(message).get("data", {})
            if data.get("e") == "trade":
                assert data["t"] not in found
                found[data["t"]] = Recorded(int(stamp) // 1000, Decimal(data["p"]), Decimal(data["q"]), data["m"])
    assert len(found) == TRADES
    return found


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """One run of the demo over the recording, as fast as it goes; its servers are started again on what it kept."""
    kept = tmp_path_factory.mktemp("session") / "kept"
    command = [sys.executable, "-m", "ringlog", "demo", "--json", "--input", str(SPOT), "--rate", "max"]
    done = subprocess.run(
        [*command, "--producers", str(EXECUTORS), "--keep", str(kept)],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows: dict[str, list[dict[str, Any]]] = {}
    with QuestDBServer(kept / "questdb") as server, psycopg.connect(
        host="127.0.0.1", port=server.ports["pg"], user=server.user, password=server.password, dbname="qdb",
        autocommit=True,
    ) as connection:  # fmt: skip
        for table in ("trades", "positions", "mev_metrics", "performance_metrics", "latencies"):
            cursor = connection.execute(f"SELECT *, timestamp::long AS time_us FROM {table} ORDER BY lane, seq")
            names = [column.name for column in cursor.description or ()]
            rows[table] = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    with PostgresServer(kept / "postgres") as server, psycopg.connect(
        host="127.0.0.1", port=server.ports["sql"], user=server.user, password=server.password, dbname=server.database
    ) as connection:  # fmt: skip
        rules = connection.execute("select trader_id, state, trigger_reason from order_rules").fetchall()
    return Session(kept, json.loads(done.stdout), rows, rules)


def trade_id(row: dict[str, Any]) -> int:
    found: int = json.loads(row["metadata"])["trade_id"]
    return found


def test_every_record_is_stored_once(session: Session) -> None:
    """The report counts what is in the tables, no record is lost, double or foreign, and the trades are all there."""
    report = session.report
    assert report["is_exact"] is True
    assert report["accepted"] == report["stored"] == sum(report["session"]["records"].values())
    assert report["lost"] == report["duplicated"] == report["foreign"] == report["dead_letters"] == 0
    for table, count in report["session"]["records"].items():
        found = [row for row in session.rows[table] if not row.get("operation", "").startswith("writer.")]
        assert len(found) == len({(row["lane"], row["seq"]) for row in found}) == count
    assert report["session"]["trades"] == report["session"]["simulated"] == TRADES
    assert len(session.rows["positions"]) == TRADES + 3 * EXECUTORS  # and every trader once more at the end


def test_every_recorded_trade_is_one_trade_with_its_own_values(session: Session, recorded: dict[int, Recorded]) -> None:
    """Id for id, price, quantity, side and receive time are those of an independent reading; so are the sums."""
    stored = {trade_id(row): row for row in session.rows["trades"]}
    assert stored.keys() == recorded.keys()
    for number, wanted in recorded.items():
        row = stored[number]
        assert row["executed_price"] == float(wanted.price)
        assert row["base_amount"] == float(wanted.quantity)
        assert row["action"] == ("sell" if wanted.is_sale else "buy")
        assert row["time_us"] == wanted.receive_us
        assert row["quote_amount"] == pytest.approx(float(wanted.price * wanted.quantity), rel=1e-12)
    quantity = sum(row["base_amount"] for row in stored.values())
    notional = sum(row["quote_amount"] for row in stored.values())
    assert quantity == pytest.approx(float(sum(each.quantity for each in recorded.values())), rel=1e-12)
    assert notional == pytest.approx(float(sum(each.quantity * each.price for each in recorded.values())), rel=1e-12)


def test_every_event_time_is_one_latency(session: Session) -> None:
    """Each message with an event time is one LatencySample of the market's: receive minus event time, less the smallest
    such difference of the file, at its receive time; in count, sum and each value those of an independent reading."""
    latencies = read(SPOT).latencies
    offset_us = min(latency for _, _, latency in latencies)
    stored = [row for row in session.rows["latencies"] if row["service"] == "exchange-feed"]
    assert len(stored) == len(latencies) > TRADES
    assert min(row["latency_us"] for row in stored) == 0
    assert sum(row["latency_us"] for row in stored) == sum(latency - offset_us for _, _, latency in latencies)
    assert Counter((row["operation"], row["time_us"], row["latency_us"]) for row in stored) == Counter(
        (stream, receive_us, latency - offset_us) for stream, receive_us, latency in latencies
    )


def test_positions_and_profits_equal_an_independent_calculation(
    session: Session, recorded: dict[int, Recorded]
) -> None:
    """Every stored position, the last of each trader included, to 1e-9 from the file's texts: by average price here,
    by cost in the demo; the fees are computed again too."""
    trades: dict[str, list[int]] = {}
    for row in session.rows["trades"]:
        trades.setdefault(row["trader_id"], []).append(trade_id(row))
    positions: dict[str, list[dict[str, Any]]] = {}
    for row in session.rows["positions"]:
        positions.setdefault(row["trader_id"], []).append(row)
    checked = 0
    with localcontext(prec=100):
        for trader_id, rows in positions.items():
            held = average = realized = Decimal(0)
            numbers = trades.get(trader_id, [])
            assert len(rows) == len(numbers) + 1
            for place, row in enumerate(rows):
                if place < len(numbers):
                    held, average, realized = after(held, average, realized, recorded[numbers[place]])
                assert row["time_us"] >= recorded[numbers[min(place, len(numbers) - 1)]].receive_us
                unrealized = held * (Decimal(row["mark_price"]) - average)
                for name, wanted in (
                    ("quantity", held),
                    ("average_entry_price", average),
                    ("realized_pnl", realized),
                    ("unrealized_pnl", unrealized),
                ):
                    assert abs(Decimal(row[name]) - wanted) <= Decimal("1e-9") * max(1, abs(wanted)), (trader_id, name)
                    checked += 1
    assert checked == 4 * len(session.rows["positions"])


def after(held: Decimal, average: Decimal, realized: Decimal, trade: Recorded) -> tuple[Decimal, Decimal, Decimal]:
    """One trade on a position kept at its average price: 4 bps to the pool, 2 bps (at most 10,000 units) withheld."""
    units = int(trade.quantity * 10**8)
    gross = trade.quantity * trade.price
    if trade.is_sale:
        sent = -(-units * 10_000 // 9_998)
        sent = units + 10_000 if sent - units >= 10_000 else sent
        change = -Decimal(units + min(-(-sent * 2 // 10_000), 10_000)) / 10**8
        price = gross * Decimal("0.9996") / -change
    else:
        change = Decimal(units - min(-(-units * 2 // 10_000), 10_000)) / 10**8
        if not change:
            return held, average, realized - gross * Decimal("1.0004")
        price = gross * Decimal("1.0004") / change
    if held == 0 or (held > 0) == (change > 0):
        return held + change, (held * average + change * price) / (held + change), realized
    closed = min(abs(held), abs(change)) * (1 if held > 0 else -1)
    realized += closed * (price - average)
    left = held + change
    return left, Decimal(0) if left == 0 else average if (left > 0) == (held > 0) else price, realized


def test_limits_and_rules_of_postgres_decide_who_trades(session: Session) -> None:
    """No trader with limits buys beyond them or sells what it has not; every limit that binds is counted; no rule is
    left armed or triggered, and PostgreSQL holds as many as the report says."""
    holdings: Counter[str] = Counter()
    for row in session.rows["trades"]:
        kind = row["trader_id"].partition("-")[0]
        assert row["mode"] == "paper"
        if kind == "desk":
            continue
        if row["action"] == "buy":
            # What arrives is less the token's transfer fee; a seller sends so much more that the sale arrives whole.
            holdings[row["trader_id"]] += row["base_amount"] - row["transfer_fees"]
            assert row["quote_amount"] <= TRADE_MAX[kind]
            assert abs(row["actual_slippage"]) >= 0
            assert holdings[row["trader_id"]] * row["executed_price"] <= POSITION_MAX[kind] * 1.001
        else:
            holdings[row["trader_id"]] -= row["base_amount"] + row["transfer_fees"]
            assert holdings[row["trader_id"]] >= -1e-9
    report = session.report["session"]
    assert report["limits"]["trade_max"] > 0
    assert report["limits"]["holding"] > 0
    states = Counter(state for _, state, _ in session.rules)
    reasons = Counter(reason for _, _, reason in session.rules if reason)
    assert set(states) <= {"filled", "cancelled"}
    assert sum(states.values()) == report["rules"]["armed"] > 0
    assert states["filled"] == report["rules"]["filled"]
    assert reasons == Counter({name: report["rules"].get(name, 0) for name in ("stop_loss", "take_profit")})
    traders = {trader["trader_id"] for trader in report["traders"]}
    assert traders == {f"{kind}-{i}" for kind in ("scalper", "swing", "desk") for i in range(EXECUTORS)}


def test_every_trade_has_its_mev_metric(session: Session) -> None:
    """One MEV metric a trade, of its size and time; only traders with protection use it, and only a protected trade
    avoids a loss; what is expected of the unprotected ones is what they lose, on average."""
    metrics = session.rows["mev_metrics"]
    assert Counter((row["time_us"], row["trade_size"]) for row in metrics) == Counter(
        (row["time_us"], row["base_amount"]) for row in session.rows["trades"]
    )
    for row in session.rows["trades"]:
        is_protected = row["mev_protected"]
        assert row["mev_status"] == ("protected" if is_protected else "at_risk")
        assert not is_protected or int(row["trader_id"].partition("-")[2]) % 2 == 0
        assert (row["priority_fee"] is not None) == is_protected
    assert all(0 <= row["sandwich_probability"] <= 1 for row in metrics)
    assert all(row["protection_used"] and row["actual_loss_bps"] == 0 for row in metrics if row["avoided"])
    assert any(row["avoided"] for row in metrics)
    danger = [row for row in metrics if row["sandwich_probability"] > 0]
    open_ones = [row for row in danger if not row["protection_used"]]
    expected = sum(row["estimated_loss_bps"] for row in open_ones)
    assert sum(row["actual_loss_bps"] for row in open_ones) == pytest.approx(expected, rel=0.15)
    protected = [row for row in danger if row["protection_used"]]
    assert sum(row["actual_loss_bps"] for row in protected) < 0.1 * sum(row["estimated_loss_bps"] for row in protected)


def test_the_monitor_measures_every_part(session: Session) -> None:
    """There are percentiles of every operation of every part, and throughput and error rates of every table."""
    metrics = session.rows["performance_metrics"]
    latencies = {(row["operation"], row["percentile"]) for row in metrics if row["metric_type"] == "latency"}
    operations = {"executor.decide", "redis.read_market", "redis.probe", "postgres.probe", "questdb.probe"}
    operations |= {"postgres.arm", "postgres.choose_node", "rpc.local"}
    assert {(operation, percentile) for operation in operations for percentile in (50, 95, 99)} <= latencies
    for kind in ("throughput", "error_rate"):
        measured = {row["operation"] for row in metrics if row["metric_type"] == kind}
        assert {"append.trades", "append.positions", "append.latencies", "append.mev_metrics"} <= measured
    services = Counter(row["service"] for row in session.rows["latencies"])
    assert services["executor"] == services["redis"] - Counter(
        row["operation"] for row in session.rows["latencies"] if row["service"] == "redis"
    )["probe"] == TRADES  # fmt: skip
    assert session.report["session"]["nodes"] == {"local": TRADES}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.drawings = self.links = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)
        self.drawings += tag == "svg"
        self.links += sum(
            bool(value) and str(value).startswith("http") for name, value in attributes if name in ("src", "href")
        )

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_written(session: Session) -> None:
    """The HTML is well-formed, holds all six plots and loads nothing from elsewhere; the PNG is a large picture."""
    report = session.report["session"]
    document, picture = Path(report["report_html"]), Path(report["report_png"])
    assert document.parent == picture.parent == session.kept / "report"
    page = _Page()
    page.feed(document.read_text())
    page.close()
    assert (page.open, page.drawings, page.links) == ([], 6, 0)
    assert f"those of the recording {SPOT.name}" in document.read_text()
    for trader in report["traders"]:
        assert f"<td>{trader['trader_id']}</td>" in document.read_text()
    header = picture.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n")
    assert min(int.from_bytes(header[16:20]), int.from_bytes(header[20:24])) > 1_000


def test_nothing_is_left_behind(session: Session) -> None:
    """After the session there is no segment of its instance and no process that names its directory."""
    assert segments_of(session.kept / "run") == []
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if str(session.kept) in line] == []
