"""One seed, one history: producers append, the writer is stepped and killed, the server misbehaves, an oracle judges.

PYTHONPATH=tests python -m histories.history --seed 7 [--seeds 100] [--plant early-tail]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from faulty_disk import Crash

from histories.bugs import BUGS
from histories.world import World
from ringlog import Producer
from ringlog.errors import RinglogError, SpoolError
from ringlog.lanes import locks
from ringlog.lanes.claims import OwnedLane, cards, unlink_segment
from ringlog.lanes.instance import Instance
from ringlog.lanes.segments import MappedSegment, SegmentBlank
from ringlog.layout import BOARD_REFUSE_OFFSET, HEAD_OFFSET, TAIL_OFFSET
from ringlog.ledger import LiveLane, Term
from ringlog.records import Record, Symbol, Varchar, layout_of
from ringlog.ring import load, store
from ringlog.settings import Settings
from ringlog.sinks.memory import Row
from ringlog.writer import Writer

STEPS = 50
SETTLE_STEPS_MAX = 300
LANE_SLOTS = 16
TIMESTAMP_US = 1_700_000_000_000_000


class Tick(Record):
    """A record of fixed width."""

    __table__ = "ticks"

    venue: Annotated[str, Symbol(8)]
    number: int


class Note(Record):
    """A record with a text of any length."""

    __table__ = "notes"

    text: Annotated[str, Varchar(24)]
    number: int


Key = tuple[int, int]


def payload(record: type[Record], number: int) -> tuple[str, int]:
    text = f"v{number % 7}" if record is Tick else "x" * (number % 24)
    return text, number


def is_poison(row: Row) -> bool:
    """Whether the server refuses a record, whenever it is sent."""
    return bool(row["number"] % 29 == 11)


class Violation(AssertionError):
    """A promise was broken."""


class History:
    """The history of one seed, in a directory of its own; `run` raises Violation."""

    def __init__(self, seed: int, directory: Path, plant: str = "") -> None:
        self.world = World(seed, is_poison, skip_fsync=plant == "skipped-fsync")
        self.rng = self.world.rng
        self._reuses_seqs = plant == "seq-reuse"
        self.settings = Settings(
            runtime_dir=str(directory),
            lane_linger_ms=50,
            batch_rows_max=self.rng.choice((5, 9, 64)),
            confirm_timeout_ms=1_000,
            spool_bytes_max=self.rng.choice((60_000, 1 << 30)),
        )
        self.instance = Instance(self.settings)
        self.writer: Any = None
        self.producers: list[tuple[type[Record], Producer]] = []
        self.accepted: dict[Key, tuple[type[Record], int]] = {}
        self.may_be_lost: set[Key] = set()
        self.may_be_unknown: set[Key] = set()  # to the ledger, whose confirmed records need not outlive the power
        self.crashes = 0
        self._numbers = itertools.count()
        self.world.step_threads = self._step_threads

    # ---- the writer ----

    def _alive(self, call: Callable[[], object]) -> None:
        """Runs a step of the writer's process, whose end it may be."""
        try:
            call()
        except (Crash, RinglogError):
            self._writer_dies()

    def _start_writer(self) -> None:
        # Made in two steps, so that what a dying constructor took is known.
        self.writer = Writer.__new__(Writer)
        self._alive(lambda: self.writer.__init__(self.settings, self.world.server))
        if self.writer is not None:
            self._check_balance()

    def _writer_dies(self) -> None:
        """As by kill -9: what its threads had not done is not done, but a request may have left."""
        self.crashes += 1
        writer, self.writer = self.writer, None
        made = vars(writer)
        if "_delivery" in made:
            for _, _, arguments in made["_delivery"]._sender.tasks[:1]:
                if arguments and hasattr(arguments[0], "body") and self.rng.random() < 0.5:
                    self.world.server.late(arguments[0])
        if "_directory" in made:
            for reader in made["_directory"].lanes.values():
                with contextlib.suppress(BufferError):
                    reader.close()
        if "_lease" in made:
            made["_lease"]._lock.release()
        self.world.disk.revive()

    def _step_threads(self) -> None:
        if self.writer is not None:
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
                self.world.clock.now += self.rng.choice((0.01, 0.1, 0.6))
                self._alive(self.writer._tick)
            case 2:
                self._step_threads()
                self._alive(self.writer._delivery.collect)
            case 3:
                self._step_threads()
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
            record = self.rng.choice((Tick, Note))
            size = LANE_SLOTS * layout_of(record).slot_bytes
            self.producers.append((record, Producer([record], settings=self.settings, lane_bytes={record: size})))
        record, producer = self.rng.choice(self.producers)
        appender = producer.appender(record)
        for _ in range(self.rng.randint(1, 10)):
            number = next(self._numbers)
            if appender.append(*payload(record, number), timestamp=TIMESTAMP_US + number):
                lane = appender.lane
                assert lane is not None
                self.accepted[lane, appender.accepted - 1] = (record, number)
        if self._reuses_seqs and self.rng.random() < 0.2 and appender.accepted:
            self._reuse_seq(appender)

    def _reuse_seq(self, appender: Any) -> None:
        lane, board = appender._lane, appender._owner.open_board(1.0)
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

    def _producer_dies_claiming(self) -> None:
        """Between its card and the magic of its segment."""
        producer = Producer([Tick], settings=self.settings, lane_bytes={Tick: LANE_SLOTS * layout_of(Tick).slot_bytes})
        producer.open()
        appender = producer.appender(Tick)
        lane: Any = appender._lane
        lane.memory[:8] = bytes(8)
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
        for card in cards(self.instance):
            with contextlib.suppress(FileNotFoundError, SegmentBlank):
                segment = MappedSegment(card.segment)
                tail, head = load(segment.memory, TAIL_OFFSET), load(segment.memory, HEAD_OFFSET)
                segment.close()
                self.may_be_lost |= {(card.lane, seq) for seq in range(tail, head)}
                self.may_be_unknown |= {(card.lane, seq) for seq in range(head)}
        for record, producer in self.producers:
            appender = producer.appender(record)
            appender._ring.detach()
            if appender._lane is not None:
                appender._lane.forget()
        self.producers.clear()
        self._remove_segments()
        if self.rng.random() < 0.5:  # the runtime directory may lie on a disk or in memory
            shutil.rmtree(self.instance.lanes_dir, ignore_errors=True)
        self.world.disk.cut_power(self.settings.spool_path)
        self.world.boot += 1

    def _remove_segments(self) -> None:
        for card in cards(self.instance):
            unlink_segment(card.segment)
        unlink_segment(self.instance.board_name)

    def _disturb(self) -> None:
        server, disk = self.world.server, self.world.disk
        match self.rng.randrange(12):
            case 0 | 1 | 2:
                disk.crash_at = disk.steps + self.rng.randrange(14)
            case 3:
                server.die()
            case 4 | 5:
                server.is_up = True
                server.drifted.clear()
            case 6:
                server.drifted.add(self.rng.choice(("ticks", "notes")))
            case 7:
                disk.room = self.rng.choice((None, None, 0, 20_000))
            case 8:
                disk.failing = {disk.steps + self.rng.randrange(10)}
            case 9:
                self._producer_dies()
            case 10:
                self.rng.choice((self._producer_dies_claiming, self._lose_lock, self._stop_writer))()
            case 11 if self.rng.random() < 0.3:
                self._cut_power()

    # ---- the oracle ----

    def _check_balance(self) -> None:
        """The ledger balances between any two steps."""
        lanes = self.writer._directory.lanes.items()
        live = {lane: LiveLane(reader.layout.table, reader.tail, reader.head) for lane, reader in lanes}
        for table, balance in self.writer._ledger.balance(live).items():
            if balance.excess or (live and balance.missing):
                raise Violation(f"ledger of {table} does not balance: {balance}")

    def _settle(self) -> None:
        """Everything is well from now on; returns once nothing is on its way."""
        self.world.server.recover()
        disk = self.world.disk
        disk.crash_at, disk.room, disk.failing = -1, None, set()
        while self.producers:
            self._producer_dies()
        for _ in range(SETTLE_STEPS_MAX):
            if self.writer is None:
                self._start_writer()
                continue
            self.world.clock.now += 0.3
            self._alive(self.writer._tick)
            for _ in range(4):
                self._step_threads()
            if self.writer is None:
                continue
            self._alive(self.writer._delivery.collect)
            if self.writer is not None and self._is_settled():
                return
        raise Violation(f"not settled: cards={len(cards(self.instance))} spool={self.writer._refuge.spool.tables()}")

    def _is_settled(self) -> bool:
        writer = self.writer
        spooled = sum(writer._refuge.spool.rows(table) for table in ("ticks", "notes"))
        is_idle = writer._delivery.is_idle and not spooled
        return is_idle and not writer._directory.lanes and not cards(self.instance)

    def _judge(self) -> None:
        stored: dict[Key, tuple[str, int]] = {}
        for record, text in ((Tick, "venue"), (Note, "text")):
            for row in self.world.server.table.rows(record):
                key = row["lane"], row["seq"]
                if key in stored:
                    raise Violation(f"stored twice: {key}")
                stored[key] = row[text], row["number"]
        letters = self._letters()
        for key, (record, number) in self.accepted.items():
            if is_poison({"number": number}):
                if key not in letters and key not in self.may_be_lost:
                    raise Violation(f"refused by the server and not kept: {key} {number}")
            elif key not in stored and key not in self.may_be_lost:
                raise Violation(f"lost: {key} {record.__name__} {number}")
            elif key in stored and stored[key] != payload(record, number):
                raise Violation(f"altered: {key} got {stored[key]}, wanted {payload(record, number)}")
        foreign = (stored.keys() | letters) - self.accepted.keys()
        if foreign:
            raise Violation(f"stored and never accepted: {sorted(foreign)[:5]}")
        self._judge_ledger(stored.keys(), letters)

    def _letters(self) -> set[Key]:
        letters: set[Key] = set()
        for path in (self.settings.spool_path / "dead_letters").glob("*.ndjson"):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # one that was being written when its process died
                    letter = json.loads(line)
                    if "seq" in letter:
                        letters.add((letter["lane"], letter["seq"]))
        return letters

    def _judge_ledger(self, stored: Any, letters: set[Key]) -> None:
        """Every record has the term that it really has."""
        ledger = self.writer._ledger
        for table, balance in ledger.balance({}).items():
            if not balance.is_balanced:
                raise Violation(f"ledger of {table} does not balance: {balance}")
        for term, wanted in ((Term.CONFIRMED, stored), (Term.DEAD_LETTERS, letters)):
            spans = [span for table in ("ticks", "notes") for span in ledger.spans(term, table)]
            got = {(span.lane, seq) for span in spans for seq in range(span.first_seq, span.first_seq + span.rows)}
            if got - wanted or (wanted - got) - self.may_be_unknown:
                raise Violation(f"ledger: got {term} {sorted(got ^ wanted)[:5]} otherwise than they are")

    def run(self) -> None:
        """Plays the seed's history and judges what is left of it."""
        try:
            with self.world.in_place():
                self.instance.open()
                for _ in range(STEPS):
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
                self._judge()
        finally:
            self._clear()

    def _clear(self) -> None:
        if self.writer is not None:
            with contextlib.suppress(SpoolError, OSError):
                self._writer_dies()
        for record, producer in self.producers:
            lane = producer.appender(record)._lane
            producer.appender(record)._ring.detach()
            if lane is not None:
                lane.forget()
        self._remove_segments()
        locks._held.difference_update([path for path in locks._held if self.instance.runtime_dir in path.parents])


def play(seed: int, plant: str = "") -> int:
    """Plays a seed, with a bug planted or none; how often the writer died. Raises Violation."""
    directory = Path(tempfile.mkdtemp(prefix="ringlog-history-", dir=_memory()))
    try:
        history = History(seed, directory / "run", plant)
        with BUGS[plant]() if plant else contextlib.nullcontext():
            history.run()
        return history.crashes
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _memory() -> str | None:
    """A place in memory where there is one: real fsyncs are not what is simulated."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 (mkdtemp makes a name of its own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True, help="the first one")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after another")
    parser.add_argument("--plant", default="", choices=("", *BUGS))
    parser.add_argument("--verbose", action="store_true", help="what ringlog logs")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.DEBUG if arguments.verbose else logging.CRITICAL)
    if not arguments.verbose:
        logging.disable(logging.CRITICAL)
    crashes = 0
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        try:
            crashes += play(seed, arguments.plant)
        except Violation as violation:
            print(f"seed {seed}: {violation}", flush=True)
            sys.exit(1)
        except BaseException:
            print(f"seed {seed}:", flush=True)
            raise
    print(f"{arguments.seeds} seeds from {arguments.seed} on, {crashes} deaths of the writer, 0 violations")


if __name__ == "__main__":
    main()
