"""The torture and its oracle, short: the full length is `./scripts/torture`."""

from __future__ import annotations

import pytest

from torture.planted import BUGS
from torture.torture import torture


@pytest.mark.timeout(180)
def test_nothing_is_lost_doubled_or_altered() -> None:
    """A few seconds of random kills: what was accepted is stored, once, as it was; what was not attempted is not."""
    report = torture(seconds=5.0, seed=1, plant="", producers=2, rate=1_000.0)
    assert report["is_clean"], report
    assert report["accepted"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_full_length_of_it() -> None:
    """What `./scripts/torture --seconds 170` does: enough kills and records, few refused, none lost or altered."""
    report = torture(seconds=170.0, seed=3, plant="", producers=4, rate=4_000.0)
    accepted, refused, kills = report["accepted"], report["refused"], report["kills"]
    assert isinstance(accepted, int)
    assert isinstance(refused, int)
    assert isinstance(kills, dict)
    assert report["is_clean"], report
    assert sum(kills.values()) >= 60, report
    assert accepted >= 2_000_000, report
    assert refused <= 0.01 * (accepted + refused), report


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str) -> None:
    """The oracle catches every known bug within three runs: so its silence means something."""
    reports = []
    for seed in (1, 2, 3):
        reports.append(torture(seconds=75.0, seed=seed, plant=bug, producers=4, rate=2_000.0))
        if not reports[-1]["is_clean"]:
            return
    pytest.fail(f"{bug} was not caught: {reports}")
