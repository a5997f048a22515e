"""The histogram's arithmetic, the cutting of spans, and the SQL files against the code."""

from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringlog.questdb.migrations import script
from ringlog.questdb.percentiles import RATIO, bucket_of, bucket_value, histogram_percentiles, nearest_rank
from ringlog.questdb.rollups import REFRESH_US, ROLLUPS, Rollup
from ringlog.questdb.spans import MINUTE_US, pieces
from ringlog.questdb.views import normalised

values = st.floats(min_value=-1e12, max_value=1e12, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-9)


@given(st.lists(values, min_size=1, max_size=200), st.floats(min_value=0.01, max_value=100))
def test_percentile_within_one_percent(samples: list[float], percentile: float) -> None:
    """The histogram's percentile is within 1 % of the exact nearest-rank percentile, for any signs and sizes."""
    histogram: dict[int, int] = {}
    for value in samples:
        histogram[bucket_of(value)] = histogram.get(bucket_of(value), 0) + 1
    exact = sorted(samples)[nearest_rank(percentile, len(samples)) - 1]
    answer = histogram_percentiles(histogram, [percentile])[0]
    assert abs(answer - exact) <= 0.01 * abs(exact)


@given(values, values)
def test_bucket_order_is_value_order(one: float, other: float) -> None:
    """Buckets are ordered as the values are: a smaller value never has a larger bucket."""
    low, high = sorted((one, other))
    assert bucket_of(low) <= bucket_of(high)


def test_extreme_values() -> None:
    """The largest and smallest doubles have buckets whose values are finite and have the right sign."""
    for value in (1.7976931348623157e308, 2.2250738585072014e-308):
        for signed in (value, -value):
            answer = bucket_value(bucket_of(signed))
            assert math.isfinite(answer)
            assert abs(answer / signed - 1) <= math.sqrt(RATIO) - 1 + 1e-9


def test_nearest_rank_in_decimal() -> None:
    """Ranks are computed in decimal: 99.9 % of 1,000 is rank 999, and 100 % is the last."""
    assert nearest_rank(99.9, 1_000) == 999
    assert nearest_rank(50, 1) == 1
    assert nearest_rank(0.001, 10) == 1
    assert nearest_rank(100, 7) == 7
    assert nearest_rank(50, 4) == 2
    assert nearest_rank(50, 5) == 3


def test_percentiles_keep_the_order_asked() -> None:
    """Percentiles asked in any order, and twice, are answered in that order."""
    histogram = {bucket_of(float(value)): 1 for value in (1, 10, 100, 1_000)}
    high, low, again = histogram_percentiles(histogram, [100, 25, 100])
    assert low < high == again


@given(
    st.integers(min_value=0, max_value=10**16),
    st.integers(min_value=0, max_value=40 * 86_400_000_000),
    st.sampled_from(["newest", "oldest"]),
    st.floats(min_value=-1, max_value=100),
)
def test_pieces_cover_the_span(start: int, length: int, order: str, seconds: float) -> None:
    """The pieces cover the span without gap or overlap, in order, with inner borders on whole minutes."""
    deadline = time.monotonic() + seconds
    found = []
    for piece in pieces(start, start + length, deadline, order=order):  # type: ignore[arg-type]
        found.append(piece)
        if len(found) > 50:  # out of time, pieces are a minute long: enough of them have been seen
            break
    ordered = found[::-1] if order == "newest" else found
    for (_, high), (low, _) in itertools.pairwise(ordered):
        assert high == low
        assert low % MINUTE_US == 0
    assert all(low < high for low, high in found)
    if len(found) <= 50:
        assert sum(high - low for low, high in found) == length


@pytest.mark.parametrize("rollup", ROLLUPS, ids=lambda rollup: rollup.view)
def test_sql_file_is_the_rollup(rollup: Rollup) -> None:
    """The view's SQL file asks exactly what the queries rely on."""
    text = normalised(script(rollup.view) or "")
    assert normalised(f"REFRESH EVERY {REFRESH_US // MINUTE_US}m AS ({rollup.definition})") in text
    assert f"create materialized view if not exists {rollup.view} with base {rollup.table} " in text
