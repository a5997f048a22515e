"""What `ringlog validate` and `ringlog doctor` report of each thing they look at."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct):
    """One thing that was looked at. `level`: `ok`, `warn` (nothing is lost yet) or `fail`; `fix` says what to do."""

    check: str
    level: str
    text: str
    fix: str = ""
