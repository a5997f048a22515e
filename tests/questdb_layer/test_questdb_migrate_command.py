"""`ringlog migrate` as a user runs it, against a real server, with a record type of the user's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sink_batches import fresh_layout

from ringlog.questdb import tables
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.settings import PREFIX, Settings

OWN_RECORD = '''
from typing import Annotated
from ringlog.records import Record, Symbol

class Fill(Record):
    """A user's own record type."""

    __table__ = "{table}"
    venue: Annotated[str, Symbol(16)]
    price: float
'''


@pytest.fixture
def environment(own_settings: Settings) -> dict[str, str]:
    fields = ("questdb_http_port", "questdb_pg_port", "questdb_user", "request_timeout_ms")
    found = {f"{PREFIX}{name.upper()}": str(getattr(own_settings, name)) for name in fields}
    return {**os.environ, **found, f"{PREFIX}QUESTDB_PASSWORD": own_settings.questdb_password.reveal()}


def migrate(environment: dict[str, str], cwd: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "ringlog", "migrate", "--json", *options]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=100)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_migrate_makes_verifies_and_names_what_differs(
    own_sink: QuestdbSink, environment: dict[str, str], tmp_path: Path
) -> None:
    """--check only tells (exit 1), a run makes everything (exit 0), a drifted table is named while others go on."""
    tables_wanted = [layout_of(record_type).table for record_type in PLATFORM_RECORDS]
    own = fresh_layout().table
    (tmp_path / "fills.py").write_text(OWN_RECORD.format(table=own))
    options = ("--record", "fills:Fill", "--only", "questdb")

    status, facts, _ = migrate(environment, tmp_path, "--check", *options)
    assert status == 1
    assert facts["checked_only"]
    assert own not in tables.statuses(own_sink.connection)

    status, facts, said = migrate(environment, tmp_path, *options)
    assert (status, said) == (0, "")
    assert [one["name"] for one in facts["migrations"]][: len(tables_wanted) + 1] == [*tables_wanted, own]
    assert set(tables_wanted) < set(tables.statuses(own_sink.connection))
    found = {column.name: column.type for column in tables.columns(own_sink.connection, own)}
    assert (found["venue"], found["price"]) == ("SYMBOL", "DOUBLE")

    own_sink.connection.execute(f'alter table "{own}" alter column price type long')
    status, facts, _ = migrate(environment, tmp_path, *options)
    assert status == 1
    problems = {one["name"]: one["problem"] for one in facts["migrations"] if one["problem"]}
    assert problems == {own: f"{own}.price: got LONG, wanted DOUBLE"}

    status, _, said = migrate(environment, tmp_path, "--record", "fills:Nothing")
    assert status == 2
    assert "--record: got 'fills:Nothing', wanted package.module:Class" in said


def test_migrate_says_what_it_cannot_reach(environment: dict[str, str], tmp_path: Path) -> None:
    """A server that is down is named in one line, exit 1, without the password."""
    environment = {**environment, f"{PREFIX}QUESTDB_PG_PORT": "1"}
    status, facts, said = migrate(environment, tmp_path, "--only", "questdb")
    assert status == 1
    (one,) = facts["migrations"]
    assert "QuestDB at 127.0.0.1:1" in one["problem"]
    assert environment[f"{PREFIX}QUESTDB_PASSWORD"] not in json.dumps(facts) + said
