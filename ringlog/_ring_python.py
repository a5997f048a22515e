"""The Python ring: the reference for `_ring.c`, which has the same classes with the same methods. Works everywhere.

SYNC POINT pairs are described in `_ring.c`. Python has no acquire and release, so `fence` passes through a lock: its
release cannot be seen before what was stored before it, nor can what follows its acquire happen before it, which
together is a full fence on every processor that ringlog supports. Without it an ARM machine could publish a head
before the slot, and the drain would read a slot of the last lap.
"""

from __future__ import annotations

import operator
import os
import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ringlog._ring_append import compiled
from ringlog.errors import RecordError
from ringlog.layout import REASONS_MAX, Refused
from ringlog.records.declaration import SLOT_BYTES_MAX
from ringlog.records.fields import (
    NULL_LENGTH,
    NULL_LONG,
    TEXT_WIDTH_BYTES_MAX,
    TIMESTAMP_MAX_US,
    TIMESTAMP_MIN_US,
    Kind,
    whole_words,
)
from ringlog.validation import clock_us

FIELDS_MAX = 64
NO_LANE: tuple[Any, ...] = (*[None] * 10, -1)  # what a generated append needs of the lane; the last is whose it is
_WORD = struct.Struct("@Q")  # native: one 8-byte store, where "=Q" would be eight of one byte
_fork_generation = [0]  # one more in each forked child; a list, which the generated appends look into


def fence() -> None:
    """A full one: loads and stores before it and behind it keep their order."""
    # A lock of this call alone: no other thread, signal handler or forked child can ever meet it.
    lock = threading.Lock()
    lock.acquire()
    lock.release()
    lock.acquire()


def _after_fork_in_child() -> None:
    _fork_generation[0] += 1


os.register_at_fork(after_in_child=_after_fork_in_child)


def load(memory: Any, offset: int) -> int:
    """An 8-byte word, with acquire."""
    (value,) = _WORD.unpack_from(memory, _checked(memory, offset))
    fence()
    return int(value)


def store(memory: Any, offset: int, value: int) -> None:
    """An 8-byte word, with release."""
    fence()
    _WORD.pack_into(memory, _checked(memory, offset), value)


def _checked(memory: Any, offset: int) -> int:
    length = len(memoryview(memory).cast("B"))
    if offset < 0 or offset > length - 8 or offset % 8:
        raise ValueError(f"offset: got {offset}, wanted an aligned word inside {length} bytes")
    return offset


class Ring:
    """The producer's side of one lane after another."""

    def __init__(
        self,
        fields: tuple[tuple[Any, ...], ...],
        slot_bytes: int,
        reasons: int,
        coerce: Callable[..., Any],
        recover: Callable[[], Any],
        invalid: Callable[[RecordError], Any] | None = None,
    ) -> None:
        slot_bytes, reasons = operator.index(slot_bytes), operator.index(reasons)
        _check_construction(fields, slot_bytes, reasons)
        self.descriptions = fields
        self.fields = tuple(_FieldWriter(*field) for field in fields)
        self.slot_bytes = slot_bytes
        self.reasons = reasons
        self.coerce = coerce
        self.recover = recover
        self.invalid = invalid
        self.attached = False
        self.head = 0
        self._last_refused = -1
        self._left_refused = [0] * reasons  # those of lanes that this ring left
        self._unplaced = [0] * reasons  # those of no lane: the next one's words take them over, where others see them
        self._counts_generation = _fork_generation[0]  # whose both of these are
        # Held by an append from the slot's first byte to its publishing: threads of this process share the ring. Not
        # waited for: a signal handler that appends in the middle of an append would wait for itself.
        self._lock = threading.RLock()
        self._inside = False
        self._recovering = False
        self._detaching = False  # asked for inside an append: done when that leaves
        self._lock_generation = self._generation = _fork_generation[0]
        self._limit = 0  # the head at which the lane is full, as far as is known
        self._lane = NO_LANE

    def attach(self, memory: Any, board: Any, slots_offset: int, capacity: int, words: tuple[int, ...]) -> None:
        """Writes to this lane from now on; `words` are the offsets of state, head, tail, refused and refuse."""
        with self._own_lock():
            self._release()
            self._attach(memoryview(memory).cast("B"), memoryview(board).cast("B"), slots_offset, capacity, words)
            self._own_counts()
            for reason, rows in enumerate(self._unplaced):
                self._words[self._refused + reason] += rows
            self._unplaced = [0] * self.reasons

    def _attach(
        self, view: memoryview, board_view: memoryview, slots_offset: int, capacity: int, words: tuple[int, ...]
    ) -> None:
        if view.readonly:
            raise BufferError("memory: got memory that is read-only, wanted it writable")
        *lane_words, refuse = words
        last_words = [*lane_words[:3], lane_words[3] + 8 * (self.reasons - 1)]
        fits = (
            capacity > 0
            and capacity & (capacity - 1) == 0
            and min(*words, slots_offset) >= 0
            and slots_offset + capacity * self.slot_bytes <= len(view)
            and all(word + 8 <= slots_offset for word in last_words)
            and refuse + 8 <= len(board_view)
            and not any(word % 8 for word in (*words, slots_offset))
        )
        if not fits:
            raise ValueError(
                f"memory: got {len(view)} bytes for {capacity} slots of {self.slot_bytes} bytes from byte "
                f"{slots_offset} on, wanted a power of two of slots inside it, and aligned words below them"
            )
        self._memory = view
        self._words = view[: slots_offset + capacity * self.slot_bytes].cast("Q")
        self._board = board_view
        self._board_words = self._board[: refuse + 8].cast("Q")
        self._state, self._head_word, self._tail_word, self._refused, self._refuse = (word // 8 for word in words)
        self._slots_offset = slots_offset
        self._capacity = capacity
        self._lane = (
            self._memory, self._words, self._board_words, self._state, self._head_word, self._refuse, slots_offset,
            capacity - 1, self._lock.acquire, self._lock.release, _fork_generation[0],
        )  # fmt: skip
        self.head = self._words[self._head_word]
        self._set_tail(self._words[self._tail_word])
        self._generation = _fork_generation[0]
        self.attached = True

    def detach(self) -> None:
        """Lets go of the memory; the next append recovers. Inside an append (a signal handler) once that is done."""
        with self._own_lock():
            if self._inside and not self._recovering:
                self._detaching = True
            else:
                self._release()

    def _release(self) -> None:
        if not self.attached:
            return
        if self._is_own:
            for reason in range(self.reasons):
                self._left_refused[reason] += self._words[self._refused + reason]
        self.attached = False
        self._limit = 0
        self._lane = NO_LANE
        for view in (self._words, self._board_words, self._memory, self._board):
            view.release()

    def _own_counts(self) -> None:
        """A forked child has refused nothing yet: what its parent had counted until then is the parent's."""
        if self._counts_generation != _fork_generation[0]:
            self._counts_generation = _fork_generation[0]
            self._last_refused = -1
            self._left_refused = [0] * self.reasons
            self._unplaced = [0] * self.reasons

    @property
    def _is_own(self) -> bool:
        """Whether the attached lane's words are this process's: those that a forked child inherited are its parent's,
        who goes on counting in them."""
        return self.attached and self._generation == _fork_generation[0]

    @property
    def last_refused(self) -> int:
        """The reason of the latest refusal, or -1."""
        self._own_counts()
        return self._last_refused

    def refused(self) -> tuple[int, ...]:
        """How many records were refused, by reason."""
        self._own_counts()
        here = [self._words[self._refused + i] if self._is_own else 0 for i in range(self.reasons)]
        return tuple(map(sum, zip(self._left_refused, self._unplaced, here, strict=True)))

    def refuse(self, reason: int, rows: int) -> None:
        """Counts rows that were refused."""
        if not 0 <= reason < self.reasons or rows < 0:
            raise ValueError(f"refuse: got reason {reason} for {rows} rows, wanted a reason below {self.reasons}")
        with self._own_lock():
            self._own_counts()
            self._last_refused = int(reason)
            if self._is_own:
                self._words[self._refused + reason] += rows
            else:
                self._unplaced[reason] += rows

    def takes_invalid(self, error: RecordError) -> bool:
        """Counts wrong input; whether the append then returns False, rather than raise."""
        self.refuse(Refused.INVALID, 1)
        return self.invalid is not None and bool(self.invalid(error))

    def _usable(self) -> bool:
        return self._is_own and self._words[self._state] == 0

    def ready(self, rows: int) -> int:
        """How many of `rows` slots may be written now; what is refused for another reason than FULL is counted."""
        while not self._usable():
            if self._recovering:
                self.refuse(Refused.REENTRANT, rows)
                return 0
            self._recovering = True
            try:
                answer = self.recover()
            finally:
                self._recovering = False
            if answer is not True or not self._usable():
                known = answer is not True and 0 <= answer < self.reasons
                self.refuse(answer if known else Refused.BUDGET, rows)
                return 0
        if self._board_words[self._refuse]:
            self.refuse(Refused.BOARD, rows)
            return 0
        if not 0 <= self.head - self._tail <= self._capacity - rows:
            self._set_tail(self._words[self._tail_word])  # SYNC POINT tail: with the writer's advance
            fence()
        free = self._capacity - (self.head - self._tail)
        if free > self._capacity:
            free = 0  # a tail beyond the head: no writer stores that; write nothing
        if free < rows:
            self.refuse(Refused.FULL, rows - max(free, 0))
        return max(0, min(rows, free))

    def _set_tail(self, tail: int) -> None:
        """The tail as it was read last, and the head at which it says full."""
        self._tail = tail
        self._limit = tail + self._capacity if tail <= self.head else 0

    def slot(self, seq: int) -> int:
        """Where a record's slot lies in the memory, in bytes."""
        return self._slots_offset + seq % self._capacity * self.slot_bytes

    def publish(self, rows: int) -> None:
        self.head += rows
        fence()
        self._words[self._head_word] = self.head  # SYNC POINT head: with the drain

    def _own_lock(self) -> Any:
        """The lock; a new one in a forked child, whose parent's threads may have held the old one for ever."""
        if self._lock_generation != _fork_generation[0]:
            self._lock_generation = _fork_generation[0]
            self._lock = threading.RLock()
            self._inside = self._recovering = self._detaching = False
        return self._lock

    def enter(self, rows: int) -> bool:
        """Takes the ring for one append; False, counted, inside another append of the same thread."""
        self._own_lock().acquire()
        if self._inside:
            self.refuse(Refused.REENTRANT, rows)
            self._lock.release()
            return False
        self._inside = True
        return True

    def leave(self) -> None:
        self._inside = False
        if self._detaching:
            self._leave_late()
        self._lock.release()

    def _leave_late(self) -> None:
        self._detaching = False
        self._release()

    def refuses(self) -> bool:
        """Whether one record would be refused now (and then it is counted): before any of its values is looked at."""
        if not self.enter(1):
            return True
        try:
            return not self.ready(1)
        finally:
            self.leave()

    def append_many(self, rows: Any, count: int) -> int:
        """Appends checked slots; how many were accepted, from the front."""
        view = memoryview(rows).cast("B")
        if len(view) != count * self.slot_bytes:
            raise ValueError(f"rows: got {len(view)} bytes for {count} rows, wanted {self.slot_bytes} bytes a row")
        if not self.enter(count):
            return 0
        try:
            accepted = self.ready(count)
            first = self.head % self._capacity
            before_end = min(accepted, self._capacity - first)
            self._copy(view, 0, before_end, first)
            self._copy(view, before_end, accepted - before_end, 0)
            if accepted:
                self.publish(accepted)
            return accepted
        finally:
            self.leave()

    def _copy(self, view: memoryview, first: int, rows: int, place: int) -> None:
        """Writes rows `first` to `first + rows`, whole, to the slots from `place` on."""
        if not rows:
            return
        start, shape = self._slots_offset + place * self.slot_bytes, (rows, self.slot_bytes // 8)
        slots = np.frombuffer(self._memory, np.uint64, shape[0] * shape[1], start).reshape(shape)
        given = np.frombuffer(view, np.uint8, rows * self.slot_bytes, first * self.slot_bytes)
        slots[:, 0] = np.arange(rows, dtype=np.uint64) + np.uint64(self.head + first)
        fence()  # SYNC POINT overwritten: with a tap's copy
        slots[:, 1:] = given.view(np.uint64).reshape(shape)[:, 1:]

    def write(self, values: list[tuple[_FieldWriter, Any]]) -> bool:
        """Writes one record of exact values and publishes it."""
        if not self.enter(1):
            return False
        try:
            if not self.ready(1):
                return False
            at = self.slot(self.head)
            _WORD.pack_into(self._memory, at, self.head)
            fence()  # SYNC POINT overwritten: with a tap's copy
            *fields, (timestamp, stamp) = values
            for field, value in fields:
                field.write(self._memory, at, value)
            if stamp is None:
                stamp = clock_us()
                if not TIMESTAMP_MIN_US <= stamp <= TIMESTAMP_MAX_US:
                    self.refuse(Refused.CLOCK, 1)
                    return False
            timestamp.write(self._memory, at, stamp)
            self.publish(1)
            return True
        finally:
            self.leave()


class _FieldWriter:
    """Writes the exact values of one field."""

    def __init__(self, name: str, kind: int, offset: int, *_rest: Any) -> None:
        self.name = name
        self.kind = kind
        self._offset = offset
        self._word = struct.Struct({Kind.DOUBLE: "=d", Kind.BOOLEAN: "=?"}.get(Kind(kind), "=q"))

    def write(self, memory: memoryview, at: int, value: Any) -> None:
        at += self._offset
        if self.kind >= Kind.SYMBOL:
            if value is None:
                struct.pack_into("=H", memory, at, NULL_LENGTH)
                return
            text = value.encode()
            struct.pack_into("=H", memory, at, len(text))
            memory[at + 2 : at + 2 + len(text)] = text
            return
        if value is None:
            value = float("nan") if self.kind == Kind.DOUBLE else NULL_LONG
        self._word.pack_into(memory, at, value)


class PlainAppender:
    """Appends records of which some fields are preset: the reference, and what the quick appends leave to it."""

    def __init__(self, _ring_type: type[Ring], ring: Ring, presets: dict[str, Any], defaults: dict[str, Any]) -> None:
        self._ring = ring
        self.presets = {
            index: ring.coerce(index, presets[field.name])
            for index, field in enumerate(ring.fields)
            if field.name in presets
        }
        self._preset = [(ring.fields[index], value) for index, value in self.presets.items()]
        self._varying = [(i, field) for i, field in enumerate(ring.fields) if field.name not in presets]
        self._names = tuple(field.name for _, field in self._varying)
        self.defaults = {
            index: ring.coerce(index, defaults[field.name]) for index, field in self._varying if field.name in defaults
        }
        self._optional = {ring.fields[index].name: value for index, value in self.defaults.items()}
        self._optional[self._names[-1]] = None  # the timestamp: stamped on writing

    def append(self, /, *args: Any, **kwargs: Any) -> bool:
        """True: accepted. False: refused and counted by reason."""
        ring, coerce, names = self._ring, self._ring.coerce, self._names
        try:
            given = dict(zip(names[:-1], args, strict=False))  # the timestamp is passed by name
            passed = {**self._optional, **given, **kwargs}
            if len(args) >= len(names) or given.keys() & kwargs.keys() or passed.keys() != set(names):
                coerce(-1, len(args), tuple(kwargs), names)
        except RecordError as error:
            if ring.takes_invalid(error):
                return False
            raise
        if ring.refuses():
            return False
        try:
            values = [(field, coerce(i, passed[field.name])) for i, field in self._varying]
        except RecordError as error:
            if ring.takes_invalid(error):
                return False
            raise
        return ring.write(self._preset + values)

    def image(self) -> bytes:
        """A slot that holds the presets."""
        memory = bytearray(self._ring.slot_bytes)
        for field, value in self._preset:
            field.write(memoryview(memory), 0, value)
        return bytes(memory)


class Appender:
    """The same, by an append that is compiled for the fields: about twenty times as fast."""

    def __init__(self, ring_type: type[Ring], ring: Ring, presets: dict[str, Any], defaults: dict[str, Any]) -> None:
        plain = PlainAppender(ring_type, ring, presets, defaults)
        self.append = compiled(
            ring, ring.descriptions, plain.append, plain.presets, plain.defaults, plain.image(), _fork_generation, fence
        )


def _check_construction(fields: Any, slot_bytes: int, reasons: int) -> None:
    """What `_ring.c` must not believe, for it writes by it; here for the same answers: ValueError, TypeError."""
    if type(fields) is not tuple:
        raise TypeError(f"fields: got {type(fields).__name__}, wanted a tuple")
    if not 2 <= len(fields) <= FIELDS_MAX:
        raise ValueError(f"fields: got {len(fields)}, wanted 2 to {FIELDS_MAX}")
    if not 16 <= slot_bytes <= SLOT_BYTES_MAX or slot_bytes % 8:
        raise ValueError(f"slot_bytes: got {slot_bytes}, wanted a multiple of 8 from 16 to {SLOT_BYTES_MAX}")
    if not Refused.INVALID < reasons <= REASONS_MAX:
        raise ValueError(f"reasons: got {reasons}, wanted {Refused.INVALID + 1} to {REASONS_MAX}")
    taken: list[tuple[int, int, str]] = []
    for index, field in enumerate(fields):
        if type(field) is not tuple:
            raise TypeError(f"field {index}: got {type(field).__name__}, wanted a tuple")
        name, start, end, is_time = _checked_place(index, field, slot_bytes)
        for other, (begin, stop, other_name) in enumerate(taken):
            if start < stop and begin < end:
                raise ValueError(
                    f"field {index}: got bytes {start} to {end} of a slot, wanted none of those of field {other}"
                )
            if name == other_name:
                raise ValueError(f"field {index}: got name {name!r}, wanted another than that of field {other}")
        if is_time != (index == len(fields) - 1):
            raise ValueError("fields: wanted one time, the last of them")
        taken.append((start, end, name))


def _checked_place(index: int, field: tuple[Any, ...], slot_bytes: int) -> tuple[str, int, int, bool]:
    """Name, first byte and end of a field, and whether it is the time."""
    name, kind, offset, width, _nullable, minimum, maximum, choices = field
    kind, offset, width = operator.index(kind), operator.index(offset), operator.index(width)
    is_text = kind >= Kind.SYMBOL
    if not isinstance(name, str) or type(choices) is not tuple:
        raise TypeError(f"field {index}: got name {name!r} with choices {choices!r}, wanted a str and a tuple")
    known = Kind.TIMESTAMP <= kind <= Kind.JSON
    reserved = whole_words(width + 2) if is_text else width
    fits = 1 <= width <= TEXT_WIDTH_BYTES_MAX if is_text else width == (1 if kind == Kind.BOOLEAN else 8)
    is_aligned = kind == Kind.BOOLEAN or offset % 8 == 0
    if not (known and fits and is_aligned and 8 <= offset <= slot_bytes - reserved):
        raise ValueError(
            f"field {index}: got kind {kind} of {width} bytes at byte {offset}, wanted 8 bytes for a number, 1 for a "
            f"boolean, 1 to {TEXT_WIDTH_BYTES_MAX} for a text, inside bytes 8 to {slot_bytes} of a slot, at a multiple "
            "of 8 but for a boolean"
        )
    if not all(isinstance(limit, float | int if kind == Kind.DOUBLE else int) for limit in (minimum, maximum)):
        raise TypeError(f"field {index}: got limits {minimum!r} to {maximum!r}, wanted numbers")
    if not all(isinstance(choice, str if is_text else int) for choice in choices):
        raise TypeError(f"field {index}: got choices {choices!r}, wanted them of one type")
    return name, offset, offset + reserved, kind == Kind.TIMESTAMP
