"""The page on queries: its examples run, its commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from ringlog.cli import ringlog
from ringlog.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "queries.md").read_text()


def test_examples(settings: Settings, empty: None, tmp_path: Path) -> None:
    """Every Python block of the page runs, in order, in a fresh process against a real server."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    environment = {
        **os.environ,
        "RINGLOG_RUNTIME_DIR": str(tmp_path),
        "RINGLOG_QUESTDB_PG_PORT": str(settings.questdb_pg_port),
        "RINGLOG_QUESTDB_USER": settings.questdb_user,
        "RINGLOG_QUESTDB_PASSWORD": settings.questdb_password.reveal(),
        "RINGLOG_QUERY_TIMEOUT_MS": str(settings.query_timeout_ms),
    }
    command = [sys.executable, "-W", "error", "-c", "\n".join(blocks)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_commands() -> None:
    """Every command of the page is there, with the options it is shown with."""
    commands = re.findall(
        r"^(?:\*/15 \* \* \* \* )?ringlog ([a-z ]+?)(?= [\"A-Z0-9<-]| executor|\n|$)(.*)$", PAGE, re.MULTILINE
    )
    assert len(commands) >= 6
    for names, rest in commands:
        help_text = CliRunner().invoke(ringlog, [*names.split(), "--help"])
        assert help_text.exit_code == 0, names
        for option in re.findall(r"(?<=\s)(--?[a-z][a-z-]*)", rest.split("#")[0]):
            assert option in help_text.output, f"{names} {option}"
