"""The page on queries: its examples run, its commands exist."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import CliRunner

from ringlog.cli import ringlog
from ringlog.errors import QueryTimeout
from ringlog.questdb.results import Continuation, Result, Span, typed_rows
from ringlog.settings import Settings
from ringlog.times import time_of

PAGE = (Path(__file__).parents[2] / "docs" / "queries.md").read_text()


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_examples(settings: Settings, empty: None, tmp_path: Path) -> None:
    """Every Python block of the page runs, in order, in a fresh process against a real server."""
    blocks = python_blocks()
    assert len(blocks) == 4
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


class Scripted:
    """Queries that answer their calls with the results they were given; after the last time runs out."""

    def __init__(self, results: list[Result[int]]) -> None:
        self._results = iter(results)

    def _next(self) -> Result[int]:
        for result in self._results:
            return result
        raise QueryTimeout("nothing was covered")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get_trades(self, **_: Any) -> Result[int]:
        return self._next()

    def resume(self, _: Continuation) -> Result[int]:
        return self._next()


SPAN = Span(time_of(0), time_of(1))


def part(*numbers: int) -> Result[int]:
    rest = Continuation("get_trades", {})
    return Result([("n", "int")], [(n,) for n in numbers], typed_rows(int), span=SPAN, partial=True, continuation=rest)


@pytest.mark.parametrize(
    ("results", "rows", "complete"),
    [
        ([part(1, 2), part(3), Result([("n", "int")], [(4,)], typed_rows(int))], [1, 2, 3, 4], True),
        ([part(1), part()], [1], False),
        ([part()], [], False),
    ],
)
def test_example_of_partial_results(results: list[Result[int]], rows: list[int], complete: bool) -> None:
    """The page's loop over partial results keeps every part's rows, and raises where no part fits into its time."""
    (block,) = [block for block in python_blocks() if "resume" in block]
    names: dict[str, Any] = {"Queries": lambda _: Scripted(results), "settings": None}
    with contextlib.nullcontext() if complete else pytest.raises(QueryTimeout):
        exec(block, names)  # noqa: S102
    assert names["rows"] == rows
