"""What each process of the demo says at its end, in a file of the session's directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ringlog.producer import Appender, Producer
from ringlog.records import Record, layout_of


class Result(msgspec.Struct, kw_only=True):
    """Accepted records by table and lane, refused ones by `table.reason`."""

    accepted: dict[str, dict[str, int]]
    refused: dict[str, int]


class TraderResult(msgspec.Struct, kw_only=True):
    """How one trader of the paper-trading session ended; amounts in base and quote tokens."""

    trader_id: str
    trades: int
    quantity: Decimal
    realized_pnl: Decimal
    unrealized_pnl: Decimal


class ExecutorResult(Result, kw_only=True):
    """A paper trade executor's: its traders, the limits that kept one from a trade, what became of its rules."""

    traders: list[TraderResult]
    limits: dict[str, int]
    rules: dict[str, int]
    config_version: int
    nodes: dict[str, int]


class SimulatorResult(Result, kw_only=True):
    """The MEV simulator's: trades it was sent, and what it was told it would not see."""

    simulated: int
    missed: int


AnyResult = TypeVar("AnyResult", bound=Result)


def counts_of(producer: Producer, records: Iterable[type[Record]]) -> dict[str, Any]:
    """The fields of Result, read from a producer's appenders before it is closed."""
    appenders: dict[str, Appender[...]] = {layout_of(record).table: producer.appender(record) for record in records}
    return {
        "accepted": {table: appender.accepted_by_lane() for table, appender in appenders.items()},
        "refused": {
            f"{table}.{reason}": count
            for table, appender in appenders.items()
            for reason, count in appender.refused().items()
            if count
        },
    }


def write(directory: str, name: str, result: Result) -> None:
    (Path(directory) / f"result-{name}.json").write_bytes(msgspec.json.encode(result))


def read(directory: Path, pattern: str, wanted: type[AnyResult]) -> list[AnyResult]:
    """The results whose names match `pattern`, in the order of their names; a process that failed left none."""
    found = []
    for path in sorted(directory.glob(f"result-{pattern}.json")):
        with contextlib.suppress(msgspec.MsgspecError):  # cut short, by a full disk say
            found.append(msgspec.json.decode(path.read_bytes(), type=wanted))
    return found
