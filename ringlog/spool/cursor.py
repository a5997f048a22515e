"""How far a table's spool was replayed and confirmed: one small file, replaced in one step."""

from __future__ import annotations

import msgspec

from ringlog.disk import Directory, Reserve, sealed, unsealed
from ringlog.errors import SpoolUnusable
from ringlog.spool.frames import VERSION

NAME = "cursor"


class Position(msgspec.Struct, frozen=True, order=True):
    """A place between frames: all with a smaller ordinal are passed, `row` counts the table's records up to here."""

    ordinal: int = 0
    row: int = 0


class _Stored(msgspec.Struct):
    version: int
    position: Position


def load(directory: Directory) -> tuple[Position | None, bytes]:
    """The stored position and b"", or None and the file's bytes where they prove nothing (b"": there is no file).

    Without a position replay starts at the oldest file: the server folds what it already has. Raises SpoolUnusable
    where the cursor is of another version.
    """
    line = directory.read(NAME)
    if line is None:
        return None, b""
    text = unsealed(line)
    try:
        stored = msgspec.json.decode(text or b"", type=_Stored)
    except msgspec.DecodeError:
        return None, line
    if stored.version != VERSION:
        path = directory.path / NAME
        raise SpoolUnusable(f"{path}: got version {stored.version}, wanted {VERSION}; it is left as it is")
    return stored.position, b""


def store(directory: Directory, reserve: Reserve, position: Position) -> None:
    """Makes `position` durable, with the reserve given up if the disk is full. Raises SpoolFull, OSError."""
    line = sealed(msgspec.json.encode(_Stored(VERSION, position)))
    reserve.spend(lambda: directory.replace(NAME, line))
