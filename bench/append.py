"""append() against an empty Python function that is called with the same arguments.

Batched: a loop over records that differ, timed as a whole; the loop is the same for both, and what the loop costs by
itself is reported. Paced: each call timed by itself, appends and empty calls in turn, the writer draining into QuestDB
beside them, each round in a process of its own; what two readings of the clock cost is subtracted from both, unless
said otherwise. The caller makes a trade's amounts and texts just before it appends them, as an executor does; one more
pace appends values untouched for a tenth of a second.

    python -m bench.append [--json] [--tiny]
"""

from __future__ import annotations

import mmap
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from bench.figures import Figure, Result, main, percentiles
from bench.load import REACHED, Reached, beside
from bench.stack import instance, server
from bench.trades import FIELDS, PRESETS, VARYING, trades, varying
from ringlog import Producer
from ringlog.layout import Refused
from ringlog.records import Trade, defaults_of, layout_of
from ringlog.ring import IMPLEMENTATION, new_appender, new_ring, store
from ringlog.servers import QuestDBServer
from ringlog.settings import Settings
from ringlog.validation import Coercion

ROUNDS = 5
# Calls/s, of which half are appends; records/s that another producer appends beside them; whether values are just made.
PACES = ((20_000, 1, True), (1_000, 9_500, True), (20_000, 90_000, True), (20_000, 1, False))
TAIL_OFFSET = 384
Timed = Callable[[list[tuple[Any, ...]]], float]


def batched_timer(names: tuple[str, ...], body: str, **called: Any) -> Timed:
    """run(records) -> ns per record of a loop that unpacks each record into locals and does `body`."""
    source = f"""def run(records):
    began = clock()
    for {", ".join(names)}, in records:
        {body}
    return (clock() - began) / len(records)"""
    names_found: dict[str, Any] = {"clock": time.perf_counter_ns, **called}
    exec(source, names_found)  # noqa: S102 (arguments by name, as a caller writes them, for any number of fields)
    timer: Timed = names_found["run"]
    return timer


def empty_function(names: tuple[str, ...]) -> Callable[..., None]:
    found: dict[str, Any] = {}
    exec(f"def empty({', '.join(names)}): pass", found)  # noqa: S102
    empty: Callable[..., None] = found["empty"]
    return empty


class Lane:
    """A lane's memory that is emptied between batches: what the writer would do beside it, without its noise."""

    def __init__(self, capacity: int = 4096, *, is_touched: bool = True) -> None:
        layout = layout_of(Trade)
        self.defaults = defaults_of(Trade)
        self.memory = mmap.mmap(-1, 8192 + capacity * layout.slot_bytes)
        for page in range(0, len(self.memory) if is_touched else 0, 4096):
            self.memory[page] = 0
        self.ring = new_ring(layout, Coercion(layout, self.defaults), lambda: Refused.CLOSED)
        self.ring.attach(self.memory, mmap.mmap(-1, 4096), 8192, capacity, (128, 256, TAIL_OFFSET, 512, 128))

    def append(self, presets: dict[str, Any]) -> Callable[..., bool]:
        return new_appender(self.ring, presets, self.defaults)

    def empty(self) -> None:
        store(memoryview(self.memory), TAIL_OFFSET, self.ring.head)


def batched(
    names: tuple[str, ...], presets: dict[str, Any], records: list[tuple[Any, ...]], batches: int
) -> dict[str, Any]:
    """ns per record of append, the empty function and the bare loop; ratios of medians, by round."""
    lane = Lane()
    arguments = ", ".join(names)
    timers = {
        "append": batched_timer(names, f"append({arguments})", append=lane.append(presets)),
        "floor": batched_timer(names, f"empty({arguments})", empty=empty_function(names)),
        "loop": batched_timer(names, "pass"),
    }
    clock_ns = statistics.median(clock_costs(1000)) / len(records)
    rounds = []
    for _ in range(ROUNDS):
        times: dict[str, list[float]] = {name: [] for name in timers}
        for _ in range(batches):
            for name, timer in timers.items():
                times[name].append(timer(records))
            lane.empty()
        rounds.append({name: statistics.median(values) - clock_ns for name, values in times.items()})
    if any(lane.ring.refused()):
        raise RuntimeError(f"appends were refused: {lane.ring.refused()}")
    return {
        "ratio": statistics.median(found["append"] / found["floor"] for found in rounds),
        "ratio_net_of_loop": statistics.median(
            (found["append"] - found["loop"]) / (found["floor"] - found["loop"]) for found in rounds
        ),
        **{f"{name}_ns": statistics.median(found[name] for found in rounds) for name in timers},
    }


def clock_costs(count: int) -> list[float]:
    """ns between two readings of the clock, one right after the other."""
    clock = time.perf_counter_ns
    found = []
    for _ in range(count):
        began = clock()
        found.append(float(clock() - began))
    return found


def called(
    call: Callable[..., Any], arguments: list[tuple[Any, ...]], rate: float, seconds: float
) -> tuple[list[int], list[int]]:
    """Calls at `rate`/s, each when its time has come: what each took (ns), and its end since its time had come."""
    clock = time.perf_counter_ns
    took, since_due = [], []
    began = clock()
    for number in range(max(int(rate * seconds), 1)):
        values = arguments[number % len(arguments)]
        due = began + int(number * 1e9 / rate)
        if rate < 5000:  # as an executor that waits for its next event
            time.sleep(max(due - clock() - 100_000, 0) / 1e9)
        while clock() < due:
            pass
        at = clock()
        call(*values)
        ended = clock()
        took.append(ended - at)
        since_due.append(ended - due)
    return took, since_due


def paced(append: Callable[..., Any], rate: float, seconds: float, is_fresh: bool) -> dict[str, Any]:
    """Calls at `rate`/s, appends and empty calls in turn, each timed: percentiles in ns, the clock's cost off.

    A call that is due while another runs follows it at once: `rate` is what was reached, in calls/s.
    """
    empty = empty_function(FIELDS)
    clock = time.perf_counter_ns
    records = trades(1000)
    times: dict[str, list[int]] = {"append": [], "floor": []}
    costs: list[float] = []
    interval_ns = 1e9 / rate
    calls = int(rate * seconds)
    began = clock()
    for call in range(calls):
        a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q = records[call // 2 % len(records)]  # noqa: E741
        due = began + int(call * interval_ns)
        if rate < 5000:  # as an executor that waits for its next event
            time.sleep(max(due - clock() - 100_000, 0) / 1e9)
        while clock() < due:
            pass
        if is_fresh:
            f, g, h, l, p, q = f * 1.5, g * 1.5, h * 1.5, l * 1.5, p[:44] + p[44:], q[:9] + q[9:]  # noqa: E741
        if call % 2:
            at = clock()
            append(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q)
            times["append"].append(clock() - at)
        else:
            at = clock()
            empty(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q)
            times["floor"].append(clock() - at)
        if call % 16 == 0:
            at = clock()
            costs.append(clock() - at)
    found: dict[str, Any] = {"rate": calls / (clock() - began + interval_ns) * 1e9}  # the last call's interval, too
    found["clock_ns"] = clock_ns = statistics.median(costs)
    for name, values in times.items():
        found[name] = {at: value - clock_ns for at, value in percentiles(values).items()}
    for at in ("p50", "p99", "p999"):
        found[f"ratio_{at}"] = found["append"][at] / found["floor"][at]
    found["ratio_p50_with_clock"] = (found["append"]["p50"] + clock_ns) / (found["floor"]["p50"] + clock_ns)
    return found


def paced_round(
    runtime_dir: str, rate: float, beside_rate: float, seconds: float, is_fresh: bool
) -> tuple[dict[str, Any], Reached]:
    """`paced` with the writer draining and another producer that appends `beside_rate` records/s.

    For a process of its own: by where a process's objects come to lie, an empty call takes more or less there.
    """
    settings = Settings(runtime_dir=runtime_dir)
    with Producer([Trade], settings=settings) as producer, beside(settings, {"Trade": beside_rate}) as flow:
        append = producer.appender(Trade).append
        paced(append, rate, seconds, is_fresh)  # warm
        flow.begin()
        found = paced(append, rate, seconds, is_fresh)
        reached = flow.reached()
        if any(producer.appender(Trade).refused().values()):
            raise RuntimeError(f"appends were refused: {producer.appender(Trade).refused()}")
    return found, reached


def paced_rounds(settings: Settings, rate: float, beside_rate: float, seconds: float, is_fresh: bool) -> dict[str, Any]:
    """The median of `paced_round`s, one after another. The longest call is that of all of them."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        results = [
            processes.submit(paced_round, settings.runtime_dir, rate, beside_rate, seconds / ROUNDS, is_fresh).result()
            for _ in range(ROUNDS)
        ]
    rounds, reached = [round_ for round_, _ in results], Reached.together([reached for _, reached in results])
    found: dict[str, Any] = {
        at: statistics.median(round_[at] for round_ in rounds)
        for at in ("rate", "clock_ns", "ratio_p50", "ratio_p99", "ratio_p999", "ratio_p50_with_clock")
    }
    found |= {"written_per_second": reached.written_per_second, "refused_in_all": reached.refused}
    found["ratio_p50_by_round"] = [round_["ratio_p50"] for round_ in rounds]
    for name in ("append", "floor"):
        found[name] = {at: statistics.median(round_[name][at] for round_ in rounds) for at in ("p50", "p99", "p999")}
        found[name]["max"] = max(round_[name]["max"] for round_ in rounds)
    return found


def load_figures(what: str, rate: float, asked: float, found: dict[str, Any]) -> list[Figure]:
    """The load as it was: what is asked for is not what a busy machine does."""
    return [
        Figure(name=f"{what}, calls made", value=found["rate"], unit="calls/s", at_least=REACHED * rate),
        Figure(
            name=f"{what}, what it wrote", value=found["written_per_second"], unit="rows/s", at_least=REACHED * asked
        ),
    ]


def run(tiny: bool = False, running: QuestDBServer | None = None) -> Result:
    records = trades(1000)
    batches = 3 if tiny else 200
    all_fields = batched(FIELDS, {}, records, batches)
    bound = batched(VARYING, PRESETS, varying(records), batches)
    details: dict[str, Any] = {"implementation": IMPLEMENTATION, "all_fields": all_fields, "bound": bound}
    figures = [
        Figure(name="18 fields, batched", value=all_fields["ratio"], unit="x empty call", at_most=2),
        Figure(name="bound, 8 fields, batched", value=bound["ratio"], unit="x empty call", at_most=2),
        Figure(name="18 fields, batched, loop subtracted too", value=all_fields["ratio_net_of_loop"], unit="x"),
        Figure(name="bound, 8 fields, batched, loop subtracted too", value=bound["ratio_net_of_loop"], unit="x"),
        Figure(name="18 fields, batched", value=all_fields["append_ns"], unit="ns"),
        Figure(name="bound, 8 fields, batched", value=bound["append_ns"], unit="ns"),
    ]
    seconds = 0.1 if tiny else 10.0
    with server(running) as questdb:
        for rate, rest, is_fresh in PACES[:1] if tiny else PACES:
            with instance(questdb) as settings:
                found = paced_rounds(settings, rate, rest, seconds, is_fresh)
            details[f"paced_{rate}_beside_{rest}{'' if is_fresh else '_untouched_values'}"] = found
            heavy = rest > 10_000
            asked = 100_000 if heavy else 10_000
            what = f"paced {rate:,} calls/s, writer at {asked:,} rows/s"
            if not is_fresh:
                ratios = {at: found[f"ratio_{at}"] for at in ("p50", "p99")}
                what += ", untouched values"
                figures += [Figure(name=f"{what}, {at}", value=ratios[at], unit="x") for at in ratios]
                figures += load_figures(what, rate, asked, found)
                continue
            figures += [
                Figure(name=f"{what}, p50", value=found["ratio_p50"], unit="x", at_most=2 if heavy else 1.5),
                Figure(name=f"{what}, p50, clock left in both", value=found["ratio_p50_with_clock"], unit="x"),
                Figure(name=f"{what}, p99", value=found["ratio_p99"], unit="x", at_most=None if heavy else 2),
                Figure(name=f"{what}, p99.9", value=found["append"]["p999"], unit="ns"),
                Figure(name=f"{what}, max", value=found["append"]["max"], unit="ns"),
                Figure(name=f"{what}, clock", value=found["clock_ns"], unit="ns"),
                *load_figures(what, rate, asked, found),
            ]
    return Result(benchmark="append", what="append against an empty Python function", figures=figures, details=details)


if __name__ == "__main__":
    main(run)
