"""What the command line asks of the demo."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Options(msgspec.Struct, kw_only=True):
    """`rate` is records/s of all executors together, 0 for as fast as they can; `speed` is that of a recording.

    With `session` the paper-trading session runs too, and its report is written to the directory `report`.
    """

    recording: Path | None = None
    producers: int = 4
    rate: float = 10_000.0
    seconds: float = 10.0
    speed: float = 30.0
    seed: int = 1
    keep: Path | None = None
    session: bool = False
    report: Path | None = None
