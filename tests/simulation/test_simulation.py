"""The simulation over many seeds; and that it finds what is planted, or its silence would mean nothing."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ringlog.lanes import readers
from ringlog.writer.delivery import Delivery, Settled
from simulation.simulation import Simulation, simulated

FAST_SEEDS = 200
SLOW_SEEDS = 100_000
PLANTED_SEEDS = 300


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of writers in trouble say so in their logs, which costs more than the trouble."""
    logger = logging.getLogger("ringlog")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


@pytest.mark.timeout(300)
def test_many_seeds_keep_every_record_once() -> None:
    """Whatever dies at whatever step, accepted records are stored once, as they were; the writer dies often."""
    outcomes = [simulated(seed) for seed in range(FAST_SEEDS)]
    assert [outcome for outcome in outcomes if not outcome.is_clean] == []
    assert sum(outcome.crashes for outcome in outcomes) > FAST_SEEDS
    assert sum(outcome.accepted for outcome in outcomes) > 50 * FAST_SEEDS


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_hundred_thousand_seeds_keep_every_record_once() -> None:
    """The same over 100,000 seeds; the first that fails is named and can be replayed by itself."""
    for seed in range(SLOW_SEEDS):
        outcome = simulated(seed)
        assert outcome.is_clean, f"python -m simulation.simulation --first {seed} --seeds 1: {outcome}"


def test_a_seed_is_replayed_as_it_was() -> None:
    """The same seed makes the same choices: what failed once can be looked at again."""
    for seed in range(10):
        assert simulated(seed) == simulated(seed)


def early_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records count as safe when they were handed to the sender."""
    submit = Delivery.submit

    def early(self: Delivery, batch: Any, settle: Callable[[Settled], None]) -> None:
        submit(self, batch, lambda _settled: None)
        settle(Settled())

    monkeypatch.setattr(Delivery, "submit", early)


def live_lane_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every owner seems dead, and is not told that its lane was taken."""
    monkeypatch.setattr(readers, "is_locked", lambda _path: False)
    monkeypatch.setattr(readers.LaneReader, "retire", lambda _self: None)


def believed_204(simulation: Simulation) -> None:
    """What the server acknowledged counts as applied."""
    simulation.server.believes_in_204 = True


def skipped_fsync(simulation: Simulation) -> None:
    """An fsync of a file keeps nothing of it."""
    remember = simulation.world.disk.remember

    def directories_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            remember(descriptor)

    simulation.world.disk.remember = directories_alone  # type: ignore[method-assign]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", [early_tail, live_lane_adopted])
def test_a_bug_in_the_code_is_found(bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bug planted in writer or lanes, some seed loses records."""
    bug(monkeypatch)
    assert any(simulated(seed).lost for seed in range(PLANTED_SEEDS)), bug.__doc__


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", [believed_204, skipped_fsync])
def test_a_bug_in_what_is_believed_is_found(bug: Callable[[Simulation], None]) -> None:
    """With a server or a disk that is believed too early, some seed loses records."""
    assert any(simulated(seed, bug).lost for seed in range(PLANTED_SEEDS)), bug.__doc__
