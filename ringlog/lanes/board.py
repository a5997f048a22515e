"""The board: the one small segment with the state that every producer reads, written by the writer alone."""

from __future__ import annotations

from typing import Any

from ringlog.errors import LaneError, SegmentRefused
from ringlog.lanes.claims_lock import claims_lock
from ringlog.lanes.instance import Instance
from ringlog.lanes.locks import is_locked
from ringlog.lanes.segments import SegmentBlank, attach_segment, create_segment, inode_of, unlink_segment
from ringlog.layout import (
    BOARD_BEAT_OFFSET,
    BOARD_BYTES,
    BOARD_EPOCH_OFFSET,
    BOARD_HEADER,
    BOARD_MAGIC,
    BOARD_REFUSE_OFFSET,
    BOARD_STATUS_OFFSET,
    LAYOUT_VERSION,
    READ_VERSIONS,
    BoardReason,
)
from ringlog.ring import load, store

_STATUS_AT = BOARD_STATUS_OFFSET + 16
STATUS_BYTES_MAX = BOARD_BYTES - _STATUS_AT
STATUS_READS_MAX = 100
RENEW_TIMEOUT_SECONDS = 0.05  # the lanes would fill meanwhile: it is tried again


class Board:
    """The board of an instance. Producers read the refuse word at every append; nothing here is ever locked."""

    def __init__(self, segment: Any) -> None:
        self.segment = segment
        self.memory = segment.memory

    @classmethod
    def open(cls, instance: Instance, *, is_writer: bool = False) -> Board:
        """Attaches the instance's board or makes it. The caller holds the claims lock.

        Raises SegmentRefused where what is there is not a board of a layout version that can be read, or where it is of
        an older one and a writer runs: that one would not read what this process appends. `is_writer`: it is this one.
        """
        try:
            segment = attach_segment(instance.board_name)
        except FileNotFoundError:
            return cls._create(instance)
        except SegmentBlank:
            segment = None
        if segment is None or not any(segment.memory[:BOARD_BYTES]):
            # Its maker died before the magic was written, so nobody reads it: make it anew.
            unlink_segment(instance.board_name)
            return cls._create(instance)
        versions = READ_VERSIONS if is_writer or not is_locked(instance.lease_path) else ()
        return cls._checked(instance, segment, versions)

    @classmethod
    def _checked(cls, instance: Instance, segment: Any, versions: tuple[int, ...]) -> Board:
        magic, version = BOARD_HEADER.unpack(bytes(segment.memory[: BOARD_HEADER.size]).ljust(BOARD_HEADER.size, b"\0"))
        size = len(segment.memory)
        if magic != BOARD_MAGIC or version not in (LAYOUT_VERSION, *versions) or size < BOARD_BYTES:
            segment.close()
            hint = ": upgrade the writer before the producers" if magic == BOARD_MAGIC else ""
            raise SegmentRefused(
                f"board {instance.board_name}: got magic {magic!r} version {version} in {size} bytes, "
                f"wanted {BOARD_MAGIC!r} version {LAYOUT_VERSION} in {BOARD_BYTES}; it is left as it is{hint}"
            )
        return cls(segment)

    @classmethod
    def look(cls, instance: Instance) -> Board | None:
        """The instance's board for reading alone, None where there is none; nothing is made, and no lock is taken.

        Raises SegmentRefused where what is there is not a board of this layout version.
        """
        try:
            segment = attach_segment(instance.board_name, is_writable=False)
        except (FileNotFoundError, SegmentBlank):
            return None
        if len(segment.memory) < BOARD_BYTES or bytes(segment.memory[:8]) == bytes(8):
            return None  # not made yet
        return cls._checked(instance, segment, READ_VERSIONS)

    @classmethod
    def _create(cls, instance: Instance) -> Board:
        segment = create_segment(instance.board_name, BOARD_BYTES)
        BOARD_HEADER.pack_into(segment.memory, 0, BOARD_MAGIC, LAYOUT_VERSION)
        return cls(segment)

    @property
    def inode(self) -> int:
        """What tells this board from another one of the same name."""
        return int(self.segment.inode.number)

    def is_current(self, instance: Instance) -> bool:
        """Whether the instance's board is still this one; True where that cannot be told now."""
        try:
            return inode_of(instance.board_name) == self.segment.inode  # type: ignore[no-any-return]
        except SegmentRefused:  # something else lies there
            return False
        except LaneError:
            return True

    def renew(self, instance: Instance) -> bool:
        """For the writer: where somebody removed the board, becomes the one that has its place now, or a new one.

        False where it is the instance's still. Raises LaneError where the other one cannot be had now.
        """
        if self.is_current(instance):
            return False
        with claims_lock(instance, RENEW_TIMEOUT_SECONDS):
            other = Board.open(instance, is_writer=True)
        other.refuse(self.reason)
        self.segment.close()
        self.segment, self.memory = other.segment, other.memory
        return True

    @property
    def reason(self) -> BoardReason:
        """Why producers are refused, or ACCEPTING."""
        try:
            return BoardReason(load(self.memory, BOARD_REFUSE_OFFSET))
        except ValueError:
            return BoardReason.DAMAGED

    def refuse(self, reason: BoardReason) -> None:
        """From now on every append returns False, counted as BOARD; ACCEPTING ends it."""
        store(self.memory, BOARD_REFUSE_OFFSET, reason)

    @property
    def epoch(self) -> int:
        """The lease epoch of the writer that last took over."""
        return load(self.memory, BOARD_EPOCH_OFFSET)

    def take_over(self) -> int:
        """Raises the epoch; whoever holds an older one no longer moves a tail. Called under the lease's lock.

        A board that an older version made is of this one from now on: producers may claim lanes of this version.
        """
        BOARD_HEADER.pack_into(self.memory, 0, BOARD_MAGIC, LAYOUT_VERSION)
        epoch = self.epoch + 1
        store(self.memory, BOARD_EPOCH_OFFSET, epoch)
        return epoch

    def beat(self, now_us: int) -> None:
        """Notes that the writer finished a tick."""
        store(self.memory, BOARD_BEAT_OFFSET, now_us)

    def write_status(self, status: bytes) -> None:
        """Replaces the writer's status, JSON that `ringlog top` and the demo read. Raises ValueError where too long."""
        if len(status) > STATUS_BYTES_MAX:
            raise ValueError(f"status: got {len(status)} bytes, wanted at most {STATUS_BYTES_MAX}")
        # SYNC POINT status: an odd count first and an even one last, so that a reader sees when it read a mixture.
        count = load(self.memory, BOARD_STATUS_OFFSET) & ~1
        store(self.memory, BOARD_STATUS_OFFSET, count + 1)
        store(self.memory, BOARD_STATUS_OFFSET + 8, len(status))
        self.memory[_STATUS_AT : _STATUS_AT + len(status)] = status
        store(self.memory, BOARD_STATUS_OFFSET, count + 2)

    def read_status(self) -> bytes:
        """The writer's latest status; empty where there is none, or it kept changing while it was read."""
        for _ in range(STATUS_READS_MAX):
            before = load(self.memory, BOARD_STATUS_OFFSET)
            length = load(self.memory, BOARD_STATUS_OFFSET + 8)
            status = bytes(self.memory[_STATUS_AT : _STATUS_AT + min(length, STATUS_BYTES_MAX)])
            if before % 2 == 0 and load(self.memory, BOARD_STATUS_OFFSET) == before:
                return status
        return b""

    @property
    def beat_us(self) -> int:
        """When the writer last finished a tick, microseconds since the epoch; 0 if never."""
        return load(self.memory, BOARD_BEAT_OFFSET)
