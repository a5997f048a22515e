"""Many processes that claim at once, and claims that fail: nobody is refused who need not be, and reasons are true."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lane_samples import Drained, Sample, child, eventually, text_of

from ringlog import Producer
from ringlog.errors import LaneError
from ringlog.lanes.claims import cards, claim
from ringlog.lanes.claims_lock import claims_lock
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import remove_instance
from ringlog.records import PLATFORM_RECORDS, LatencySample, MevMetric, PerformanceMetric, Position, Record, layout_of
from ringlog.records import Trade as TradeRecord
from ringlog.settings import Settings

RECORDS: list[Record] = [
    TradeRecord(
        trader_id="t1",
        mode="paper",
        action="buy",
        base_token="SOL",
        quote_token="USDC",
        base_amount=1.5,
        quote_amount=225.0,
        executed_price=150.0,
        transaction_fee=1,
        expected_slippage=0.001,
        actual_slippage=-0.002,
        mev_status="protected",
        mev_protected=True,
    ),
    LatencySample(service="s", operation="o", latency_us=-1.5),
    PerformanceMetric(metric_type="latency", operation="o", value=1.0, percentile=99, tags={"a": 1}),
    MevMetric(
        token_pair="SOL/USDC",
        trade_size=1.0,
        sandwich_probability=0.5,
        estimated_loss_bps=1.0,
        protection_used=True,
        priority_fee_lamports=5,
        avoided=False,
    ),
    Position(
        trader_id="t",
        mode="live",
        token="SOL",
        quantity=-1.0,
        average_entry_price=1.0,
        mark_price=2.0,
        realized_pnl=0.0,
        unrealized_pnl=-1.0,
    ),
]

_inherited: list[Producer] = []  # what children that are forked have of their parent, as under a preloading server


def first_appends(runtime_dir: str, barrier: Any, answers: Any) -> None:
    """A child: one append of each record type as soon as all children have come so far."""
    producer = _inherited[0] if _inherited else Producer(settings=Settings(runtime_dir=runtime_dir))
    barrier.wait()
    accepted = sum(producer.record(record) for record in RECORDS)
    refused = {reason: count for each in producer.refused().values() for reason, count in each.items() if count}
    answers.put((accepted, refused))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("method", "children"),
    [
        pytest.param("fork", 16),
        pytest.param("fork", 64, marks=pytest.mark.slow),
        pytest.param("forkserver", 16, marks=pytest.mark.slow),
        pytest.param("spawn", 16, marks=pytest.mark.slow),
    ],
)
def test_63_first_appends_at_once(instance_dir: Path, method: str, children: int) -> None:
    """Finding 4: the first append of each of five record types in many children at once: none is refused.

    Defence: a first append waits for the claims of others.
    """
    settings = Settings(runtime_dir=str(instance_dir))
    context: Any = multiprocessing.get_context(method)
    barrier, answers = context.Barrier(children), context.SimpleQueue()
    instance = Instance(settings)
    try:
        if method == "fork":
            _inherited.append(Producer(settings=settings).open())
        processes = [
            context.Process(target=first_appends, args=(str(instance_dir), barrier, answers)) for _ in range(children)
        ]
        for process in processes:
            process.start()
        assert [answers.get() for _ in processes] == [(len(RECORDS), {})] * children
        for process in processes:
            process.join()
            process.close()
        lanes = cards(instance)
        assert len(lanes) == len(RECORDS) * (children + len(_inherited))
        assert sum(card.size_bytes for card in lanes) <= settings.lane_bytes_max
    finally:
        while _inherited:
            _inherited.pop().close()
        remove_instance(instance)


def test_hundreds_of_lanes_share_the_budget(instance_dir: Path) -> None:
    """Finding 4: lanes of all record types of 64 processes fit into the default budget, each of 64 slots or more, and
    an owner's lane file says how much of the budget is its."""
    instance = Instance(Settings(runtime_dir=str(instance_dir))).open()
    layouts = [layout_of(record) for record in PLATFORM_RECORDS]
    lanes = [claim(instance, layouts[number % 5]) for number in range(5 * 65)]
    assert min(lane.capacity for lane in lanes) >= 64
    sizes = {lane.card.lane: lane.card.size_bytes for lane in lanes}
    assert sum(sizes.values()) <= instance.settings.lane_bytes_max
    assert {lane: instance.lock_path(lane).stat().st_size for lane in sizes} == sizes
    for lane in lanes:
        lane.close()
    remove_instance(instance)


HOLDER = """
from ringlog.lanes.claims_lock import claims_lock
from ringlog.lanes.instance import Instance
from ringlog.settings import Settings
import sys
with claims_lock(Instance(Settings.from_environment())):
    print("inside", flush=True)
    sys.stdin.read()
"""


def test_a_stopped_holder_is_named_and_then_forgotten(lane_settings: Settings) -> None:
    """Finding 4: while a stopped process holds the claims lock the reason is claim_busy, naming its pid in the error;
    once it is gone the next appends are accepted."""
    Instance(lane_settings).open()
    lazy = Producer([Sample], settings=lane_settings)
    appender = lazy.appender(Sample)
    with child(lane_settings, HOLDER, prelude="") as holder:
        assert holder.line() == "inside"
        holder.process.send_signal(signal.SIGSTOP)
        assert appender.append(1, text_of(1)) is False
        assert appender.refused_reason() == "claim_busy"
        with (
            pytest.raises(LaneError, match=rf"held by another process \(pid {holder.process.pid}\)"),
            claims_lock(lazy.instance, 0.01),
        ):
            pass
        holder.kill()
    eventually(lambda: appender.append(2, text_of(2)), "an append after the lock is free")
    assert Drained(lane_settings).numbers() == [2]
    assert set(appender.refused()) >= {"claim_busy", "budget"}
    assert appender.refused()["budget"] == 0
    lazy.close()


def test_no_descriptor_left(lane_settings: Settings) -> None:
    """Finding 4: a process without a free descriptor is refused with the reason descriptors, and accepted again when
    it has some; what it says names the limit."""
    script = """
import resource, logging
logging.basicConfig(stream=sys.stderr, format="%(message)s")
lazy = Producer([Sample]).appender(Sample)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
say(lazy.append(1, text_of(1)), lazy.refused_reason())
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
while not lazy.append(2, text_of(2)): pass
say("accepted")
"""
    with child(lane_settings, script) as starved:
        assert starved.line() == "False descriptors"
        assert starved.line() == "accepted"
        assert "no lane for Sample" in starved.ended()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "shared_memory"),
        (errno.ENOMEM, "shared_memory"),
        (errno.EROFS, "shared_memory"),
        (errno.ENFILE, "descriptors"),
    ],
)
def test_no_memory_to_be_had(
    lane_settings: Settings, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    """Finding 4: what the system says when a segment is made decides over the reason, also where the append stands in
    the handler of another error; nothing is left of the claim."""
    lazy = Producer([Sample], settings=lane_settings)
    appender = lazy.appender(Sample)

    def fails(*_args: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", fails)
        try:
            raise OSError(errno.EMFILE, "the caller's own")
        except OSError:
            assert appender.append(1, text_of(1)) is False
    assert appender.refused_reason() == reason
    assert list(lazy.instance.lanes_dir.iterdir()) == []


def test_a_place_that_cannot_be_used(lane_settings: Settings) -> None:
    """Finding 4: a claims lock that is no file of this user's is the reason unusable, until it is one."""
    instance = Instance(lane_settings).open()
    instance.claims_path.mkdir()
    lazy = Producer([Sample], settings=lane_settings)
    appender = lazy.appender(Sample)
    try:
        raise OSError(errno.EMFILE, "the caller's own, and no cause of what follows")
    except OSError:
        assert appender.append(1, text_of(1)) is False
    assert appender.refused_reason() == "unusable"
    instance.claims_path.rmdir()
    eventually(lambda: appender.append(2, text_of(2)), "an append after the place is right")
    lazy.close()


def test_short_lived_producers_find_lanes(lane_settings: Settings) -> None:
    """Finding 5: producers that are killed one after another leave room for their successors, though no writer runs."""
    settings = msgspec.structs.replace(lane_settings, lane_bytes_max=16 * 1024 * 1024)
    script = """
warnings = __import__("warnings")
warnings.simplefilter("ignore", DeprecationWarning)
producer.close()
for number in range(40):
    if os.fork() == 0:
        successor = Producer([Sample]).appender(Sample)
        accepted = successor.append(number, text_of(number))
        os.write(1, b"" if accepted else f"{number} {successor.refused_reason()} ".encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
say(".")
"""
    with child(settings, script) as parent:
        assert parent.line() == "."
    assert sorted(Drained(settings).numbers()) == list(range(40))


def test_the_writers_limit_is_raised(lane_settings: Settings) -> None:
    """Finding 3: the writer's soft limit of descriptors becomes the hard one, up to what a writer can need."""
    script = """
import json, resource
from ringlog.writer.descriptors import raise_descriptor_limit
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
found = []
for limits in ((64, min(hard, 100_000)), (64, 300), (64, 64)):
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    raise_descriptor_limit()
    found.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
print(json.dumps([hard, found]))
"""
    with child(lane_settings, script, prelude="") as process:
        hard, found = json.loads(process.line())
        process.ended()
    assert found == [min(hard, 65_536), 300, 64]
