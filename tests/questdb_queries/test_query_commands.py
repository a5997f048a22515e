"""`ringlog query`, `trades`, `percentiles` and `retention` on a real QuestDB, and the benchmarks' tiny runs."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result
from platform_rows import Execute, Insert, trade, wait_applied

from ringlog.cli import ringlog
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

ROOT = Path(__file__).parents[2]
BASE = 1_760_000_000_000_000
DAY = 86_400_000_000


@pytest.fixture
def environment(settings: Settings, tmp_path: Path) -> dict[str, str]:
    return {
        "RINGLOG_RUNTIME_DIR": str(tmp_path),
        "RINGLOG_QUESTDB_PG_PORT": str(settings.questdb_pg_port),
        "RINGLOG_QUESTDB_USER": settings.questdb_user,
        "RINGLOG_QUESTDB_PASSWORD": settings.questdb_password.reveal(),
        "RINGLOG_REQUEST_TIMEOUT_MS": str(settings.request_timeout_ms),
        "RINGLOG_QUERY_TIMEOUT_MS": str(settings.query_timeout_ms),
    }


def call(environment: dict[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(ringlog, arguments, env=environment)


@pytest.mark.usefixtures("empty")
def test_query_formats(environment: dict[str, str], insert: Insert, tmp_path: Path) -> None:
    """Every format gives the stored values, NULL apart from empty; Parquet goes to a file or a pipe."""
    insert("trades", [trade(BASE, tx_signature=""), trade(BASE + 1, tx_signature=None, metadata='a,"b')])
    sql = "SELECT timestamp, base_amount, tx_signature, metadata FROM trades ORDER BY timestamp"
    facts = json.loads(call(environment, "query", sql, "--json").output)
    assert facts["columns"] == ["timestamp", "base_amount", "tx_signature", "metadata"]
    assert [list(row.values()) for row in facts["rows"]] == [
        ["2025-10-09T08:53:20+00:00", 1.5, "", None],
        ["2025-10-09T08:53:20.000001+00:00", 1.5, None, 'a,"b'],
    ]
    assert [list(row) for row in facts["rows"]] == [facts["columns"]] * 2
    assert facts["partial"] is False
    lines = call(environment, "query", sql, "--format", "csv").output.splitlines()
    assert lines[1:] == ['2025-10-09T08:53:20+00:00,1.5,"",', '2025-10-09T08:53:20.000001+00:00,1.5,,"a,""b"']
    table = call(environment, "query", sql).output.splitlines()
    assert table[0].split() == facts["columns"]
    assert "null" in table[1]
    path = tmp_path / "trades.parquet"
    assert call(environment, "query", sql, "--format", "parquet", "-o", str(path)).exit_code == 0
    assert pyarrow.parquet.read_table(path).column("tx_signature").to_pylist() == ["", None]
    piped = call(environment, "query", sql, "--format", "parquet").stdout_bytes
    assert pyarrow.parquet.read_table(io.BytesIO(piped)).num_rows == 2


@pytest.mark.usefixtures("empty")
def test_trades_and_percentiles(environment: dict[str, str], insert: Insert, execute: Execute) -> None:
    """The typed commands answer, and say on stderr when there is more than the limit."""
    now = execute("SELECT now()::long")[0][0]
    insert("trades", [trade(now - i, trader_id=f"t{i % 2}") for i in range(6)])
    insert(
        "latencies", [{"timestamp": now - i, "service": "s", "operation": "o", "latency_us": 100.0} for i in range(9)]
    )
    result = call(environment, "trades", "--trader", "t1", "--limit", "2", "--json")
    assert len(json.loads(result.stdout)["rows"]) == 2
    assert "there may be more" in result.stderr
    found = json.loads(
        call(environment, "percentiles", "s", "o", "-p", "50", "-p", "99.9", "--duration", "1h", "--json").stdout
    )
    assert [row["percentile"] for row in found["rows"]] == [50.0, 99.9]
    assert found["rows"][0]["latency_us"] == pytest.approx(100, rel=0.01)


def test_bad_usage(environment: dict[str, str]) -> None:
    """Wrong usage exits with 2; bad SQL or a server that is away with 1 and one line that says why."""
    assert call(environment, "percentiles", "--duration", "soon").exit_code == 2
    assert call(environment, "query", "SELECT 1", "--format", "xml").exit_code == 2
    assert call(environment, "trades", "--limit", "0").exit_code == 2
    assert call(environment, "trades", "--mode", "demo").exit_code == 2
    for arguments in (["query", "SELECT nope FROM trades"], ["query", "selec 1"]):
        command = [sys.executable, "-m", "ringlog", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert done.stderr.startswith("ringlog: ")
        assert len(done.stderr.splitlines()) == 1
        assert environment["RINGLOG_QUESTDB_PASSWORD"] not in done.stderr
    away = {**environment, "RINGLOG_QUESTDB_PG_PORT": "1", "RINGLOG_QUERY_TIMEOUT_MS": "300"}
    command = [sys.executable, "-m", "ringlog", "query", "SELECT 1"]
    done = subprocess.run(command, env=away, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


@pytest.mark.usefixtures("empty")
def test_retention_commands(environment: dict[str, str], insert: Insert, execute: Execute) -> None:
    """`plan` changes nothing and says what `run` then does; `run --if-due` runs once a day at most."""
    execute("TRUNCATE TABLE retention_audit")
    now = execute("SELECT now()::long")[0][0]
    insert("trades", [trade(now), trade(now - 31 * DAY)])

    def trades_of(arguments: list[str]) -> dict[str, Any]:
        result = call(environment, "retention", *arguments, "--json")
        assert result.exit_code == 0, result.output
        return next(table for table in json.loads(result.stdout)["tables"] if table["table"] == "trades")

    assert len(trades_of(["plan"])["partitions"]) == 1
    assert trades_of(["run", "--dry-run"])["outcome"] == "planned"
    assert trades_of(["plan", "--days", "60"])["partitions"] == []
    assert execute("SELECT count() FROM trades") == [(2,)]
    assert trades_of(["run"])["outcome"] == "executed"
    assert execute("SELECT count() FROM trades") == [(1,)]
    wait_applied(execute, "retention_audit")
    assert call(environment, "retention", "run", "--if-due").output == "not due\n"
    for other in ("--dry-run", "--all-days"):
        refused = call(environment, "retention", "run", "--if-due", other)
        assert (refused.exit_code, "got --if-due with" in refused.output) == (2, True)
    text = call(environment, "retention", "plan").output
    assert "would cut everything before" in text
    assert "disk free" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["queries", "query_pool"])
def test_benchmark_tiny(name: str, own_server: QuestDBServer) -> None:
    """The benchmark runs to its end on a small load and gives every figure, as a number that JSON can hold."""
    result = importlib.import_module(f"bench.{name}").run(tiny=True, running=own_server)
    figures = msgspec.json.decode(msgspec.json.encode(result))["figures"]
    assert len(figures) >= 6
    assert all(figure["value"] is not None for figure in figures)
