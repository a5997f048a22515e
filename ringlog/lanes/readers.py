"""The writer's side of lanes: finding them, reading what was published, moving tails, adopting abandoned ones."""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ringlog.decode import Slots
from ringlog.errors import LaneError, SegmentRefused
from ringlog.lanes.claims import Card, cards, claims_lock
from ringlog.lanes.instance import Instance, boot_id
from ringlog.lanes.locks import LockFile, is_locked
from ringlog.lanes.segments import Segment, SegmentBlank, attach_segment, unlink_segment
from ringlog.layout import (
    HEAD_OFFSET,
    HEADER,
    HEADER_FIELDS,
    LAYOUT_OFFSET,
    LAYOUT_VERSION,
    MAGIC,
    REFUSED_OFFSET,
    REFUSED_WORDS,
    STATE_OFFSET,
    TAIL_OFFSET,
    LaneState,
    segment_bytes,
    slots_offset,
)
from ringlog.records import LANE, SEQ, TIMESTAMP, Field, Kind, RecordLayout
from ringlog.records.declaration import FIELDS_MAX, IDENTIFIER, SLOT_BYTES_MAX
from ringlog.records.fields import INT64_MAX, INT64_MIN, TEXT_WIDTH_BYTES_MAX
from ringlog.ring import load, store

logger = logging.getLogger("ringlog.lanes")


class LaneReader:
    """One lane as the writer sees it. `sent` is the writer's own cursor; the segment's tail is what is confirmed."""

    def __init__(self, card: Card, segment: Segment, layout: RecordLayout, slots_at: int, capacity: int) -> None:
        self.card = card
        self.layout = layout
        self.capacity = capacity
        self._segment = segment
        self._memory: Any = segment.memory
        self._slots = self._memory[slots_at : slots_at + capacity * layout.slot_bytes]
        self.sent = self.tail

    @classmethod
    def attach(cls, card: Card) -> LaneReader:
        """Attaches a lane by its card and checks its header before anything in it is believed.

        Raises FileNotFoundError where the segment is gone, SegmentRefused (naming got and wanted) where it is not a
        lane of this layout version and of the sizes it says; the segment is left as it is.
        """
        segment = attach_segment(card.segment)
        try:
            return cls._checked(card, segment)
        except BaseException:
            segment.close()
            raise

    @classmethod
    def _checked(cls, card: Card, segment: Segment) -> LaneReader:
        if bytes(segment.memory[:8]) == bytes(8):
            raise SegmentBlank(f"segment {card.segment}: got no magic, wanted a completed claim")
        if segment.size < LAYOUT_OFFSET:
            raise SegmentRefused(f"segment {card.segment}: got {segment.size} bytes, wanted at least {LAYOUT_OFFSET}")
        header = dict(zip(HEADER_FIELDS, HEADER.unpack(bytes(segment.memory[: HEADER.size])), strict=True))
        if header["magic"] != MAGIC or header["version"] != LAYOUT_VERSION:
            raise SegmentRefused(
                f"segment {card.segment}: got magic {header['magic']!r} version {header['version']}, "
                f"wanted {MAGIC!r} version {LAYOUT_VERSION}: was it made by another version of ringlog?"
            )
        layout_bytes, capacity = header["layout_bytes"], header["capacity"]
        if not 0 < layout_bytes <= segment.size - LAYOUT_OFFSET:
            raise SegmentRefused(f"segment {card.segment}: got {layout_bytes} bytes of layout, wanted them inside it")
        try:
            layout = RecordLayout.from_json(bytes(segment.memory[LAYOUT_OFFSET : LAYOUT_OFFSET + layout_bytes]))
        except msgspec.MsgspecError as error:
            raise SegmentRefused(f"segment {card.segment}: got a layout that is none ({error}), wanted JSON") from None
        _check_layout(card, layout)
        at = slots_offset(layout_bytes)
        sound = (
            capacity > 0
            and capacity & (capacity - 1) == 0
            and header["slot_bytes"] == layout.slot_bytes
            and header["slots_offset"] == at
            and header["lane"] == card.lane
            and segment.size >= segment_bytes(layout_bytes, layout.slot_bytes, capacity)
        )
        if not sound:
            raise SegmentRefused(
                f"segment {card.segment}: got lane {header['lane']}, {capacity} slots of {header['slot_bytes']} bytes "
                f"from byte {header['slots_offset']} in {segment.size} bytes, wanted lane {card.lane}, a power of two "
                f"of slots of {layout.slot_bytes} bytes from byte {at} inside the segment"
            )
        reader = cls(card, segment, layout, at, capacity)
        if not 0 <= reader.head - reader.tail <= capacity:
            raise SegmentRefused(
                f"segment {card.segment}: got head {reader.head}, tail {reader.tail}, wanted at most {capacity} apart"
            )
        return reader

    @property
    def lane(self) -> int:
        return self.card.lane

    @property
    def head(self) -> int:
        """How many records were ever accepted into this lane. SYNC POINT head: with the owner's publish."""
        return load(self._memory, HEAD_OFFSET)

    @property
    def tail(self) -> int:
        """How many of them are safe elsewhere."""
        return load(self._memory, TAIL_OFFSET)

    @property
    def state(self) -> LaneState:
        """RETIRED also for a word that nobody stores: its owner leaves such a lane as well."""
        word = load(self._memory, STATE_OFFSET)
        return LaneState(word) if word in (LaneState.OPEN, LaneState.CLOSED) else LaneState.RETIRED

    @property
    def refused(self) -> tuple[int, ...]:
        """Records refused by the owner, by reason."""
        return tuple(load(self._memory, REFUSED_OFFSET + 8 * i) for i in range(REFUSED_WORDS))

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

    def take(self, rows_max: int) -> list[Slots]:
        """The next records in order, at most `rows_max`, as one or two runs of slots in shared memory; moves `sent`."""
        rows = min(self.waiting, rows_max)
        runs = []
        while rows:
            at = self.sent % self.capacity
            part = min(rows, self.capacity - at)
            memory = self._slots[at * self.layout.slot_bytes : (at + part) * self.layout.slot_bytes]
            runs.append(Slots(self.lane, self.sent, part, memory))
            self.sent += part
            rows -= part
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

    def retire(self) -> None:
        """An owner that is alive after all sees this in its next append and claims another lane."""
        store(self._memory, STATE_OFFSET, LaneState.RETIRED)

    def close(self) -> None:
        self._slots.release()
        self._segment.close()


def _check_layout(card: Card, layout: RecordLayout) -> None:
    """The layout comes from another process: every field must lie inside the slot and every name be an identifier."""
    names = [field.name for field in layout.fields]
    sound = (
        16 <= layout.slot_bytes <= SLOT_BYTES_MAX
        and 2 <= len(names) <= FIELDS_MAX + 1
        and len({*names, LANE, SEQ}) == len(names) + 2
        and all(IDENTIFIER.fullmatch(name) for name in (*names, layout.table))
        and all(8 <= field.offset <= layout.slot_bytes - field.stored_bytes for field in layout.fields)
        and all(_is_sound(field) for field in layout.fields)
        and [field.name for field in layout.fields if field.kind is Kind.TIMESTAMP] == [TIMESTAMP] == names[-1:]
    )
    if not sound:
        raise SegmentRefused(
            f"segment {card.segment}: got a layout of {layout.name!r} that no record type compiles to, "
            f"wanted named fields of known kinds inside their slot of {layout.slot_bytes} bytes"
        )


def _is_sound(field: Field) -> bool:
    """Whether a field's width and limits are ones that its kind can have."""
    limits = (field.minimum, field.maximum)
    match field.kind:
        case Kind.DOUBLE:
            return field.width_bytes == 8 and all(isinstance(limit, float) for limit in limits)
        case Kind.LONG:
            return field.width_bytes == 8 and all(isinstance(x, int) and INT64_MIN <= x <= INT64_MAX for x in limits)
        case Kind.TIMESTAMP:
            return field.width_bytes == 8
        case Kind.BOOLEAN:
            return field.width_bytes == 1
        case _:
            return 1 <= field.width_bytes <= TEXT_WIDTH_BYTES_MAX


class Absent(enum.Enum):
    """Why a lane's card has no lane behind it."""

    UNCLAIMED = "its owner died before the claim was complete: nothing was ever accepted"
    REBOOTED = "shared memory did not outlive a boot"
    UNLINKED = "somebody removed its segment"


class LaneDirectory:
    """All lanes of an instance, for the writer: attaches new ones, adopts and removes abandoned ones."""

    def __init__(
        self,
        instance: Instance,
        *,
        on_empty: Callable[[Card, int], bool] = lambda _card, _head: True,
        on_absent: Callable[[Card, Absent], None] = lambda _card, _reason: None,
    ) -> None:
        """`on_empty(card, head)` is asked before an abandoned and drained lane is unlinked: False keeps it for now.

        `on_absent(card, reason)` is told of a lane whose segment is gone, before its card is removed.
        """
        self._instance = instance
        self._on_empty = on_empty
        self._on_absent = on_absent
        self._boot_id = boot_id()
        self._linger_seconds = instance.settings.lane_linger_ms / 1000
        self._standing_since: dict[int, tuple[int, float]] = {}
        self.lanes: dict[int, LaneReader] = {}
        self.refused: dict[int, str] = {}
        self.absent: dict[int, tuple[Card, Absent]] = {}

    def refresh(self) -> None:
        """Attaches lanes that are new since the last look; a lane that cannot be attached is logged once and kept."""
        try:
            found = cards(self._instance)
        except OSError as error:  # no free descriptor, say: those that are attached go on
            logger.error("lanes cannot be listed yet: %s", error)
            return
        for card in found:
            if card.lane in self.lanes or card.lane in self.refused:
                continue
            # Asked first: an owner that completed its claim, appended and left after we had looked at the segment must
            # not seem to have died within the claim.
            owned = self._is_owned(card.lane)
            try:
                reader = LaneReader.attach(card)
            except FileNotFoundError:
                if not owned or card.boot_id != self._boot_id:
                    self._miss(card)
            except SegmentBlank:
                if not owned:  # else its claim is not complete yet
                    self._miss(card, blank=True)
            except SegmentRefused as error:
                self.refused[card.lane] = str(error)
                logger.error("lane refused, left untouched: %s", error)
            except LaneError as error:
                logger.error("lane cannot be attached yet: %s", error)
            else:
                self.lanes[card.lane] = reader
                logger.info("lane=%016x attached record=%s slots=%d", card.lane, card.record, reader.capacity)

    def _is_owned(self, lane: int) -> bool:
        return is_locked(self._instance.lock_path(lane))

    def _miss(self, card: Card, *, blank: bool = False) -> None:
        reason = Absent.REBOOTED if card.boot_id != self._boot_id else Absent.UNCLAIMED if blank else Absent.UNLINKED
        self.absent[card.lane] = (card, reason)
        logger.warning("lane=%016x of %s is gone: %s", card.lane, card.record, reason.value)
        self._on_absent(card, reason)
        self._remove(card)

    def adopt(self) -> None:
        """Retires lanes whose owner is gone and removes those that are empty and have stood still for the linger."""
        now = time.monotonic()
        for lane, reader in list(self.lanes.items()):
            state = reader.state  # before the head: what a leaving owner published, it published before CLOSED
            if state == LaneState.OPEN:
                if self._is_owned(lane):
                    continue
                reader.retire()
                logger.info("lane=%016x adopted waiting=%d", lane, reader.head - reader.tail)
            head = reader.head
            known, since = self._standing_since.get(lane, (-1, now))
            if known != head:
                self._standing_since[lane] = (head, now)
            elif head == reader.tail and (state == LaneState.CLOSED or now - since >= self._linger_seconds):
                if not self._on_empty(reader.card, head):
                    continue
                reader.close()
                del self.lanes[lane]
                del self._standing_since[lane]
                self._remove(reader.card)
                logger.info("lane=%016x removed accepted=%d", lane, head)

    def _remove(self, card: Card) -> None:
        try:
            with claims_lock(self._instance):
                unlink_segment(card.segment)
                self._instance.lock_path(card.lane).unlink(missing_ok=True)
                self._instance.card_path(card.lane).unlink(missing_ok=True)
        except LaneError as error:
            logger.warning("lane=%016x could not be removed yet: %s", card.lane, error)

    def close(self) -> None:
        for reader in self.lanes.values():
            reader.close()
        self.lanes.clear()


def remove_instance(instance: Instance) -> None:
    """Removes the board, and every lane whose owner is gone with whatever it still holds: for instances that were only
    ever temporary. Raises LaneError where a lane is still owned."""
    for card in cards(instance):
        if is_locked(instance.lock_path(card.lane)):
            raise LaneError(f"instance {instance.runtime_dir}: got lane {card.lane:016x} owned by pid {card.owner_pid}")
    with claims_lock(instance):
        for card in cards(instance):
            unlink_segment(card.segment)
            instance.lock_path(card.lane).unlink(missing_ok=True)
            instance.card_path(card.lane).unlink(missing_ok=True)
        unlink_segment(instance.board_name)


class Lease:
    """The one writer of an instance: a lock for its life, and an epoch on the board for what it may still do."""

    def __init__(self, instance: Instance) -> None:
        self._lock = LockFile(instance.lease_path)

    def take(self) -> bool:
        """False where another process holds it."""
        return self._lock.take()

    def write(self, text: str) -> None:
        self._lock.write(text)

    def release(self) -> None:
        self._lock.release()
