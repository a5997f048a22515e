"""What the processes of a paper-trading session are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringlog.demo.feed import Survey
from ringlog.demo.options import Options
from ringlog.demo.paper_session import _plan
from ringlog.settings import Settings


@pytest.mark.parametrize(
    ("rate", "speed", "wanted"), [(1_000.0, 30.0, (500.0, 0.0)), (0.0, 30.0, (0.0, 30.0)), (0.0, 0.0, (0.0, 0.0))]
)
def test_a_rate_sets_the_pace_instead_of_the_recording(
    tmp_path: Path, rate: float, speed: float, wanted: tuple[float, float]
) -> None:
    """With --rate the recording's own pace does not hold the executors back; without one it does."""
    options = Options(recording=tmp_path / "feed", producers=2, rate=rate, speed=speed)
    plan = _plan(options, Survey(symbols=["BTCUSDT"]), Settings(runtime_dir=str(tmp_path)), tmp_path)
    assert (plan.rate, plan.speed) == wanted
    assert (plan.wait_for(3_600_000_000, 1e12) > 0) is bool(plan.speed)
