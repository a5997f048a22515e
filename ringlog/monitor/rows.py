"""Records as Python rows, for a person or as JSON: times in ISO 8601, UTC, everything else as it was appended."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ringlog.columns import Column, to_list
from ringlog.errors import ConfigurationError
from ringlog.naming import did_you_mean
from ringlog.records import LANE, SEQ, TIMESTAMP, Field, Kind, RecordLayout

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def time_of(timestamp_us: int) -> str:
    """Microseconds since the epoch as ISO 8601."""
    return (_EPOCH + datetime.timedelta(microseconds=timestamp_us)).isoformat(timespec="microseconds")


def rows_of_columns(columns: Mapping[str, Column]) -> Iterator[dict[str, Any]]:
    """Rows with timestamp, lane and seq first, then the fields as declared; None for NULL."""
    names = [TIMESTAMP, LANE, SEQ, *(name for name in columns if name not in (TIMESTAMP, LANE, SEQ))]
    values = [to_list(columns[name]) for name in names]
    values[0] = [time_of(stamp) for stamp in values[0]]
    for row in zip(*values, strict=True):
        yield dict(zip(names, row, strict=True))


class Condition:
    """`FIELD=VALUE`: whether a row's field has that value; `FIELD=` is NULL. Raises ConfigurationError for no `=`."""

    def __init__(self, text: str) -> None:
        self.field, separator, self._text = text.partition("=")
        if not separator:
            raise ConfigurationError(f"--where: got {text!r}, wanted FIELD=VALUE")

    def bind(self, layout: RecordLayout) -> Any:
        """The value to compare with. Raises ConfigurationError where there is no such field, or of another type."""
        fields = {field.name: field for field in layout.fields}
        if self.field not in fields:
            wanted = ", ".join(fields) + did_you_mean(self.field, fields)
            raise ConfigurationError(f"--where: got field {self.field!r}, wanted one of {layout.name}: {wanted}")
        return None if self._text == "" else _value(fields[self.field], self._text)


def _value(field: Field, text: str) -> Any:
    types: dict[Kind, Any] = {Kind.DOUBLE: float, Kind.LONG: int, Kind.BOOLEAN: bool}
    if field.kind not in types:
        return text
    try:
        return msgspec.convert(text, types[field.kind], strict=False)
    except msgspec.ValidationError:
        wanted = types[field.kind].__name__
        raise ConfigurationError(f"--where {field.name}: got {text!r}, wanted a value of type {wanted}") from None
