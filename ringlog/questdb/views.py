"""The views on the server: what is missing of them, and whether they are what the rollups want."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

from ringlog.errors import SchemaMismatch
from ringlog.questdb.connection import Connection
from ringlog.questdb.rollups import Rollup
from ringlog.questdb.tables import STATEMENT_TIMEOUT_S

# Filling a day of 100 million rows takes 10 s.
VALID_TIMEOUT_S = 300.0
# A moment passes before REFRESH ... FULL takes effect.
INVALID_TIMEOUT_S = 5.0
_POLL_S = 0.02
# A view that took in nothing for so many of its lags has stopped.
REFRESHES_MISSED = 3
_STATE = "SELECT view_status, refresh_base_table_txn FROM materialized_views() WHERE view_name = %s"
_VIEWS = "SELECT view_name, base_table_name, view_sql, view_status FROM materialized_views() WHERE view_name = %s"
_REFRESHED = """
SELECT view_status, coalesce(cast(last_refresh_finish_timestamp AS long), 0), cast(systimestamp() AS long)
FROM materialized_views() WHERE view_name = %s"""
_SPAN = "timestamp > cast(%s AS timestamp) AND timestamp < cast(%s AS timestamp)"
_APPLIED = "SELECT writerTxn, sequencerTxn, suspended FROM wal_tables() WHERE name = %s"


def needed(connection: Connection, rollup: Rollup, create: str, *, is_refilled: bool = False) -> list[str]:
    """The statements that make the view, or make an invalid one valid again; none where it is as wanted.

    `is_refilled`: the view that this one is over was filled anew, which makes this one invalid, sooner or later.

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
    is_wanted = status in ("valid", "refreshing") and not is_refilled
    return [] if is_wanted else [f"REFRESH MATERIALIZED VIEW {rollup.view} FULL"]


class Transactions(NamedTuple):
    """Before a view is filled: what of its table it must hold then, and what it must be past itself."""

    applied_to_table: int
    sequenced_to_view: int


def transactions(connection: Connection, rollup: Rollup) -> Transactions:
    """Those of now; -1 for a table or a view that is not there."""
    table, view = (connection.execute(_APPLIED, (name,)) for name in (rollup.table, rollup.view))
    return Transactions(int(table[0][0]) if table else -1, int(view[0][1]) if view else -1)


def wait_valid(connection: Connection, view: str, before: Transactions) -> None:
    """Returns once the server has filled the view, or it stays invalid, or VALID_TIMEOUT_S have passed.

    `before`: as it was before the view was asked to; filling a view makes later transactions. All must be applied too:
    only then does the server know that the view over this one has become invalid. Rows that come meanwhile are not
    waited for: the next refresh takes them in, and that may be a minute away.
    """
    began = time.monotonic()
    while (waited_s := time.monotonic() - began) < VALID_TIMEOUT_S:
        found = connection.execute(_STATE, (view,), timeout_s=STATEMENT_TIMEOUT_S)
        if not found or (found[0][0] == "invalid" and waited_s > INVALID_TIMEOUT_S):
            return
        status, refreshed = found[0]
        log = connection.execute(_APPLIED, (view,), timeout_s=STATEMENT_TIMEOUT_S)
        if not log or log[0][2]:  # suspended: nothing comes of it before somebody resumes it
            return
        applied, sequenced, _ = log[0]
        is_filled = refreshed >= before.applied_to_table and sequenced > before.sequenced_to_view
        if status == "valid" and is_filled and applied >= sequenced:
            return
        time.sleep(_POLL_S)


def rows_left_out(connection: Connection, rollup: Rollup) -> int:
    """How many rows a valid view has left out, which came after its last refresh and long before the next was due.

    0 where all is well, and where there is no such view or it is not valid: `needed` says so.
    """
    found = connection.execute(_REFRESHED, (rollup.view,), timeout_s=STATEMENT_TIMEOUT_S)
    if not found or found[0][0] != "valid":
        return 0
    _, refreshed_us, now_us = found[0]
    sql = f"SELECT count() FROM {rollup.table} WHERE {_SPAN}"  # noqa: S608
    span = (refreshed_us, now_us - REFRESHES_MISSED * rollup.lag_us)
    return int(connection.execute(sql, span, timeout_s=STATEMENT_TIMEOUT_S)[0][0])


def normalised(sql: str) -> str:
    """SQL without comments, line breaks and quotes around names, to compare two queries by."""
    text = re.sub(r"--[^\n]*", " ", sql).replace('"', "")
    return re.sub(r"\s*([(),])\s*", r"\1", re.sub(r"\s+", " ", text)).strip().lower()
