from __future__ import annotations

from collections.abc import Iterator

import pytest
from questdb_batches import fresh_layout

from ringlog.questdb import tables
from ringlog.questdb.sink import QuestdbSink
from ringlog.records import RecordLayout
from ringlog.settings import Settings


@pytest.fixture
def sink(settings: Settings) -> Iterator[QuestdbSink]:
    """A sink to the session's QuestDB."""
    sink = QuestdbSink(settings)
    yield sink
    sink.close()


@pytest.fixture
def layout(sink: QuestdbSink) -> Iterator[RecordLayout]:
    """A table with a column of every kind that this test has for itself."""
    layout = fresh_layout()
    tables.apply(sink.connection, layout, tables.needed(sink.connection, layout))
    yield layout
    sink.connection.execute(f'drop table if exists "{layout.table}"')
