"""What starting costs: `ringlog --help`, `from ringlog import Producer`, and an embedded QuestDB.

python -m bench.startup [--json] [--tiny]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import msgspec
import psutil

from bench.figures import Figure, Result, interleaved, main, median_ratio
from ringlog.servers import QuestDBServer

HEAVY = ("questdb", "psycopg", "redis", "pandas", "psutil")


def seconds_of(*arguments: str, times: int) -> list[float]:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - began)
    return found


def loaded_modules() -> list[str]:
    """The top-level modules that a producer process has after its import."""
    source = (
        "import sys, json; from ringlog import Producer; "
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    output = subprocess.run([sys.executable, "-c", source], check=True, stdout=subprocess.PIPE).stdout
    return msgspec.json.decode(output, type=list[str])


class WithoutCache(QuestDBServer):
    """As servers started before Java had a cache of a start."""

    def _prepare(self) -> None:
        super()._prepare()
        self._java_options = []


def cpu_seconds(kind: type[QuestDBServer]) -> float:
    """What a server has used once it answers."""
    with kind() as server:
        times = psutil.Process(server.pid).cpu_times()
        return float(times.user + times.system)


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:  # noqa: ARG001 (no server needed)
    times = 2 if tiny else 15
    help_seconds = seconds_of("-m", "ringlog", "--help", times=times)
    import_seconds = seconds_of("-c", "from ringlog import Producer", times=times)
    python_seconds = seconds_of("-c", "pass", times=times)
    modules = loaded_modules()
    heavy = [name for name in HEAVY if name in modules]
    servers = {"with": lambda: cpu_seconds(QuestDBServer), "without": lambda: cpu_seconds(WithoutCache)}
    starts = interleaved(servers, 1 if tiny else 3)
    figures = [
        Figure(name="ringlog --help", value=statistics.median(help_seconds), unit="s", at_most=0.15),
        Figure(name="from ringlog import Producer", value=statistics.median(import_seconds), unit="s"),
        Figure(name="python -c pass", value=statistics.median(python_seconds), unit="s"),
        Figure(name=f"of {', '.join(HEAVY)} loaded by it", value=len(heavy), at_most=0),
        Figure(name="embedded QuestDB, CPU until it answers", value=statistics.median(starts["with"]), unit="s"),
        Figure(
            name="against a start without Java's cache",
            value=median_ratio(starts, "with", "without"),
            unit="x",
        ),
    ]
    details = {
        "help_seconds": help_seconds,
        "import_seconds": import_seconds,
        "modules": modules,
        "heavy": heavy,
        **starts,
    }
    return Result(benchmark="startup", what="What starting costs", figures=figures, details=details)


if __name__ == "__main__":
    main(run)
