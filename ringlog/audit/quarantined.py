"""What is in quarantine: the records by the ledger, the bytes that were kept of them, and what still decodes."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ringlog.dead_letters.letter import fields_of
from ringlog.decode import Decoder, Slots
from ringlog.disk import Directory, refusal
from ringlog.ledger import Accounts, Term
from ringlog.ledger.accounts import RETIRED_LANE
from ringlog.records import RecordLayout
from ringlog.spans import SeqSet, Span
from ringlog.spool.damage import Damage, DamageKind
from ringlog.spool.frames import frame_header_bytes, parse_frame_header
from ringlog.spool.quarantine import BYTES_SUFFIX, DESCRIPTION_SUFFIX, DIRECTORY_NAME

HEX_BYTES = 4096  # a line of an export, of bytes that are no slots
WORDS = {
    DamageKind.SLOTS: "slots that append could not have written: something else wrote into the lane or the file",
    DamageKind.CORRUPT: "bytes in the middle of a spool file are broken",
    DamageKind.TORN: "the end of a spool file is torn or broken",
    DamageKind.MISSING: "records between two frames of the spool are missing",
}
NO_BYTES = "spool files or parts of them were destroyed, no bytes are known to be theirs"
RETIRED = "of lanes that were over long ago and are no longer listed one by one"


class LaneRange(msgspec.Struct):
    """Records of a lane (hexadecimal) from `first_seq` to `last_seq`, both included."""

    lane: str
    first_seq: int
    last_seq: int


class Item(msgspec.Struct):
    """Something in quarantine: a file, or (file "") records of which no bytes are known.

    `records`: how many accepted records are in quarantine by it, `lanes` says which; `discarded`: how many were given
    up. `table` is "" and `why` says so where nothing tells whose the bytes are. `time` is ISO 8601 in UTC.
    """

    file: str
    table: str
    why: str
    time: str
    bytes: int
    records: int
    discarded: int
    lanes: list[LaneRange]


class _File(msgspec.Struct):
    """A file in quarantine, and what its description says: nothing, where that is missing or of an older version."""

    path: Path
    size: int
    time: str
    damage: Damage | None
    spans: tuple[Span, ...]

    @property
    def table(self) -> str:
        if self.damage is not None:
            return self.damage.table
        return "" if self.spans else self.path.name.split(".")[0]

    @property
    def is_cursor(self) -> bool:
        """Whether it is a broken cursor: it held no record, and cost nothing but a replay."""
        return self.damage is None and self.path.name.endswith(f".cursor{BYTES_SUFFIX}")

    @property
    def is_of_unknown_records(self) -> bool:
        """Broken spool bytes whose own header does not say which records they were."""
        if self.damage is None:
            return not self.spans and not self.is_cursor
        return not self.spans and self.damage.rows != 0


class Quarantined:
    """Reads a quarantine; `directory` is the spool's, `accounts` what the ledger says."""

    def __init__(self, directory: Directory, accounts: Accounts) -> None:
        self._accounts = accounts
        self._directory = directory
        self._files = list(self._found()) if DIRECTORY_NAME in directory.names() else []

    def _found(self) -> Iterator[_File]:
        quarantine = self._directory.subdirectory(DIRECTORY_NAME)
        try:
            for name in quarantine.names():
                if name.endswith(BYTES_SUFFIX):
                    status = os.stat(name, dir_fd=quarantine.descriptor, follow_symlinks=False)
                    time = datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC)
                    damage = _described(quarantine.read(name.removesuffix(BYTES_SUFFIX) + DESCRIPTION_SUFFIX))
                    spans = damage.spans if damage is not None else _named(name)
                    text = time.isoformat(timespec="milliseconds")
                    yield _File(quarantine.path / name, status.st_size, text, damage, spans)
        finally:
            quarantine.close()

    def spans(self, table: str | None, lane: int | None, seq: int | None) -> dict[str, list[Span]]:
        """By table, the records in quarantine: all, or those of a table, a lane, a seq."""
        found: dict[str, list[Span]] = {}
        for name, span in self._of(Term.QUARANTINED):
            if table in (None, name) and lane in (None, span.lane):
                if seq is None:
                    found.setdefault(name, []).append(span)
                elif span.lane != RETIRED_LANE and span.first_seq <= seq < span.first_seq + span.rows:
                    found.setdefault(name, []).append(Span(span.lane, seq, 1))
        return found

    def _of(self, term: Term) -> Iterator[tuple[str, Span]]:
        for lane, account in self._accounts.lanes.items():
            for start, end in account.sets.get(term, ()):
                yield account.table, Span(lane, start, end - start)
        for table, rows in self._accounts.retired.items():
            if rows.get(term):
                yield table, Span(RETIRED_LANE, 0, rows[term])

    def items(self, *, settled: bool = False) -> Iterator[Item]:
        """What is to be settled; with `settled` also what was, and files of records that are stored elsewhere."""
        claimed: dict[int, SeqSet] = {}
        for file in self._files:
            item = self._item(file, claimed)
            if settled or item.records or (file.is_of_unknown_records and self._has_unclaimed(file.table)):
                yield item
        for table, span in self._of(Term.QUARANTINED):
            known = claimed.get(span.lane, SeqSet())
            parts = [(start, end) for start, end in known.gaps(span.first_seq, span.first_seq + span.rows)]
            if parts:
                is_retired = span.lane == RETIRED_LANE
                lanes = [] if is_retired else [_lane_range(span.lane, *part) for part in parts]
                rows = sum(end - start for start, end in parts)
                why = RETIRED if is_retired else NO_BYTES
                yield Item("", table, why, "", 0, rows, 0, lanes)

    def _item(self, file: _File, claimed: dict[int, SeqSet]) -> Item:
        parts = self._parts(file, Term.QUARANTINED)
        for lane, start, end in parts:
            claimed.setdefault(lane, SeqSet()).add(start, end)
        discarded = sum(end - start for _, start, end in self._parts(file, Term.DISCARDED))
        table = file.table or next((self._accounts.lanes[lane].table for lane, _, _ in parts), "")
        lanes = [_lane_range(*part) for part in parts]
        rows = sum(end - start for _, start, end in parts)
        return Item(str(file.path), table, _why(file), file.time, file.size, rows, discarded, lanes)

    def _parts(self, file: _File, term: Term) -> list[tuple[int, int, int]]:
        return [
            (span.lane, start, end)
            for span in file.spans
            if span.lane in self._accounts.lanes
            for start, end in self._accounts.lanes[span.lane]
            .sets.get(term, SeqSet())
            .within(span.first_seq, span.first_seq + span.rows)
        ]

    def _has_unclaimed(self, table: str) -> bool:
        """Whether records of the table are in quarantine that no file names: its bytes may be theirs."""
        named: dict[int, SeqSet] = {}
        for file in self._files:
            for span in file.spans:
                named.setdefault(span.lane, SeqSet()).add(span.first_seq, span.first_seq + span.rows)
        return any(
            name == table and list(named.get(span.lane, SeqSet()).gaps(span.first_seq, span.first_seq + span.rows))
            for name, span in self._of(Term.QUARANTINED)
        )

    def records(self, table: str | None, lane: int | None, seq: int | None) -> Iterator[dict[str, Any]]:
        """Each slot that was kept: its fields where it decodes, else its bytes; and all other bytes, in hexadecimal.

        Bytes of which nobody knows whose they were come where neither a lane nor a seq is asked for.
        """
        for file in self._files:
            item = self._item(file, {})
            content = self._content(file) if table in (None, item.table) else None
            if content is None:
                continue
            origin = {"file": item.file, "table": item.table}
            slots = _slots(file, content)
            if slots is None:
                if lane is None and seq is None:
                    for at in range(0, len(content), HEX_BYTES):
                        yield {**origin, "offset": at, "hex": content[at : at + HEX_BYTES].hex()}
                continue
            for span, memory in slots:
                if lane in (None, span.lane):
                    for number, shown in _decoded(file.damage, span, memory):
                        if seq in (None, number):
                            yield {**origin, "lane": f"{span.lane:016x}", "seq": number, **shown}

    def _content(self, file: _File) -> bytes | None:
        """None where somebody discarded it meanwhile."""
        quarantine = self._directory.subdirectory(DIRECTORY_NAME)
        try:
            return quarantine.read(file.path.name)
        finally:
            quarantine.close()

    def remove_settled(self, table: str | None, lane: int | None, seq: int | None) -> list[str]:
        """Removes the files of what was asked for that hold nothing which is to be settled; returns their paths.

        Raises SpoolError where the disk fails; they are then removed by the next call.
        """
        removed = [file.path for file in self._files if self._is_settled(file, table, lane, seq)]
        if not removed:
            return []
        quarantine = self._directory.subdirectory(DIRECTORY_NAME)
        try:
            for path in removed:
                for name in (path.name, path.with_suffix(DESCRIPTION_SUFFIX).name):  # a description alone says nothing
                    with contextlib.suppress(FileNotFoundError):
                        quarantine.remove(name)
            quarantine.sync()
        except OSError as error:
            raise refusal(quarantine.path, error, "files that can be removed") from error
        finally:
            quarantine.close()
        return [str(path) for path in removed]

    def _is_settled(self, file: _File, table: str | None, lane: int | None, seq: int | None) -> bool:
        item = self._item(file, {})
        is_asked_for = (lane is None and seq is None) or any(
            lane in (None, span.lane) and (seq is None or span.first_seq <= seq < span.first_seq + span.rows)
            for span in file.spans
        )
        if table not in (None, item.table) or not is_asked_for or item.records or self._is_spooled(file):
            return False
        return not (file.is_of_unknown_records and self._has_unclaimed(file.table))

    def _is_spooled(self, file: _File) -> bool:
        """Whether the writer has not passed the bytes yet: it looks at them again, and keeps them again."""
        if file.is_of_unknown_records:
            return any(name == file.table for name, _ in self._of(Term.SPOOLED))
        return bool(self._parts(file, Term.SPOOLED))


def _described(text: bytes | None) -> Damage | None:
    try:
        return msgspec.json.decode(text, type=Damage) if text is not None else None
    except msgspec.DecodeError:
        return None


def _why(file: _File) -> str:
    if file.is_cursor:
        return "a broken cursor of the spool: its files were replayed, no record was in it"
    if file.damage is None:
        return WORDS[DamageKind.SLOTS] if file.spans else "kept without a description, by a writer that was killed"
    unknown = ", and with them the header that says whose records they were" if file.is_of_unknown_records else ""
    return WORDS[file.damage.kind] + unknown


def _named(name: str) -> tuple[Span, ...]:
    """The records of a file of slots, which an older version kept without a description, by the file's name."""
    parts = name.removesuffix(BYTES_SUFFIX).split("-")
    try:
        return (Span(int(parts[1], 16), int(parts[2]), int(parts[3])),) if parts[0] == "slots" else ()
    except (IndexError, ValueError):
        return ()


def _lane_range(lane: int, start: int, end: int) -> LaneRange:
    return LaneRange(f"{lane:016x}", start, end - 1)


def _slots(file: _File, content: bytes) -> list[tuple[Span, bytes]] | None:
    """The slots of a file by span; None where its bytes are no slots that anybody could find."""
    if not file.spans:
        return None
    rows = sum(span.rows for span in file.spans)
    if file.damage is None or file.damage.kind is DamageKind.SLOTS:
        at, slot_bytes = 0, len(content) // rows
    else:
        length = frame_header_bytes(content)
        header = parse_frame_header(content[:length]) if length is not None and length <= len(content) else None
        if header is None:
            return None
        at, slot_bytes = header.header_bytes, header.slot_bytes
    found = []
    for span in file.spans:
        found.append((span, content[at : at + span.rows * slot_bytes]))
        at += span.rows * slot_bytes
    return found


def _decoded(damage: Damage | None, span: Span, memory: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each slot by seq, as far as the bytes go: `record` where it decodes, else `hex`."""
    layout: RecordLayout | None = damage.layout if damage is not None else None
    slot_bytes = layout.slot_bytes if layout is not None else len(memory) // span.rows
    whole = len(memory) // slot_bytes if slot_bytes else 0
    sound: set[int] = set()
    if layout is not None and whole:
        array = np.frombuffer(memory[: whole * slot_bytes], np.uint8)
        _, runs, _ = Decoder(layout).decode([Slots(span.lane, span.first_seq, whole, array)])
        sound = {seq for run in runs for seq in range(run.first_seq, run.first_seq + run.rows)}
    for row in range(-(-len(memory) // slot_bytes) if slot_bytes else 0):
        seq, slot = span.first_seq + row, memory[row * slot_bytes : (row + 1) * slot_bytes]
        if layout is not None and seq in sound:
            yield seq, {"record": fields_of(layout, slot)}
        else:
            yield seq, {"hex": slot.hex()}
