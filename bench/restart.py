"""A supervised writer killed with -9 under 10,000 trades/s from four producers: what is refused, how long it is away.

The next writer is started at once, as a supervisor would; the next kill comes when it has drained the lanes.

    python -m bench.restart [--json] [--tiny]
"""

from __future__ import annotations

import contextlib
import time

from bench.figures import Figure, Result, main, percentiles
from bench.load import REACHED, beside
from bench.stack import connect, count, fresh, lanes, server, start_writer, wait_for, wait_until_applied
from ringlog.lanes.views import LaneView
from ringlog.servers import QuestDBServer

PRODUCERS = 4
RATE = 2_500.0  # trades/s of each
KILLS = 8
DRAINED = 0.1  # of a lane's slots: what a tick or two leave in it
SHUTDOWN_SECONDS = 20.0


def filled(views: list[LaneView]) -> float:
    """The fullest lane's part that waits."""
    return max((view.head - view.tail) / view.capacity for view in views)


def away(views: list[LaneView]) -> tuple[float, float]:
    """Until the writer that was just started moves a tail: seconds, and the fullest lane's part that waits."""
    began, tails, fullest = time.monotonic(), [view.tail for view in views], 0.0

    def is_back() -> bool:
        nonlocal fullest
        fullest = max(fullest, filled(views))
        return [view.tail for view in views] != tails

    wait_for(is_back, "tail that moves")
    return time.monotonic() - began, fullest


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    seconds: list[float] = []
    fullest: list[float] = []
    with server(running) as questdb, fresh(questdb) as settings, connect(settings) as connection:
        before = count(connection, "trades")
        process = start_writer(settings)
        with contextlib.ExitStack() as held:
            with beside(settings, {"Trade": RATE}, PRODUCERS) as flow:
                views = lanes(settings, held)
                for _ in range(1 if tiny else KILLS):
                    wait_for(lambda: all(view.tail for view in views) and filled(views) < DRAINED, "drained lanes")
                    process.kill()
                    process.wait()
                    process = start_writer(settings)
                    took, part = away(views)
                    seconds.append(took)
                    fullest.append(part)
                appended = flow.reached().accepted_per_second
            accepted, refused = sum(view.head for view in views), sum(sum(view.refused) for view in views)
            wait_until_applied(connection, "trades", before + accepted)
        process.terminate()
        process.wait(SHUTDOWN_SECONDS)
        stored = count(connection, "trades") - before
    return Result(
        benchmark="restart",
        what="a supervised writer killed at 10,000 trades/s",
        figures=[
            Figure(name="kills", value=len(seconds)),
            Figure(name="appended", value=appended, unit="trades/s", at_least=REACHED * PRODUCERS * RATE),
            Figure(name="refused", value=refused, unit="trades", at_most=0),
            Figure(name="lost", value=accepted - stored, unit="trades", at_least=0, at_most=0),
            Figure(name="away, median", value=percentiles(seconds)["p50"], unit="s"),
            Figure(name="away, longest", value=max(seconds), unit="s"),
            Figure(name="fullest lane meanwhile", value=100 * max(fullest), unit="% of its slots"),
        ],
        details={"away_s": seconds, "fullest": fullest, "accepted": accepted},
    )  # fmt: skip


if __name__ == "__main__":
    main(run)
