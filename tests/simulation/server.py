"""A server that applies at once or late, loses what it acknowledged or its replies, and keeps rows as a table does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ringlog.errors import ServerUnavailable
from ringlog.sinks import Receipt, Request
from ringlog.sinks.memory import MemorySink
from simulation.world import World

Row = dict[str, Any]


class SimulatedServer(MemorySink):
    """A sink that answers as the scheduler has it; `confirm` names a receipt only once its rows are applied."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._transaction = 0
        self._applied: set[int] = set()
        self._late: list[tuple[int, Request]] = []  # acknowledged, not applied yet
        self.is_honest = False  # from then on it applies everything at once
        self.believes_in_204 = False

    def send(self, request: Request) -> Receipt:
        self._world.disk.step("send")
        copy = dataclasses.replace(request)
        if not self.available:
            raise ServerUnavailable("the simulated server is down")
        fate = "apply" if self.is_honest else self._fate()
        if fate == "refuse":
            raise ServerUnavailable("the simulated server did not take the request")
        self._transaction += 1
        transaction = self._transaction
        if fate in ("apply", "lose reply"):
            self._apply(transaction, copy)
        elif fate == "late":
            self._late.append((transaction, copy))
        self._world.disk.step("acknowledge")
        if fate == "lose reply":
            raise ServerUnavailable("the simulated server's reply was lost")
        return Receipt(request.layout.table, request.rows, 1, transaction)

    def _fate(self) -> str:
        fates = ("apply", "lose reply", "refuse", "late", "lose rows")
        return self._world.random.choices(fates, (70, 8, 8, 10, 4))[0]

    def _apply(self, transaction: int, request: Request) -> None:
        super().send(request)
        self._applied.add(transaction)

    def apply_late(self) -> None:
        """What was acknowledged and waits is applied now."""
        if not self.available:
            return
        for transaction, request in self._late:
            super().send(request)
            self._applied.add(transaction)
        self._late.clear()

    def confirm(self, receipts: Sequence[Receipt]) -> Sequence[bool]:
        self._world.disk.step("confirm")
        if not self.available:
            raise ServerUnavailable("the simulated server is down")
        return [self.believes_in_204 or receipt.transaction in self._applied for receipt in receipts]

    def arrive(self, send: Callable[[], Any]) -> None:
        """A request of a writer that died meanwhile, arriving after all."""
        try:
            send()
        except ServerUnavailable:
            return
