"""The byte layout of a segment: where each word of a lane and of the board lies. No code here touches memory.

A lane's segment:

    0     header: written once by the owner, magic last
    128   state word          written by owner (CLOSED) and writer (RETIRED)
    136   standing words      written by the writer: the head of a lane that was left, and since when it stands still
    256   head word           written by the owner only
    384   tail word           written by the writer only
    512   refused words       written by the owner only, one count for each reason
    1016  board word          written by the owner only: the inode of the board that it reads, 0 where that is not known
    1024  layout of the record type, as JSON
    slots_offset (a whole page): capacity slots of slot_bytes each

Head and tail lie 128 bytes apart, two cache lines, since processors fetch lines in adjacent pairs. All words are 8
bytes, little endian as on every platform that ringlog supports, and aligned, so that one store or load of a word is
never torn.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence

MAGIC = b"RINGLOG\x01"
BOARD_MAGIC = b"RINGBRD\x01"
# Version 2 has more reasons in the refused words, which are 0 in a segment of version 1: such a lane is read as it is.
LAYOUT_VERSION = 2
READ_VERSIONS = (1, LAYOUT_VERSION)
PAGE_BYTES = 4096

HEADER = struct.Struct("<8sIIQQQq36sIQ")
HEADER_FIELDS = (
    "magic",
    "version",
    "slot_bytes",
    "capacity",
    "lane",
    "owner_pid",
    "claimed_at_us",
    "boot_id",
    "slots_offset",
    "layout_bytes",
)

STATE_OFFSET = 128
STANDING_HEAD_OFFSET = 136
STANDING_SINCE_OFFSET = 144  # milliseconds of the monotonic clock, which is one for all processes of a boot
HEAD_OFFSET = 256
TAIL_OFFSET = 384
REFUSED_OFFSET = 512
BOARD_INODE_OFFSET = 1016
LAYOUT_OFFSET = 1024
REASONS_MAX = (BOARD_INODE_OFFSET - REFUSED_OFFSET) // 8


class LaneState(enum.IntEnum):
    """The state word of a lane."""

    OPEN = 0
    RETIRED = 1  # adopted by the writer: an owner that is alive after all claims another lane
    CLOSED = 2  # left by its owner in order


class Refused(enum.IntEnum):
    """Why an append returned False; the index of its count in the refused words."""

    FULL = 0  # the lane has no free slot: the writer is behind or away
    BOARD = 1  # the board says refuse: see Board.reason
    BUDGET = 2  # no lane could be claimed within the instance's budget
    # append was called inside an append of its own thread: in C one that is claiming the lane, in Python any
    REENTRANT = 3
    CLOSED = 4  # the producer is closed
    CLOCK = 5  # this machine's clock, which would have stamped the record, is before 2000 or after 2200
    INVALID = 6  # wrong input: append raised, or returned False where the producer was told so
    # From here on: why no lane could be claimed.
    CLAIM_BUSY = 7  # another process held the claims lock all the while
    DESCRIPTORS = 8  # this process, or the machine, has no file descriptor left
    SHARED_MEMORY = 9  # /dev/shm is full, absent or read-only, or this process has no address space left
    UNUSABLE = 10  # the runtime directory, a file in it or the board cannot be used


REFUSED_WORDS = max(Refused) + 1


def refusals_by_name(counts: Sequence[int]) -> dict[str, int]:
    """The counts of the refused words, by the names of their reasons."""
    return {reason.name.lower(): counts[reason] for reason in Refused}


# The board: one page with the state that every producer reads.
BOARD_HEADER = struct.Struct("<8sI")
BOARD_REFUSE_OFFSET = 128  # 0: accepting, else a BoardReason
BOARD_EPOCH_OFFSET = 256  # the writer's lease epoch
BOARD_BEAT_OFFSET = 264  # when the writer last finished a tick, microseconds since the epoch
BOARD_STATUS_OFFSET = 1024  # the writer's status: a sequence count (odd while it is being written), a length, JSON
BOARD_BYTES = 64 * 1024


class BoardReason(enum.IntEnum):
    """What the board's refuse word means."""

    ACCEPTING = 0
    DISK_FULL = 1
    SPOOL_FULL = 2
    MEMORY = 3
    STOPPED = 4
    DAMAGED = 5  # a word that no writer stores


def slots_offset(layout_bytes: int) -> int:
    """Where the slots begin, for a record layout of `layout_bytes` bytes of JSON."""
    return -(-(LAYOUT_OFFSET + layout_bytes) // PAGE_BYTES) * PAGE_BYTES


def segment_bytes(layout_bytes: int, slot_bytes: int, capacity: int) -> int:
    """The whole size of a lane's segment."""
    return slots_offset(layout_bytes) + slot_bytes * capacity
