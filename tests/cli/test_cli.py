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
from ringlog.cli import COMMANDS, keep_logs_off_stdout, ringlog

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
    """`--version` prints name and version."""
    assert run("--version").stdout == f"ringlog {__version__}\n"


def test_wrong_usage_exits_2() -> None:
    """An unknown command or option exits 2 and says what was wrong on stderr."""
    for arguments in (["nope"], ["--nope"], ["up", "oracle"]):
        done = run(*arguments)
        assert done.returncode == 2, arguments
        assert "Error:" in done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize("option", ["--seconds", "--speed", "--rate"])
@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_demo_of_no_number_is_wrong_usage(tmp_path: Path, option: str, number: str) -> None:
    """A float option of the demo that is not finite is refused by name, before any server starts."""
    (tmp_path / "questdb").mkdir()  # with which the demo would end at once, in another way
    done = CliRunner().invoke(ringlog, ["demo", option, number, "--keep", str(tmp_path)])
    assert done.exit_code == 2
    assert f"Invalid value for '{option}'" in done.output


def test_a_stderr_that_was_closed_takes_no_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A retry is logged on the stderr of then: the one that a command was called with may be closed."""
    with monkeypatch.context() as patch, io.StringIO() as closed_soon:
        patch.setattr("sys.stderr", closed_soon)
        keep_logs_off_stdout()
    structlog.get_logger().warning("a retry")
    printed = capsys.readouterr()
    assert "a retry" in printed.err
    assert printed.out == ""


def test_retries_are_no_facts() -> None:
    """What a library logs on the way goes to stderr: stdout holds a command's facts alone."""
    # Counted from the start of the first try, which also imports: where that takes longer, nothing is tried again.
    away = {"RINGLOG_POSTGRES_PORT": "1", "RINGLOG_POSTGRES_RETRY_TIMEOUT_MS": "5000"}
    done = run("migrate", "--only", "postgres", "--json", PATH="", **away)
    assert done.returncode == 1
    assert "stamina.retry_scheduled" in done.stderr
    assert json.loads(done.stdout)


def test_ringlog_error_is_one_line_and_exit_1() -> None:
    """An error of ringlog's own shows as one line on stderr, without a traceback, and exits 1."""
    done = run("status", PATH="", RINGLOG_DRAIN_INTERVAL_MS="soon")
    assert done.returncode == 1
    assert done.stderr == "ringlog: RINGLOG_DRAIN_INTERVAL_MS: got 'soon', wanted int\n"
