"""One seed, one history: producers append, the writer is stepped and killed, the server misbehaves, an oracle judges.

A seed fixes every choice: who appends when, which task of the writer runs next, what the server does with a request,
before which step the writer dies, and whether the power goes. In the end everything works again, and each accepted
record must be stored once, as it was, and nothing else. From tests/:

python -m simulation.simulation --first 7 [--seeds 100] [--plant early-tail] [--verbose]
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import itertools
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from faulty_disk import Crash

from ringlog import Producer
from ringlog.errors import RinglogError, SpoolError
from ringlog.lanes import locks
from ringlog.lanes.claims import OwnedLane, cards, unlink_segment
from ringlog.lanes.instance import Instance
from ringlog.lanes.segments import SegmentBlank, attach_segment
from ringlog.layout import BOARD_REFUSE_OFFSET, HEAD_OFFSET, TAIL_OFFSET
from ringlog.ledger import LiveLane
from ringlog.records import Record, layout_of
from ringlog.ring import load, store
from ringlog.settings import Settings
from ringlog.writer import Writer
from simulation.bugs import BUGS
from simulation.oracle import Oracle, Violation
from simulation.records import CUT_US, TABLES, Accepted, Note, Tick, is_poison
from simulation.world import KnownCuts, World

SETTLE_STEPS_MAX = 300
SETTLE_SECONDS = 0.5
CRASH_WITHIN_STEPS = (3, 14, 60)
RECOVERY_CRASHES = 0.3  # so often the next writer dies early too


class Outcome(NamedTuple):
    """What a history came to: records accepted and stored, deaths of the writer."""

    accepted: int
    stored: int
    deaths: int


class Simulation:
    """The history of one seed, in a directory of its own; `run` raises Violation."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.world = World(seed, is_poison)
        self.rng = self.world.rng
        self.settings = Settings(
            runtime_dir=str(directory),
            lane_linger_ms=self.rng.choice((50, 300)),
            batch_rows_max=self.rng.choice((5, 9, 48)),
            confirm_timeout_ms=1_000,
            stop_timeout_ms=200,
            spool_bytes_max=self.rng.choice((60_000, 256 * 1024, 1 << 30)),
        )
        self.lane_slots = self.rng.choice((16, 64))
        # In some histories what was not fsynced goes with the process: then the ledger may know less than the lanes do.
        self.disk_forgets = self.rng.random() < 0.3
        self.reuses_seqs = False
        self.instance = Instance(self.settings)
        self.writer: Any = None
        self.producers: list[tuple[type[Record], Producer]] = []
        self.oracle = Oracle()
        self.deaths = 0
        self._numbers = itertools.count()
        self.world.step_threads = self._step_threads

    # ---- the writer ----

    def _alive(self, call: Callable[[], object]) -> None:
        """Runs a step of the writer's process, which it may end: by a crash, or by an error where the disk failed."""
        try:
            call()
        except Crash:
            self._writer_dies()
        except (RinglogError, OSError) as error:
            if not self.world.disk.has_failed:
                raise Violation(f"the writer ended for no reason: {error}") from error
            self._writer_dies()

    def _start_writer(self) -> None:
        # Made in two steps, so that what a dying constructor took is known.
        self.writer = Writer.__new__(Writer)
        clock = self.world.clock
        cuts = KnownCuts(clock, self.oracle.cuts, clock.now + self.rng.choice((0.0, 0.0, 0.2, 2.0)))
        self._alive(lambda: self.writer.__init__(self.settings, self.world.server, None, cuts))
        if self.writer is not None:
            self._check_balance()

    def _writer_dies(self) -> None:
        """As by kill -9: what its threads had not done is not done, but a request may have left."""
        self.deaths += 1
        writer, self.writer = self.writer, None
        made = vars(writer)
        if "_delivery" in made:
            for task in made["_delivery"]._sender.tasks[:1]:
                if task.arguments and hasattr(task.arguments[0], "body") and self.rng.random() < 0.5:
                    self.world.server.late(task.arguments[0])
        if "_directory" in made:
            for reader in made["_directory"].lanes.values():
                with contextlib.suppress(BufferError):
                    reader.close()
        if "_lease" in made:
            made["_lease"]._lock.release()
        self.world.disk.revive()
        if self.disk_forgets and self.rng.random() < 0.4:
            self.world.disk.cut_power(self.settings.spool_path)
        if self.rng.random() < RECOVERY_CRASHES:
            self._set_crash()

    def _set_crash(self) -> None:
        disk = self.world.disk
        disk.crash_at = disk.steps + self.rng.randrange(self.rng.choice(CRASH_WITHIN_STEPS))

    def _step_threads(self) -> None:
        if self.writer is not None and "_delivery" in vars(self.writer):
            delivery = self.writer._delivery
            self.rng.choice((delivery._sender, delivery._asker)).step()
        if self.rng.random() < 0.3:
            self.world.server.go_on()

    def _work(self) -> None:
        """One piece of what the writer's loop does."""
        if self.writer is None:
            self._start_writer()
            return
        match self.rng.randrange(6):
            case 0 | 1:
                self.world.clock.now += self.rng.choice((0.01, 0.1, 0.2, 0.6, 1.5))
                self._alive(self.writer._tick)
            case 2:
                self._alive(self._step_threads)
                if self.writer is not None:
                    self._alive(self.writer._delivery.collect)
            case 3:
                self._alive(self._step_threads)
            case 4:
                self._alive(self.writer._guard)
            case 5:
                self._alive(self.writer._drain_all)

    def _stop_writer(self) -> None:
        if self.writer is None:
            return

        def stop() -> None:
            self.writer._finish()
            self.writer.close()
            self.writer = None

        self._alive(stop)
        self.world.disk.revive()

    # ---- producers ----

    def _append(self) -> None:
        if not self.producers or (len(self.producers) < 3 and self.rng.random() < 0.2):
            self.producers.append(self._new_producer(self.rng.choice((Tick, Note))))
        record, producer = self.rng.choice(self.producers)
        appender = producer.appender(record)
        is_old = self.rng.random() < 0.25
        for _ in range(self.rng.randint(1, self.rng.choice((10, 40)))):
            made = Accepted(record, next(self._numbers), is_old)
            if appender.append(made.text, made.number, timestamp=made.timestamp_us):
                lane = appender.lane
                assert lane is not None
                self.oracle.accepted[lane, appender.accepted - 1] = made
        if self.reuses_seqs and self.rng.random() < 0.2 and appender.accepted:
            self._reuse_seq(appender)

    def _new_producer(self, record: type[Record]) -> tuple[type[Record], Producer]:
        size = self.lane_slots * layout_of(record).slot_bytes
        return record, Producer([record], settings=self.settings, lane_bytes={record: size})

    def _reuse_seq(self, appender: Any) -> None:
        lane, board = appender._lane, appender._owner.open_board(1.0, 1.0)
        store(lane.memory, HEAD_OFFSET, appender.accepted - 1)
        words = (*lane.words, BOARD_REFUSE_OFFSET)
        appender._ring.attach(lane.memory, board.memory, lane.slots_offset, lane.capacity, words)

    def _producer_dies(self) -> None:
        if not self.producers:
            return
        record, producer = self.producers.pop(self.rng.randrange(len(self.producers)))
        if self.rng.random() < 0.3:
            producer.close()
            return
        appender = producer.appender(record)
        lane = appender._lane
        if lane is None:
            return
        self._half_write(lane, appender)
        appender._ring.detach()
        lane.forget()  # what the kernel does: the lock goes, the segment stays

    def _half_write(self, lane: OwnedLane, appender: Any) -> None:
        """Dies between a slot's first byte and its publishing."""
        head = appender.accepted
        if head - load(lane.memory, TAIL_OFFSET) < lane.capacity and self.rng.random() < 0.5:
            size = appender.layout.slot_bytes
            at = lane.slots_offset + head % lane.capacity * size
            lane.memory[at : at + size] = self.rng.randbytes(size)

    def _destroy_slots(self) -> None:
        """Somebody else writes over slots that were published, and not confirmed yet."""
        for record, producer in self.producers[:1]:
            appender = producer.appender(record)
            lane = appender._lane
            if lane is None:
                continue
            tail, head = load(lane.memory, TAIL_OFFSET), appender.accepted
            for seq in range(tail, head)[: self.rng.randint(1, self.lane_slots)]:
                at = lane.slots_offset + seq % lane.capacity * appender.layout.slot_bytes
                lane.memory[at : at + 8] = b"\xff" * 8
                self.oracle.destroyed.add((lane.card.lane, seq))

    def _producer_dies_claiming(self) -> None:
        """Between its card and the magic of its segment."""
        _, producer = self._new_producer(Tick)
        producer.open()
        appender = producer.appender(Tick)
        lane: Any = appender._lane
        lane.memory[:8] = bytes(8)
        self.instance.card_path(lane.card.lane).rename(self.instance.claim_path(lane.card.lane))
        appender._ring.detach()
        lane.forget()

    def _lose_lock(self) -> None:
        """A producer that is alive closes its lock file (a daemon's start, say): it seems to be dead."""
        for record, producer in self.producers[:1]:
            lane = producer.appender(record)._lane
            if lane is not None:
                lane._lock.release()

    # ---- the machine ----

    def _cut_power(self) -> None:
        """Shared memory goes, and what was not fsynced; what was below a tail must be in the spool or at the server."""
        self.world.disk.crash_at = -1
        if self.writer is not None:
            self._writer_dies()
        self.world.disk.crash_at = -1
        for card in cards(self.instance):
            with contextlib.suppress(FileNotFoundError, SegmentBlank):
                segment = attach_segment(card.segment, is_writable=False)
                tail, head = load(segment.memory, TAIL_OFFSET), load(segment.memory, HEAD_OFFSET)
                segment.close()
                self.oracle.may_be_lost |= {(card.lane, seq) for seq in range(tail, head)}
                self.oracle.may_be_unknown |= {(card.lane, seq) for seq in range(head)}
        self._let_go()
        self._remove_segments()
        if self.rng.random() < 0.5:  # the runtime directory may lie on a disk or in memory
            shutil.rmtree(self.instance.lanes_dir, ignore_errors=True)
        self.world.disk.cut_power(self.settings.spool_path)
        self.world.boot += 1

    def _let_go(self) -> None:
        """What the kernel does for producers that are gone."""
        for record, producer in self.producers:
            appender = producer.appender(record)
            appender._ring.detach()
            if appender._lane is not None:
                appender._lane.forget()
        self.producers.clear()

    def _remove_segments(self) -> None:
        for card in cards(self.instance):
            unlink_segment(card.segment)
        unlink_segment(self.instance.board_name)

    def _disturb(self) -> None:
        match self.rng.randrange(16):
            case 0 | 1 | 2:
                self._set_crash()
            case 3 | 4 | 5 | 6 | 7:
                self._disturb_server()
            case 8 | 9 | 10:
                self._disturb_disk()
            case 11:
                self._producer_dies()
            case 12:
                self.rng.choice((self._producer_dies_claiming, self._lose_lock, self._stop_writer))()
            case 13:
                self._destroy_slots()
            case 14:
                self.oracle.cuts[self.rng.choice(TABLES)] = CUT_US
            case 15 if self.rng.random() < 0.3:
                self._cut_power()

    def _disturb_server(self) -> None:
        server = self.world.server
        match self.rng.randrange(6):
            case 0:
                server.die()
            case 1 | 2:
                server.is_up = True
                server.drifted.clear()
            case 3:
                server.drifted.add(self.rng.choice(TABLES))
            case 4 | 5:
                server.silent_until = self.world.clock.now + self.rng.choice((0.6, 3.0))

    def _disturb_disk(self) -> None:
        disk = self.world.disk
        match self.rng.randrange(3):
            case 0:
                disk.room = self.rng.choice((None, None, 0, 20_000))
            case 1:
                disk.failing = {disk.steps + self.rng.randrange(10)}
            case 2:
                disk.broken = self.rng.choice((0, 0, errno.ENOSPC, errno.EIO))

    # ---- the end ----

    def _check_balance(self) -> None:
        """The ledger balances between any two steps."""
        if self.disk_forgets:
            return
        lanes = self.writer._directory.lanes.items()
        live = {lane: LiveLane(reader.layout.table, reader.tail, reader.head) for lane, reader in lanes}
        for table, balance in self.writer._ledger.balance(live).items():
            if balance.excess or (live and balance.missing):
                raise Violation(f"ledger of {table} does not balance: {balance}")

    def _settle(self) -> None:
        """Everything is well from now on; returns once nothing is on its way."""
        self.world.server.recover()
        self.world.disk.mend()
        while self.producers:
            self._producer_dies()
        for _ in range(SETTLE_STEPS_MAX):
            self.world.disk.crash_at = -1
            if self.writer is None:
                self._start_writer()
                continue
            self.world.clock.now += SETTLE_SECONDS
            self._alive(self._deliver)
            if self.writer is not None and self._is_settled():
                return
        raise Violation(f"not settled: cards={len(cards(self.instance))} spool={self.writer._refuge.spool.tables()}")

    def _deliver(self) -> None:
        """A tick, and all that follows from it before the next one."""
        self.writer._tick()
        delivery = self.writer._delivery
        while True:
            for thread in (delivery._sender, delivery._asker):
                while not thread.is_idle:
                    thread.step()
                delivery.collect()
            if delivery.is_idle:
                return
            self.world.clock.now += 0.01
            self.writer._drain_all()

    def _is_settled(self) -> bool:
        writer = self.writer
        spooled = sum(writer._refuge.spool.rows(table) for table in TABLES)
        if spooled or writer._directory.lanes or not writer._delivery.is_idle or cards(self.instance):
            return False
        return not list(self.settings.spool_path.glob("tables/*/*.spool"))

    def run(self) -> Outcome:
        """Plays the seed's history and judges what is left of it."""
        try:
            with self.world.in_place():
                self.instance.open()
                for _ in range(self.rng.randint(25, 60)):
                    chance = self.rng.random()
                    if chance < 0.25:
                        self._append()
                    elif chance < 0.4:
                        self._disturb()
                    else:
                        self._work()
                    if self.writer is not None and self.rng.random() < 0.1:
                        self._check_balance()
                self._settle()
                ledger = None if self.disk_forgets else self.writer._ledger
                stored = self.oracle.judge(self.world.server.table, self.settings.spool_path, ledger)
                return Outcome(len(self.oracle.accepted), stored, self.deaths)
        finally:
            self._clear()

    def _clear(self) -> None:
        self.world.disk.mend()
        if self.writer is not None:
            with contextlib.suppress(SpoolError, OSError):
                self._writer_dies()
        self._let_go()
        self._remove_segments()
        locks._held.difference_update([path for path in locks._held if self.instance.runtime_dir in path.parents])


def play(seed: int, plant: str = "") -> Outcome:
    """Plays a seed, with a bug planted or none. Raises Violation."""
    directory = Path(tempfile.mkdtemp(prefix="ringlog-simulation-", dir=_memory()))
    gc.disable()  # a seed leaves little behind, and looking for it takes a seventh of the time
    try:
        simulation = Simulation(seed, directory / "run")
        with BUGS[plant](simulation) if plant else contextlib.nullcontext():
            return simulation.run()
    finally:
        gc.enable()
        shutil.rmtree(directory, ignore_errors=True)


def _memory() -> str | None:
    """A place in memory where there is one: real fsyncs are not what is simulated."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 (mkdtemp makes a name of its own)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed; with --seeds 1 that one is played again")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after another")
    parser.add_argument("--plant", default="", choices=("", *BUGS))
    parser.add_argument("--verbose", action="store_true", help="what ringlog logs")
    given = parser.parse_args()
    logging.basicConfig(level=logging.DEBUG)
    if not given.verbose:
        logging.disable(logging.CRITICAL)
    outcomes = []
    for seed in range(given.first, given.first + given.seeds):
        try:
            outcomes.append(play(seed, given.plant))
        except Violation as violation:
            print(f"seed {seed}: {violation}", flush=True)
            return 1
        except BaseException:
            print(f"seed {seed}:", flush=True)
            raise
    accepted, stored, deaths = (sum(counts) for counts in zip(*outcomes, strict=True))
    print(f"{given.seeds} seeds from {given.first} on: {accepted=} {stored=} {deaths=} violations=0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
