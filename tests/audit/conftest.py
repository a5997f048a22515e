from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from whole_path import WholePath

from ringlog.servers import QuestDBServer
from ringlog.settings import Settings


@pytest.fixture
def path(questdb_server: QuestDBServer, settings: Settings, tmp_path: Path) -> Iterator[WholePath]:
    """A fresh instance and an empty table on the session's QuestDB."""
    settings = msgspec.structs.replace(settings, lane_bytes_max=8 << 20, lane_linger_ms=50)
    whole = WholePath(questdb_server, settings, tmp_path / "logs")
    yield whole
    whole.close()
