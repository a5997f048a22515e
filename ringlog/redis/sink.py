"""The writer's Redis sink: trades to `stream:trade-events` and latest prices to the cache, best effort.

The writer offers a batch once its rows are confirmed or spooled. `offer` only appends to a bounded deque: encoding and
sending happen on this sink's own thread. Where Redis is slow or away the oldest rows are dropped and counted; where it
refuses (out of memory) the rows in hand are. The ledger does not know this sink: what is dropped here is in QuestDB.
"""

from __future__ import annotations

import collections
import logging
import random
import threading
import time

import msgspec

from ringlog.errors import RedisValueError, ServerError, ServerUnavailable
from ringlog.redis.cache import observed_price, write_commands
from ringlog.redis.connection import Connection, Exchange, Steps
from ringlog.redis.events import EXCHANGE_ENTRIES_MAX, add_command
from ringlog.redis.keys import Topic
from ringlog.redis.trade_rows import TRADES_TABLE, TradePrice, TradeRows
from ringlog.sinks.contract import Batch

logger = logging.getLogger(__name__)

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.05, 1.0
SYMBOLS_MAX = 10_000


class RedisSinkStats(msgspec.Struct, frozen=True):
    """Rows of trades since the start: offered = published + dropped + pending."""

    offered: int
    published: int
    dropped: dict[str, int]  # by reason: overflow, refused, failed, closed
    pending: int
    replayed: int  # offered again from the spool: never published, not counted in offered
    prices_refused: int  # symbols or prices that cannot be a cache key or value


class RedisSink:
    """Takes batches from the writer between `start` and `close`; `offer` never waits and never raises.

    Give it a connection made with `redis_retry_timeout_ms=0`: it has its own backoff.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._keys = connection.keys
        self._pending_rows_max = connection.limits.stream_entries_max  # older rows would be trimmed once added
        self._changed = threading.Condition()
        self._waiting: collections.deque[tuple[Batch, int]] = collections.deque()  # with the first row to publish
        self._waiting_rows = self._in_hand_rows = 0
        self._offered = self._published = self._replayed = self._prices_refused = 0
        self._dropped = {"overflow": 0, "refused": 0, "failed": 0, "closed": 0}
        self._observed_us: dict[str, int] = {}
        self._give_up_at_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="ringlog-redis-sink", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def offer(self, batch: Batch, replayed: bool = False) -> None:
        """Takes a batch whose rows are confirmed or spooled; O(1), and the columns must not change afterwards.

        Only trades are published. `replayed` says that the batch came from the spool: it was offered when it went
        there, so nothing is published again.
        """
        if batch.layout.table != TRADES_TABLE or not batch.rows:
            return
        with self._changed:
            if replayed:
                self._replayed += batch.rows
                return
            self._offered += batch.rows
            first = max(0, batch.rows - self._pending_rows_max)
            self._dropped["overflow"] += first
            self._waiting.append((batch, first))
            self._waiting_rows += batch.rows - first
            while self._waiting_rows > self._pending_rows_max:
                oldest, oldest_first = self._waiting.popleft()
                self._waiting_rows -= oldest.rows - oldest_first
                self._dropped["overflow"] += oldest.rows - oldest_first
            self._changed.notify()

    def stats(self) -> RedisSinkStats:
        with self._changed:
            pending = self._waiting_rows + self._in_hand_rows
            return RedisSinkStats(
                self._offered,
                self._published,
                dict(self._dropped),
                pending,
                self._replayed,
                self._prices_refused,
            )

    def close(self, timeout_s: float = 1.0) -> None:
        """Publishes what it can within `timeout_s`, counts the rest as dropped, and ends the thread.

        A command on its way may take `redis_timeout_ms` longer; it is not waited for.
        """
        with self._changed:
            self._give_up_at_s = time.monotonic() + timeout_s
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            batch, first = taken
            try:
                self._publish(TradeRows(batch), first)
            except Exception:  # a fault in one batch must not end the thread
                logger.exception("redis sink: table=%s rows=%d dropped", batch.layout.table, batch.rows)
                self._settle("failed", self._in_hand_rows)
        with self._changed:
            self._dropped["closed"] += self._waiting_rows
            self._waiting_rows = 0
            self._waiting.clear()

    def _take(self) -> tuple[Batch, int] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._give_up_at_s is not None)
            if not self._waiting or self._must_give_up():
                return None
            batch, first = self._waiting.popleft()
            self._in_hand_rows = batch.rows - first
            self._waiting_rows -= self._in_hand_rows
            return batch, first

    def _must_give_up(self) -> bool:
        return self._give_up_at_s is not None and time.monotonic() >= self._give_up_at_s

    def _publish(self, rows: TradeRows, first: int) -> None:
        backoff_s = BACKOFF_MIN_S
        while first < rows.count:
            if self._must_give_up():
                return self._settle("closed", self._in_hand_rows)
            stop = min(rows.count, first + EXCHANGE_ENTRIES_MAX)
            try:
                self._connection.run(lambda first=first, stop=stop: self._send(rows, first, stop))  # type: ignore[misc]
            except ServerUnavailable as error:
                logger.warning("redis sink waits: backoff_s=%.2f error=%s", backoff_s, error)
                self._wait(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
                backoff_s = min(BACKOFF_MAX_S, 2 * backoff_s)
                continue
            except ServerError as error:
                logger.warning("redis sink drops: rows=%d error=%s", stop - first, error)
                self._settle("refused", stop - first)
            else:
                self._settle(None, stop - first)
            first, backoff_s = stop, BACKOFF_MIN_S
        return None

    def _wait(self, seconds: float) -> None:
        """Backs off; on close it ends at once, and so does the trying."""
        with self._changed:
            if self._changed.wait_for(lambda: self._give_up_at_s is not None, seconds):
                self._give_up_at_s = time.monotonic()

    def _settle(self, reason: str | None, rows: int) -> None:
        with self._changed:
            self._in_hand_rows -= rows
            if reason is None:
                self._published += rows
            else:
                self._dropped[reason] += rows

    def _send(self, rows: TradeRows, first: int, stop: int) -> Steps[None]:
        key = self._keys.stream(Topic.TRADE_EVENTS)
        commands = [add_command(self._connection.limits, key, outgoing) for outgoing in rows.outgoing(first, stop)]
        newer = [price for price in rows.prices(first, stop) if self._is_newer(price)]
        observations = []
        for price in newer:
            try:
                observations.append(observed_price(self._keys, price.symbol, price.price, price.observed_at_us))
            except RedisValueError:
                self._prices_refused += 1
        yield Exchange((*commands, *write_commands(self._connection.limits, observations)))
        if len(self._observed_us) > SYMBOLS_MAX:
            self._observed_us.clear()
        self._observed_us.update((price.symbol, price.observed_at_us) for price in newer)

    def _is_newer(self, price: TradePrice) -> bool:
        """Lanes are drained one after the other, so a batch may hold an older trade than the one before."""
        return price.observed_at_us >= self._observed_us.get(price.symbol, 0)
