"""A server that applies at once or late, or never, loses its replies, refuses rows, and keeps the others as a table."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from ringlog.errors import SchemaMismatch, ServerRefused, ServerUnavailable
from ringlog.sinks import Batch, Receipt, Request
from ringlog.sinks.memory import MemorySink, Row

# What becomes of a request, out of a hundred.
FATES = {"applied": 57, "late": 20, "never": 3, "reply lost": 7, "on its way": 7, "not taken": 6}


class Server:
    """A sink with a server's bad habits. What is safe is only what `confirm` said is applied.

    `step(name)` is called where the writer may die: before a request leaves, before its reply is seen, before it asks.
    """

    def __init__(self, rng: random.Random, refuses: Callable[[Row], bool], step: Callable[[str], None]) -> None:
        self.rng = rng
        self.table = MemorySink()
        self.refuses = refuses
        self.step = step
        self.is_up = True
        self.silent_until = 0.0  # by the simulated clock: until then it answers nothing
        self.is_well = False  # once True, every request is applied at once
        self.drifted: set[str] = set()
        self._transaction = 0
        self._applied: set[int] = set()
        self._waiting: list[tuple[int, Request]] = []  # acknowledged and not applied
        self._late: list[Request] = []  # on their way, though their sender has given up

    def encode(self, batch: Batch) -> Request:
        return self.table.encode(batch)

    def release(self, request: Request) -> None:
        self.table.release(request)

    def close(self) -> None:
        """The server goes on."""

    def send(self, request: Request) -> Receipt:
        self.step("send")
        if not self.is_up:
            raise ServerUnavailable("down")
        table = request.layout.table
        if table in self.drifted:
            raise SchemaMismatch(f"{table}: drifted")
        for line, row in enumerate(request.body, start=1):
            if self.refuses(row):
                error = ServerRefused(f"error in line {line}")
                error.line = line
                raise error
        kept = dataclasses.replace(request)
        fate = "applied" if self.is_well else self.rng.choices(list(FATES), list(FATES.values()))[0]
        if fate == "on its way":
            self._late.append(kept)
        if fate in ("on its way", "not taken"):
            raise ServerUnavailable(fate)
        self._transaction += 1
        if fate == "late":
            self._waiting.append((self._transaction, kept))
        elif fate != "never":
            self._apply(kept, self._transaction)
        self.step("acknowledge")
        if fate == "reply lost":
            raise ServerUnavailable("the response was lost")
        return Receipt(table, request.rows, 1, self._transaction)

    def confirm(self, receipts: Sequence[Receipt]) -> Sequence[bool]:
        self.step("confirm")
        if not self.is_up or (not self.is_well and self.rng.random() < 0.05):
            raise ServerUnavailable("down")
        return [receipt.transaction in self._applied for receipt in receipts]

    def _apply(self, request: Request, transaction: int = 0) -> None:
        self.table.send(request)
        self._applied.add(transaction)

    def late(self, request: Request) -> None:
        """A request whose sender died may have left before."""
        if request.body is not None and not any(self.refuses(row) for row in request.body):
            self._late.append(dataclasses.replace(request))

    def go_on(self) -> None:
        """Something that was under way happens."""
        if self.is_up and self._waiting:
            transaction, request = self._waiting.pop(0)
            self._apply(request, transaction)
        if self.is_up and self._late:
            self._apply(self._late.pop(self.rng.randrange(len(self._late))))

    def die(self) -> None:
        """What was acknowledged and not applied is gone."""
        self.is_up = False
        self._waiting.clear()

    def recover(self) -> None:
        """Everything is well from now on."""
        self.is_up = self.is_well = True
        self.silent_until = 0.0
        self.drifted.clear()
        while self._waiting or self._late:
            self.go_on()
