"""What a query gives back: typed rows, Arrow, pandas or Polars, and what part of the asked span they cover."""

from __future__ import annotations

import datetime
import functools
import itertools
import keyword
import types
import typing
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import msgspec

from ringlog.errors import QueryError
from ringlog.questdb import display

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

RowT = TypeVar("RowT")
# Makes the rows of an answer's tuples: `typed_rows`, `named_rows`.
Make = Callable[[Sequence[tuple[Any, ...]]], Iterable[RowT]]

# PG wire types of QuestDB's columns that Arrow cannot be left to guess: NULLs alone have no type.
_KINDS = {
    16: "bool",
    20: "int",
    21: "int",
    23: "int",
    700: "float",
    701: "float",
    1114: "datetime",
    1184: "datetime",
}
_KINDS |= {18: "str", 25: "str", 1042: "str", 1043: "str", 2950: "uuid", 17: "bytes", 1022: "array", 1700: "decimal"}


class Span(NamedTuple):
    """`start <= timestamp < end`, both aware datetimes."""

    start: datetime.datetime
    end: datetime.datetime


class Continuation(msgspec.Struct, frozen=True):
    """The call that gives what a partial result lacks: `queries.resume(continuation)`."""

    method: str
    arguments: dict[str, Any]


class Result(Generic[RowT]):
    """The rows of one query; a sequence of typed rows, and a table for Arrow, pandas and Polars.

    `partial`: the query ran out of time, and the rows cover `span` only; `continuation` gives the rest. A query that
    covered nothing has no result: it raises QueryTimeout. `limited`: the rows are as many as the limit lets through,
    and more matched, or time ran out before it was known whether more did. `source`: "view" where aggregates came from
    views (the edges and the newest minutes from raw rows), "raw" where raw rows answered for more than that.
    """

    def __init__(
        self,
        columns: Sequence[tuple[str, str]],
        tuples: Sequence[tuple[Any, ...]],
        make: Make[RowT],
        *,
        span: Span | None = None,
        partial: bool = False,
        limited: bool = False,
        continuation: Continuation | None = None,
        source: str = "raw",
    ) -> None:
        self._columns = tuple(columns)
        self._tuples = tuples
        self._make = make
        self._rows: list[RowT] | None = None
        self.span = span
        self.partial = partial
        self.limited = limited
        self.continuation = continuation
        self.source = source

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._columns)

    def rows(self) -> list[RowT]:
        """The typed rows; made at the first call, the same list at every call."""
        if self._rows is None:
            self._rows = list(self._make(self._tuples))
        return self._rows

    def __len__(self) -> int:
        return len(self._tuples)

    def __iter__(self) -> Iterator[RowT]:
        return iter(self.rows())

    def __getitem__(self, index: int) -> RowT:
        return self.rows()[index]

    def tuples(self) -> Iterator[tuple[Any, ...]]:
        """The rows as tuples in the order of `columns`, of the values as they are stored; times are aware, in UTC."""
        times = [index for index, (_, kind) in enumerate(self._columns) if kind == "datetime"]
        if not times:
            return iter(self._tuples)
        return map(tuple, _in_utc(self._tuples, times))

    def __repr__(self) -> str:
        """The first rows, as a table of bounded size."""
        return display.text_table(f"<{self._summary()}>", self.columns, self._tuples)

    def _repr_html_(self) -> str:
        """The same for notebooks, escaped."""
        return display.html_table(self._summary(), self.columns, self._tuples)

    def _summary(self) -> str:
        state = "partial" if self.partial else "limited" if self.limited else "complete"
        covers = "" if self.span is None else f", {self.span.start.isoformat()} to {self.span.end.isoformat()}"
        return f"Result of {len(self):,} rows and {len(self._columns)} columns, {state}{covers}"

    def to_arrow(self) -> pyarrow.Table:
        """A pyarrow.Table: timestamp[us, UTC], double, int64, bool, string, binary, lists and decimals.

        NULL is null, never NaN or empty. A UUID is a string.
        """
        import pyarrow as pa

        types_ = {
            "datetime": pa.timestamp("us", tz="UTC"),
            "float": pa.float64(),
            "int": pa.int64(),
            "bool": pa.bool_(),
            "str": pa.string(),
            "bytes": pa.binary(),
        }
        values = list(zip(*self._tuples, strict=True)) if self._tuples else [()] * len(self._columns)
        arrays = []
        for (_, kind), column in zip(self._columns, values, strict=True):
            if kind in types_:
                arrays.append(pa.array(column, types_[kind]))
            elif kind in ("array", "decimal") and any(value is not None for value in column):
                arrays.append(pa.array(column))  # as deep, or as wide, as the values are
            elif kind in ("array", "decimal"):
                arrays.append(pa.array(column, pa.list_(pa.float64()) if kind == "array" else pa.decimal128(38, 0)))
            else:
                arrays.append(pa.array([None if value is None else str(value) for value in column], pa.string()))
        return pa.Table.from_arrays(arrays, names=list(self.columns))

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """The Arrow PyCapsule stream: `pyarrow.table(result)`, `polars.DataFrame(result)`, DuckDB and others."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def to_pandas(self) -> pandas.DataFrame:
        """A pandas.DataFrame with Arrow-backed columns, so that integers with NULLs stay integers."""
        import pandas as pd

        return self.to_arrow().to_pandas(types_mapper=pd.ArrowDtype)

    def to_polars(self) -> polars.DataFrame:
        """A polars.DataFrame (Polars is installed by the user). QueryError for decimals that Polars cannot hold."""
        import polars as pl
        import pyarrow as pa

        table = self.to_arrow()
        for column in table.schema:
            if pa.types.is_decimal256(column.type):  # Polars would panic, which no `except Exception` catches
                raise QueryError(
                    f"to_polars: got column {column.name!r} of {column.type}, wanted at most 38 digits: "
                    "cast it in the SQL, or take to_arrow()"
                )
        return pl.DataFrame(table)


@functools.cache
def struct_columns(row_type: type[msgspec.Struct]) -> tuple[tuple[str, str], ...]:
    """(name, kind) of a row struct's fields, in order."""
    hints = typing.get_type_hints(row_type)
    return tuple((field.name, _kind(hints[field.name])) for field in msgspec.structs.fields(row_type))


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(member for member in typing.get_args(hint) if member is not type(None))
    return str(hint.__name__)


def answered_columns(answer: Any) -> tuple[tuple[str, str], ...]:
    """(name, kind) of the columns of a psycopg PGresult.

    A cursor's `description` says the same and makes an object for each column of each answer, which costs a query of
    100 rows a tenth of its time.
    """
    return _columns(tuple((answer.fname(index), answer.ftype(index)) for index in range(answer.nfields)))


@functools.lru_cache(maxsize=256)
def _columns(wire: tuple[tuple[bytes, int], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode(), _KINDS.get(oid, "other")) for name, oid in wire)


def typed_rows(row_type: Callable[..., RowT]) -> Make[RowT]:
    """Makes rows of a struct; their times are aware already."""
    return functools.partial(itertools.starmap, row_type)


@functools.lru_cache(maxsize=256)
def named_rows(columns: tuple[tuple[str, str], ...]) -> Make[Any]:
    """Makes named tuples of rows of any query, their times aware in UTC.

    Psycopg has them naive. Each gets its zone when rows are asked for, not while the answer is decoded, which many
    threads do in turn (`bench.query_pool`); Arrow, which knows the zone of a whole column, never needs it.
    A column whose name is no identifier is `_0`, `_1` ... by position.
    """
    safe = [name if name.isidentifier() and not keyword.iskeyword(name) else "" for name, _ in columns]
    times = [index for index, (_, kind) in enumerate(columns) if kind == "datetime"]
    # What the row's own `_make` does, without a call of Python for each.
    named = functools.partial(tuple.__new__, namedtuple("Row", safe, rename=True))

    return lambda tuples: map(named, _in_utc(tuples, times) if times else tuples)


def _in_utc(tuples: Sequence[tuple[Any, ...]], times: Sequence[int]) -> Iterator[list[Any]]:
    # Row by row: to turn rows into columns and back touches far more memory. `combine` is faster than `replace`.
    combine, utc = datetime.datetime.combine, datetime.UTC
    for values in map(list, tuples):
        for index in times:
            if (moment := values[index]) is not None:
                values[index] = combine(moment, moment.time(), utc)
        yield values
