"""The `ringlog` command: quick, lazy, with clear errors and the promised exit codes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner

from ringlog import __version__
from ringlog.cli import COMMANDS, quiet_libraries, ringlog
from ringlog.ring import told

HEAVY = ("numpy", "pandas", "pyarrow", "psycopg", "questdb", "redis", "psutil", "rich", "msgspec", "stamina", "alembic")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ringlog", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment or None,
    )


def test_help_imports_nothing_heavy() -> None:
    """`ringlog --help` answers without importing any library but click."""
    code = (
        "import sys\n"
        "from ringlog.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0, done.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_in_the_table_exists(name: str) -> None:
    """Each line of the table leads to a command of that name, with its own help."""
    import click

    command = ringlog.get_command(click.Context(ringlog), name)
    assert command is not None
    assert command.name == name
    assert command.help


def test_version() -> None:
    """`--version` prints name, version and which ring runs."""
    assert run("--version").stdout == f"ringlog {__version__} ({told()})\n"


def test_wrong_usage_exits_2() -> None:
    """An unknown command or option exits 2 and says what was wrong on stderr."""
    for arguments in (["nope"], ["--nope"], ["up", "oracle"]):
        done = run(*arguments)
        assert done.returncode == 2, arguments
        assert "Error:" in done.stderr
        assert done.stdout == ""


NUMBERS = {
    "demo --seconds": "a number 0.1 to 3,600",
    "demo --speed": "a number from 0.01 on",
    "demo --rate": "a number above 0, or max",
    "top --once --interval": "a number 0.1 to 60",
    "replay /dev/null --record Trade --speed": "a number above 0, or max",
    "query select --timeout-ms": "a number 1 to 3,600,000",
    "trades --timeout-ms": "a number 1 to 3,600,000",
    "percentiles --timeout-ms": "a number 1 to 3,600,000",
    "percentiles --percentile": "a number above 0, at most 100",
    "percentiles -p": "a number above 0, at most 100",
    "percentiles --duration": "above 0 and at most 3660 days",
}


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1", "0", "-0.0", "1e999", "soon", ""])
@pytest.mark.parametrize("call", NUMBERS)
def test_a_number_that_is_none_is_wrong_usage(tmp_path: Path, call: str, number: str) -> None:
    """Each float option refuses what is not finite, zero, negative or no number at all, before anything starts: exit
    status 2, naming the option, what it got and what it wanted."""
    (tmp_path / "questdb").mkdir()  # with which the demo would end at once, in another way
    rest = ["--keep", str(tmp_path)] if call.startswith("demo") else []
    done = CliRunner().invoke(ringlog, [*call.split(), number, *rest], env={"RINGLOG_RUNTIME_DIR": str(tmp_path)})
    assert done.exit_code == 2, done.output
    said = " ".join(done.output.split())
    assert f"'{call.rsplit(maxsplit=1)[-1]}'" in said
    assert f"got {number!r}, wanted {NUMBERS[call]}" in said


@pytest.mark.parametrize(
    ("call", "number"), [("percentiles --duration", f"{9:09d}" * 100 + "d"), ("trades --limit", "0")]
)
def test_a_count_out_of_range_is_wrong_usage(call: str, number: str) -> None:
    """A duration beyond every number, or a limit of no rows, is refused like them."""
    done = CliRunner().invoke(ringlog, [*call.split(), number])
    assert done.exit_code == 2
    assert f"'{call.rsplit(maxsplit=1)[-1]}'" in done.output


def test_numbers_in_range_are_taken() -> None:
    """Both ends of a range, and max where it stands for a number, are taken as they are."""
    from ringlog.cli.number import Number

    assert [Number(0.1, 60).convert(text, None, None) for text in ("0.1", "60", "1e1")] == [0.1, 60.0, 10.0]
    rate = Number(0, min_open=True, or_max=True)
    assert [rate.convert(text, None, None) for text in ("max", "1e-9", "5")] == [0.0, 1e-9, 5.0]


def test_a_stderr_that_was_closed_takes_no_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log line goes to the stderr of then: the one that a command was called with may be closed."""
    with monkeypatch.context() as patch, io.StringIO() as closed_soon:
        patch.setattr("sys.stderr", closed_soon)
        quiet_libraries()
    structlog.get_logger().warning("a line")
    printed = capsys.readouterr()
    assert "a line" in printed.err
    assert printed.out == ""


def test_finding_23_retries_are_no_facts() -> None:
    """Finding 23: what a library logs of its tries is shown nowhere; the command's own error says what happened."""
    # Counted from the start of the first try, which also imports: where that takes longer, nothing is tried again.
    away = {"RINGLOG_POSTGRES_PORT": "1", "RINGLOG_POSTGRES_RETRY_TIMEOUT_MS": "5000"}
    done = run("migrate", "--only", "postgres", "--json", PATH="", **away)
    assert done.returncode == 1
    assert done.stderr == ""
    (problem,) = [one["problem"] for one in json.loads(done.stdout)["migrations"]]
    assert problem == (
        'PostgreSQL at 127.0.0.1:1: connection to server at "127.0.0.1", port 1 failed: Connection refused: '
        "start it, or set RINGLOG_POSTGRES_HOST and _PORT"
    )


@pytest.mark.parametrize("call", ["trades", "percentiles", "query select%201", "retention plan"])
def test_finding_23_a_server_that_is_away_is_one_line_with_the_next_step(call: str) -> None:
    """Finding 23: without a server each reading command prints one line: which server, why, and what to do."""
    # How long a reading command goes on trying; the imports count.
    away = {"RINGLOG_QUESTDB_PG_PORT": "1", "RINGLOG_QUERY_TIMEOUT_MS": "1000"}
    done = run(*(word.replace("%20", " ") for word in call.split()), PATH="", **away)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        'ringlog: QuestDB at 127.0.0.1:1: no connection (connection to server at "127.0.0.1", port 1 failed: '
        "Connection refused): start it, or set RINGLOG_QUESTDB_HOST and RINGLOG_QUESTDB_PG_PORT\n"
    )


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        ("tpo", "top"),
        ("dead-leters", "dead-letters"),
        ("deadletters", "dead-letters"),
        ("trades --fromat json", "--format"),
        ("tap trade", "Trade"),
        ("tap latency_sample", "LatencySample"),
        ("tap trades --where mod=paper", "mode"),
        ("replay /dev/null --record trade", "Trade"),
        ("dead-letters list --table trade", "trades"),
        ("dead-letters discard --table mev-metrics", "mev_metrics"),
        ("quarantine list --table tradse", "trades"),
        ("migrate --record ringlog.records:Trad", "Trade"),
    ],
)
def test_finding_23_a_name_that_is_none_is_wrong_usage(tmp_path: Path, call: str, meant: str) -> None:
    """Finding 23: a mistyped command, option, table, field or record type exits 2 at once, naming the nearest."""
    done = CliRunner().invoke(ringlog, call.split(), env={"RINGLOG_RUNTIME_DIR": str(tmp_path)})
    assert done.exit_code == 2, done.output
    assert "did you mean " + meant + "?" in " ".join(done.output.split()).replace("'", "").replace("Did", "did")


@pytest.mark.parametrize("call", ["trades --mode foo", "trades --action hold", "trades --mev-status x"])
def test_finding_23_a_value_that_no_row_has_is_wrong_usage(call: str) -> None:
    """Finding 23: a value that a field cannot have is refused before a server is asked, with those that it can have."""
    done = CliRunner().invoke(ringlog, call.split())
    assert done.exit_code == 2
    assert "is not one of" in done.output


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("RINGLOG_SPOOLDIR", "did you mean RINGLOG_SPOOL_DIR?"),
        ("RINGLOG_QUESTDB_PASSWD", "did you mean RINGLOG_QUESTDB_PASSWORD?"),
        ("RINGLOG_REDIS_PASSWORD_FIEL", "did you mean RINGLOG_REDIS_PASSWORD_FILE?"),
        ("RINGLOG_SETTING_FILE", "did you mean RINGLOG_SETTINGS_FILE?"),
        ("RINGLOG_ZZZ", "docs/operations.md lists all options"),
    ],
)
def test_finding_23_a_mistyped_setting_names_the_nearest(variable: str, says: str) -> None:
    """Finding 23: an unknown variable is refused in one line that names the nearest option, and not all of them."""
    done = run("status", PATH="", **{variable: "1"})
    assert done.returncode == 1
    assert done.stderr.startswith(f"ringlog: {variable}: got an unknown option")
    assert says in done.stderr
    assert len(done.stderr) < 120


def test_ringlog_error_is_one_line_and_exit_1() -> None:
    """An error of ringlog's own shows as one line on stderr, without a traceback, and exits 1."""
    done = run("status", PATH="", RINGLOG_DRAIN_INTERVAL_MS="soon")
    assert done.returncode == 1
    assert done.stderr == "ringlog: RINGLOG_DRAIN_INTERVAL_MS: got 'soon', wanted int\n"
