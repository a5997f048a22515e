"""The sink's benchmark runs, tiny, so that it cannot rot; what it measures is asserted nowhere."""

from __future__ import annotations

import math

from bench import questdb_sink
from ringlog.servers import QuestDBServer


def test_the_sinks_benchmark_runs(questdb_server: QuestDBServer) -> None:
    """Every figure is a number, and there is one for each way to encode, each question and each kind of write."""
    result = questdb_sink.run(tiny=True, running=questdb_server)
    assert all(math.isfinite(figure.value) for figure in result.figures)
    assert {figure.name.split()[0].rstrip(":") for figure in result.figures} == {"encode", "ask", "write"}
