"""The examples of docs/postgres.md, and the benchmark, run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ringlog.postgres import migrations
from ringlog.postgres.extensions import KINDS
from ringlog.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "postgres.md").read_text()


def test_the_examples_run_in_order(empty_database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of the page runs, with settings from the environment as the page says."""
    for name in ("runtime_dir", "postgres_port", "postgres_database", "postgres_user"):
        monkeypatch.setenv(f"RINGLOG_{name.upper()}", str(getattr(empty_database, name)))
    monkeypatch.setenv("RINGLOG_POSTGRES_PASSWORD", empty_database.postgres_password.reveal())
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) >= 7
    names: dict[str, Any] = {}
    for number, example in enumerate(examples):
        exec(compile(example, f"docs/postgres.md example {number}", "exec"), names)  # noqa: S102 - our own page


def test_the_page_names_every_table_and_every_known_extension() -> None:
    """A table or kind that is added is described."""
    made = re.findall(r"^create table (\w+)", "\n".join(migrations.scripts().values()), re.MULTILINE)
    assert len(made) == 6
    for name in (*made, *KINDS):
        assert f"`{name}`" in PAGE, name


@pytest.mark.slow
def test_the_benchmark_still_runs() -> None:
    """A tiny run of `python -m bench.postgres` goes through every case, without an error, and names its bars."""
    command = (sys.executable, "-m", "bench.postgres", "--tiny", "--json")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=110)
    figures = {figure["name"]: figure for figure in json.loads(result.stdout)["figures"]}
    assert figures["errors"]["value"] == 0
    assert figures["threads: ringlog's time over bare psycopg's"]["at_most"] == 1.15
    assert figures["full service after the kill"]["at_most"] == 5
