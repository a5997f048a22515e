"""Percentiles from a histogram of log buckets: what the view keeps per minute, and what is read out of it.

A value v > 0 belongs to bucket floor(ln(v) / ln(1.02)). A bucket answers with its geometric midpoint, so the relative
error is at most sqrt(1.02) - 1 = 0.995 %. Zero has a bucket of its own, and negative values mirror the positive ones.
The order of the bucket numbers is the order of the values. Percentiles are by nearest rank: the ceil(p/100 * n)-th
smallest of n values, never an interpolation (NIST/SEMATECH e-Handbook 7.2.6.2 calls it the "nearest rank" definition).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal

RATIO = 1.02
# Above every |floor(ln(v) / ln(1.02))| of a double (-37,622 to 35,843), so that signs cannot meet.
ZERO_DISTANCE = 40_000


def bucket_sql(column: str) -> str:
    """The bucket number of `column` as an SQL expression (INT); `column` is an identifier of ours, never user input."""
    return (
        f"CASE WHEN {column} > 0 THEN {ZERO_DISTANCE} + floor(ln({column}) / ln({RATIO}))::int "
        f"WHEN {column} < 0 THEN -{ZERO_DISTANCE} - floor(ln(-{column}) / ln({RATIO}))::int ELSE 0 END"
    )


def bucket_of(value: float) -> int:
    """The same in Python: the reference for tests."""
    if value == 0:
        return 0
    distance = ZERO_DISTANCE + math.floor(math.log(abs(value)) / math.log(RATIO))
    return distance if value > 0 else -distance


def bucket_value(bucket: int) -> float:
    """What a bucket answers with: its geometric midpoint, in the unit of the values."""
    if bucket == 0:
        return 0.0
    exponent = (abs(bucket) - ZERO_DISTANCE + 0.5) * math.log(RATIO)
    try:
        magnitude = math.exp(exponent)
    except OverflowError:
        magnitude = sys.float_info.max
    return math.copysign(magnitude, bucket)


def nearest_rank(percentile: float, samples: int) -> int:
    """The rank (from 1) of the percentile (0 < percentile <= 100) among `samples` sorted values.

    In decimal: 99.9 % of 1,000 is rank 999, not the 1,000 that binary rounding gives.
    """
    rank = (Decimal(str(percentile)) * samples / 100).to_integral_value(ROUND_CEILING)
    return min(max(int(rank), 1), samples)


def histogram_percentiles(histogram: Mapping[int, int], percentiles: Sequence[float]) -> list[float]:
    """One value per percentile, in the order asked; `histogram` (bucket to count) must hold at least one sample."""
    buckets = sorted(histogram.items())
    samples = sum(histogram.values())
    values: dict[float, float] = {}
    position, seen = -1, 0
    for percentile in sorted(percentiles):
        rank = nearest_rank(percentile, samples)
        while seen < rank:
            position += 1
            seen += buckets[position][1]
        values[percentile] = bucket_value(buckets[position][0])
    return [values[percentile] for percentile in percentiles]
