"""The Python ring's append: generated source, compiled once for each record layout, as dataclasses makes its methods.

What an append does is written down in `_ring_python.PlainAppender`. The function that is generated here does the same
for a record whose values are exact, or can be made exact, with the checks in line and one packing call. Whatever else
happens (wrong input, no lane, a full ring, an append inside an append) it leaves to the plain append, which starts
anew, counts and raises: so each refusal and each error has one source.
"""

from __future__ import annotations

import contextlib
import functools
import platform
import struct
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from ringlog.errors import RecordError
from ringlog.records.fields import INT64_MAX, NULL_LENGTH, NULL_LONG, TIMESTAMP_MAX_US, TIMESTAMP_MIN_US, Kind
from ringlog.validation import TIMESTAMP_AHEAD_MAX_US, clock_us

SYMBOLS_KEPT_MAX = 1024  # of one field of an appender
WIDE_BYTES = 512  # a text this wide is copied by itself: packing clears what it reserves
# These processors show stores to others in their order; elsewhere a fence stands between them.
STORES_IN_ORDER = platform.machine().lower() in {"x86_64", "amd64", "i386", "i686"}
Fields = tuple[tuple[Any, ...], ...]  # see `ringlog.ring.new_ring`; the time is the last
_LENGTH = struct.Struct("@H")
_MISSING = object()
_CODES = {Kind.DOUBLE: "d", Kind.LONG: "q", Kind.BOOLEAN: "?"}
_HELPERS: dict[str, Any] = {
    "missing": _MISSING,
    "RecordError": RecordError,
    "StructError": struct.error,
    "time_ns": time.time_ns,
    "clock_us": clock_us,
    "pack_length": _LENGTH.pack_into,
    "nan": float("nan"),
    "nul": "\0",
    "empty": b"",
}
_OF_THE_RING = ("ring", "plain", "misfit", "coerce", "refuses", "pack_into", "fork", "fence")


class Symbols:
    """The bytes of a field's symbols in a slot, length and UTF-8, by their texts: `kept` is what appends look into."""

    def __init__(self, width_bytes: int, nullable: bool = False, choices: tuple[str, ...] = ()) -> None:
        self._width_bytes = width_bytes
        self._null: dict[str | None, bytes] = {None: _LENGTH.pack(NULL_LENGTH)} if nullable else {}
        self._takes_all = not choices
        self.kept = dict(self._null)
        for choice in choices:
            text = str.__str__(choice)
            with contextlib.suppress(KeyError, UnicodeEncodeError):  # one that no slot can hold
                self.kept[text] = self._encoded(text)

    def __call__(self, text: str) -> bytes:
        """For a text that may not be kept yet. KeyError or UnicodeEncodeError where the field does not take it."""
        if text not in self.kept and self._takes_all:
            encoded = self._encoded(text)
            if len(self.kept) > SYMBOLS_KEPT_MAX:
                self.kept.clear()
                self.kept.update(self._null)
            self.kept[text] = encoded
            return encoded
        return self.kept[text]

    def _encoded(self, text: str) -> bytes:
        encoded = text.encode()
        if len(encoded) > self._width_bytes or 0 in encoded:
            raise KeyError(text)
        return _LENGTH.pack(len(encoded)) + encoded


class _Piece:
    """A field as the generated source has it: its value is `f3`, and what belongs to it is numbered alike."""

    def __init__(self, index: int, description: tuple[Any, ...]) -> None:
        self.index = index
        name, kind, self.offset, self.width, self.nullable, self.minimum, self.maximum, self.choices = description
        self.name = str.__str__(name)
        self.kind = Kind(kind)
        self.is_wide = self.kind.is_text and self.width > WIDE_BYTES
        self.is_kept = self.kind.is_text and bool(self.choices or (self.kind is Kind.SYMBOL and not self.is_wide))

    def is_exact(self) -> str:
        """The condition under which a value needs no look by `coerce`, but for the bytes of a text."""
        i = self.index
        match self.kind:
            case Kind.BOOLEAN:
                return f"(f{i} is True or f{i} is False)"
            case Kind.DOUBLE:
                # Not as a chain: each of two comparisons before a jump is specialised by the interpreter.
                exact = f"type(f{i}) is float and low{i} <= f{i} and f{i} <= high{i}"
            case Kind.LONG:
                exact = f"type(f{i}) is int and low{i} <= f{i}"
                exact += f" and f{i} <= high{i}" if self.maximum < INT64_MAX else ""  # above that packing fails
                exact += f" and f{i} in choices{i}" if self.choices else ""
            case _:
                exact = f"type(f{i}) is str"
        return f"({exact} or f{i} is None)" if self.nullable else exact

    def prepared(self) -> list[str]:
        """Statements that turn a text into bytes; KeyError or UnicodeEncodeError where they are not right."""
        i = self.index
        if self.is_kept or not self.kind.is_text:
            return []
        lines = [f"t{i} = f{i}.encode()", f"n{i} = len(t{i})"]
        lines += [f"if n{i} > {self.width} or nul in f{i}:", f"    raise KeyError(f{i})"]
        if not self.nullable:
            return lines
        null = [f"if f{i} is None:", f"    t{i} = empty", f"    n{i} = {NULL_LENGTH}", "else:"]
        return [*null, *(f"    {line}" for line in lines)]

    def packed(self) -> tuple[str, list[str]]:
        """The format of its bytes in a slot, and their values."""
        i = self.index
        if self.is_kept:
            return f"{self.width + 2}s", [f"t{i}"]
        if self.kind.is_text:
            return f"H{self.width}s", [f"n{i}", f"t{i}"]
        null = {Kind.DOUBLE: "nan", Kind.LONG: str(NULL_LONG)}.get(self.kind)
        return _CODES[self.kind], [f"{null} if f{i} is None else f{i}" if self.nullable else f"f{i}"]

    def copied(self) -> list[str]:
        """Statements that write a wide text, of which only what is there is written."""
        i, at = self.index, f"at + {self.offset}"
        if self.is_kept:
            return [f"memory[{at} : {at} + len(t{i})] = t{i}"]
        return [f"pack_length(memory, {at}, n{i})", f"memory[{at} + 2 : {at} + 2 + len(t{i})] = t{i}"]

    def constants(self) -> dict[str, Any]:
        """What its statements name besides arguments."""
        i = self.index
        if self.is_kept:
            symbols = Symbols(self.width, self.nullable, self.choices)
            return {f"symbols{i}": symbols, f"kept{i}": symbols.kept}
        if self.kind in (Kind.DOUBLE, Kind.LONG):
            limits = {f"low{i}": self.minimum, f"high{i}": self.maximum}
            return {**limits, f"choices{i}": frozenset(self.choices)} if self.choices else limits
        return {}


class _Made(NamedTuple):
    """What appends of one layout with the same preset fields share."""

    make: Callable[..., Callable[..., bool]]
    names: frozenset[str]  # of what `make` takes
    packing: struct.Struct
    chunks: dict[str, tuple[int, int]]  # the presets' bytes by name: where they begin and end in a slot
    wide: dict[str, int]  # those of wide texts: where they begin


def compiled(
    ring: Any,
    fields: Fields,
    plain: Callable[..., bool],
    presets: Collection[int],
    defaults: dict[int, Any],
    image: bytes,
    fork: list[int],
    fence: Callable[[], None],
) -> Callable[..., bool]:
    """An append of `ring` for the fields that are not preset, which does what `plain` does, and mostly sooner.

    `presets` are fields, whose bytes are those of `image`, a slot; `defaults` are exact values by field.
    """
    made = _made(fields, ring.slot_bytes, frozenset(presets), frozenset(defaults), STORES_IN_ORDER)
    known: dict[str, Any] = {**_HELPERS, **{f"default{index}": value for index, value in defaults.items()}}
    for piece in _pieces(fields, presets):
        known |= piece.constants()
    known |= {name: image[start:end] for name, (start, end) in made.chunks.items()}
    for name, start in made.wide.items():
        (length,) = _LENGTH.unpack_from(image, start)
        known[name] = image[start : start + 2 + (0 if length == NULL_LENGTH else length)]

    def misfit(given: tuple[Any, ...], more: tuple[Any, ...], timestamp: Any, named: dict[str, Any]) -> bool:
        """A call whose arguments do not fit: the plain append says why."""
        args = (*(value for value in given if value is not _MISSING), *more)
        return plain(*args, **named) if timestamp is _MISSING else plain(*args, **named, timestamp=timestamp)

    known |= {"ring": ring, "plain": plain, "misfit": misfit, "coerce": ring.coerce, "refuses": ring.refuses}
    known |= {"pack_into": made.packing.pack_into, "fork": fork, "fence": fence}
    return made.make(**{name: known[name] for name in made.names})


def _pieces(fields: Fields, preset: Collection[int]) -> list[_Piece]:
    return [_Piece(index, description) for index, description in enumerate(fields[:-1]) if index not in preset]


@functools.lru_cache(maxsize=256)  # an executor may bind for each of its markets: only values differ then
def _made(
    fields: Fields, slot_bytes: int, preset: frozenset[int], optional: frozenset[int], stores_in_order: bool
) -> _Made:
    varying = _pieces(fields, preset)
    packing, values, chunks = _packing(fields, varying)
    wide_presets = {f"wide{index}": fields[index][2] for index in preset if _Piece(index, fields[index]).is_wide}
    copies = [f"memory[at + {start} : at + {start} + len({name})] = {name}" for name, start in wide_presets.items()]
    copies += [line for piece in varying if piece.is_wide for line in piece.copied()]
    names = [*_HELPERS, *_OF_THE_RING, *(name for piece in varying for name in piece.constants())]
    names += [*(f"default{piece.index}" for piece in varying if piece.index in optional), *chunks, *wide_presets]
    lines = [
        *_arranging(varying, optional),
        *_coercing(varying, len(fields) - 1),
        *_writing(varying, slot_bytes, values, copies, [] if stores_in_order else ["fence()"]),
    ]
    arguments = "".join(f"f{piece.index}=missing, " for piece in varying) + ("/, " if varying else "")
    head = f"def make({', '.join(names)}):\n    def append({arguments}*more, timestamp=missing, **named):\n        "
    source = head + "\n        ".join(lines) + "\n    return append\n"
    found: dict[str, Any] = {}
    exec(compile(source, "<append of the Python ring>", "exec"), found)  # noqa: S102 (numbers and quoted names of fields)
    return _Made(found["make"], frozenset(names), struct.Struct(packing), chunks, wide_presets)


def _packing(fields: Fields, varying: list[_Piece]) -> tuple[str, list[str], dict[str, tuple[int, int]]]:
    """The format of a slot from its time on, the values of it, and the presets' bytes among those."""
    by_index = {piece.index: piece for piece in varying}
    time_offset = fields[-1][2]
    formats: list[str] = ["@"]
    values: list[str] = []
    chunks: dict[str, tuple[int, int]] = {}
    at = 8
    for start, index in sorted((description[2], index) for index, description in enumerate(fields)):
        piece = _Piece(index, fields[index])
        if piece.is_wide:
            continue
        end = start + (piece.width + 2 if piece.kind.is_text else piece.width)
        if index not in by_index and start != time_offset and values and values[-1] in chunks:
            began, _ = chunks[values[-1]]  # a preset beside a preset
            chunks[values[-1]], formats[-1], at = (began, end), f"{end - began}s", end
            continue
        formats.append(f"{start - at}x" if start > at else "")
        if start == time_offset:
            packed = "q", ["stamp"]
        elif index in by_index:
            packed = piece.packed()
        else:
            chunks[f"preset{index}"] = (start, end)
            packed = f"{end - start}s", [f"preset{index}"]
        formats.append(packed[0])
        values += packed[1]
        at = end
    return "".join(formats), values, chunks


def _arranging(varying: list[_Piece], optional: frozenset[int]) -> list[str]:
    """Statements for a call with keywords, or without fields that have a default."""
    wrong = "return misfit(given, more, timestamp, named)"
    last = f"f{varying[-1].index} is missing or " if varying else ""
    lines = [f"if {last}named or more:", f"    given = ({''.join(f'f{piece.index}, ' for piece in varying)})"]
    lines += ["    if more:", f"        {wrong}", "    if named:", "        left = len(named)"]
    for piece in varying:
        i, name = piece.index, str.__repr__(piece.name)
        lines += [f"        if {name} in named:", f"            if f{i} is not missing:", f"                {wrong}"]
        lines += [f"            f{i} = named[{name}]", "            left -= 1"]
    lines += ["        if left:", f"            {wrong}"]
    for piece in varying:
        default = f"f{piece.index} = default{piece.index}" if piece.index in optional else wrong
        lines += [f"    if f{piece.index} is missing:", f"        {default}"]
    return lines


def _plain(varying: list[_Piece]) -> str:
    arguments = "".join(f"f{piece.index}, " for piece in varying)
    return f"return plain({arguments}timestamp=None if timestamp is missing else timestamp)"


def _coercing(varying: list[_Piece], time_index: int) -> list[str]:
    """Statements that make values exact, once the record would be taken; a wrong one is the plain append's."""
    time_given = (
        f"(timestamp is missing or timestamp is None or type(timestamp) is int and {TIMESTAMP_MIN_US} <= timestamp "
        f"<= {TIMESTAMP_MAX_US} and timestamp <= clock_us() + {TIMESTAMP_AHEAD_MAX_US})"
    )
    exact = [(piece.index, f"f{piece.index}", piece.is_exact()) for piece in varying]
    exact.append((time_index, "timestamp", time_given))
    lines = [f"if not ({' and '.join(condition for *_, condition in exact)}):"]
    lines += ["    if refuses():", "        return False", "    try:"]
    for index, name, condition in exact:
        lines += [f"        if not ({condition}):", f"            {name} = coerce({index}, {name})"]
    return [*lines, "    except RecordError:", f"        {_plain(varying)}"]


def _writing(
    varying: list[_Piece], slot_bytes: int, values: list[str], copies: list[str], fence: list[str]
) -> list[str]:
    """Statements that write one record of exact values and publish it, where nothing is in the way."""
    inside = [
        f"at = slots_at + (head & mask) * {slot_bytes}",
        "words[at >> 3] = head",
        *fence,  # SYNC POINT overwritten: with a tap's copy
        f"pack_into(memory, at + 8, {', '.join(values)})",
        *copies,
        *fence,
        "words[head_word] = ring.head = head + 1",  # SYNC POINT head: with the drain
        "return True",
    ]
    bounds = f"{TIMESTAMP_MIN_US} <= stamp and stamp <= {TIMESTAMP_MAX_US}"
    symbols = [piece.index for piece in varying if piece.is_kept]
    kept = ["    try:", *(f"        t{i} = kept{i}[f{i}]" for i in symbols)]
    kept += ["    except KeyError:", *(f"        t{i} = symbols{i}(f{i})" for i in symbols)]
    lines = [
        "try:",
        *(kept if symbols else []),
        *(f"    {line}" for piece in varying for line in piece.prepared()),
        "    lane = ring._lane",
        "    memory, words, board, state, head_word, refuse, slots_at, mask, acquire, release, generation = lane",
        "    if generation == fork[0]:",  # else there is no lane, or one of this process's parent
        "        acquire()",
        "        try:",
        "            if not ring._inside and ring._lane is lane:",
        "                ring._inside = True",
        "                try:",
        "                    head = ring.head",
        "                    if timestamp is missing or timestamp is None:",
        "                        stamp = time_ns() // 1000",
        "                    else:",
        "                        stamp = timestamp",
        f"                    if head < ring._limit and not words[state] and not board[refuse] and {bounds}:",
        *(f"                        {line}" for line in inside),
        "                finally:",
        "                    ring._inside = False",
        "                    if ring._detaching:",
        "                        ring._leave_late()",
        "        finally:",
        "            release()",
        "except (KeyError, UnicodeEncodeError, OverflowError, StructError):",
        "    pass",  # a text or a number that is wrong, or a clock beyond 2262
    ]
    return [*lines, _plain(varying)]
