from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lane_samples import eventually
from whole_path import WholePath

from ringlog.servers import QuestDBServer
from ringlog.settings import Settings


@pytest.fixture
def path(mortal_server: QuestDBServer, instance_dir: Path, tmp_path: Path) -> Iterator[WholePath]:
    """A fresh instance and an empty table on the mortal server, which answers again when the test is over."""
    settings = Settings(
        runtime_dir=str(instance_dir), lane_bytes_max=16 << 20, lane_linger_ms=50, **mortal_server.settings()
    )
    whole = WholePath(mortal_server, settings, tmp_path / "logs")
    yield whole
    whole.close()
    mortal_server.continue_signal()
    mortal_server.start()
    eventually(mortal_server.answers, "the server to answer")
