"""The writer's side of lanes: finding them, reading what was published, moving tails, adopting abandoned ones."""

from __future__ import annotations

import enum
import itertools
import logging
import time
from collections.abc import Callable

from ringlog.decode import Slots
from ringlog.errors import LaneError, SegmentRefused
from ringlog.lanes.claims import Card, cards, remove_files, remove_unfinished, unfinished
from ringlog.lanes.claims_lock import claims_lock
from ringlog.lanes.instance import Instance, boot_id, read_private
from ringlog.lanes.locks import LockFile, holder_of, is_locked
from ringlog.lanes.segments import Segment, SegmentBlank, attach_segment, inode_of, unlink_segment
from ringlog.lanes.views import LaneView
from ringlog.layout import (
    BOARD_INODE_OFFSET,
    STANDING_HEAD_OFFSET,
    STANDING_SINCE_OFFSET,
    STATE_OFFSET,
    TAIL_OFFSET,
    LaneState,
)
from ringlog.ring import load, store

logger = logging.getLogger("ringlog.lanes")

REMOVE_TIMEOUT_SECONDS = 0.05


class LaneReader(LaneView):
    """One lane as the writer sees it. `sent` is the writer's own cursor; the segment's tail is what is confirmed."""

    def __init__(self, card: Card, segment: Segment) -> None:
        super().__init__(card.segment, segment.memory, card.lane)
        self.card = card
        self.is_unlinked = False  # its name leads elsewhere, or nowhere: see LaneDirectory.adopt
        self._segment = segment
        self.sent = self.tail

    @classmethod
    def attach(cls, card: Card) -> LaneReader:
        """Attaches a lane by its card and checks its header before anything in it is believed.

        Raises FileNotFoundError where the segment is gone, SegmentRefused (naming got and wanted) where it is not a
        lane of this layout version and of the sizes it says; the segment is left as it is.
        """
        segment = attach_segment(card.segment)
        try:
            return cls(card, segment)
        except BaseException:
            segment.close()
            raise

    @property
    def waiting(self) -> int:
        """How many records are published and not yet sent.

        Raises SegmentRefused where head and tail cannot belong together: somebody wrote into the segment.
        """
        head = self.head
        waiting = head - self.sent
        if not 0 <= waiting <= self.capacity:
            raise SegmentRefused(
                f"segment {self.card.segment}: got head {head} at sent {self.sent}, "
                f"wanted at most {self.capacity} apart"
            )
        return waiting

    @property
    def unconfirmed(self) -> int:
        """How many records are in no other place; 0 where head and tail cannot belong together."""
        rows = self.head - self.tail
        return rows if 0 <= rows <= self.capacity else 0

    def take(self, rows_max: int) -> list[Slots]:
        """The next records in order, at most `rows_max`, as one or two runs of slots in shared memory; moves `sent`."""
        runs = self.runs(self.sent, min(self.waiting, rows_max))
        self.sent += sum(run.rows for run in runs)
        return runs

    def advance(self, seq: int) -> None:
        """Gives the slots below `seq` back to the owner: their records are safe elsewhere.

        SYNC POINT tail: with the owner's look at a full lane; reordered before the reads of the slots, the owner could
        overwrite one that is still being read.
        """
        store(self._memory, TAIL_OFFSET, seq)
        self.sent = max(self.sent, seq)

    def advance_over(self, first_seq: int, rows: int) -> bool:
        """Advances over records that are safe, if all before them are: False where an earlier one was given back.

        Only this keeps a tail from passing a record that is nowhere yet, or from moving back over slots that are free.
        """
        if not first_seq <= self.tail < first_seq + rows:
            return False
        self.advance(first_seq + rows)
        return True

    def rewind(self) -> None:
        """What was sent and not confirmed is sent again."""
        self.sent = self.tail

    def look_at_name(self) -> bool:
        """Whether the segment's name was found taken away since the last look."""
        if self.is_unlinked:
            return False
        try:
            self.is_unlinked = inode_of(self.card.segment) != self._segment.inode
        except SegmentRefused:  # something else lies there
            self.is_unlinked = True
        except LaneError:  # no free descriptor, say: not to be told now
            return False
        return self.is_unlinked

    def retire(self) -> None:
        """An owner that is alive after all sees this in its next append and claims another lane."""
        store(self._memory, STATE_OFFSET, LaneState.RETIRED)

    def reads_other_board(self, inode: int) -> bool:
        """Whether the owner reads another board than this one."""
        return bool(inode) and load(self._memory, BOARD_INODE_OFFSET) not in (0, inode)

    def still_seconds(self, head: int) -> float:
        """How long the head of a lane that was left has stood at `head`. The lane itself keeps that, so that writers
        which are killed again and again come to its removal."""
        now_ms = time.monotonic_ns() // 1_000_000
        since_ms = load(self._memory, STANDING_SINCE_OFFSET)
        if load(self._memory, STANDING_HEAD_OFFSET) != head or not 0 < since_ms <= now_ms:
            store(self._memory, STANDING_HEAD_OFFSET, head)
            store(self._memory, STANDING_SINCE_OFFSET, now_ms)
            return 0.0
        return (now_ms - since_ms) / 1e3

    def close(self) -> None:
        super().close()
        self._segment.close()


class Absent(enum.Enum):
    """Why a lane's card has no lane behind it."""

    REBOOTED = "shared memory did not outlive a boot"
    VANISHED = (
        "somebody removed its segment while this boot lasted, or this process has another /dev/shm than its owner "
        "(a container without a shared one): what it had accepted and no writer had read is not to be found"
    )


class LaneDirectory:
    """All lanes of an instance, for the writer: attaches new ones, adopts and removes abandoned ones."""

    def __init__(
        self,
        instance: Instance,
        *,
        on_empty: Callable[[Card, int], bool] = lambda _card, _head: True,
        on_absent: Callable[[Card, Absent], bool] = lambda _card, _reason: True,
        on_unlinked: Callable[[Card], None] = lambda _card: None,
    ) -> None:
        """`on_empty(card, head)` is asked before an abandoned and drained lane is unlinked: False keeps it for now.

        `on_absent(card, reason)` is told of a lane whose segment is gone, before its card is removed: False asks again.
        `on_unlinked(card)` is told of a lane that lost its name while it is attached here.
        """
        self._instance = instance
        self._on_empty = on_empty
        self._on_absent = on_absent
        self._on_unlinked = on_unlinked
        self._boot_id = boot_id()
        self._linger_seconds = instance.settings.lane_linger_ms / 1000
        self._stuck: set[int] = set()  # lanes that could not be removed, and the log said so
        self.lanes: dict[int, LaneReader] = {}
        self.refused: dict[int, str] = {}
        self.unattached: dict[int, str] = {}  # for want of a descriptor or of memory: tried again at each look
        self.absent: dict[int, tuple[Card, Absent]] = {}

    def refresh(self) -> None:
        """Attaches lanes that are new since the last look; a lane that cannot be attached is logged once and kept."""
        try:
            broken: dict[int, str] = {}
            found = cards(self._instance, self.lanes.keys() | self.refused.keys(), broken=broken)
        except LaneError as error:  # no free descriptor, say: those that are attached go on
            logger.error("lanes cannot be listed yet: %s", error)
            return
        for lane, why in broken.items():
            self._refuse(lane, f"{why}, wanted its card")
        for lane in self.unattached.keys() - {card.lane for card in found}:
            del self.unattached[lane]
        for card in found:
            if card.lane in self.lanes or card.lane in self.refused:
                continue
            try:
                reader = LaneReader.attach(card)
            except FileNotFoundError:
                self._miss(card)
            except SegmentBlank as error:
                self._refuse(card.lane, f"{error}: somebody emptied it")
            except SegmentRefused as error:
                self._refuse(card.lane, str(error))
            except LaneError as error:
                if card.lane not in self.unattached:
                    logger.error("lane=%016x cannot be attached yet, its records wait in it: %s", card.lane, error)
                self.unattached[card.lane] = str(error)
            else:
                self.unattached.pop(card.lane, None)
                self.lanes[card.lane] = reader
                logger.info("lane=%016x attached record=%s slots=%d", card.lane, card.record, reader.capacity)

    def _is_owned(self, lane: int) -> bool:
        return is_locked(self._instance.lock_path(lane))

    def _refuse(self, lane: int, why: str) -> None:
        self.refused[lane] = why
        logger.error("lane refused, left untouched: %s", why)

    def _miss(self, card: Card) -> None:
        reason = Absent.VANISHED if card.boot_id == self._boot_id else Absent.REBOOTED
        if card.lane not in self.absent:
            level = logging.ERROR if reason is Absent.VANISHED else logging.WARNING
            logger.log(level, "lane=%016x of %s is gone: %s", card.lane, card.record, reason.value)
            if not self._on_absent(card, reason):
                return
            self.absent[card.lane] = (card, reason)
        if reason is Absent.REBOOTED or not self._is_owned(
            card.lane
        ):  # else its card still leads to an owner that does not know it yet
            self._remove(card)

    def adopt(self, board: int = 0) -> None:
        """Retires lanes whose owner is gone and removes those that are empty and have stood still for the linger.

        Also retires those whose owners read another board than `board` (its inode, 0 for any): they claim another lane
        in their next append, and attach the present board for it.
        """
        for lane, reader in list(self.lanes.items()):
            if reader.look_at_name():
                # Its owner claims another in its next append. What this one holds is read all the same: it is mapped.
                reader.retire()
                logger.error("lane=%016x of %s: somebody removed its segment, retired", lane, reader.card.record)
                self._on_unlinked(reader.card)
            state = reader.state  # before the head: what a leaving owner published, it published before CLOSED
            if state == LaneState.OPEN:
                if self._is_owned(lane) and not reader.reads_other_board(board):
                    continue
                reader.retire()
                logger.info("lane=%016x adopted waiting=%d", lane, reader.head - reader.tail)
            head = reader.head
            # An owner that has closed its lane writes no more: then nothing is waited for.
            is_over = reader.still_seconds(head) >= self._linger_seconds or state == LaneState.CLOSED
            if head == reader.tail and is_over:
                if state != LaneState.CLOSED and self._is_owned(lane):
                    continue  # not before its owner has left it: an append may be under way
                # Kept where it cannot be removed: its card would have it attached and adopted anew.
                is_named = not reader.is_unlinked
                if not self._on_empty(reader.card, head) or not self._remove(reader.card, is_named=is_named):
                    continue
                reader.close()
                del self.lanes[lane]
                logger.info("lane=%016x removed accepted=%d", lane, head)
        self._remove_unfinished()

    def unattached_named(self, lanes_max: int) -> dict[str, str]:
        """Why lanes are not read, by lane; of so many at most, since the board has room for so much only."""
        return {f"{lane:016x}": text for lane, text in itertools.islice(self.unattached.items(), lanes_max)}

    def left(self) -> list[LaneReader]:
        """The lanes whose owner has left, or is gone."""
        return [
            reader for lane, reader in self.lanes.items() if reader.state != LaneState.OPEN or not self._is_owned(lane)
        ]

    def _remove_unfinished(self) -> None:
        """What a process left that died in the middle of a claim: nothing was ever accepted there."""
        try:
            for lane in remove_unfinished(self._instance):
                logger.info("lane=%016x removed, its claim was never complete", lane)
        except (OSError, LaneError) as error:
            logger.debug("unfinished claims could not be removed yet: %s", error)

    def _remove(self, card: Card, *, is_named: bool = True) -> bool:
        """Removes a lane: its segment (where its name is still its own) and its files.

        False, and logged once, where that failed.
        """
        try:
            # Hardly waited for: whoever holds it may be stopped, and the other lanes would fill meanwhile.
            with claims_lock(self._instance, REMOVE_TIMEOUT_SECONDS):
                if is_named:
                    remove_files(self._instance, card.lane)
                else:  # what the name leads to now is not ours
                    self._instance.card_path(card.lane).unlink(missing_ok=True)
                    self._instance.lock_path(card.lane).unlink(missing_ok=True)
        except (LaneError, OSError) as error:
            if card.lane not in self._stuck:
                self._stuck.add(card.lane)
                logger.warning("lane=%016x could not be removed yet, tried again: %s", card.lane, error)
            return False
        self._stuck.discard(card.lane)
        return True

    def close(self) -> None:
        for reader in self.lanes.values():
            reader.close()
        self.lanes.clear()


def remove_instance(instance: Instance) -> None:
    """Removes the board, and every lane whose owner is gone with whatever it still holds: for instances that were only
    ever temporary. Raises LaneError where a lane is still owned."""
    for lane in _lanes(instance):
        if is_locked(path := instance.lock_path(lane)):
            raise LaneError(f"instance {instance.runtime_dir}: got lane {lane:016x} owned by pid {holder_of(path)}")
    with claims_lock(instance):
        for lane in _lanes(instance):
            remove_files(instance, lane)
        unlink_segment(instance.board_name)


def _lanes(instance: Instance) -> set[int]:
    return {card.lane for card in cards(instance)} | {*unfinished(instance)}


class Lease:
    """The one writer of an instance: a lock for its life, and an epoch on the board for what it may still do."""

    def __init__(self, instance: Instance) -> None:
        self._path = instance.lease_path
        self._lock = LockFile(instance.lease_path)

    def take(self) -> bool:
        """False where another process holds it."""
        return self._lock.take()

    def write(self, text: str) -> None:
        self._lock.write(text)

    @property
    def holder(self) -> str:
        """What the process that holds it has written."""
        try:
            return read_private(self._path).decode(errors="replace")
        except (OSError, LaneError) as error:
            return str(error)

    def release(self) -> None:
        self._lock.release()
