"""The rows of any record type, read back as its instances: `records(Fill, since="1h", where={"venue": "kraken"})`."""

from __future__ import annotations

import functools
import math
import numbers
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from ringlog.errors import QueryError
from ringlog.naming import did_you_mean
from ringlog.questdb.filters import checked_limit, checked_text
from ringlog.questdb.statements import PlanMaker, Selection, selected
from ringlog.questdb.tables import quoted
from ringlog.records import LANE, SEQ, TIMESTAMP, Field, Kind, Record, RecordLayout, layout_of
from ringlog.records.fields import INT64_MAX, INT64_MIN, TEXT_WIDTH_BYTES_MAX
from ringlog.times import Bounds

RecordT = TypeVar("RecordT", bound=Record)
# A column, or a column and how it compares, to a value; a sequence of values is any of them, None is NULL.
Where = Mapping[str, Any]

VALUES_MAX = 1_000
_OWNER = "records"
_CONDITION = re.compile(r"\s*(\w+)\s*(=|!=|<=|>=|<|>)?\s*")
_KINDS = {Kind.TIMESTAMP: "datetime", Kind.DOUBLE: "float", Kind.LONG: "int", Kind.BOOLEAN: "bool"}
_EQUALITIES = ("=", "!=")


def records(
    record_type: type[RecordT], where: Where | None, span: Bounds, limit: int, order: str
) -> PlanMaker[RecordT]:
    """Checked without a server. Raises QueryError, and DeclarationError for a type without a layout."""
    if not isinstance(record_type, type) or not issubclass(record_type, Record) or record_type is Record:
        raise QueryError(f"{_OWNER}: got {record_type!r:.80}, wanted a record type: a class derived from Record")
    layout = layout_of(record_type)
    checked_limit(_OWNER, limit, order)
    condition, parameters = _conditions(layout, where)
    asked = None if where is None else dict(where)  # as it is now: a rest may be asked for later
    fields = [field for field in layout.fields if field.name != TIMESTAMP]
    columns = (
        (TIMESTAMP, "datetime"),
        (LANE, "int"),
        (SEQ, "int"),
        *((field.name, _KINDS.get(field.kind, "str")) for field in fields),
    )

    def again(**changes: Any) -> dict[str, Any]:
        return {"record_type": record_type, "where": asked, "order": order, **changes}

    make = _instances(record_type, fields)
    selection = Selection(_OWNER, layout.table, columns, make, condition, parameters, span, limit, order, again)
    return functools.partial(selected, selection)


def _instances(record_type: type[RecordT], fields: Sequence[Field]) -> Callable[[Any], Iterator[RecordT]]:
    names = [field.name for field in fields]
    documents = [field.name for field in fields if field.kind is Kind.JSON]

    def make(tuples: Sequence[tuple[Any, ...]]) -> Iterator[RecordT]:
        for timestamp, _lane, _seq, *stored in tuples:
            values = dict(zip(names, stored, strict=True))
            for name in documents:
                values[name] = _document(values[name])
            yield record_type(timestamp=timestamp, **values)

    return make


def _document(text: str | None) -> Any:
    """What was appended; a text that is no JSON, which somebody else's SQL may have stored, is left as it is."""
    try:
        return None if text is None else msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _conditions(layout: RecordLayout, where: Any) -> tuple[str, tuple[Any, ...]]:
    """` AND "column" = %s ...` and the parameters."""
    if where is None:
        return "", ()
    if not isinstance(where, Mapping):
        raise QueryError(
            f"{_OWNER}.where: got {type(where).__name__}, "
            "wanted a mapping such as {'venue': 'kraken', 'price >=': 1.5}"
        )
    sql = ""
    parameters: list[Any] = []
    for key, value in where.items():
        part, values = _condition(layout, key, value)
        sql += f" AND {part}"
        parameters += values
    return sql, tuple(parameters)


def _condition(layout: RecordLayout, key: Any, value: Any) -> tuple[str, list[Any]]:
    found = _CONDITION.fullmatch(key) if isinstance(key, str) else None
    known = {field.name: field for field in layout.fields if field.name != TIMESTAMP}
    known |= {name: Field(name=name, kind=Kind.LONG, offset=0, width_bytes=8, nullable=True) for name in (LANE, SEQ)}
    if found is None:
        raise QueryError(f"{_OWNER}.where: got {key!r:.80}, wanted a column, or a column and one of = != < <= > >=")
    name, operator = found[1], found[2] or "="
    if name == TIMESTAMP:
        raise QueryError(f"{_OWNER}.where: got {key!r:.80}, wanted the time as since, start, end or duration")
    if name not in known:
        hint = did_you_mean(name, known)
        raise QueryError(
            f"{_OWNER}.where: got unknown column {name!r:.80} of {layout.name}, wanted one of {', '.join(known)}{hint}"
        )
    owner, field, column = f"{_OWNER}.where[{key!r:.80}]", known[name], quoted(name)
    if operator not in _EQUALITIES and (value is None or field.kind.is_text or field.kind is Kind.BOOLEAN):
        raise QueryError(f"{owner}: got {operator}, wanted = or != for {'None' if value is None else 'this column'}")
    if not isinstance(value, str) and isinstance(value, Sequence | set | frozenset):
        if not 1 <= len(value) <= VALUES_MAX or operator not in _EQUALITIES:
            raise QueryError(f"{owner}: got {len(value)} values, wanted 1 to {VALUES_MAX} of them with = or !=")
        parts = [_comparison(owner, field, column, operator, each) for each in value]
        joint = " OR " if operator == "=" else " AND "
        return f"({joint.join(sql for sql, _ in parts)})", [each for _, values in parts for each in values]
    return _comparison(owner, field, column, operator, value)


def _comparison(owner: str, field: Field, column: str, operator: str, value: Any) -> tuple[str, list[Any]]:
    if value is None:
        return f"{column} IS {'NULL' if operator == '=' else 'NOT NULL'}", []
    return f"{column} {operator} %s", [_bound(owner, field, value, operator)]


def _bound(owner: str, field: Field, value: Any, operator: str) -> Any:
    """The value as the column's type; QueryError where it could never be stored there."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    match field.kind:
        case Kind.DOUBLE if is_number and math.isfinite(number := _float(value)):
            return number
        case Kind.LONG if is_number and isinstance(value, numbers.Integral) and INT64_MIN < int(value) <= INT64_MAX:
            bound: Any = int(value)
        case Kind.BOOLEAN if isinstance(value, bool):
            return value
        case kind if kind.is_text and isinstance(value, str):
            checked_text(owner, value, TEXT_WIDTH_BYTES_MAX)
            bound = str(value)
        case kind:
            wanted = {Kind.DOUBLE: "a finite number", Kind.LONG: "an int of 64 bits", Kind.BOOLEAN: "a bool"}
            got = type(value).__name__
            raise QueryError(f"{owner}: got {value!r:.80} ({got}), wanted {wanted.get(kind, 'a str')} or None")
    if field.choices and operator in _EQUALITIES and bound not in field.choices:
        raise QueryError(f"{owner}: got {bound!r:.80}, wanted one of {', '.join(map(str, field.choices))}")
    return bound


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
