"""`ringlog doctor` on a QuestDB whose table is really suspended."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from sink_batches import batch_of, deliver, numbered, wait_until

from ringlog.monitor.databases import servers
from ringlog.monitor.finding import Finding
from ringlog.questdb import tables
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import RecordLayout
from ringlog.settings import Settings


def test_a_suspended_table_is_named_and_its_fix_mends_it(
    own_sink: QuestdbSink, own_layout: RecordLayout, own_settings: Settings, tmp_path: Path
) -> None:
    """Suspended by the server, the table is a failure with what is not applied and the SQL that resumes it; that SQL
    works as it stands, and then nothing is to be done."""
    settings = msgspec.structs.replace(own_settings, runtime_dir=str(tmp_path / f"run-{os.getpid()}"))

    def found() -> list[Finding]:
        return [each for each in servers(settings, [own_layout], {}) if own_layout.table in each.text]

    deliver(own_sink, batch_of(own_layout, list(numbered(20))))
    assert [each.level for each in found()] == ["ok"]
    own_sink.connection.execute(f'alter table "{own_layout.table}" suspend wal')
    own_sink.send(own_sink.encode(batch_of(own_layout, list(numbered(20)), first_seq=20)))
    (failure,) = [each for each in found() if each.level == "fail"]
    assert failure.text == f"{own_layout.table}: suspended, 1 acknowledged transactions are not applied"
    statement = failure.fix.partition("then ")[2].partition(" (")[0]
    assert statement == f"ALTER TABLE {own_layout.table} RESUME WAL"
    own_sink.connection.execute(statement)
    wait_until(lambda: not tables.statuses(own_sink.connection)[own_layout.table].is_suspended, "the table to go on")
    assert [each.level for each in found()] == ["ok"]
