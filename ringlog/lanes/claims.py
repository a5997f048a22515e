"""Claims: how a producer comes to own a lane, within the instance's budget."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ringlog.errors import LaneError
from ringlog.lanes.board import Board
from ringlog.lanes.instance import Instance, boot_id, read_private
from ringlog.lanes.locks import LockFile, is_locked
from ringlog.lanes.segments import Segment, create_segment, unlink_segment
from ringlog.layout import (
    HEAD_OFFSET,
    HEADER,
    LAYOUT_OFFSET,
    LAYOUT_VERSION,
    MAGIC,
    REFUSED_OFFSET,
    STATE_OFFSET,
    TAIL_OFFSET,
    LaneState,
    segment_bytes,
    slots_offset,
)
from ringlog.records import RecordLayout
from ringlog.ring import load, store

SLOTS_WANTED = 16_384
SLOTS_MIN = 64
# A claim takes at most this part of what is left of the budget, or soon will be: late claimers get smaller lanes rather
# than none.
SHARE_OF_REST = 4
CLAIM_TIMEOUT_SECONDS = 5.0

# Record locks do not hold off threads of one process. Re-entrant for a signal handler that claims inside a claim: it
# then finds the file's lock held, instead of waiting for itself.
_claims_lock = threading.RLock()


_producer = secrets.token_hex(8)


def _after_fork_in_child() -> None:
    global _claims_lock, _producer  # noqa: PLW0603 (a thread of the parent may have held it)
    _claims_lock = threading.RLock()
    _producer = secrets.token_hex(8)


os.register_at_fork(after_in_child=_after_fork_in_child)


class BudgetExhausted(LaneError):
    """No lane of any useful size fits into what is left of the instance's budget."""


class Card(msgspec.Struct, frozen=True):
    """What is known of a lane without its segment: lies beside its lock file, which nobody else may open."""

    lane: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    segment: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    record: str
    table: str
    owner_pid: int
    boot_id: str
    claimed_at_us: int
    producer: str = ""  # the claiming process, by a random name: pids repeat from container to container


def cards(instance: Instance, known: Container[int] = ()) -> list[Card]:
    """The cards of the instance's lanes, but for those in `known`; one that is half written or foreign is left out.

    Raises LaneError where the directory cannot be listed.
    """
    found = []
    try:
        names = sorted(os.listdir(instance.lanes_dir))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LaneError(f"{instance.lanes_dir}: got {error.strerror}, wanted to list it") from None
    for name in names:
        number, _, suffix = name.partition(".")
        if suffix != "json" or _number_of(number) in known:
            continue
        try:
            found.append(msgspec.json.decode(read_private(instance.lanes_dir / name), type=Card))
        except (OSError, LaneError, msgspec.MsgspecError):
            continue
    return found


def _number_of(name: str) -> int:
    try:
        return int(name, 16)
    except ValueError:
        return 0  # no lane's


class OwnedLane:
    """A lane as its owner holds it: the segment, the lock that shows the owner's life, and the words for a ring."""

    words = (STATE_OFFSET, HEAD_OFFSET, TAIL_OFFSET, REFUSED_OFFSET)

    def __init__(self, card: Card, segment: Segment, lock: LockFile, slots_at: int, capacity: int) -> None:
        self.card = card
        self.segment = segment
        self.slots_offset = slots_at
        self.capacity = capacity
        self._lock = lock

    @property
    def memory(self) -> Any:
        return self.segment.memory

    @property
    def is_ours(self) -> bool:
        """Whether this process claimed the lane, and is not a forked child of the one that did."""
        return os.getpid() == self.card.owner_pid

    @property
    def is_retired(self) -> bool:
        """Whether the writer has adopted this lane, so that it must not be written any more."""
        return load(self.memory, STATE_OFFSET) == LaneState.RETIRED

    def close(self) -> None:
        """Leaves the lane in order: the writer drains what is in it and unlinks it. Does nothing to a parent's lane."""
        if self.is_ours and load(self.memory, STATE_OFFSET) == LaneState.OPEN:
            store(self.memory, STATE_OFFSET, LaneState.CLOSED)
        self.forget()

    def forget(self) -> None:
        """Lets go without a trace in the segment: for the forked child of the owner, and for a retired lane."""
        self._lock.release()
        self.segment.close()


@contextmanager
def claims_lock(instance: Instance, timeout_seconds: float = CLAIM_TIMEOUT_SECONDS) -> Iterator[None]:
    """Held while a lane or the board is made or removed; never on the path of an append that has a lane.

    Raises LaneError where another process has held it for `timeout_seconds` (a stopped one, say).
    """
    with _claims_lock:
        lock = LockFile(instance.claims_path)
        deadline = time.monotonic() + timeout_seconds
        while not lock.take():
            if time.monotonic() > deadline:
                raise LaneError(
                    f"{instance.claims_path}: got a lock held by another process for "
                    f"{timeout_seconds:g} s, wanted it free: is that process stopped?"
                )
            time.sleep(0.002)
        try:
            yield
        finally:
            lock.release()


def open_board(instance: Instance, timeout_seconds: float = CLAIM_TIMEOUT_SECONDS, *, is_writer: bool = False) -> Board:
    """The instance's board, made if there is none; see `Board.open`."""
    with claims_lock(instance, timeout_seconds):
        return Board.open(instance, is_writer=is_writer)


def claim(
    instance: Instance,
    layout: RecordLayout,
    *,
    lane_bytes: int | None = None,
    timeout_seconds: float = CLAIM_TIMEOUT_SECONDS,
) -> OwnedLane:
    """Claims a new lane for records of `layout`: `lane_bytes` of slots, or as many as the budget's rest suggests.

    Waits at most `timeout_seconds` for another claim to end. Raises BudgetExhausted, SharedMemoryFull, or LaneError
    (which names the file or directory).
    """
    with claims_lock(instance, timeout_seconds):
        others = cards(instance)
        rest = instance.settings.lane_bytes_max - sum(card.size_bytes for card in others)
        # Given back as soon as the writer has drained them: who follows a producer that died needs a lane of its size.
        returning = sum(card.size_bytes for card in others if not is_locked(instance.lock_path(card.lane)))
        capacity = _capacity(layout, rest, min((rest + returning) // SHARE_OF_REST, rest), lane_bytes)
        lane = secrets.randbits(63) or 1
        lock = LockFile(instance.lock_path(lane))
        if not lock.take(exclusive_create=True):
            raise LaneError(f"{lock.path}: got a lock held by another process on a new lane")
        try:
            return _made(instance, layout, capacity, lane, lock)
        except BaseException:
            instance.card_path(lane).unlink(missing_ok=True)
            lock.path.unlink(missing_ok=True)
            lock.release()
            raise


def _capacity(layout: RecordLayout, rest_bytes: int, share_bytes: int, lane_bytes: int | None) -> int:
    layout_bytes = len(layout.to_json())
    capacity = SLOTS_WANTED if lane_bytes is None else 1 << max(lane_bytes // layout.slot_bytes, 1).bit_length() - 1
    if lane_bytes is None:
        while capacity > SLOTS_MIN and segment_bytes(layout_bytes, layout.slot_bytes, capacity) > share_bytes:
            capacity //= 2
    needed = segment_bytes(layout_bytes, layout.slot_bytes, capacity)
    if needed > rest_bytes:
        raise BudgetExhausted(
            f"lane for {layout.name}: got {max(rest_bytes, 0)} bytes left of the budget, wanted {needed}: "
            "raise RINGLOG_LANE_BYTES_MAX or use fewer producers"
        )
    return capacity


def _made(instance: Instance, layout: RecordLayout, capacity: int, lane: int, lock: LockFile) -> OwnedLane:
    description = layout.to_json()
    size = segment_bytes(len(description), layout.slot_bytes, capacity)
    at = slots_offset(len(description))
    now_us = time.time_ns() // 1000
    pid = os.getpid()
    card = Card(lane, instance.segment_name(lane), size, layout.name, layout.table, pid, boot_id(), now_us, _producer)
    _write_card(instance.card_path(lane), card)
    segment = create_segment(card.segment, size)
    try:
        segment.memory[LAYOUT_OFFSET : LAYOUT_OFFSET + len(description)] = description
        header = (layout.slot_bytes, capacity, lane, pid, now_us, card.boot_id.encode(), at, len(description))
        HEADER.pack_into(segment.memory, 0, bytes(8), LAYOUT_VERSION, *header)
        # The magic comes last: a segment without it was never claimed, and holds nothing.
        store(segment.memory, 0, int.from_bytes(MAGIC, "little"))
        return OwnedLane(card, segment, lock, at, capacity)
    except BaseException:  # a signal handler raised: without its card nobody would ever find the segment
        unlink_segment(card.segment)
        raise


def _write_card(path: Path, card: Card) -> None:
    draft = path.with_suffix(".draft")
    try:
        draft.touch(mode=0o600)
        draft.write_bytes(msgspec.json.encode(card))
        draft.rename(path)
    except OSError as error:
        raise LaneError(f"{path}: got {error.strerror}, wanted to write the lane's card") from None
