"""A part of the writer that may still be loading on another thread.

The libraries around a server take a second to import, and several where the machine is busy. A writer that waited for
them would let the lanes fill for that long after each of its deaths; so it reads lanes into the spool meanwhile.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Part(Generic[T]):
    """Something that is there, or the future of it."""

    def __init__(self, made: T | Future[T]) -> None:
        self._made = made

    @property
    def is_ready(self) -> bool:
        """Whether `value` is there without waiting."""
        return not isinstance(self._made, Future) or self._made.done()

    @property
    def value(self) -> T:
        """The part itself; waits for it. Raises what its making raised."""
        if isinstance(self._made, Future):
            self._made = self._made.result()
        return self._made

    def close(self) -> None:
        """Closes the part, once it is there; what could not be made, or is None, needs no closing."""
        if isinstance(self._made, Future) and self._made.exception() is not None:
            return
        part: Any = self.value
        if part is not None:
            part.close()
