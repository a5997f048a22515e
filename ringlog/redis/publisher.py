"""Ten times a second the latest state of every key that changed, to its topic's stream and channel alike.

Between ticks a newer state of a key replaces the older one, so a burst costs one entry a key and tick. The tick is
steady: its deadlines are multiples of `redis_tick_interval_ms` from the start, not 100 ms after the last one was done.
Subscribers are served by Redis, which drops the connection of one that does not read (client-output-buffer-limit), so
the publisher only ever waits for Redis itself: at most `redis_timeout_ms`, and what could not be sent goes with the
next tick.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import threading
import time
from typing import NamedTuple

import msgspec

from ringlog.errors import RinglogError
from ringlog.redis.connection import AsyncConnection, Command, Connection, Exchange, Steps
from ringlog.redis.events import FrameEntry, Numbering, Outgoing, Payload, add_command, encoded, frame_json
from ringlog.redis.keys import Keys, Topic
from ringlog.redis.limits import Limits

logger = logging.getLogger(__name__)

JITTER_TICKS = 6_000  # ten minutes


class PublisherStats(msgspec.Struct, frozen=True):
    """What a publisher did; interval figures are over the last 6,000 ticks, milliseconds between their starts."""

    ticks: int
    ticks_missed: int  # deadlines that passed while the tick before was still being sent
    ticks_failed: int  # Redis was away or refused: their states went, or will go, with a later tick
    offered: int
    published: int
    interval_p50_ms: float | None
    interval_p99_ms: float | None
    deviation_p99_ms: float | None  # of the distance from `redis_tick_interval_ms`
    deviation_max_ms: float | None
    realtime: bool  # whether the system granted the thread real-time priority


class _State(NamedTuple):
    data: bytes
    outgoing: Outgoing | None  # set once it was numbered for a tick that then failed


class _Conflation:
    """The latest state of each key, and the ticks that send it: all of a publisher but the waiting."""

    def __init__(self, keys: Keys, limits: Limits) -> None:
        self._keys = keys
        self._limits = limits
        self._numbering = Numbering()
        self._frame_seqs = dict.fromkeys(Topic, 0)
        self._lock = threading.Lock()
        self._latest: dict[tuple[Topic, str], _State] = {}
        self._intervals_s: collections.deque[float] = collections.deque(maxlen=JITTER_TICKS)
        self.realtime = False
        self._started_s: float | None = None
        self._last_s: float | None = None
        self._ticks = self._missed = self._failed = self._offered = self._published = 0

    def offer(self, topic: Topic, key: str, payload: Payload) -> None:
        state = _State(encoded(topic, payload), None)
        with self._lock:
            self._latest[topic, key] = state
            self._offered += 1

    def wait_s(self) -> float:
        """Seconds until the next deadline; deadlines that have passed are skipped and counted."""
        now = time.monotonic()
        if self._started_s is None:
            self._started_s, self._deadline = now, 0
        period = self._limits.tick_interval_ms / 1_000
        due = int((now - self._started_s) / period) + 1
        self._missed += max(0, due - self._deadline - 1)
        self._deadline = max(due, self._deadline + 1)
        return self._started_s + self._deadline * period - now

    def begin(self) -> None:
        """Notes the start of a tick."""
        now = time.monotonic()
        if self._last_s is not None:
            self._intervals_s.append(now - self._last_s)
        self._last_s = now
        self._ticks += 1

    def tick(self) -> Steps[None]:
        with self._lock:
            taken, self._latest = self._latest, {}
        if not taken:
            return
        lane = self._numbering.lane
        numbered = {
            name: state.outgoing or Outgoing(lane, self._numbering.next_seq(), state.data)
            for name, state in taken.items()
        }
        try:
            yield Exchange(tuple(self._commands(numbered)))
        except BaseException:
            with self._lock:
                for name, outgoing in numbered.items():
                    self._latest.setdefault(name, _State(outgoing.data, outgoing))
            raise
        for topic in {topic for topic, _ in numbered}:
            self._frame_seqs[topic] += 1
        self._published += len(numbered)

    def _commands(self, numbered: dict[tuple[Topic, str], Outgoing]) -> list[Command]:
        commands: list[Command] = []
        frames: dict[Topic, list[FrameEntry]] = {}
        for (topic, key), outgoing in numbered.items():
            commands.append(add_command(self._limits, self._keys.stream(topic), outgoing))
            frames.setdefault(topic, []).append(FrameEntry(key, outgoing.seq, msgspec.Raw(outgoing.data)))
        for topic, entries in frames.items():
            frame = frame_json(topic, self._numbering.lane, self._frame_seqs[topic], entries)
            commands.append(("PUBLISH", self._keys.channel(topic), frame))
        return commands

    def failed(self, error: RinglogError) -> None:
        self._failed += 1
        logger.warning("publisher tick failed: ticks_failed=%d error=%s", self._failed, error)

    def stats(self) -> PublisherStats:
        milliseconds = sorted(interval * 1_000 for interval in list(self._intervals_s))
        deviations = sorted(abs(interval - self._limits.tick_interval_ms) for interval in milliseconds)
        return PublisherStats(
            ticks=self._ticks,
            ticks_missed=self._missed,
            ticks_failed=self._failed,
            offered=self._offered,
            published=self._published,
            interval_p50_ms=_ranked(milliseconds, 0.50),
            interval_p99_ms=_ranked(milliseconds, 0.99),
            deviation_p99_ms=_ranked(deviations, 0.99),
            deviation_max_ms=_ranked(deviations, 1.0),
            realtime=self.realtime,
        )


def _take_realtime_priority() -> bool:
    """Asks for the lowest real-time priority for the calling thread; False where the system does not grant it.

    A busy machine wakes an ordinary thread up to 40 ms late, a real-time one within 0.2 ms. The thread works for a few
    milliseconds a tick, so it takes nothing from others that they would notice.
    """
    if not hasattr(os, "sched_setscheduler"):  # macOS
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))  # 0: this thread
    except OSError:
        return False
    return True


def _ranked(ordered: list[float], share: float) -> float | None:
    """The nearest-rank percentile of sorted values."""
    return ordered[max(0, -(-int(share * 1_000) * len(ordered) // 1_000) - 1)] if ordered else None


class Publisher:
    """Publishes on a thread of its own between `start` and `stop`; `offer` may be called from any thread.

    The thread runs with real-time priority where that is allowed (root, CAP_SYS_NICE, or an rtprio limit of 1, which is
    systemd's `LimitRTPRIO=1`); `stats().realtime` says whether. Give it a connection made with
    `redis_retry_timeout_ms=0`: a tick that fails is made good by the next one.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._conflation = _Conflation(connection.keys, connection.limits)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ringlog-publisher", daemon=True)

    def offer(self, topic: Topic, key: str, payload: Payload) -> None:
        """Makes `payload` the latest state of `key`; raises RedisValueError where it does not fit the topic."""
        self._conflation.offer(topic, key, payload)

    def stats(self) -> PublisherStats:
        return self._conflation.stats()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Sends what is left, once, and ends the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        self._conflation.realtime = _take_realtime_priority()
        while not self._stopping.wait(self._conflation.wait_s()):
            self._conflation.begin()
            self._send()
        self._send()

    def _send(self) -> None:
        try:
            self._connection.run(self._conflation.tick)
        except RinglogError as error:
            self._conflation.failed(error)

    def __enter__(self) -> Publisher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class AsyncPublisher:
    """`Publisher` as an asyncio task: the same names, `start` and `stop` awaited. Its beat is the event loop's."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._conflation = _Conflation(connection.keys, connection.limits)
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def offer(self, topic: Topic, key: str, payload: Payload) -> None:
        self._conflation.offer(topic, key, payload)

    def stats(self) -> PublisherStats:
        return self._conflation.stats()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="ringlog-publisher")

    async def stop(self) -> None:
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._stopping.wait(), self._conflation.wait_s())
            except TimeoutError:
                self._conflation.begin()
                await self._send()
            else:
                return await self._send()

    async def _send(self) -> None:
        try:
            await self._connection.run(self._conflation.tick)
        except RinglogError as error:
            self._conflation.failed(error)

    async def __aenter__(self) -> AsyncPublisher:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
