"""`AsyncQueries`: the typed queries of `Queries` for one asyncio event loop."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar

import psycopg
import psycopg_pool
import stamina

from ringlog.errors import QueryTimeout, ServerUnavailable
from ringlog.questdb import calls, pools
from ringlog.questdb.conf import client_conf
from ringlog.questdb.filters import TradeFilter, timeout_seconds
from ringlog.questdb.parameters import Parameters
from ringlog.questdb.record_rows import RecordT, Where, records
from ringlog.questdb.results import Continuation, Result
from ringlog.questdb.rows import MevRow, PercentileRow, PerformanceRow, PositionRow, TradeRow
from ringlog.questdb.statements import PlanMaker, Rows, Statement
from ringlog.settings import Settings
from ringlog.times import Duration, Time, bounds

_T = TypeVar("_T")


class AsyncQueries:
    """The same names, results and errors as `Queries`, awaited. Use it with `async with`, or `open()` and `close()`.

    Every call takes at most `timeout_ms` (default: `query_timeout_ms` of the settings). A connection that breaks is
    replaced and the call is made again, with backoff, while time is left. Typed queries that run out of time return
    the part of the span that they have covered with `partial=True`, and raise QueryTimeout where that is none of it;
    `execute_query` always raises QueryTimeout.

    Errors: QueryError (fix the call), QueryTimeout, SchemaMismatch (a table that `ringlog migrate` makes is missing),
    ServerUnavailable (try again), ServerRefused (wrong user or password).
    """

    def __init__(self, settings: Settings | None = None, *, prepare_threshold: int | None = pools.PREPARE_THRESHOLD):
        self._settings = Settings.from_environment() if settings is None else settings
        self._server = f"QuestDB at {client_conf(self._settings).host}:{self._settings.questdb_pg_port}"
        self._health = pools.Health()
        self._text_statements = pools.TextStatements()
        self._pool = pools.make_async_pool(self._settings, self._health, prepare_threshold)

    async def open(self) -> Self:
        """Starts the pool; does not wait for the server, which need not be up."""
        await self._pool.open(wait=False)
        return self

    async def close(self) -> None:
        await self._pool.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def statistics(self) -> dict[str, int]:
        """The pool's counters since the start, and gauges such as pool_size and requests_waiting (psycopg_pool's)."""
        return dict(self._pool.get_stats())

    async def get_trades(
        self, filter: TradeFilter | None = None, *, timeout_ms: float | None = None, **fields: Any
    ) -> Result[TradeRow]:
        """The trades that match a TradeFilter, given as one or by its fields; at most `limit`, newest first."""
        return await self._run(calls.trades(filter, fields), timeout_ms)

    async def get_performance_metrics(
        self,
        metric_type: str,
        duration: Duration | None = None,
        *,
        operation: str | None = None,
        since: Time | None = None,
        start: Time | None = None,
        end: Time | None = None,
        timeout_ms: float | None = None,
    ) -> Result[PerformanceRow]:
        """Count, mean, minimum, maximum and last value per operation (None: all) and percentile over a span.

        The span: the last `duration`, or one that `since`, `start` and `end` give (`ringlog.times`); it ends at the
        server's now where nothing else is said.
        """
        span = calls.window("get_performance_metrics", duration, since, start, end)
        return await self._run(calls.performance_metrics(metric_type, operation, span), timeout_ms)

    async def get_mev_analysis(
        self,
        duration: Duration | None = None,
        *,
        since: Time | None = None,
        start: Time | None = None,
        end: Time | None = None,
        timeout_ms: float | None = None,
    ) -> Result[MevRow]:
        """Two rows, trades with and without MEV protection over a span: counts, losses, fees."""
        span = calls.window("get_mev_analysis", duration, since, start, end)
        return await self._run(calls.mev_analysis(span), timeout_ms)

    async def get_latency_percentiles(
        self,
        service: str | None,
        operation: str | None,
        duration: Duration | None = None,
        *,
        percentiles: Sequence[float] = calls.PERCENTILES,
        since: Time | None = None,
        start: Time | None = None,
        end: Time | None = None,
        timeout_ms: float | None = None,
    ) -> Result[PercentileRow]:
        """Percentiles of the latencies of each service and operation (None: all) over a span.

        By nearest rank, with a relative error of at most 1 %. Partial results cover the newest part of the span.
        """
        span = calls.window("get_latency_percentiles", duration, since, start, end)
        return await self._run(calls.latency_percentiles(service, operation, percentiles, span), timeout_ms)

    async def get_positions(
        self,
        trader_id: str | None = None,
        mode: str | None = None,
        token: str | None = None,
        *,
        since: Time | None = None,
        start: Time | None = None,
        end: Time | None = None,
        duration: Duration | None = None,
        timeout_ms: float | None = None,
    ) -> Result[PositionRow]:
        """The latest position of each trader, mode and token (None: all), of those in the span where one is given."""
        span = bounds("get_positions", since=since, start=start, end=end, duration=duration)
        return await self._run(calls.positions(trader_id, mode, token, span), timeout_ms)

    async def records(
        self,
        record_type: type[RecordT],
        *,
        since: Time | None = None,
        start: Time | None = None,
        end: Time | None = None,
        duration: Duration | None = None,
        where: Where | None = None,
        limit: int = 1_000,
        order: str = "newest",
        timeout_ms: float | None = None,
    ) -> Result[RecordT]:
        """The rows of a record type as its instances; `lane` and `seq` are columns of the result.

        `where`: columns to values, which travel as parameters: `{"venue": "kraken", "price >=": 1.5, "note": None}`.
        Each must hold. A sequence of values means any of them (with `!=`: none of them), None means NULL.
        """
        span = bounds("records", since=since, start=start, end=end, duration=duration)
        return await self._run(records(record_type, where, span, limit, order), timeout_ms)

    async def execute_query(
        self, sql: str, params: Parameters | None = None, *, timeout_ms: float | None = None
    ) -> Result[Any]:
        """Any SQL; rows are named tuples. Raises QueryTimeout rather than give a part.

        `params`: a sequence for `%s`, or a mapping for `%(name)s`; a percent sign of the SQL itself is then `%%`.

        A statement other than a reading one is not tried again: ServerUnavailable may then mean that it was applied.
        """
        parameters = calls.checked_sql(sql, params)

        async def work(connection: Any, _deadline: float) -> Any:
            if sql not in self._text_statements:
                try:
                    return await connection.cursor(binary=True).execute(sql, parameters)
                except psycopg.DatabaseError as error:
                    if not pools.has_no_binary_form(error):
                        raise
                    self._text_statements.add(sql)
            return await pools.text_cursor(connection).execute(sql, parameters)

        cursor = await self._retried(work, timeout_ms, calls.retriable(sql))
        # The answer is whole and here: while it is decoded, the connection serves the next caller already.
        try:
            tuples = await cursor.fetchall() if cursor.rownumber is not None else []
            return calls.answered_result(cursor.pgresult, tuples)
        except psycopg.DataError:
            return calls.far_times_result(cursor)
        except psycopg.Error as error:
            pools.translate(error, self._server, broken=False)

    async def resume(self, continuation: Continuation, *, timeout_ms: float | None = None) -> Result[Any]:
        """The part that a partial result lacks; aggregates of two parts are the caller's to combine."""
        method = getattr(self, calls.resumable(continuation))
        result: Result[Any] = await method(**continuation.arguments, timeout_ms=timeout_ms)
        return result

    # How

    async def _run(self, plan_maker: PlanMaker[_T], timeout_ms: float | None) -> Result[_T]:
        async def walk(connection: Any, deadline: float) -> Result[_T]:
            plan = plan_maker(deadline)
            try:
                step = next(plan)
                while True:
                    try:
                        rows = await self._step(connection, step)
                    except QueryTimeout as timeout:
                        step = plan.throw(timeout)
                    else:
                        step = plan.send(rows)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]

        return await self._retried(walk, timeout_ms, lambda error: isinstance(error, ServerUnavailable))

    async def _retried(
        self,
        work: Callable[[Any, float], Awaitable[_T]],
        timeout_ms: float | None,
        again: Callable[[Exception], bool],
    ) -> _T:
        seconds = timeout_seconds(self._settings.query_timeout_ms if timeout_ms is None else timeout_ms)
        deadline = time.monotonic() + seconds
        try:
            return await self._attempt(work, deadline)
        except ServerUnavailable as error:
            if not again(error) or time.monotonic() >= deadline:
                raise
        async for attempt in stamina.retry_context(on=again, timeout=deadline - time.monotonic(), **pools.BACKOFF):
            with attempt:
                return await self._attempt(work, deadline)
        raise AssertionError("a retry context ends with a result or an error")

    async def _attempt(self, work: Callable[[Any, float], Awaitable[_T]], deadline: float) -> _T:
        token = pools.call_deadline.set(deadline)
        try:
            connection = await self._pool.getconn(pools.acquire_seconds(deadline))
        except (psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed, psycopg_pool.TooManyRequests) as error:
            raise pools.acquire_error(error, self._server, self._health, self._pool.get_stats()) from None
        finally:
            pools.call_deadline.reset(token)
        connection.deadline = deadline
        try:
            return await work(connection, deadline)
        except psycopg.Error as error:
            broken = pools.settle(connection, error)
            pools.translate(error, self._server, broken)
        finally:
            connection.used_at = time.monotonic()
            if connection.closed or connection.pgconn.transaction_status:
                await connection.close()
            await self._pool.putconn(connection)

    async def _step(self, connection: Any, step: Statement) -> Rows:
        try:
            cursor = pools.utc_cursor(connection)
            await cursor.execute(step.sql, step.parameters)
            rows: Rows = await cursor.fetchall()
        except psycopg.Error as error:
            pools.translate(error, self._server, pools.settle(connection, error), own_sql=True)
        return rows
