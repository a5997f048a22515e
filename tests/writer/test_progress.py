"""What the writer says when it gets nowhere, and that it says so once."""

from __future__ import annotations

import pytest

from ringlog.pressure import Alert, Level, Pressure, Resource
from ringlog.writer.progress import AWAY_SECONDS_MAX, STALL_SECONDS, Progress


def test_finding_17_a_table_that_stays_away_alerts_once(caplog: pytest.LogCaptureFixture) -> None:
    """Finding 17: away for a minute is one alert and one ERROR, with why; back again is one more, and counts anew."""
    alerts: list[Alert] = []
    pressure = Pressure([], alerts.append)
    progress = Progress(pressure)
    away = {"trades": "suspended"}
    for now in (0.0, AWAY_SECONDS_MAX - 1, AWAY_SECONDS_MAX, AWAY_SECONDS_MAX + 50):
        progress.look(now, away, 0, 0, "")
    progress.look(AWAY_SECONDS_MAX + 51, {}, 0, 0, "")
    progress.look(AWAY_SECONDS_MAX + 52, away, 0, 0, "")
    progress.look(AWAY_SECONDS_MAX + 53, {}, 0, 0, "")  # away again, for a moment: nothing to tell
    texts = [
        "table trades: away for 60 s, its records wait in the spool: suspended",
        "table trades: takes records again, after 111 s",
    ]
    assert alerts == [Alert(Resource.TABLE, Level.WARN, texts[0]), Alert(Resource.TABLE, Level.OK, texts[1])]
    assert pressure.alerts[Resource.TABLE] == 1
    assert [(record.levelname, texts[0] in record.message) for record in caplog.records] == [
        ("ERROR", True),
        ("WARNING", False),
    ]


def test_finding_19_records_that_nobody_takes_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Finding 19: records that wait while none is delivered for 10 s are told of once, with why."""
    caplog.set_level("INFO", "ringlog.writer")
    progress = Progress(Pressure([]))
    progress.look(0.0, {}, 5, 10, "why")
    progress.look(STALL_SECONDS - 1, {}, 5, 10, "why")
    assert progress.stalled == ""
    progress.look(STALL_SECONDS, {}, 5, 20, "why")
    progress.look(STALL_SECONDS + 1, {}, 5, 20, "another why")
    assert progress.stalled == "another why"
    progress.look(STALL_SECONDS + 2, {}, 6, 19, "why")
    assert progress.stalled == ""
    progress.look(5 * STALL_SECONDS, {}, 6, 0, "")  # nothing waits
    progress.look(9 * STALL_SECONDS, {}, 6, 0, "")
    progress.look(9 * STALL_SECONDS + 1, {}, 6, 1, "why")  # since just now
    assert progress.stalled == ""
    assert [record.message for record in caplog.records] == [
        "nothing delivered for 10 s, 20 records wait: why",
        "records are delivered again rows=6 waiting=19",
    ]
