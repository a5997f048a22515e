from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from sink_batches import fresh_layout, wait_until

from ringlog.questdb import tables
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import RecordLayout
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

# A machine that runs other things beside the tests may take longer than a writer would wait.
PATIENT_MS = 15_000


@pytest.fixture(autouse=True)
def patient_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of a table waits for schema changes to be applied, for which a busy machine may need its time."""
    monkeypatch.setattr(tables, "SETTLE_TIMEOUT_S", PATIENT_MS / 1000)


@pytest.fixture
def sink(settings: Settings) -> Iterator[QuestdbSink]:
    """A sink to the session's QuestDB."""
    sink = QuestdbSink(msgspec.structs.replace(settings, request_timeout_ms=PATIENT_MS))
    yield sink
    sink.close()


@pytest.fixture
def layout(sink: QuestdbSink) -> Iterator[RecordLayout]:
    """A table with a column of every kind that this test has for itself."""
    layout = fresh_layout()
    tables.apply(sink.connection, layout, tables.needed(sink.connection, layout))
    yield layout
    sink.connection.execute(f'drop table if exists "{layout.table}"')


@pytest.fixture
def own_settings(mortal_server: QuestDBServer) -> Iterator[Settings]:
    """Settings that lead to `mortal_server`, which is up and answers again when the test is over."""
    settings = Settings(**mortal_server.settings(), request_timeout_ms=PATIENT_MS)
    yield settings
    mortal_server.continue_signal()
    mortal_server.start()
    wait_until(mortal_server.answers, "the server answers")


@pytest.fixture
def own_sink(own_settings: Settings) -> Iterator[QuestdbSink]:
    """A sink to `mortal_server`."""
    sink = QuestdbSink(own_settings)
    yield sink
    sink.close()


@pytest.fixture
def own_layout(own_sink: QuestdbSink) -> RecordLayout:
    """A table of every kind on `mortal_server`."""
    layout = fresh_layout()
    tables.apply(own_sink.connection, layout, tables.needed(own_sink.connection, layout))
    return layout
