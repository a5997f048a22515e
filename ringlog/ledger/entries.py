"""What the ledger's file holds: one sealed line of JSON an entry, readable with `cat`."""

from __future__ import annotations

import enum

import msgspec

from ringlog.disk import sealed, unsealed
from ringlog.spans import Span

VERSION = 2
VERSIONS_READ = (1, VERSION)  # version 1 had no DISCARDED, and no VANISHED


class Term(enum.StrEnum):
    """Where a record is. A record has one term at a time, and CONFIRMED is the last word."""

    CONFIRMED = "confirmed"
    SPOOLED = "spooled"
    DEAD_LETTERS = "dead_letters"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"
    LOST_AT_REBOOT = "lost_at_reboot"
    DISCARDED = "discarded"  # it was in quarantine or a dead letter, until a person gave it up
    VANISHED = "vanished"  # somebody removed the lane's segment while this boot lasted


class Version(msgspec.Struct, tag="version", array_like=True):
    version: int


class Recorded(msgspec.Struct, tag="recorded", array_like=True):
    """Records of a table got a term."""

    term: Term
    table: str
    boot_id: str
    spans: list[Span]


class Heads(msgspec.Struct, tag="heads", array_like=True):
    """How far lanes of a table had got: (lane, head)."""

    table: str
    boot_id: str
    heads: list[tuple[int, int]]


class Closed(msgspec.Struct, tag="closed", array_like=True):
    """A lane will take no record any more: its head is final."""

    table: str
    boot_id: str
    lane: int
    head: int


class Vanished(msgspec.Struct, tag="vanished", array_like=True):
    """A lane's segment is gone within its boot: what had no term then has no place that is known.

    Its head is not final: the lane may have accepted more than anybody has seen. Heads or Closed of a later line mean
    that its segment was there after all.
    """

    table: str
    boot_id: str
    lane: int


class LaneEntry(msgspec.Struct, tag="lane", array_like=True):
    """A lane in a compacted ledger: half-open ranges of seq by term."""

    lane: int
    table: str
    boot_id: str
    head: int
    is_closed: bool
    ranges: dict[Term, list[tuple[int, int]]]
    is_vanished: bool = False


class Retired(msgspec.Struct, tag="retired", array_like=True):
    """Totals of a table's lanes that are over and are no longer listed: rows by term."""

    table: str
    rows: dict[Term, int]


Entry = Version | Recorded | Heads | Closed | Vanished | LaneEntry | Retired
_decoder = msgspec.json.Decoder(Entry)
_encoder = msgspec.json.Encoder()


def to_line(entry: Entry) -> bytes:
    return sealed(_encoder.encode(entry))


def from_line(line: bytes) -> Entry | None:
    """None where the line does not prove itself or says nothing known."""
    text = unsealed(line)
    try:
        return _decoder.decode(text) if text is not None else None
    except msgspec.DecodeError:
        return None
