"""Parameters of a caller's own SQL: `%s` by position or `%(name)s` by name, counted before anything is sent."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ringlog.errors import QueryError
from ringlog.naming import did_you_mean
from ringlog.questdb.filters import checked_text

SQL_BYTES_MAX = 1_000_000
Parameters = Sequence[Any] | Mapping[str, Any]

_OWNER = "execute_query"
_PERCENT = re.compile(r"%(?:(%)|\(([^()]*)\)[sbt]|([sbt]))?")
# Comments are tokens because of the quotes in them. A doubled quote ends one token and begins the next.
_TOKEN = re.compile(rf"--[^\n]*|/\*.*?(?:\*/|\Z)|'[^']*'|\"[^\"]*\"|{_PERCENT.pattern}", re.DOTALL)


def checked_parameters(sql: str, params: Any) -> Parameters | None:
    """The parameters as psycopg takes them; None where there are none, and `%` in the SQL is itself.

    QueryError, by name, for parameters that are missing or too many, for both forms in one statement, and for a percent
    sign that is neither a parameter nor doubled.
    """
    if params is None:
        return None
    if isinstance(params, str | bytes | bytearray) or not isinstance(params, Sequence | Mapping):
        raise QueryError(
            f"{_OWNER}: got params {type(params).__name__}, wanted a sequence of values or a mapping of names to values"
        )
    # What is large is not kept: it hardly comes again.
    positions, names = (_placeholders if len(sql) <= 4_096 else _placeholders.__wrapped__)(sql)
    if isinstance(params, Mapping):
        return _named(params, positions, names)
    if names:
        raise QueryError(f"{_OWNER}: got params as a sequence for %({names[0]})s, wanted a mapping of names to values")
    if len(params) != positions:
        raise QueryError(f"{_OWNER}: got {len(params)} params, wanted {positions}: as many as the SQL has %s")
    for index, value in enumerate(params):
        if isinstance(value, str):
            checked_text(f"{_OWNER}.params[{index}]", value, SQL_BYTES_MAX)
    return params


def _named(params: Mapping[Any, Any], positions: int, names: tuple[str, ...]) -> Parameters:
    if positions:
        raise QueryError(f"{_OWNER}: got params by name for %s, wanted a sequence of values, or %(name)s in the SQL")
    given = ", ".join(f"{name!s:.80}" for name in params) or "none"
    for name in names:
        if name not in params:
            hint = did_you_mean(name, [each for each in params if isinstance(each, str)])
            raise QueryError(f"{_OWNER}: got params {given}, wanted also {name!r}{hint}")
    for name, value in params.items():
        if name not in names:
            known = ", ".join(names) or "none"
            raise QueryError(f"{_OWNER}: got param {name!r:.80} that the SQL does not use, wanted {known}")
        if isinstance(value, str):
            checked_text(f"{_OWNER}.params[{name!r}]", value, SQL_BYTES_MAX)
    return params


@functools.lru_cache(maxsize=256)
def _placeholders(sql: str) -> tuple[int, tuple[str, ...]]:
    """How many `%s` a statement has, and the names of its `%(name)s`, each once."""
    positions = 0
    names: dict[str, None] = {}
    for token in _TOKEN.finditer(sql):
        for found in _PERCENT.finditer(token[0]):
            doubled, name, form = found.groups()
            if token[0][0] in "'\"" and doubled is None and found[0] != "%":
                # The server would take `$1` for the text that was meant, and find nothing.
                raise QueryError(f"{_OWNER}: got {found[0]} inside quotes, wanted it without: a value needs none")
            if name is not None:
                names[name] = None
            elif form is not None:
                positions += 1
            elif doubled is None:
                at = token.start() + found.start()
                near = sql[at : at + 20]
                raise QueryError(
                    f"{_OWNER}: got {near!r} in SQL with params, wanted %s, %(name)s, or %% for a percent sign"
                )
    if positions and names:
        raise QueryError(f"{_OWNER}: got %s and %({next(iter(names))})s in one statement, wanted one of the two forms")
    return positions, tuple(names)
