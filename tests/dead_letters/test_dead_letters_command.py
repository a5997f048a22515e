"""`ringlog dead-letters` against real files and a real QuestDB."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from ringlog.cli import ringlog
from ringlog.dead_letters import DeadLetters, Refused
from ringlog.dead_letters.letter import slot_of
from ringlog.disk import Directory
from ringlog.questdb import tables
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import LatencySample, RecordLayout, layout_of
from ringlog.settings import Settings

TIMESTAMP_US = 1_767_225_600_000_000


@pytest.fixture
def layout() -> RecordLayout:
    """A record type's layout for a table of this test alone."""
    return msgspec.structs.replace(layout_of(LatencySample), table=f"latencies_{secrets.token_hex(6)}")


@pytest.fixture
def letters(instance_dir: Path, layout: RecordLayout) -> RecordLayout:
    """Three dead letters in the instance's spool, of lane 0xabc."""
    (instance_dir / "spool").mkdir(mode=0o700)
    directory = Directory.open(instance_dir / "spool" / "dead_letters")
    refused = []
    for seq in range(3):
        fields = {"service": "rpc", "operation": "send", "latency_us": seq / 2, "timestamp": TIMESTAMP_US + seq}
        refused.append(Refused(0xABC, seq, "column is missing", slot_of(layout, seq, fields)))
    DeadLetters(directory).keep(layout, refused)
    directory.close()
    return layout


def run(instance_dir: Path, *arguments: str, **environment: str) -> Result:
    command = ["dead-letters", *arguments, "--runtime-dir", str(instance_dir)]
    return CliRunner().invoke(ringlog, command, env=environment)


def test_list_and_export(instance_dir: Path, letters: RecordLayout) -> None:
    """A person sees origin and reason of every letter, a program gets all fields, and options choose among them."""
    shown = run(instance_dir, "list")
    assert shown.exit_code == 0
    assert shown.output.count("column is missing") == 3
    assert f"{letters.table} lane=0000000000000abc seq=2: column is missing" in shown.output
    listed = json.loads(run(instance_dir, "list", "--json", "--lane", "abc", "--seq", "1").output)["dead_letters"]
    assert [letter["record"]["latency_us"] for letter in listed] == [0.5]
    lines = run(instance_dir, "export", "--table", letters.table).output.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [0, 1, 2]
    assert run(instance_dir, "export", "--table", "other").output == ""


def test_an_instance_without_letters(instance_dir: Path) -> None:
    """Where nothing was ever refused the commands say so, and make nothing on disk."""
    assert run(instance_dir, "list").output == "0 dead letters\n"
    assert run(instance_dir, "retry").output == "0 delivered, 0 refused again\n"
    assert list(instance_dir.iterdir()) == []


def test_retry_delivers_each_once_under_its_own_key(
    instance_dir: Path, letters: RecordLayout, settings: Settings, questdb_server
) -> None:
    """While the table is missing a retry refuses all and exits 1; then it delivers them; a third finds nothing left."""
    environment = {
        "RINGLOG_" + name.upper(): getattr(value, "reveal", lambda value=value: str(value))()
        for name, value in questdb_server.settings().items()
    }
    environment["RINGLOG_REQUEST_TIMEOUT_MS"] = "15000"  # a busy server may answer after more than a second
    first = run(instance_dir, "retry", "--json", **environment)
    assert first.exit_code == 1
    assert [again["seq"] for again in json.loads(first.output)["refused"]] == [0, 1, 2]
    sink = QuestdbSink(msgspec.structs.replace(settings, request_timeout_ms=15_000))
    try:
        tables.apply(sink.connection, letters, tables.needed(sink.connection, letters))
        second = run(instance_dir, "retry", "--json", **environment)
        assert json.loads(second.output) == {"delivered": 3, "refused": []}
        assert second.exit_code == 0
        assert run(instance_dir, "retry", **environment).output == "0 delivered, 0 refused again\n"
        query = f'select lane, seq, latency_us from "{letters.table}" order by seq'
        assert [tuple(row) for row in sink.connection.execute(query)] == [(0xABC, seq, seq / 2) for seq in range(3)]
    finally:
        sink.connection.execute(f'drop table if exists "{letters.table}"')
        sink.close()
