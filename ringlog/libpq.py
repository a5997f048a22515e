"""psycopg connections whose password stays a Secret: in a pool's options, in errors and in their tracebacks."""

from __future__ import annotations

from typing import Any, Self

import psycopg

from ringlog.settings import Secret


class Connection(psycopg.Connection[Any]):
    """`connect` takes the password as a Secret, and raises errors without the frames that saw it."""

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> Self:
        try:
            return super().connect(conninfo, **_revealed(options))
        except psycopg.Error as error:
            bare = _bare(error)
        raise bare


class AsyncConnection(psycopg.AsyncConnection[Any]):
    """`Connection` for asyncio."""

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        try:
            return await super().connect(conninfo, **_revealed(options))
        except psycopg.Error as error:
            bare = _bare(error)
        raise bare


def _revealed(options: dict[str, Any]) -> dict[str, Any]:
    # Without an address of its own, libpq takes the environment's PGHOSTADDR: the password would go there.
    shown = {"hostaddr": "", **options}
    password = options.get("password")
    if isinstance(password, Secret):
        shown["password"] = password.reveal() or None
    return shown


def _bare(error: psycopg.Error) -> psycopg.Error:
    """The error without its traceback and those it came from: whose locals are psycopg's, and hold the password."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
