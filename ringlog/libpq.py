"""psycopg connections whose password stays a Secret: in a pool's options, in errors and in their tracebacks.

A process that is forked gets none of them: were it to use or to close one, its bytes would come between its parent's.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Any, Self

import psycopg

from ringlog.settings import Secret

# The open connections of this process.
_opened: weakref.WeakSet[psycopg.Connection[Any] | psycopg.AsyncConnection[Any]] = weakref.WeakSet()


def _part_from_parent() -> None:
    """In a process that was just forked: puts /dev/null in the place of each socket, so that the parent has it alone.

    What is sent here then goes nowhere, and the first attempt to read says that the connection is broken.
    """
    inherited = [connection for connection in _opened if not connection.closed]
    if not inherited:
        return
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for connection in inherited:
        with contextlib.suppress(OSError, psycopg.Error):
            os.dup2(null, connection.pgconn.socket, inheritable=False)
    os.close(null)


os.register_at_fork(after_in_child=_part_from_parent)


class Connection(psycopg.Connection[Any]):
    """`connect` takes the password as a Secret, and raises errors without the frames that saw it."""

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> Self:
        try:
            connection = super().connect(conninfo, **_revealed(options))
        except psycopg.Error as error:
            bare = _bare(error)
        else:
            _opened.add(connection)
            return connection
        raise bare


class AsyncConnection(psycopg.AsyncConnection[Any]):
    """`Connection` for asyncio."""

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        try:
            connection = await super().connect(conninfo, **_revealed(options))
        except psycopg.Error as error:
            bare = _bare(error)
        else:
            _opened.add(connection)
            return connection
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
