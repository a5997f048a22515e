"""append and decode under pytest-benchmark: `pytest tests/benchmarks --benchmark-only` compares runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.append import Lane
from bench.trades import FIELDS, PRESETS, slots, trades, varying
from ringlog.decode import Decoder, Slots
from ringlog.records import Trade, layout_of

ROWS = 1000


@pytest.mark.parametrize("presets", [{}, PRESETS], ids=["17 fields", "bound, 8 fields"])
def test_append(benchmark: Any, presets: dict[str, Any]) -> None:
    """append takes records that differ one after another, and refuses none while the lane is emptied."""
    lane = Lane()
    append = lane.append(presets)
    records = varying(trades(ROWS)) if presets else trades(ROWS)

    def appended() -> bool:
        lane.empty()
        return all([append(*record) for record in records])

    assert benchmark(appended)
    assert not any(lane.ring.refused())


def test_decode(benchmark: Any) -> None:
    """decode turns a thousand slots into columns of a thousand rows in order."""
    array = slots(ROWS)
    array["seq"] = np.arange(ROWS)
    decoder = Decoder(layout_of(Trade))
    columns, sound, corrupt = benchmark(decoder.decode, [Slots(1, 0, ROWS, array.view(np.uint8))])
    assert (sound[0].rows, corrupt) == (ROWS, [])
    assert np.array_equal(columns["executed_price"], array["executed_price"])
    assert set(columns) == {*FIELDS, "timestamp", "lane", "seq"}
