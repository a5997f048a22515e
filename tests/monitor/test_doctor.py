"""`ringlog doctor` and `ringlog validate`: what is wrong is found and named with its fix; looking changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from lane_samples import Sample, child, eventually
from writer_thread import writing

from ringlog.cli import ringlog
from ringlog.lanes.claims import open_board
from ringlog.lanes.instance import Instance
from ringlog.monitor.findings import Finding, diagnosed, validated
from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import migrate
from ringlog.records import PLATFORM_RECORDS, layout_of
from ringlog.settings import Settings
from ringlog.sinks.memory import MemorySink

LAYOUTS = [layout_of(record) for record in PLATFORM_RECORDS]


def failed(found: list[Finding]) -> list[Finding]:
    assert all(finding.fix for finding in found if finding.level != "ok"), found
    return [finding for finding in found if finding.level == "fail"]


def test_a_sound_system_has_nothing_to_do(settings: Settings) -> None:
    """With a writer, migrated tables and a server that answers, no finding fails."""
    settings = msgspec.structs.replace(settings, request_timeout_ms=15_000)
    migrate(settings, LAYOUTS)
    with writing(settings, MemorySink()):
        board = open_board(Instance(settings).open())
        eventually(board.read_status, "the writer's first tick")
        found = list(diagnosed(settings, LAYOUTS, {}))
    assert [finding for finding in failed(found) if finding.check != "tables" or "suspended" not in finding.text] == []
    assert {"settings", "shared memory", "writer", "lanes", "disks", "questdb", "clocks", "tables"} <= {
        finding.check for finding in found
    }


def test_what_is_wrong_is_named(settings: Settings) -> None:
    """A dead owner without a writer, an open directory, a table without DEDUP and small shared memory: each found."""
    settings = msgspec.structs.replace(settings, request_timeout_ms=15_000, lane_bytes_max=1 << 50)
    with child(settings, "say('ready')\nsys.stdin.readline()") as process:
        assert process.line() == "ready"
        process.kill()
    os.chmod(settings.runtime_dir, 0o755)  # noqa: S103
    connection = Connection.from_settings(settings)
    connection.execute("drop table if exists samples")
    connection.execute(
        "create table samples (timestamp timestamp, lane long) timestamp(timestamp) partition by day wal"
    )
    found = failed(list(diagnosed(settings, [layout_of(Sample)], {})))
    connection.execute("drop table samples")
    connection.close()
    texts = {finding.check: finding.text for finding in found}
    assert {"directories", "shared memory", "writer", "lanes", "tables"} <= texts.keys()
    assert "0755" in texts["directories"]
    assert "dead" in texts["lanes"]
    assert any("DEDUP" in finding.text for finding in found if finding.check == "tables")


def test_a_server_that_is_down(lane_settings: Settings) -> None:
    """A closed port is named with the setting to mend; no exception, no password."""
    settings = msgspec.structs.replace(lane_settings, questdb_http_port=1, questdb_pg_port=1)
    found = [finding for finding in failed(list(diagnosed(settings, LAYOUTS, {}))) if finding.check == "questdb"]
    assert "Connection refused" in found[0].text
    assert "RINGLOG_QUESTDB_HOST" in found[0].fix


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"drain_interval_ms": 0}, "drain_interval_ms: got 0"),
        ({"high_water_ratio": 2.0}, "high_water_ratio: got 2.0"),
        ({"query_pool_size_max": 1}, "query_pool_size_max: got 1"),
        ({"questdb_client_conf": "tcp::addr=x:1;"}, "got scheme 'tcp'"),
    ],
)
def test_wrong_settings(changes: dict[str, object], text: str) -> None:
    """Values that no part could work with are found without any system."""
    (finding,) = failed(list(validated(msgspec.structs.replace(Settings(), **changes), LAYOUTS)))
    assert text in finding.text


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`validate` exits 0 and makes nothing, 1 for an unknown variable; `doctor` exits 1 where nothing runs."""
    monkeypatch.setenv("RINGLOG_RUNTIME_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("RINGLOG_QUESTDB_HTTP_PORT", "1")
    monkeypatch.setenv("RINGLOG_QUESTDB_PG_PORT", "1")
    sound = CliRunner().invoke(ringlog, ["validate", "--json"])
    assert (sound.exit_code, json.loads(sound.output)["healthy"]) == (0, True)
    ill = CliRunner().invoke(ringlog, ["doctor"])
    assert ill.exit_code == 1
    assert "fix: start `ringlog writer`" in ill.output
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RINGLOG_LANE_BITES_MAX", "1")
    wrong = CliRunner().invoke(ringlog, ["validate"])
    assert wrong.exit_code == 1
    assert "RINGLOG_LANE_BITES_MAX: got an unknown option" in wrong.output
