"""Claims: how a producer comes to own a lane, within the instance's budget."""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import secrets
import time
from collections.abc import Container, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from ringlog.errors import LaneError
from ringlog.lanes.board import Board
from ringlog.lanes.claims_lock import CLAIM_TIMEOUT_SECONDS, claims_lock, one_process, one_thread
from ringlog.lanes.instance import Instance, boot_id, open_private, read_private
from ringlog.lanes.locks import LockFile, is_locked
from ringlog.lanes.segments import Segment, create_segment, unlink_segment
from ringlog.layout import (
    BOARD_INODE_OFFSET,
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
from ringlog.settings import Settings

SLOTS_WANTED = 16_384
SLOTS_MIN = 64
LANE_DIGITS = 16  # of a lane in the names of its files
_OTHER_KIND = (errno.ELOOP, errno.ENXIO)  # what opening a symlink, or a socket, says: no card
# A claim takes at most this part of what is left of the budget, while this part of the budget is left, and less below
# that: late claimers get smaller lanes rather than none.
SHARE_OF_REST = 4
PLENTY_OF_BUDGET = 0.4
# What is left when no claim counts on lanes that will be given back soon: with it, hundreds of small lanes can be had.
RESERVE_OF_BUDGET = 8
RETURNING_LANES_MAX = 20
# A lock file that has no card may be that of a claim which has not taken the lock yet.
STRAY_SECONDS = 10.0

# By directory and lane: sizes never change, and many processes that claim at once must not ask for them all again.
_known_sizes: dict[Path, Mapping[str, int]] = {}

_producer = secrets.token_hex(8)


def _after_fork_in_child() -> None:
    global _producer  # noqa: PLW0603 (a forked child is a producer of its own)
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
    owner_pid: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    boot_id: str
    claimed_at_us: int
    producer: str = ""  # the claiming process, by a random name: pids repeat from container to container


def cards(
    instance: Instance, known: Container[int] = (), *, broken: MutableMapping[int, str] | None = None
) -> list[Card]:
    """The cards of the instance's lanes, but for those in `known`; one that cannot be a lane's is left out.

    Why it is none is put into `broken`, by lane. Raises LaneError where the directory cannot be listed, or a card not
    be read now (no free descriptor, say): a lane is never taken for absent for that.
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
        path = instance.lanes_dir / name
        try:
            card = msgspec.json.decode(read_private(path), type=Card)
            if card.lane != _number_of(number):
                raise LaneError(f"{path}: got lane {card.lane:016x}, wanted that of the file's name")
        except FileNotFoundError:  # removed meanwhile
            continue
        except (OSError, LaneError, msgspec.MsgspecError) as error:
            if isinstance(error, OSError) and error.errno not in _OTHER_KIND:
                raise LaneError(f"{path}: got {error.strerror}, wanted to read it") from None
            if broken is not None and _number_of(number):
                broken[_number_of(number)] = str(error) if isinstance(error, LaneError) else f"{path}: got {error}"
        else:
            found.append(card)
    return found


def _number_of(name: str) -> int:
    try:
        return int(name, 16) if len(name) == LANE_DIGITS else 0
    except ValueError:
        return 0  # no lane's


class Listed(NamedTuple):
    """The lanes that have files in an instance, by their numbers as the files are called."""

    sizes: dict[str, int]  # the bytes of their segments: a lock file is made as long as those, without taking room
    unfinished: set[str]  # those whose claim, or whose removal, is not complete

    @classmethod
    def of(cls, instance: Instance) -> Listed:
        """Looks once. A claim does so under the lock, also beside hundreds of lanes: so no size is asked for twice."""
        known = _known_sizes.get(instance.lanes_dir, {})
        try:
            names = os.listdir(instance.lanes_dir)
        except FileNotFoundError:
            names = []
        complete = {name[:LANE_DIGITS] for name in names if name.endswith(".json")}
        others = {name[:LANE_DIGITS] for name in names if name.endswith((".lock", ".claim"))}
        sizes = {name: known.get(name) or _size_of(f"{instance.lanes_dir}/{name}.lock") for name in others}
        _known_sizes[instance.lanes_dir] = sizes
        return cls(sizes, {name for name in others - complete if _number_of(name)})


def _size_of(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


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

    def note_board(self, inode: int) -> None:
        """Says which board this lane's owner reads, so that a writer notices where it is no longer the instance's."""
        store(self.memory, BOARD_INODE_OFFSET, inode)

    def close(self) -> None:
        """Leaves the lane in order: the writer drains what is in it and unlinks it. Does nothing to a parent's lane."""
        if self.is_ours and load(self.memory, STATE_OFFSET) == LaneState.OPEN:
            store(self.memory, STATE_OFFSET, LaneState.CLOSED)
        self.forget()

    def forget(self) -> None:
        """Lets go without a trace in the segment: for the forked child of the owner, and for a retired lane."""
        self._lock.release()
        self.segment.close()


def open_board(
    instance: Instance,
    timeout_seconds: float = CLAIM_TIMEOUT_SECONDS,
    still_seconds: float = CLAIM_TIMEOUT_SECONDS,
    *,
    is_writer: bool = False,
) -> Board:
    """The instance's board, made if there is none; see `Board.open`. Waits as long as a claim."""
    with claims_lock(instance, timeout_seconds, still_seconds):
        return Board.open(instance, is_writer=is_writer)


def claim(
    instance: Instance,
    layout: RecordLayout,
    *,
    lane_bytes: int | None = None,
    timeout_seconds: float = CLAIM_TIMEOUT_SECONDS,
    still_seconds: float = CLAIM_TIMEOUT_SECONDS,
) -> OwnedLane:
    """Claims a new lane for records of `layout`: `lane_bytes` of slots, or as many as the budget's rest suggests.

    Waits at most `timeout_seconds` for claims of others to end, `still_seconds` where none of them does.

    Raises BudgetExhausted, ClaimsBusy, ClaimReentrant, SharedMemoryFull, SharedMemoryUnusable, or LaneError (which
    names the file or directory).
    """
    deadline = time.monotonic() + timeout_seconds
    try:
        with one_thread(instance, deadline):
            description = layout.to_json()
            lane = secrets.randbits(63) or 1
            segment = instance.segment_name(lane)
            now_us, pid = time.time_ns() // 1000, os.getpid()
            card = Card(lane, segment, 0, layout.name, layout.table, pid, boot_id(), now_us, _producer)
            lock = LockFile(instance.lock_path(lane))
            if not lock.take(exclusive_create=True):
                raise LaneError(f"{lock.path}: got a lock held by another process on a new lane")
            try:
                returning = _returning_bytes(instance, layout) if lane_bytes is None else 0
                # Nothing but the length of its lock file is written under the lock that all processes share: it takes
                # the lane's part of the budget. The memory, megabytes of it, is had after that.
                with one_process(instance, deadline, still_seconds):
                    rest = _rest_bytes(instance)
                    capacity = _capacity(layout, rest, returning, instance.settings, lane_bytes)
                    size = segment_bytes(len(description), layout.slot_bytes, capacity)
                    lock.resize(size)
                return _made(instance, layout, msgspec.structs.replace(card, size_bytes=size), capacity, lock)
            except BaseException:  # also a signal handler's: nothing stays behind
                _give_up(instance, card, lock)
                raise
    except OSError as error:
        raise LaneError(f"lane for {layout.name}: got {error}, wanted to make its files") from error


def _rest_bytes(instance: Instance) -> int:
    """What is left of the budget, without what dead claimers have. Called under the claims lock."""
    listed = Listed.of(instance)
    dead = [name for name in listed.unfinished if not is_locked(instance.lock_path(_number_of(name)))]
    taken = sum(listed.sizes.values()) - sum(listed.sizes.get(name, 0) for name in dead)
    for name in dead:
        _remove_if_unfinished(instance, _number_of(name))
    return instance.settings.lane_bytes_max - taken


def _returning_bytes(instance: Instance, layout: RecordLayout) -> int:
    """What dead owners have of the budget: given back as soon as the writer has drained their lanes."""
    listed, budget = Listed.of(instance), instance.settings.lane_bytes_max
    rest = budget - sum(listed.sizes.values())
    share = _share(rest, budget)
    wanted = segment_bytes(len(layout.to_json()), layout.slot_bytes, SLOTS_WANTED)
    if share >= min(wanted, rest - budget // RESERVE_OF_BUDGET):
        return 0  # makes no difference
    # Only of the largest lanes: of the others there may be hundreds, and a claim is to be short.
    large = heapq.nlargest(RETURNING_LANES_MAX, listed.sizes.items(), key=lambda item: item[1])
    return sum(size for name, size in large if not is_locked(instance.lock_path(_number_of(name))))


def _share(rest_bytes: int, budget_bytes: int) -> int:
    """How much of the rest one lane may have. It falls faster than the rest: a few are large, and hundreds fit."""
    scarcity = min(1.0, max(rest_bytes, 0) / (budget_bytes * PLENTY_OF_BUDGET))
    return int(rest_bytes / SHARE_OF_REST * scarcity**3)


def _capacity(
    layout: RecordLayout, rest_bytes: int, returning_bytes: int, settings: Settings, lane_bytes: int | None
) -> int:
    budget_bytes = settings.lane_bytes_max
    layout_bytes = len(layout.to_json())
    capacity = SLOTS_WANTED if lane_bytes is None else 1 << max(lane_bytes // layout.slot_bytes, 1).bit_length() - 1
    if lane_bytes is None:
        # A producer that replaces a dead one gets a lane of the same size, as long as that leaves a reserve.
        replacing = min(
            _share(rest_bytes + returning_bytes, budget_bytes), rest_bytes - budget_bytes // RESERVE_OF_BUDGET
        )
        share_bytes = max(_share(rest_bytes, budget_bytes), replacing)
        while capacity > SLOTS_MIN and segment_bytes(layout_bytes, layout.slot_bytes, capacity) > share_bytes:
            capacity //= 2
    needed = segment_bytes(layout_bytes, layout.slot_bytes, capacity)
    if needed > rest_bytes:
        raise BudgetExhausted(
            f"lane for {layout.name}: got {max(rest_bytes, 0)} bytes left of the budget, wanted {needed}: "
            "raise RINGLOG_LANE_BYTES_MAX or use fewer producers"
        )
    return capacity


def _made(instance: Instance, layout: RecordLayout, card: Card, capacity: int, lock: LockFile) -> OwnedLane:
    description = layout.to_json()
    at = slots_offset(len(description))
    descriptor = open_private(instance.claim_path(card.lane), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(card))
    segment = create_segment(card.segment, card.size_bytes)
    segment.memory[LAYOUT_OFFSET : LAYOUT_OFFSET + len(description)] = description
    header = (layout.slot_bytes, capacity, card.lane, card.owner_pid, card.claimed_at_us)
    HEADER.pack_into(segment.memory, 0, bytes(8), LAYOUT_VERSION, *header, card.boot_id.encode(), at, len(description))
    # The magic comes last, and then the name under which the writer finds the lane: what has that name is whole.
    store(segment.memory, 0, int.from_bytes(MAGIC, "little"))
    instance.claim_path(card.lane).rename(instance.card_path(card.lane))
    return OwnedLane(card, segment, lock, at, capacity)


def _give_up(instance: Instance, card: Card, lock: LockFile) -> None:
    if os.getpid() == card.owner_pid:  # not in a child that was forked inside the claim
        with contextlib.suppress(OSError, LaneError):  # what is left now is removed with the next claim
            remove_files(instance, card.lane)
    lock.release()


def remove_files(instance: Instance, lane: int) -> None:
    """Removes a lane. From the first step on its files say that it is not complete: whoever finds them ends this."""
    with contextlib.suppress(FileNotFoundError):
        instance.card_path(lane).rename(instance.claim_path(lane))
    _remove_unfinished_files(instance, lane)


def _remove_unfinished_files(instance: Instance, lane: int) -> None:
    unlink_segment(instance.segment_name(lane))
    instance.claim_path(lane).unlink(missing_ok=True)
    instance.lock_path(lane).unlink(missing_ok=True)


def unfinished(instance: Instance) -> list[int]:
    """The lanes whose claim, or whose removal, is not complete."""
    return [_number_of(name) for name in Listed.of(instance).unfinished]


def remove_unfinished(instance: Instance) -> list[int]:
    """Removes what was left by processes that died in the middle of a claim, or of a removal; which lanes."""
    return [lane for lane in unfinished(instance) if _remove_if_unfinished(instance, lane)]


def _remove_if_unfinished(instance: Instance, lane: int) -> bool:
    # In this order: an owner writes the claim while it has the lock. So where the lock is free after that, the owner
    # has died, or has completed the claim meanwhile.
    has_claim = instance.claim_path(lane).exists()
    path = instance.lock_path(lane)
    if is_locked(path) or instance.card_path(lane).exists():
        return False
    if has_claim:
        _remove_unfinished_files(instance, lane)
        return True
    # A lock file alone: no segment was made, or it is not known whether records are in it.
    with contextlib.suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime >= STRAY_SECONDS:
            path.unlink()
            return True
    return False
