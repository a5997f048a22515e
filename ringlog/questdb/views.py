"""The minute views on the server: what is missing of them, and whether they are what the rollups want."""

from __future__ import annotations

import re

from ringlog.errors import SchemaMismatch
from ringlog.questdb.connection import Connection
from ringlog.questdb.rollups import Rollup

_VIEWS = "SELECT view_name, base_table_name, view_sql, view_status FROM materialized_views() WHERE view_name = %s"


def needed(connection: Connection, rollup: Rollup, create: str) -> list[str]:
    """The statements that make the view, or make an invalid one valid again; none where it is as wanted.

    Raises SchemaMismatch where a view of that name asks something else: its rows cannot be mended in place.
    """
    found = connection.execute(_VIEWS, (rollup.view,))
    if not found:
        return [create]
    _, base, sql, status = found[0]
    if base != rollup.table or normalised(sql) != normalised(rollup.definition):
        raise SchemaMismatch(
            f"{rollup.view}: got another query ({normalised(sql):.200}), wanted {normalised(rollup.definition):.200}; "
            f"DROP MATERIALIZED VIEW {rollup.view}, then run `ringlog migrate`: the server fills it from {base}"
        )
    return [] if status in ("valid", "refreshing") else [f"REFRESH MATERIALIZED VIEW {rollup.view} FULL"]


def normalised(sql: str) -> str:
    """SQL without comments, line breaks and quotes around names, to compare two queries by."""
    text = re.sub(r"--[^\n]*", " ", sql).replace('"', "")
    return re.sub(r"\s*([(),])\s*", r"\1", re.sub(r"\s+", " ", text)).strip().lower()
