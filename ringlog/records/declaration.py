"""A record type is a class; from it come the slot layout, the numpy dtype and the columns of its table.

    class Fill(Record):
        __table__ = "fills"
        venue: Annotated[str, Symbol(16)]
        price: Annotated[float, Double(minimum=0.0)]
        note: Annotated[str | None, Varchar(64)] = None

Every record type also has `timestamp`, the last field: an aware datetime or integer microseconds since the epoch,
or None to have it stamped inside append.
"""

from __future__ import annotations

import datetime
import functools
import re
import types
import typing
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np

from ringlog.errors import DeclarationError, RecordTypeError
from ringlog.records.fields import (
    Double,
    Field,
    Json,
    Kind,
    Long,
    Symbol,
    Varchar,
    kind_and_limits,
    whole_words,
)

# Every stored row also carries these three; they are the table's DEDUP keys.
TIMESTAMP = "timestamp"
LANE = "lane"
SEQ = "seq"

SEQ_OFFSET = 0
TIMESTAMP_OFFSET = 8
SLOT_ALIGNMENT_BYTES = 64
FIELDS_MAX = 60
SLOT_BYTES_MAX = 1 << 20

IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,62}")
_SPECS = (Double, Long, Symbol, Varchar, Json)


class RecordMeta(msgspec.StructMeta):
    """Makes every record type frozen and keyword-only, so that fields need no order by default value."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        return super().__new__(cls, name, bases, namespace, **{"frozen": True, "kw_only": True, **options})

    if not TYPE_CHECKING:  # for whom a class is called with its fields, as dataclass_transform below says

        def __call__(cls, *args: Any, **values: Any) -> Any:
            """An instance. Raises RecordTypeError where fields are missing, unknown, or passed by position."""
            try:
                return super().__call__(*args, **values)
            except TypeError as error:
                wrong = _wrong_arguments(cls, args, values)
                if wrong is None:
                    raise  # from a class's own __post_init__
                raise RecordTypeError(f"{cls.__name__}: {wrong}") from error


def _wrong_arguments(record: Any, args: tuple[Any, ...], values: dict[str, Any]) -> str | None:
    """What is wrong with a constructor's arguments; None if nothing is."""
    names = record.__struct_fields__
    by_place = record.__match_args__
    known = ", ".join(name for name in names if name != TIMESTAMP)
    if len(args) > len(by_place):
        most = f"at most {len(by_place)}" if by_place else "none"
        return f"got {len(args)} values by position, wanted {most}: each by its name, of {known}, timestamp"
    for name in values:
        if name not in names:
            return f"got unknown field {name!r:.80}, wanted one of {known}, timestamp"
        if name in by_place[: len(args)]:
            return f"got {name!r} twice, by position and by name, wanted it once"
    passed = {*by_place[: len(args)], *values}
    optional = {field.name for field in msgspec.structs.fields(record) if not field.required}
    missing = [name for name in names if name not in passed and name not in optional]
    return f"got {len(passed)} fields, wanted also {', '.join(missing)}" if missing else None


@typing.dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class Record(msgspec.Struct, metaclass=RecordMeta):
    """Base class of record types: one instance is one row, for `record()` where readability matters most."""

    __table__: ClassVar[str] = ""

    timestamp: datetime.datetime | int | None = None


class RecordLayout(msgspec.Struct, frozen=True):
    """The compiled form of a record type, and what a segment's header carries: fields in declaration order.

    `timestamp` is the last field. Slots hold `seq` (u8) at byte 0 and the timestamp (i8) at byte 8.
    """

    name: str
    table: str
    slot_bytes: int
    fields: tuple[Field, ...]

    def field(self, name: str) -> Field:
        """The field called `name`; KeyError if there is none."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes) -> RecordLayout:
        """Raises msgspec.DecodeError (or its ValidationError) where the text is no layout."""
        return msgspec.json.decode(text, type=cls)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The slot as a numpy structured dtype of `slot_bytes`.

        Fields `seq` (<u8), then each field: <f8, <i8, u1, or for a text a pair (`length` <u2, `bytes` V[width]).
        """
        names = [SEQ]
        formats: list[Any] = ["<u8"]
        offsets = [SEQ_OFFSET]
        for field in self.fields:
            names.append(field.name)
            formats.append(_numpy_format(field))
            offsets.append(field.offset)
        return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": self.slot_bytes})


def _numpy_format(field: Field) -> Any:
    match field.kind:
        case Kind.TIMESTAMP | Kind.LONG:
            return "<i8"
        case Kind.DOUBLE:
            return "<f8"
        case Kind.BOOLEAN:
            return "u1"
        case _:
            return np.dtype([("length", "<u2"), ("bytes", f"V{field.width_bytes}")])


@functools.cache
def layout_of(record_type: type[Record]) -> RecordLayout:
    """The compiled layout of a record type.

    Raises DeclarationError where the class has no table, a field's type has no kind, its limits, width or default
    cannot be stored, or there are too many fields.
    """
    if not (isinstance(record_type, type) and issubclass(record_type, Record)):
        raise DeclarationError(f"got {record_type!r}, wanted a record type, such as Trade")
    name = record_type.__name__
    table = record_type.__table__
    if not IDENTIFIER.fullmatch(table):
        raise DeclarationError(f"{name}.__table__: got {table!r}, wanted lower-case letters, digits and _ (at most 63)")
    try:
        hints = typing.get_type_hints(record_type, include_extras=True)
    except NameError as error:
        raise DeclarationError(f"{name}: got a type that is not known where the class stands ({error})") from None
    if hints[TIMESTAMP] != typing.get_type_hints(Record)[TIMESTAMP]:
        raise DeclarationError(f"{name}.timestamp: got a declaration of its own, wanted it left to Record")
    declared = [field for field in msgspec.structs.fields(record_type) if field.name != TIMESTAMP]
    if not 1 <= len(declared) <= FIELDS_MAX:
        raise DeclarationError(f"{name}: got {len(declared)} fields beside timestamp, wanted 1 to {FIELDS_MAX}")
    for field in declared:
        if field.default_factory is not msgspec.NODEFAULT:
            raise DeclarationError(f"{name}.{field.name}: got a default made anew each time, wanted a constant one")
    described = [_described(name, field.name, hints[field.name]) for field in declared]
    return _placed(name, table, described)


def defaults_of(record_type: type[Record]) -> dict[str, Any]:
    """Field name to default value, for the fields that have one (`timestamp` left out)."""
    return dict(_defaults_of(record_type))


@functools.cache
def _defaults_of(record_type: type[Record]) -> tuple[tuple[str, Any], ...]:
    """Found by resolving the class's annotations, which takes longer than everything else in opening a producer."""
    return tuple(
        (field.name, field.default)
        for field in msgspec.structs.fields(record_type)
        if field.default is not msgspec.NODEFAULT and field.name != TIMESTAMP
    )


def _described(record_name: str, name: str, hint: Any) -> dict[str, Any]:
    owner = f"{record_name}.{name}"
    if not IDENTIFIER.fullmatch(name) or name in (LANE, SEQ):
        raise DeclarationError(f"{owner}: got a reserved or unusable name, wanted lower-case letters, digits and _")
    spec = None
    if typing.get_origin(hint) is typing.Annotated:
        hint, *extras = typing.get_args(hint)
        spec = next((extra for extra in extras if isinstance(extra, _SPECS)), None)
    nullable = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        nullable = len(members) < len(typing.get_args(hint))
        hint = members[0] if len(members) == 1 or isinstance(spec, Json) else hint
    if typing.get_origin(hint) is typing.Literal:
        hint, spec = _literal(owner, typing.get_args(hint), spec)
    described = kind_and_limits(owner, hint, spec)
    if nullable and described["kind"] is Kind.BOOLEAN:
        raise DeclarationError(f"{owner}: got bool | None, wanted bool: QuestDB's BOOLEAN has no NULL")
    return {"name": name, "nullable": nullable, **described}


def _literal(owner: str, choices: tuple[Any, ...], spec: Any) -> tuple[type, Any]:
    if spec is None and all(type(choice) is int for choice in choices):
        return int, Long(choices=choices)
    if isinstance(spec, Symbol | None) and all(type(choice) is str for choice in choices):
        width = spec.width_bytes if spec else max(len(choice.encode("utf-8", "replace")) for choice in choices)
        return str, Symbol(width_bytes=width, choices=choices)
    raise DeclarationError(f"{owner}: got Literal{list(choices)} with {spec!r}, wanted all str or all int")


def _placed(name: str, table: str, described: list[dict[str, Any]]) -> RecordLayout:
    """Offsets by size class: 8-byte fields, booleans, then texts from narrow to wide.

    The wide texts come last so that an append touches only the cache lines it fills.
    """
    offsets: dict[str, int] = {}
    position = TIMESTAMP_OFFSET + 8
    for field in sorted(described, key=_size_class):
        if field["kind"].is_text:
            position = whole_words(position)
        offsets[field["name"]] = position
        position += whole_words(field["width_bytes"] + 2) if field["kind"].is_text else field["width_bytes"]
    slot_bytes = -(-position // SLOT_ALIGNMENT_BYTES) * SLOT_ALIGNMENT_BYTES
    if slot_bytes > SLOT_BYTES_MAX:
        raise DeclarationError(f"{name}: got slots of {slot_bytes} bytes, wanted at most {SLOT_BYTES_MAX}")
    fields = [Field(offset=offsets[field["name"]], **field) for field in described]
    fields.append(Field(name=TIMESTAMP, kind=Kind.TIMESTAMP, offset=TIMESTAMP_OFFSET, width_bytes=8))
    return RecordLayout(name=name, table=table, slot_bytes=slot_bytes, fields=tuple(fields))


def _size_class(field: dict[str, Any]) -> tuple[int, int]:
    if not field["kind"].is_text:
        return (0 if field["width_bytes"] == 8 else 1, 0)
    return (2, field["width_bytes"])
