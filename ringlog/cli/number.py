"""Numbers of the command line."""

from __future__ import annotations

import math
from typing import Any

import click

UNLIMITED = "max"


class Number(click.FloatRange):
    """A finite number within a range; click's own type lets nan through, of which every comparison is false.

    With `or_max` the word max is taken too, and becomes 0.0.
    """

    name = "number"

    def __init__(self, min: float, max: float | None = None, *, min_open: bool = False, or_max: bool = False) -> None:
        super().__init__(min, max, min_open=min_open)
        self._or_max = or_max
        lowest = f"above {min:,.10g}" if min_open else f"from {min:,.10g} on"
        range_text = (
            lowest
            if max is None
            else f"above {min:,.10g}, at most {max:,.10g}"
            if min_open
            else f"{min:,.10g} to {max:,.10g}"
        )
        self.wanted = f"a number {range_text}{', or max' if or_max else ''}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if self._or_max and value == UNLIMITED:
            return 0.0
        try:
            number = float(value)
            super().convert(number, param, ctx)
        except (ValueError, click.BadParameter):
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"got {value!r}, wanted {self.wanted}", param, ctx)
        return number
