"""The writer: drains every lane of an instance into its sink, and moves a tail only when the records are safe."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

import msgspec
import psutil

from ringlog.decode import Slots
from ringlog.errors import ConfigurationError, SpoolError, WriterRunning
from ringlog.lanes.claims import Card, open_board
from ringlog.lanes.instance import Instance, boot_id
from ringlog.lanes.readers import LaneDirectory, LaneReader, Lease
from ringlog.layout import BoardReason
from ringlog.ledger import Ledger
from ringlog.pressure import batch_bytes
from ringlog.records import RecordLayout
from ringlog.settings import Settings
from ringlog.sinks import Batch, Cuts, Mirror, Sink
from ringlog.spool import Spool
from ringlog.spool.place import settled
from ringlog.writer.delivery import Delivery, Settle, Settled
from ringlog.writer.descriptors import descriptors_left
from ringlog.writer.drain import Drain, grouped
from ringlog.writer.missing import MissingLanes
from ringlog.writer.part import Part
from ringlog.writer.progress import Progress
from ringlog.writer.refuge import Refuge
from ringlog.writer.reload import changes, taken_over
from ringlog.writer.settlements import Settlements
from ringlog.writer.statistics import Statistics
from ringlog.writer.supervisor import Supervisor
from ringlog.writer.watches import new_pressure, reason_of, relimit, watch_memory, watch_server

logger = logging.getLogger("ringlog.writer")

POLL_SECONDS = 0.01  # how often lanes are looked at between ticks, for their high-water mark
ADOPT_INTERVAL_SECONDS = 0.5
METRICS_INTERVAL_SECONDS = 10.0
STATUS_INTERVAL_SECONDS = 1.0
INTERVAL_SECONDS_MAX = 1.0
CUTS_TIMEOUT_SECONDS = 0.5  # so long records wait in lanes for retention's cuts to be known; then they are spooled
SILENCE_SECONDS_MAX = 0.5  # so long lanes above their high-water mark wait for one request's answer
NAMED_MAX = 20  # lanes that the status names
SLOW_TICKS_MAX = 3  # so many in a row stretch the interval


class Writer:
    """The one writer of an instance. `run()` returns after `stop()` has been called and what was accepted is delivered.

    Raises WriterRunning where another process holds the lease.
    """

    def __init__(
        self,
        settings: Settings,
        sink: Sink | Future[Sink],
        mirror: Mirror | None = None,
        cuts: Cuts | Future[Cuts | None] | None = None,
        supervisor: Supervisor | None = None,
    ) -> None:
        """`sink` and `cuts` may still be loading: until they are there, lanes that fill up go to the spool."""
        self._settings = settings
        self._supervisor = Supervisor() if supervisor is None else supervisor
        self._reread: Callable[[], Settings] | None = None
        self._instance = Instance(settings).open()
        # First, since it may wait: whose the lease is shows on the board at once.
        self._board = open_board(self._instance, is_writer=True)
        self._lease = Lease(self._instance)
        if not self._lease.take():
            self._board.segment.close()
            holder = self._lease.holder
            raise WriterRunning(
                f"instance {self._instance.runtime_dir}: got a writer running already ({holder}), wanted none"
            )
        self._epoch = self._board.take_over()
        self._board.beat(0)  # the last tick was another writer's
        self._lease.write(f"pid={os.getpid()} since={time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}")
        self.statistics = Statistics()
        self._cuts: Part[Cuts | None] = Part(cuts)
        self._cuts_by: float | None = None  # from when the sink is there on, which has loaded the same libraries
        self._delivery = Delivery(
            sink,
            self.statistics,
            settings.confirm_timeout_ms / 1000,
            request_timeout_seconds=settings.request_timeout_ms / 1000,
            keeps_columns=mirror is not None,
        )
        spool = Spool(settled(settings), bytes_max=settings.spool_bytes_max)
        self._ledger = Ledger(spool.directory, spool.reserve, boot_id())
        self._refuge = Refuge(spool, self._ledger, settings.batch_rows_max, mirror)
        self._pressure = new_pressure(settings)
        self._settlements = Settlements(self._ledger, spool.directory, self._refuge.letters, self._pressure.alert)
        self._settlements.look()
        self._progress = Progress(self._pressure)
        self._server_dir: Path | None = None
        self._missing = MissingLanes(self._instance, self._ledger, self._pressure)
        self._directory = LaneDirectory(
            self._instance,
            on_empty=self._close_lane,
            on_absent=self._missing.lose,
            on_unlinked=self._missing.tell_unlinked,
        )
        self._is_loaded = False
        self._drains: dict[RecordLayout, Drain] = {}
        # No threading.Event: its lock is held for moments of each wait, and a handler that sets it then waits for ever.
        self._is_stopped = False
        self._base_interval = settings.drain_interval_ms / 1000
        self._interval = self._base_interval
        self._slow_ticks = 0
        self._is_behind = False  # records in lanes found no room for a request
        self._process = psutil.Process()
        self._adopt_at = 0.0
        self._status_at = 0.0
        self._reported_at = time.monotonic()
        self._publish_status()

    def stop(self) -> None:
        """Asks `run` to deliver what is in the lanes now and to return; safe in a signal handler."""
        self._is_stopped = True

    def reload(self, reread: Callable[[], Settings]) -> None:
        """Asks `run` to take over what may change live of the settings that `reread` gives; safe in a signal handler.

        Where `reread` raises ConfigurationError the writer logs it and goes on with what it has.
        """
        self._reread = reread

    def run(self) -> None:
        """Ticks until stopped; then delivers what the lanes hold, for at most `stop_timeout_ms`."""
        logger.info("writer started pid=%d epoch=%d interval_ms=%d", os.getpid(), self._epoch, self._interval * 1e3)
        next_tick = last_tick = time.monotonic()
        try:
            self._supervisor.ready()
            while not self._is_stopped:
                if self._reread is not None:
                    self._reload()
                if not self._is_loaded and self._delivery.is_ready:
                    self._settle_in()
                now = time.monotonic()
                if now >= next_tick:
                    self.statistics.tick_ms.append((now - last_tick) * 1e3)
                    last_tick = now
                    self._tick()
                    self._adapt()
                    next_tick = max(now + self._interval, time.monotonic())
                elif self._is_above_high_water():
                    self._drain_all()
                self._replay()
                self._guard()
                pause = max(0.0, min(POLL_SECONDS, next_tick - time.monotonic()))
                if not self._delivery.collect(timeout_seconds=pause):
                    time.sleep(pause)
            self._finish()
        finally:
            self.close()

    def _settle_in(self) -> None:
        """Once all is loaded: it stays, and is not memory that was taken for batches."""
        self._is_loaded = True
        gc.collect()
        gc.freeze()  # so that a collection in a tick need not walk it
        watch_memory(self._pressure, self._lane_bytes)
        self._status_at = 0.0

    def _tick(self) -> None:
        self._directory.refresh()
        self._refuge.batch_bytes = batch_bytes(self._lane_bytes())
        self._drain_all()
        self._board.beat(time.time_ns() // 1000)
        now = time.monotonic()
        if now >= self._adopt_at:
            self._adopt_at = now + ADOPT_INTERVAL_SECONDS
            if self._missing.renew(self._board):
                self._epoch = self._board.take_over()
            self._directory.adopt(self._board.inode)
            self._missing.look(self._directory)
        if now - self._reported_at >= METRICS_INTERVAL_SECONDS:
            self._report(now)
        if now >= self._status_at:
            self._status_at = now + STATUS_INTERVAL_SECONDS
            self._see_heads()
            self._settlements.look()
            self._look_around(now)
            self._publish_status()
        self._supervisor.alive()

    def _look_around(self, now: float) -> None:
        """Once a second: where the server keeps its data, which tables are away, whether anything is delivered."""
        server_dir = self._delivery.server_dir
        if server_dir != self._server_dir:
            self._server_dir = server_dir
            watch_server(self._pressure, server_dir, self._settings)
        spool, delivery = self._refuge.spool, self._delivery
        away = {table: delivery.trouble(table) or "what is spooled is sent first" for table in self._refuge.away}
        in_lanes = sum(reader.unconfirmed for reader in self._directory.lanes.values())
        waiting = in_lanes + sum(spool.rows(table) for table in spool.tables())
        if not delivery.is_ready:
            why = "the client of QuestDB is still loading"
        elif delivery.silent_seconds > SILENCE_SECONDS_MAX:
            why = f"QuestDB has not answered a request for {delivery.silent_seconds:.0f} s"
        elif away:
            why = "; ".join(f"{table}: {reason}" for table, reason in sorted(away.items()))
        elif self._known_cuts is None:
            why = "QuestDB has not answered yet what retention has cut"
        else:
            why = "what QuestDB acknowledged is not applied yet"
        self._progress.look(now, away, self._refuge.confirmed_rows, waiting, why)

    def _publish_status(self) -> None:
        """What `ringlog top` and the demo read from the board."""
        try:
            memory = self._process.memory_info()
        except OSError as error:
            logger.error("memory cannot be read, the status is not renewed: %s", error)
            return
        status = {
            "pid": os.getpid(),
            "epoch": self._epoch,
            "state": "running" if self._is_loaded else "starting",
            "stalled": self._progress.stalled,
            "server_dir": str(self._server_dir or ""),
            "interval_ms": self._interval * 1e3,
            "rss_bytes": memory.rss,
            "lanes": len(self._directory.lanes),
            "spool_bytes": self._refuge.spool.bytes,
            "spooled": self._refuge.spooled_rows,
            "replayed": self._refuge.replayed_rows,
            "dead_letters": self._refuge.dead_letters,
            "expired": self._refuge.expired_rows,
            "corrupt": self._refuge.corrupt,
            "quarantined": self._settlements.quarantined_rows,
            "unattached": self._directory.unattached_named(NAMED_MAX),
            "descriptors_left": descriptors_left(self._process),
            "board": self._board.reason.name.lower(),
            "alerts": {resource.value: count for resource, count in self._pressure.alerts.items()},
            **self.statistics.summary(),
        }
        self._board.write_status(msgspec.json.encode(status))

    def _is_above_high_water(self) -> bool:
        for lane in self._directory.lanes.values():
            mark = min(lane.capacity * self._settings.high_water_ratio, self._settings.batch_rows_max)
            if mark <= lane.head - lane.sent <= lane.capacity:
                return True
        return False

    def _drain_all(self) -> None:
        """Takes and sends what every lane holds now; what is published meanwhile is for the next time."""
        cuts = self._known_cuts
        self._is_behind = False
        if self._cuts_by is None and self._delivery.is_ready:
            self._cuts_by = time.monotonic() + CUTS_TIMEOUT_SECONDS
        if self._may_wait(cuts) and not self._is_above_high_water():
            if not self._is_stopped:  # then what is left is sent with the rest
                self._put_away_left()
            return
        for layout, lanes in grouped(self._directory.lanes.values()).items():
            if cuts is None or self._refuge.is_away(layout.table) or not self._delivery.is_open(layout.table):
                self._put_away(layout, lanes)
            else:
                self._send(layout, lanes, cuts.get(layout.table))
        self._replay()
        self._refuge.look(in_lanes=any(reader.unconfirmed for reader in self._directory.lanes.values()))

    def _put_away_left(self) -> None:
        """Lanes of owners that are gone give their part of the budget back at once, also where writers that are killed
        one after another never come to sending anything."""
        for layout, lanes in grouped(self._directory.left()).items():
            if any(lane.unconfirmed for lane in lanes):
                self._refuge.hurry(layout.table)
                self._put_away(layout, lanes)

    def _may_wait(self, cuts: Mapping[str, int] | None) -> bool:
        """Whether records may stay in lanes: until all is loaded and the cuts are known, or not to be had."""
        return self._cuts_by is None or (cuts is None and time.monotonic() < self._cuts_by)

    @property
    def _known_cuts(self) -> Mapping[str, int] | None:
        if not self._cuts.is_ready:
            return None
        return self._cuts.value.by_table if self._cuts.value is not None else {}

    def _replay(self) -> None:
        """Between ticks too, or a replay would wait for one after each batch; what is in the lanes goes first."""
        cuts = self._known_cuts
        if cuts is not None and not self._is_behind:
            self._refuge.replay(self._delivery, cuts)

    def _send(self, layout: RecordLayout, lanes: list[LaneReader], cut_us: int | None) -> None:
        drain = self._drains.get(layout)
        if drain is None:
            drain = self._drains[layout] = Drain(layout, self._settings.batch_rows_max)
        # A head that cannot be counts for nothing: its lane is left alone.
        waiting = sum(rows for lane in lanes if 0 < (rows := lane.head - lane.sent) <= lane.capacity)
        deadline = time.monotonic() + self._interval
        while waiting > 0:
            while not self._delivery.has_room and time.monotonic() < deadline and not self._is_kept_waiting():
                self._delivery.collect(timeout_seconds=POLL_SECONDS)
                self._guard()
            if self._refuge.is_away(layout.table):
                return
            if not self._delivery.has_room:
                self._is_behind = True
                if self._is_kept_waiting():
                    # What is under way is put away too, as a copy that is folded.
                    for lane in lanes:
                        lane.rewind()
                    self._refuge.leave(layout.table)
                return
            taken = drain.take(lanes, cut_us, self._refuge.batch_bytes)
            if taken is None:
                return
            (batch, corrupt, expired), runs = taken
            waiting -= sum(run.rows for run in runs)
            if not self._refuge.quarantine(layout, corrupt) or not self._refuge.expire(layout, expired):
                for lane in lanes:
                    lane.rewind()
                self._refuge.leave(layout.table)
                return
            if batch.rows:
                self._delivery.submit(batch, self._settler(layout, batch, runs))
            elif not self._advance(runs):
                return  # what was sent before them is not settled yet: they are looked at again then
            self._delivery.collect()

    def _is_kept_waiting(self) -> bool:
        """A server that answers nothing costs seconds until its requests fail: full lanes do not wait so long."""
        return self._delivery.silent_seconds > SILENCE_SECONDS_MAX and self._is_above_high_water()

    def _settler(self, layout: RecordLayout, batch: Batch, runs: list[Slots]) -> Settle:
        def settle(settled: Settled) -> None:
            # Put away meanwhile, their slots may hold later records: the spool's copy is refused again, and kept.
            is_passed = bool(settled.refused) and self._are_passed(runs)
            if settled.error is None and not is_passed and self._refuge.settle(layout, batch, settled, runs):
                self._advance(runs)
                return
            for run in runs:
                lane = self._directory.lanes.get(run.lane)
                if lane is not None:
                    lane.rewind()
            self._refuge.leave(layout.table)

        return settle

    def _are_passed(self, runs: list[Slots]) -> bool:
        """Whether a tail has moved over any of them, so that their slots are the owner's again."""
        lanes = [self._directory.lanes.get(run.lane) for run in runs]
        return any(lane is None or lane.tail > run.first_seq for lane, run in zip(lanes, runs, strict=True))

    def _put_away(self, layout: RecordLayout, lanes: list[LaneReader]) -> None:
        for runs in self._refuge.put_away(layout, lanes):
            self._advance(runs)  # at once: a writer that is killed before the last frame has still made room

    def _advance(self, runs: list[Slots]) -> bool:
        """Moves tails over records that are safe; False where one stays, and its lane is then read again from its tail.

        Raises WriterRunning where another writer took over: then tails are its business.
        """
        if self._board.epoch != self._epoch:
            raise WriterRunning(f"instance {self._instance.runtime_dir}: got the lease of another writer, wanted ours")
        all_moved = True
        for run in runs:
            reader = self._directory.lanes.get(run.lane)
            if reader is not None and not reader.advance_over(run.first_seq, run.rows) and reader.tail <= run.first_seq:
                reader.rewind()
                all_moved = False
        return all_moved

    def _lane_bytes(self) -> int:
        return sum(reader.card.size_bytes for reader in self._directory.lanes.values())

    def _close_lane(self, card: Card, head: int) -> bool:
        """Before a lane is unlinked: the ledger must know durably that this was all."""
        try:
            self._ledger.close_lane(card.table, card.lane, head)
        except SpoolError as error:
            logger.error("lane=%016x is kept, the ledger cannot be written: %s", card.lane, error)
            return False
        return True

    def _see_heads(self) -> None:
        """How far lanes got is what a reboot's loss is counted from."""
        heads: dict[str, dict[int, int]] = {}
        for reader in self._directory.lanes.values():
            if 0 <= reader.head - reader.tail <= reader.capacity:
                heads.setdefault(reader.layout.table, {})[reader.lane] = reader.head
        try:
            for table, seen in heads.items():
                self._ledger.see(table, seen)
        except SpoolError as error:
            logger.error("ledger cannot be written: %s", error)

    def _guard(self) -> None:
        """Says on the board whether producers may append."""
        reason = reason_of(self._pressure.poll())
        if reason is BoardReason.ACCEPTING and self._refuge.is_full:
            reason = BoardReason.SPOOL_FULL
        if reason != self._board.reason:
            self._board.refuse(reason)
            logger.warning("board says %s", reason.name.lower())

    def _adapt(self) -> None:
        """Writes that keep taking longer than the interval stretch it, up to 1 s; quick ones bring it back.

        One slow write alone (a server that warms up, a merge) only warns: stretching costs every record its freshness.
        """
        slowest, self.statistics.slowest_write_seconds = self.statistics.slowest_write_seconds, 0.0
        before = self._interval
        if slowest > before:
            self._slow_ticks += 1
            stretch = self._slow_ticks >= SLOW_TICKS_MAX
            if stretch:
                self._interval = min(before * 2, max(INTERVAL_SECONDS_MAX, self._base_interval))
                self._slow_ticks = 0
            logger.warning(
                "write took %.0f ms interval_ms=%.0f was=%.0f", slowest * 1e3, self._interval * 1e3, before * 1e3
            )
        elif slowest:
            self._slow_ticks = 0
            if slowest < before / 4 and before > self._base_interval:
                self._interval = max(before / 2, self._base_interval)
                logger.info("writes are quick interval_ms=%.0f was=%.0f", self._interval * 1e3, before * 1e3)

    def _reload(self) -> None:
        reread, self._reread = self._reread, None
        if reread is None:
            return
        self._supervisor.reloading()
        try:
            wanted = reread()
        except ConfigurationError as error:
            logger.error("settings are as before, the new ones cannot be used: %s", error)
            wanted = self._settings
        found = changes(self._settings, wanted)
        for change in found:
            if change.is_live:
                logger.info("setting changed %s", change)
            else:
                logger.warning("setting needs a restart %s", change)
        logger.info("settings read again changed=%d", sum(change.is_live for change in found))
        self._take_over(taken_over(self._settings, wanted))
        self._supervisor.ready()

    def _take_over(self, settings: Settings) -> None:
        self._settings = settings
        self._interval = self._base_interval = settings.drain_interval_ms / 1000
        self._drains.clear()  # they are made for so many rows
        self._delivery.confirm_timeout_seconds = settings.confirm_timeout_ms / 1000
        self._refuge.rows_max = settings.batch_rows_max
        self._refuge.spool.bytes_max = settings.spool_bytes_max
        relimit(self._pressure, settings)

    def _report(self, now: float) -> None:
        """Where the server does not take it now, the next tick tries again, and its figures are of that longer time."""
        if self._delivery.is_open("performance_metrics") and self._delivery.has_room:
            self._delivery.submit(self.statistics.batch(now - self._reported_at), lambda _settled: None)
            self._reported_at = now

    def _finish(self) -> None:
        """Delivers what had been accepted when the stop came; producers may go on appending for the next writer."""
        self._supervisor.stopping()
        deadline = time.monotonic() + self._settings.stop_timeout_ms / 1000
        self._directory.refresh()
        heads = {lane: reader.head for lane, reader in self._directory.lanes.items()}
        while time.monotonic() < deadline:
            self._drain_all()
            self._delivery.collect(timeout_seconds=0.01)
            self._directory.adopt()
            lanes = self._directory.lanes
            is_drained = all(lanes[lane].tail >= head for lane, head in heads.items() if lane in lanes)
            can_replay = self._known_cuts is not None or self._may_wait(None)
            if is_drained and not (can_replay and self._refuge.is_hurried):
                break
            time.sleep(0.005)
        self._publish_status()
        left = sum(reader.head - reader.tail for reader in self._directory.lanes.values())
        logger.info("writer stopped rows=%d left_in_lanes=%d", self.statistics.rows, left)

    def close(self) -> None:
        """Gives the lease back. Called by `run`. Raises ServerUnavailable where a request does not return."""
        try:
            self._delivery.close()
        finally:
            self._cuts.close()
            self._refuge.close()
            self._directory.close()
            self._lease.release()
