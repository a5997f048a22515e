"""What the PostgreSQL tests share: real mints, and a way to the database past everything that is under test."""

from __future__ import annotations

from typing import Any

import psycopg

from ringlog.postgres.pools import connection_options
from ringlog.settings import Settings

USDC = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
SOL = "So11111111111111111111111111111111111111112"
PYUSD = "2b1kV6DkPAnxd5ixfnxCpjxmKwqjjaYmCZfHsFu24GXo"  # Token-2022, with a transfer fee (of 0) and a hook (of nobody)


def execute(settings: Settings, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """The rows of one statement by bare psycopg, past everything that is under test."""
    with psycopg.connect(**connection_options(settings)) as connection:
        cursor = connection.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []
