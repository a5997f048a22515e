"""What a spool should hold and cannot give."""

from __future__ import annotations

import enum

import msgspec

from ringlog.records import RecordLayout
from ringlog.spans import Span


class DamageKind(enum.StrEnum):
    """What was found: CORRUPT bytes inside a file, a TORN end of one, or MISSING records between two frames.

    Of a lane: SLOTS that append could not have written; they may have come through the spool.
    """

    CORRUPT = "corrupt"
    TORN = "torn"
    MISSING = "missing"
    SLOTS = "slots"


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """Records that a spool should hold and cannot give.

    `spans` names them where the frame's header was whole, else it is empty; `rows` is their exact number, or None
    where nothing after them in the spool tells (the ledger does). A torn end may be a frame whose append never
    returned: its records then still lie in their lanes, or were appended again.
    """

    table: str
    kind: DamageKind
    file: str
    offset: int
    bytes: int
    spans: tuple[Span, ...]
    rows: int | None
    kept: str  # the file that holds the broken bytes; empty for missing records
    layout: RecordLayout | None = None  # what the bytes are slots of, where that is known
