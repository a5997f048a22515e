"""Removal: a lane's files go once it is drained, and the log says so only when they are gone."""

from __future__ import annotations

import pytest
from lane_samples import Drained, child, eventually

from ringlog.lanes.segments import unlink_segment
from ringlog.settings import Settings

APPEND_100 = "for number in range(100): assert appender.append(number, text_of(number))\n"
HOLD_CLAIMS = """
import fcntl, os, sys
lock = open(os.environ["CLAIMS"], "r+")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("is_there", [True, False], ids=["drained", "vanished"])
def test_finding_24_a_lane_that_cannot_be_removed_is_not_called_removed(
    lane_settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """Finding 24: "could not be removed yet" comes once and alone; "removed" only once the lane's files are gone."""
    caplog.set_level("INFO", "ringlog.lanes")
    with child(lane_settings, APPEND_100 + "os.kill(os.getpid(), signal.SIGKILL)") as producer:
        producer.ended(None)
    drained = Drained(lane_settings)
    (card,) = drained.cards()
    if not is_there:
        unlink_segment(card.segment)
    monkeypatch.setenv("CLAIMS", str(drained.instance.claims_path))
    with child(lane_settings, HOLD_CLAIMS, prelude="") as holder:
        assert holder.line() == "held"

        def looked(times: int = 0) -> bool:
            drained.drain()
            drained.directory.adopt()
            return caplog.text.count("could not be removed yet") > times

        eventually(looked, "a removal to fail")
        for _ in range(3):
            looked()
        assert caplog.text.count("could not be removed yet") == 1
        assert caplog.text.count("is gone") == (not is_there)
        assert " removed accepted" not in caplog.text
        assert drained.cards() == [card]
        holder.go_on()
        holder.ended()
    drained.until_gone()
    assert caplog.text.count("removed accepted=100") == is_there
    assert list(drained.instance.lanes_dir.iterdir()) == []
