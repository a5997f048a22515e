"""The producer: how a latency-sensitive process hands its records over, without ever waiting."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Literal, ParamSpec, Protocol, cast, overload

import numpy as np
from numpy.typing import NDArray

from ringlog.errors import ConfigurationError, RecordError, RecordTypeError
from ringlog.lanes.board import Board
from ringlog.lanes.claims import Card, OwnedLane, claim, open_board
from ringlog.lanes.claims_lock import CLAIM_TIMEOUT_SECONDS
from ringlog.lanes.instance import Instance
from ringlog.lanes.refusals import CLAIM_IN_APPEND_SECONDS, ClaimPauses
from ringlog.layout import BOARD_REFUSE_OFFSET, TAIL_OFFSET, BoardReason, Refused, refusals_by_name
from ringlog.naming import did_you_mean
from ringlog.records import (
    PLATFORM_RECORDS,
    TIMESTAMP,
    LatencySample,
    MevMetric,
    PerformanceMetric,
    Position,
    Record,
    Trade,
    defaults_of,
    layout_of,
)
from ringlog.ring import IMPLEMENTATION, MISSING_C, advice, load, new_appender, new_ring, told
from ringlog.settings import Settings
from ringlog.shielded_logger import ShieldedLogger
from ringlog.validation import Coercion, check_rows

logger = ShieldedLogger("ringlog.producer")

RING_NAMES = {"c": "C ring", "python": "Python ring"}
INVALID_LOG_SECONDS = 10.0  # between two lines about wrong input, for each record type


P = ParamSpec("P")


class Append(Protocol[P]):
    """The call of an append, for type checkers.

    By name, each field is checked like an argument of the record type. By position, values are not checked before the
    call: no type says which fields of a record type that takes its fields by name come in which order.
    """

    @overload
    def __call__(self, *args: P.args, **fields: P.kwargs) -> bool: ...

    @overload
    def __call__(self, first: object, /, *values: object, **fields: object) -> bool: ...


class Appender(Generic[P]):
    """Appends records of one type. Made by `Producer.appender`; shared by all threads of its process.

    append(*fields, timestamp=None) -> bool takes the record type's fields in order, by position or by name, and the
    time by name alone, so that a field which is added later cannot take its place. True means accepted: the record
    will be in its table exactly once. False means refused, and counted by reason: see `refused_reason`. Wrong
    input is counted as `invalid` and raises RecordTypeError or RecordValueError, unless the producer was made with
    on_invalid="refuse".
    """

    append: Append[P]

    def __init__(self, record_type: type[Record], owner: Producer, lane_bytes: int | None) -> None:
        self.record_type = record_type
        self.layout = layout_of(record_type)
        self._defaults = defaults_of(record_type)
        self._owner = owner
        self._lane_bytes = lane_bytes
        self._lane: OwnedLane | None = None
        self._pauses = ClaimPauses()
        self._left: list[tuple[Card, int]] = []  # lanes of before, and what each had accepted
        self._invalid_said_by = float("-inf")
        self._ring = new_ring(self.layout, Coercion(self.layout, self._defaults), self._recover, self._takes_invalid)
        self.append = cast("Append[P]", new_appender(self._ring, {}, self._defaults))
        self._names = tuple(field.name for field in self.layout.fields)

    def __repr__(self) -> str:
        lane = "no lane" if self.lane is None else f"lane {self.lane:016x}"
        return (
            f"<Appender of {self.layout.name}: table {self.layout.table}, {lane}, {self.accepted} accepted, "
            f"{sum(self._ring.refused())} refused, {RING_NAMES[IMPLEMENTATION]}>"
        )

    def bind(self, /, **presets: Any) -> Callable[..., bool]:
        """An append with these fields preset: it takes the others, in their order, by position or by name.

        The time is passed as `timestamp=`, as to `append`. Type checkers check neither presets nor calls, since no type
        says "these fields without those": what is wrong raises here or at the call.
        Raises RecordTypeError for a field that the record type does not have, or for `timestamp`.
        """
        presets = {str.__str__(name): value for name, value in presets.items()}  # of a subclass of str, say
        for name in presets:
            if name not in self._names or name == TIMESTAMP:
                wanted, hint = ", ".join(self._names[:-1]), did_you_mean(name, self._names[:-1])
                raise RecordTypeError(f"{self.layout.name} bind: got field {name!r}, wanted one of {wanted}{hint}")
        return new_appender(self._ring, presets, self._defaults)

    def append_many(self, rows: NDArray[Any]) -> int:
        """Appends an array of `layout.dtype` (rows,), checked as a whole first; `seq` is not looked at.

        Returns how many rows were accepted, from the front; the others were refused and counted. Raises RecordTypeError
        or RecordValueError naming field and row, and then nothing was accepted and all rows count as `invalid`; with
        on_invalid="refuse" it returns 0.
        """
        try:
            check_rows(self.layout, rows)
        except RecordError as error:
            if self._refuses_invalid(error, _count_of(rows)):
                return 0
            raise
        return self.append_sound(np.asarray(rows))  # what was checked, not what a subclass makes of it

    def append_sound(self, rows: NDArray[Any]) -> int:
        """`append_many` for rows that this package made itself and so need no look: wrong ones would be quarantined."""
        return self._ring.append_many(np.ascontiguousarray(rows).view(np.uint8), len(rows))

    def record(self, record: Record) -> bool:
        """Appends an instance of the record type. Anything else is wrong input, too."""
        if type(record) is not self.record_type:
            error = RecordTypeError(f"{self.layout.name}: got {type(record).__name__}, wanted {self.layout.name}")
            if self._refuses_invalid(error, 1):
                return False
            raise error
        *fields, stamp = (getattr(record, name) for name in self._names)
        append: Callable[..., bool] = self.append
        return append(*fields, timestamp=stamp)

    def _refuses_invalid(self, error: RecordError, rows: int) -> bool:
        """Counts rows of wrong input; whether they are refused rather than raise."""
        self._ring.refuse(Refused.INVALID, rows)
        return self._takes_invalid(error)

    def _takes_invalid(self, error: RecordError) -> bool:
        """Tells the log of wrong input that was counted; whether the append returns False for it."""
        now = time.monotonic()
        if now >= self._invalid_said_by:
            self._invalid_said_by = now + INVALID_LOG_SECONDS
            count = self._ring.refused()[Refused.INVALID]
            logger.warning("record=%s invalid=%d so far, the latest: %s", self.layout.name, count, error)
        return self._owner.refuses_invalid

    @property
    def _own_lane(self) -> OwnedLane | None:
        """The present lane; None where it is still the one of the process that this one was forked from."""
        return self._lane if self._lane is not None and self._lane.is_ours else None

    @property
    def accepted(self) -> int:
        """How many records the present lane, or the last one after `close`, has accepted."""
        return self._ring.head if self._lane is None or self._lane.is_ours else 0

    @property
    def lane(self) -> int | None:
        """The lane that is written now; None before the first claim (of a forked child too) and after `close`."""
        lane = self._own_lane
        return lane.card.lane if lane is not None else None

    @property
    def room(self) -> int:
        """How many records the present lane would take now; 0 while there is none."""
        lane = self._own_lane
        if lane is None:
            return 0
        return max(lane.capacity - (self._ring.head - load(lane.memory, TAIL_OFFSET)), 0)

    def accepted_by_lane(self) -> dict[str, int]:
        """How many records each lane of this process has accepted, by the lane as 16 hexadecimal digits."""
        counts = list(self._left)
        if self._lane is not None:
            counts.append((self._lane.card, self._ring.head))
        return {f"{card.lane:016x}": count for card, count in counts if card.owner_pid == os.getpid()}

    def refused(self) -> dict[str, int]:
        """How many records were refused, by reason: see `layout.Refused`."""
        return refusals_by_name(self._ring.refused())

    def refused_reason(self) -> str | None:
        """Why the latest record that was refused was refused; None if none ever was.

        For `board` it is followed by what the board says: disk_full, spool_full, memory or stopped. That is read when
        it is asked for: once the board accepts again, `board` stands alone.
        """
        latest = self._ring.last_refused
        if latest < 0:
            return None
        reason = Refused(latest).name.lower()
        board = self._owner.board
        said = board.reason if latest == Refused.BOARD and board is not None else BoardReason.ACCEPTING
        if said != BoardReason.ACCEPTING:
            return f"{reason}: {said.name.lower()}"
        return reason

    def open(self) -> None:
        """Claims the lane now, so that the first append is as cheap as the others. Raises LaneError."""
        if self._lane is None:
            self._attach(CLAIM_TIMEOUT_SECONDS, CLAIM_TIMEOUT_SECONDS)

    def _attach(self, timeout_seconds: float, still_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        board = self._owner.open_board(timeout_seconds, still_seconds)
        left = max(deadline - time.monotonic(), 0.0)
        lane = claim(
            self._owner.instance,
            self.layout,
            lane_bytes=self._lane_bytes,
            timeout_seconds=left,
            still_seconds=still_seconds,
        )
        lane.note_board(board.inode)
        try:
            self._ring.attach(
                lane.memory, board.memory, lane.slots_offset, lane.capacity, (*lane.words, BOARD_REFUSE_OFFSET)
            )
        except BaseException:
            lane.close()  # or it would be claimed, and written by nobody, for as long as this process lives
            raise
        self._lane = lane
        logger.debug("lane=%016x record=%s slots=%d", lane.card.lane, self.layout.name, lane.capacity)

    def _recover(self) -> bool | Refused:
        """For an append that has no lane to write: the first one, the lane was retired, or this is a forked child."""
        if self._owner.is_closed:
            return Refused.CLOSED
        if (reason := self._pauses.reason) is not None:
            return reason
        if self._lane is not None:
            # Retired, or our parent's: neither may be written, and only the writer or its owner says how it is left.
            self._left.append((self._lane.card, self._ring.head))
            self._ring.detach()
            self._lane.forget()
            self._lane = None
        handled = sys.exception()  # of the caller, which may append in an `except`: no cause of what follows
        try:
            self._attach(CLAIM_IN_APPEND_SECONDS, self._pauses.still_seconds)
        except Exception as error:  # noqa: BLE001 (an append never raises for want of a lane; it is logged there)
            return self._pauses.failed(error, self.layout.name, handled)
        self._pauses.succeeded()
        return True

    def close(self) -> None:
        """Leaves the lane to the writer; later appends return False, counted as closed."""
        self._ring.detach()
        if self._lane is not None:
            self._left.append((self._lane.card, self._ring.head))
            self._lane.close()
            self._lane = None


def _count_of(rows: Any) -> int:
    """How many records a call with wrong input was about."""
    if isinstance(rows, np.ndarray):
        return max(np.asarray(rows).shape[0], 1) if np.asarray(rows).ndim else 1
    return max(len(rows), 1) if type(rows) in (list, tuple) else 1


def _record_types(records: Any) -> tuple[type[Record], ...]:
    """The record types that a producer was given. RecordTypeError where they are none."""
    if not isinstance(records, Iterable):
        raise RecordTypeError(f"producer: got {records!r}, wanted a list of record types, such as [Trade]")
    found = tuple(records)
    for each in found:
        if not (isinstance(each, type) and issubclass(each, Record)):
            raise RecordTypeError(f"producer: got {each!r} among its record types, wanted classes such as Trade")
    return found


def _lane_sizes(lane_bytes: Any) -> dict[type[Record], int]:
    """The bytes of slots by record type, those of other producers too. ConfigurationError where they are none."""
    if not isinstance(lane_bytes, Mapping):
        raise ConfigurationError(f"producer: got lane_bytes={lane_bytes!r}, wanted bytes by record type")
    for record, size in lane_bytes.items():
        if not (isinstance(record, type) and issubclass(record, Record)):
            raise ConfigurationError(f"producer: got lane_bytes of {record!r}, wanted bytes by record type")
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size <= 0:
            raise ConfigurationError(f"producer: got lane_bytes of {record.__name__} {size!r}, wanted a positive int")
    return {record: int(size) for record, size in lane_bytes.items()}


class Producer:
    """All lanes of one process: `with Producer([Trade]) as producer: append = producer.appender(Trade).append`.

    `records` are the record types whose lanes are claimed by `open()`; `lane_bytes` may fix the size of their slots by
    record type. Leaving without `close()`, even by kill -9, loses nothing.

    `on_invalid` is what an append does with wrong input, which is counted and logged either way: "raise"
    (RecordTypeError, RecordValueError), or "refuse", for callers that must not raise: False (0 of `append_many`).
    """

    def __init__(
        self,
        records: Iterable[type[Record]] = PLATFORM_RECORDS,
        *,
        settings: Settings | None = None,
        lane_bytes: Mapping[type[Record], int] | None = None,
        on_invalid: Literal["raise", "refuse"] = "raise",
    ) -> None:
        if on_invalid not in ("raise", "refuse"):
            raise ConfigurationError(f"producer: got on_invalid={on_invalid!r}, wanted 'raise' or 'refuse'")
        if settings is not None and not isinstance(settings, Settings):
            raise ConfigurationError(
                f"producer: got settings of type {type(settings).__name__}, wanted ringlog.Settings"
            )
        self.refuses_invalid = on_invalid == "refuse"
        self._unknown_said_by = float("-inf")
        self.instance = Instance(settings if settings is not None else Settings.from_environment())
        self.board: Board | None = None
        self.is_closed = False
        types = _record_types(records)
        sizes = _lane_sizes({} if lane_bytes is None else lane_bytes)
        self._appenders: dict[type[Record], Appender[...]] = {
            record: Appender(record, self, sizes.get(record)) for record in types
        }

    def __repr__(self) -> str:
        return f"<Producer of {self.instance.runtime_dir}: {', '.join(map(repr, self._appenders.values()))}>"

    def open(self) -> Producer:
        """Claims a lane for every record type. Raises LaneError (BudgetExhausted, SharedMemoryFull) where it cannot."""
        self.instance.open()
        self.is_closed = False
        try:
            for appender in self._appenders.values():
                appender.open()
        except BaseException:
            self.close()  # all lanes or none
            raise
        logger.info("producer open records=%d ring=%s", len(self._appenders), IMPLEMENTATION)
        if IMPLEMENTATION == "python":
            if MISSING_C:
                logger.warning("producer open with the %s: %s", told(), advice())
            else:
                logger.info("producer open with the %s", told())
        return self

    def open_board(self, timeout_seconds: float, still_seconds: float) -> Board:
        """The instance's board, attached once, and again where somebody removed it; waits as long as a claim."""
        if self.board is None or not self.board.is_current(self.instance):
            self.instance.open()
            self.board = open_board(self.instance, timeout_seconds, still_seconds)
        return self.board

    def appender(self, record_type: Callable[P, Record]) -> Appender[P]:
        """The appender of a record type that this producer was made for. Raises RecordTypeError for another."""
        try:
            return cast("Appender[P]", self._appenders[cast("type[Record]", record_type)])
        except (KeyError, TypeError):  # no type at all may have no hash
            known = ", ".join(record.__name__ for record in self._appenders)
            raise RecordTypeError(f"producer: got record type {record_type!r}, wanted one of {known}") from None

    def record(self, record: Record) -> bool:
        """Appends one record of any of the producer's record types.

        One of another type has no appender that could count it: it raises RecordTypeError, or is logged and refused.
        """
        return self._record(type(record), record)

    def _record(self, record_type: type[Record], record: Record) -> bool:
        try:
            appender: Appender[...] = self.appender(record_type)
        except RecordTypeError as error:
            if not self.refuses_invalid:
                raise
            now = time.monotonic()
            if now >= self._unknown_said_by:
                self._unknown_said_by = now + INVALID_LOG_SECONDS
                logger.warning("record refused, and counted nowhere: %s", error)
            return False
        return appender.record(record)

    def record_trade(self, trade: Trade) -> bool:
        return self._record(Trade, trade)

    def record_latency(self, sample: LatencySample) -> bool:
        return self._record(LatencySample, sample)

    def record_performance(self, metric: PerformanceMetric) -> bool:
        return self._record(PerformanceMetric, metric)

    def record_mev(self, metric: MevMetric) -> bool:
        return self._record(MevMetric, metric)

    def record_position(self, position: Position) -> bool:
        return self._record(Position, position)

    def refused(self) -> dict[str, dict[str, int]]:
        """Records refused so far: table name to reason to count."""
        return {appender.layout.table: appender.refused() for appender in self._appenders.values()}

    def close(self) -> None:
        """Leaves all lanes to the writer. Appends from now on return False, counted as closed."""
        self.is_closed = True
        for appender in self._appenders.values():
            appender.close()

    def __enter__(self) -> Producer:
        return self.open()

    def __exit__(self, *_exception: object) -> None:
        self.close()


class AsyncProducer:
    """The same names for async code. An append takes well under a microsecond and never waits, so nothing is handed to
    a thread: the coroutines exist so that an executor's code reads the same everywhere."""

    def __init__(self, records: Iterable[type[Record]] = PLATFORM_RECORDS, **options: Any) -> None:
        self.producer = Producer(records, **options)

    def appender(self, record_type: Callable[P, Record]) -> Appender[P]:
        return self.producer.appender(record_type)

    async def record(self, record: Record) -> bool:
        return self.producer.record(record)

    async def record_trade(self, trade: Trade) -> bool:
        return self.producer.record_trade(trade)

    async def record_latency(self, sample: LatencySample) -> bool:
        return self.producer.record_latency(sample)

    async def record_performance(self, metric: PerformanceMetric) -> bool:
        return self.producer.record_performance(metric)

    async def record_mev(self, metric: MevMetric) -> bool:
        return self.producer.record_mev(metric)

    async def record_position(self, position: Position) -> bool:
        return self.producer.record_position(position)

    def refused(self) -> dict[str, dict[str, int]]:
        return self.producer.refused()

    async def open(self) -> AsyncProducer:
        """Claims a lane for every record type; see `Producer.open`."""
        self.producer.open()
        return self

    async def close(self) -> None:
        """Leaves all lanes to the writer; see `Producer.close`."""
        self.producer.close()

    async def __aenter__(self) -> AsyncProducer:
        return await self.open()

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()


__all__ = ["Appender", "AsyncProducer", "Producer"]
