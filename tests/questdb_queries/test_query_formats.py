"""Finding 32: rows for other programs, a table for a person, and options that are checked and completed at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from platform_rows import Execute, Insert, trade

from ringlog.cli import query as commands
from ringlog.cli import results, ringlog
from ringlog.questdb.results import Result, named_rows
from ringlog.questdb.rows import LIMIT_MAX, TradeRow
from ringlog.records import PerformanceMetric, Trade, layout_of
from ringlog.settings import Settings

BASE = 1_760_000_000_000_000
MINT = "So11111111111111111111111111111111111111112"
HOSTILE = "\x1b[2J\u202e<b>\n"


@pytest.fixture
def environment(settings: Settings, tmp_path: Path) -> dict[str, str]:
    return {
        "RINGLOG_RUNTIME_DIR": str(tmp_path),
        "RINGLOG_QUESTDB_PG_PORT": str(settings.questdb_pg_port),
        "RINGLOG_QUESTDB_USER": settings.questdb_user,
        "RINGLOG_QUESTDB_PASSWORD": settings.questdb_password.reveal(),
        "RINGLOG_QUERY_TIMEOUT_MS": str(settings.query_timeout_ms),
    }


def printed(environment: dict[str, str], *arguments: str) -> str:
    done = CliRunner().invoke(ringlog, arguments, env=environment)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.usefixtures("empty")
def test_finding_32_rows_are_objects(environment: dict[str, str], insert: Insert, tmp_path: Path) -> None:
    """Finding 32: `--json` gives rows by column, ndjson one of them a line, the same in a file, csv by `--columns`."""
    rows = [
        trade(BASE + i, trader_id=f"t{i}", executed_price=i + 0.1, tx_signature=HOSTILE, metadata="") for i in (0, 1)
    ]
    insert("trades", rows)
    facts = json.loads(printed(environment, "trades", "--json"))
    assert [row["executed_price"] for row in facts["rows"]] == [1.1, 0.1]
    assert list(facts["rows"][0]) == facts["columns"] == list(TradeRow.__struct_fields__)
    assert (facts["partial"], facts["limited"]) == (False, False)
    lines = printed(environment, "trades", "--format", "ndjson")
    assert [json.loads(line) for line in lines.splitlines()] == facts["rows"]
    assert lines.replace("\n", "").isprintable()
    assert facts["rows"][0]["tx_signature"] == HOSTILE
    path = tmp_path / "trades.ndjson"
    assert printed(environment, "trades", "--format", "ndjson", "-o", str(path)) == ""
    assert path.read_text() == lines
    chosen = printed(environment, "trades", "--columns", "executed_price,trader_id", "--format", "csv")
    assert chosen == "executed_price,trader_id\n1.1,t1\n0.1,t0\n"
    away = CliRunner().invoke(ringlog, ["trades", "--json", "-o", str(tmp_path / "no" / "file")], env=environment)
    assert (away.exit_code, "no/file" in away.output) == (1, True)


@pytest.mark.usefixtures("empty")
def test_finding_32_trades_fit_a_screen(environment: dict[str, str], insert: Insert) -> None:
    """Finding 32: by default the chief columns of trades, in at most 120 characters; all of them where asked for."""
    wide = {"base_token": MINT, "quote_token": MINT, "executed_price": 1 / 3, "base_amount": 1e-7 / 3, "action": "swap"}
    insert("trades", [trade(BASE, trader_id="trader-of-a-long-name-0000000001", mev_status="protected", **wide)])
    head, row = printed(environment, "trades").splitlines()
    assert head.split() == list(commands.TRADE_COLUMNS)
    assert max(len(head), len(row)) <= 120
    assert "2025-10-09T08:53:20.000Z" in row
    assert "So11…11112" in row
    assert MINT in printed(environment, "trades", "--all-columns")
    named = printed(environment, "trades", "--columns", "base_token,timestamp").splitlines()
    assert [line.split() for line in named] == [["base_token", "timestamp"], [MINT, "2025-10-09T08:53:20+00:00"]]


@pytest.mark.usefixtures("empty")
def test_finding_32_a_command_for_each_typed_query(
    environment: dict[str, str], insert: Insert, execute: Execute
) -> None:
    """Finding 32: positions, MEV and performance have commands with the same times and formats."""
    ((now,),) = execute("SELECT now()::long")
    money = dict.fromkeys(("average_entry_price", "mark_price", "realized_pnl", "unrealized_pnl"), 1.0)
    held = {"timestamp": now, "trader_id": "t1", "mode": "paper", "token": "SOL", "quantity": 2.0, **money}
    insert("positions", [held, {**held, "mode": "live"}])
    measured = {"timestamp": now, "metric_type": "latency", "value": 5.0}
    insert("performance_metrics", [{**measured, "operation": "buy"}, {**measured, "operation": "sell"}])
    loss = {"token_pair": "SOL/USDC", "trade_size": 1.0, "sandwich_probability": 0.5, "estimated_loss_bps": 1.0}
    insert("mev_metrics", [{**loss, "timestamp": now, "protection_used": True, "priority_fee_lamports": 7}])

    def rows(*arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in printed(environment, *arguments, "--format", "ndjson").splitlines()]

    (position,) = rows("positions", "--mode", "live", "--since", "1h")
    assert (position["quantity"], position["mode"]) == (2.0, "live")
    assert rows("positions", "--end", "1h") == []
    assert [row["operation"] for row in rows("performance", "latency")] == ["buy", "sell"]
    assert [row["operation"] for row in rows("performance", "latency", "sell", "--since", "10m")] == ["sell"]
    assert rows("performance", "latency", "--end", "1h") == []
    assert [row["priority_fee_lamports"] for row in rows("mev", "--duration", "600")] == [7, 0]
    assert rows("mev", "--columns", "trades") == [{"trades": 1}, {"trades": 0}]


def test_finding_32_parameters(environment: dict[str, str]) -> None:
    """Finding 32: `query --param NAME=VALUE` binds numbers as numbers and everything else as text."""
    sql = "SELECT %(n)s + 1 AS n, %(text)s AS text, %(quoted)s AS quoted, '5%%' AS percent"
    given = ["-p", "n=41", "-p", "text=a'b=%s", "--param", 'quoted="7"']
    (row,) = json.loads(printed(environment, "query", sql, *given, "--json"))["rows"]
    assert row == {"n": 42, "text": "a'b=%s", "quoted": "7", "percent": "5%"}
    for wrong in (["-p", "n"], ["-p", "=1"], ["-p", "n=1", "-p", "n=2"]):
        assert CliRunner().invoke(ringlog, ["query", sql, *wrong]).exit_code == 2
    done = CliRunner().invoke(ringlog, ["query", sql, "-p", "n=41"], env=environment)
    assert "wanted also 'text'" in str(done.exception)


@pytest.mark.usefixtures("empty")
def test_finding_32_records_by_condition(environment: dict[str, str], insert: Insert) -> None:
    """Finding 32: `records` shows any type's rows; a text column takes its value as it stands, others take JSON."""
    facts: list[dict[str, Any]] = [{"tx_signature": "5"}, {"tx_signature": "null"}, {"tx_signature": None}]
    insert("trades", [trade(BASE + i, executed_price=i + 0.5, **fact) for i, fact in enumerate(facts)])

    def prices(*conditions: str) -> list[float]:
        options = [part for each in conditions for part in ("--where", each)]
        lines = printed(environment, "records", "Trade", *options, "--since", "2025-10-01", "--format", "ndjson")
        return [json.loads(line)["executed_price"] for line in lines.splitlines()]

    assert prices() == [2.5, 1.5, 0.5]
    assert prices("executed_price>=1.5", "executed_price < 2") == [1.5]
    assert prices("tx_signature=5") == [0.5]
    assert prices("tx_signature=null") == [2.5]
    assert prices("mev_protected=true", "transaction_fee=5000", "mode = paper") == [2.5, 1.5, 0.5]
    for arguments, said in (
        (["Trad"], "did you mean Trade?"),
        (["no_module:Fill"], "RECORD: got 'no_module:Fill'"),
        (["Trade", "--where", "price"], "got 'price', wanted COLUMN=VALUE"),
        (["Trade", "--where", "mode=paper", "--where", "mode = live"], "each once"),
    ):
        done = CliRunner().invoke(ringlog, ["records", *arguments], env=environment)
        assert (done.exit_code, said in " ".join(done.output.split())) == (2, True), done.output
    done = CliRunner().invoke(ringlog, ["records", "Trade", "--where", "pric=1"], env=environment)
    assert "unknown column 'pric' of Trade" in str(done.exception)


WRONG = {
    "trades --mode foo": "'--mode': 'foo' is not one of 'paper', 'live'",
    "positions --mode foo": "'--mode': 'foo' is not one of 'paper', 'live'",
    "trades --columns pric": "'--columns': got 'pric', wanted some of timestamp",
    "trades --columns mode,mode": "'--columns': got 'mode' twice",
    "trades --columns mode --all-columns": "got --columns and --all-columns",
    "trades --json --format csv": "got --json and --format csv",
    "performance speed": "'speed' is not one of 'latency', 'throughput', 'error_rate'",
    "mev --format xml": "'--format': 'xml' is not one of",
}


def test_finding_32_wrong_words_load_nothing() -> None:
    """Finding 32: a wrong choice, column or time exits 2 and names itself before a library of a client is loaded."""
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from ringlog.cli import ringlog\n"
        f"for call, said in {WRONG!r}.items():\n"
        "    done = CliRunner().invoke(ringlog, call.split())\n"
        "    assert done.exit_code == 2, call\n"
        "    assert said in ' '.join(done.output.split()), (call, done.output)\n"
        "print([name for name in ('psycopg', 'numpy', 'pyarrow', 'stamina') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("words", "begun", "wanted"),
    [
        (["trades", "--mode"], "", {"paper", "live"}),
        (["trades", "--mev-status"], "i", {"impacted"}),
        (["trades", "--columns"], "mode,base_a", {"mode,base_amount"}),
        (["performance"], "t", {"throughput"}),
        (["percentiles", "--format"], "nd", {"ndjson"}),
        ([], "posi", {"positions"}),
    ],
)
def test_finding_32_the_shell_completes(words: list[str], begun: str, wanted: set[str]) -> None:
    """Finding 32: choices, columns and commands are what the shell offers."""
    offered = ShellComplete(ringlog, {}, "ringlog", "_RINGLOG_COMPLETE").get_completions(words, begun)
    assert {item.value for item in offered} == wanted


def test_finding_32_completion_from_bash() -> None:
    """Finding 32: the command answers bash, also about a command that it has not got."""
    asked = {**os.environ, "_RINGLOG_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    for line, said in (("ringlog trades --mode pa", "plain,paper\n"), ("ringlog nope --mode pa", "")):
        done = subprocess.run(
            [sys.executable, "-c", "from ringlog.cli import main; main()"],
            env={**asked, "COMP_WORDS": line}, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.stdout, "Traceback" in done.stderr) == (said, False), done.stderr


def test_finding_32_choices_are_those_of_the_records() -> None:
    """Finding 32: what the commands offer without loading the record types is what those have."""
    fields = {"mode": commands.MODES, "action": commands.ACTIONS, "mev_status": commands.MEV_STATUSES}
    assert {name: layout_of(Trade).field(name).choices for name in fields} == fields
    assert layout_of(PerformanceMetric).field("metric_type").choices == commands.METRIC_TYPES
    assert commands.LIMIT_MAX == LIMIT_MAX
    assert set(commands.TRADE_COLUMNS) <= set(TradeRow.__struct_fields__)


def test_finding_32_ndjson_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding 32: lines are written as they are made, never held as one text; no value breaks the JSON."""
    sizes: list[int] = []
    monkeypatch.setattr(results, "say_exactly", lambda text: sizes.append(len(text)))
    columns = [("n", "int"), ("a", "array"), ("b", "bytes")]
    tuples: list[tuple[Any, ...]] = [(i, [float("nan"), 1.0], b"\xff") for i in range(20_000)]
    results.Output("ndjson", None, None, ()).show(Result(columns, tuples, named_rows(tuple(columns))))
    assert len(sizes) > 5
    assert max(sizes) < 2 * results.CHUNK_CHARACTERS
    path = tmp_path / "rows"
    results.Output("json", path, None, ()).show(Result(columns, tuples[:2], named_rows(tuple(columns))))
    assert json.loads(path.read_text())["rows"] == [{"n": n, "a": [None, 1.0], "b": "\\xff"} for n in (0, 1)]
