"""What `ringlog top` and `ringlog tap` cost an append, at 100,000 trades/s: a tenth of them timed one by one.

The onlookers are processes of their own, as a person starts them; rounds with none, top and tap take turns.

    python -m bench.onlookers [--json] [--tiny]
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.append import paced
from bench.figures import Figure, Result, main
from bench.load import REACHED, Reached, beside
from bench.stack import TIMEOUT_SECONDS, instance, server, wait_for
from ringlog import Producer
from ringlog.records import Trade
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings

ROUNDS = 7
# Calls/s of which half are appends, and what another producer appends beside them: 100,000 trades/s in all.
PACE, BESIDE = 20_000, 90_000
ONLOOKERS = {"none": (), "top": ("top", "--json", "--interval", "0.5"), "tap": ("tap", "trades", "--json")}


@contextlib.contextmanager
def looking(arguments: tuple[str, ...], settings: Settings, said: list[str]) -> Iterator[None]:
    """An onlooker that has begun to show something; what it says on stderr in the end goes to `said`."""
    if not arguments:
        yield
        return
    with tempfile.TemporaryDirectory() as directory:
        shown = Path(directory) / "shown"
        environment = {**os.environ, "RINGLOG_RUNTIME_DIR": settings.runtime_dir}
        with shown.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "ringlog", *arguments], env=environment, stdout=out, stderr=subprocess.PIPE
            )
            try:
                wait_for(lambda: shown.stat().st_size, f"output of {arguments[0]}")
                yield
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    said.append(process.communicate(timeout=TIMEOUT_SECONDS)[1].decode())
                finally:
                    process.kill()


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    # Who runs this in the background may have ignored it, and the onlookers, which end with it, would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seconds, rounds = (0.1, 1) if tiny else (1.5, ROUNDS)
    times: dict[str, list[float]] = {name: [] for name in ONLOOKERS}
    load: dict[str, list[Reached]] = {name: [] for name in ONLOOKERS}
    said: list[str] = []
    with (
        server(running) as questdb,
        instance(questdb) as settings,
        Producer([Trade], settings=settings) as producer,
        beside(settings, {"Trade": BESIDE}) as flow,
    ):
        append = producer.appender(Trade).append
        paced(append, PACE, seconds, True)  # warm
        for _ in range(rounds):
            for name, arguments in ONLOOKERS.items():
                with looking(arguments, settings, said):
                    flow.begin()
                    times[name].append(paced(append, PACE, seconds, True)["append"]["p50"])
                    load[name].append(flow.reached())
        if any(producer.appender(Trade).refused().values()):  # a refusal is no append, and cheaper than one
            raise RuntimeError(f"appends were refused: {producer.appender(Trade).refused()}")
    counts = [tuple(map(int, found)) for found in re.findall(r"(\d+) records shown, (\d+) skipped", "".join(said))]
    shown, skipped = (sum(count[at] for count in counts) for at in (0, 1))
    figures = [Figure(name="append p50, no onlooker", value=statistics.median(times["none"]), unit="ns")]
    for name in ("top", "tap"):
        ratio = statistics.median(with_ / none for with_, none in zip(times[name], times["none"], strict=True))
        figures.append(Figure(name=f"append p50 beside ringlog {name}", value=ratio, unit="x none", at_most=1.05))
    for name, spans in load.items():
        what = f"trades appended, {'no onlooker' if name == 'none' else f'ringlog {name}'}"
        value = Reached.together(spans).accepted_per_second
        figures.append(Figure(name=what, value=value, unit="trades/s", at_least=REACHED * (PACE / 2 + BESIDE)))
    refused = sum(Reached.together(spans).refused for spans in load.values())
    figures.append(Figure(name="refused beside", value=refused, unit="trades"))
    figures.append(Figure(name="records that the tap showed", value=shown / max(shown + skipped, 1) * 100, unit="%"))
    return Result(
        benchmark="onlookers",
        what="ringlog top and tap beside 100,000 trades/s",
        figures=figures,
        details={"append_p50_ns": times, "tap": {"shown": shown, "skipped": skipped}},
    )


if __name__ == "__main__":
    main(run)
