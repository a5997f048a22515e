"""The promise over whole histories of a machine: with its reboots, refused rows and ledger, on every processor."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from histories.bugs import BUGS
from histories.history import Violation, play

SEEDS_FAST = 60
SEEDS_SLOW = 30_000
SEEDS_PLANTED_MAX = 400  # a bug is seen within so many, most of them in the first


def test_every_history_stores_what_was_accepted_exactly_once() -> None:
    """Crashes before any step of disk or shared memory, cuts of power, a bad server: nothing lost, doubled or altered.

    A failing seed is named, and played again by `python -m histories.history --seed N`.
    """
    deaths = 0
    for seed in range(SEEDS_FAST):
        try:
            deaths += play(seed)
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}")
    assert deaths > SEEDS_FAST  # or nothing was ever killed


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str) -> None:
    """The oracle is worth something: each of the known bugs breaks a promise in one of the first histories."""
    for seed in range(SEEDS_PLANTED_MAX):
        try:
            play(seed, bug)
        except Violation:
            return
    pytest.fail(f"{bug}: got {SEEDS_PLANTED_MAX} histories without a violation, wanted one")


def test_a_history_repeats_itself() -> None:
    """A seed is a history: played twice, the writer dies as often, whatever else the process did between."""
    assert [play(seed) for seed in range(10)] == [play(seed) for seed in range(10)]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_thirty_thousand_histories() -> None:
    """30,000 seeds, on every processor: not one violation."""
    parts = 100
    each = SEEDS_SLOW // parts
    tests = Path(__file__).parents[1]

    def play(part: int) -> subprocess.CompletedProcess[str]:
        first = SEEDS_FAST + part * each
        command = [sys.executable, "-m", "histories.history", "--seed", str(first), "--seeds", str(each)]
        return subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(tests)}, capture_output=True, text=True, check=False
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for ran in pool.map(play, range(parts)):
            assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
