"""What `ringlog migrate` reports of each table or revision, whichever database it is in."""

from __future__ import annotations

import msgspec


class Migration(msgspec.Struct):
    """One table or revision: the statements that were applied (with `--check`: are missing), and what is wrong."""

    database: str
    name: str
    statements: list[str] = []
    problem: str = ""
