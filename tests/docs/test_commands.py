"""Every command of the README and the pages is run, in one shell on a real server, or stands here with the reason."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_examples import ROOT, python_blocks

from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import remove_instance
from ringlog.settings import Settings

PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]
FIRST = "docs/getting-started.md"
# What a page shows and this test does not run, each with who does.
ELSEWHERE = {
    "./scripts/demo": "tests/demo runs it as `ringlog demo`, with and without the session",
    "./scripts/test": "it is what runs this test",
    'pip install "ringlog[demo,metrics]"': "the tests run in such an installation; tests/house builds wheels",
    "docker compose up -d --build --wait": "there may be no engine: tests/house/test_compose.py checks the file",
    "ringlog writer": "the first page starts it in the background; in the foreground it does not end",
}
# A trade a moment for `ringlog tap`, until its input ends; says which segment it has.
LOADER = """
import select, sys
from ringlog import Producer
from ringlog.lanes.claims import cards
from ringlog.records import Trade
with Producer([Trade]) as producer:
    appender = producer.appender(Trade)
    append = appender.bind(trader_id="t2", mode="paper", base_token="SOL", quote_token="USDC", action="buy")
    (segment,) = [card.segment for card in cards(producer.instance) if card.lane == appender.lane]
    open("segment", "w").write(segment)
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        append(base_amount=1.0, quote_amount=1.0, executed_price=1.0, transaction_fee=1, expected_slippage=0.0,
               actual_slippage=0.0, mev_status="protected", mev_protected=True)
"""


def commands_of(page: str) -> list[str]:
    """What a reader types: the lines after `$` of console blocks (a backslash goes on), and those of bash blocks."""
    text = (ROOT / page).read_text()
    found = []
    for kind, block in re.findall(r"^```(console|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", "").splitlines():
            if kind == "bash" or line.startswith("$ "):
                bare = re.sub(r"^\*/15 \* \* \* \* ", "", line.removeprefix("$ "))  # a line of a crontab
                found.append(re.sub(r" +# .*$", "", bare))
    return found


def script() -> tuple[str, list[str]]:
    """One shell script of all commands, the first page's around the others', each with its status written down."""
    first = commands_of(FIRST)
    ends = first.index("kill %1 && wait %1")
    others = [command for page in PAGES if page != FIRST for command in commands_of(page)]
    started = [command for command in first if command.endswith("&")]
    known = set(first) | {command.removesuffix(" > writer.log &") for command in started}
    run = [
        *[command for command in first[:ends] if command not in ELSEWHERE],
        *[command for command in dict.fromkeys(others) if command not in known and command not in ELSEWHERE],
        *first[ends:],
    ]
    lines = []
    for number, command in enumerate(run):
        if number == ends - 1:
            lines.append(f"mkfifo life; {sys.executable} loader.py < life & exec 9> life")
            lines.append("until [ -s segment ]; do sleep 0.1; done")
        if command == first[ends]:
            lines.append("exec 9>&-; wait %2")
        lines.append(command.replace("SEGMENT", '"$(cat segment)"'))
        lines.append(f'echo "$?" > status-{number}')
    return "\n".join(lines), run


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """The files that the pages' commands name; the instance's shared memory goes in the end."""
    (tmp_path / "loader.py").write_text(LOADER)
    (tmp_path / "first.py").write_text("\n".join(python_blocks(FIRST)))
    fields = {
        "trader_id": "t1", "mode": "paper", "action": "buy", "base_token": "SOL", "quote_token": "USDC",
        "base_amount": 1.0, "quote_amount": 2.0, "px": 3.0, "transaction_fee": 4, "expected_slippage": 0.0,
        "actual_slippage": 0.0, "mev_status": "protected", "mev_protected": True,
    }  # fmt: skip
    (tmp_path / "trades.ndjson").write_text("".join(json.dumps(fields) + "\n" for _ in range(3)))
    names = ",".join(name.replace("px", "executed_price") for name in fields)
    values = ",".join(str(value).lower() if isinstance(value, bool) else str(value) for value in fields.values())
    (tmp_path / "trades.csv").write_text(f"{names}\n{values}\n{values}\n")
    yield tmp_path
    remove_instance(Instance(Settings(runtime_dir=str(tmp_path / "run"))))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_runs(workplace: Path) -> None:
    """From `ringlog up` to `ringlog down` every command of every page ends with status 0, as it stands there."""
    text, run = script()
    assert len(run) > 20
    scripts = sysconfig.get_path("scripts")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RINGLOG_", "XDG_RUNTIME"))},
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "XDG_DATA_HOME": str(workplace / "data"),
        "RINGLOG_RUNTIME_DIR": str(workplace / "run"),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-m", "-c", text],
        cwd=workplace,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=560,
    )
    statuses = {
        command: path.read_text().strip() if (path := workplace / f"status-{number}").exists() else "not reached"
        for number, command in enumerate(run)
    }
    assert {command: status for command, status in statuses.items() if status != "0"} == {}, (
        done.stdout[-3000:] + done.stderr[-3000:]
    )
    found = re.search(r'"rows":\s*\[\[\s*(\d+),', done.stdout)  # of the first page's SELECT count()
    assert found is not None
    assert int(found[1]) > 0


def test_what_is_run_elsewhere_is_shown_somewhere() -> None:
    """Each exception is a command of a page: one that no page shows any more needs no reason."""
    shown = {command for page in PAGES for command in commands_of(page)}
    assert set(ELSEWHERE) - shown == set()


def test_every_python_example_has_its_test() -> None:
    """Each page with Python blocks is one whose blocks are run: here, or by the tests of its part."""
    run = {
        "README.md": "test_examples", "docs/records.md": "test_examples", FIRST: "test_commands",
        "docs/integrations.md": "test_integrations_page", "docs/queries.md": "test_query_page",
        "docs/postgres.md": "test_postgres_docs", "docs/redis.md": "test_redis_docs",
        "docs/replay.md": "test_published",
    }  # fmt: skip
    assert {page for page in PAGES if python_blocks(page)} == set(run)
    for page, test in run.items():
        (path,) = (ROOT / "tests").rglob(f"{test}.py")
        assert "python_blocks" in path.read_text() or "```python" in path.read_text(), (page, test)
