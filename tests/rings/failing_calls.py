"""Makes each call of the C files into the C API fail once; run by test_sanitized.py with a build that can.

For each n the whole life of a ring is lived with its n-th fallible call failing: made, attached, bound, appended to
by position and by name, appended to as an array, decoded. Whatever then raises, the ring must not have moved by
halves, and must work once nothing fails any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ring_memory import RingUnderTest, plain

from ringlog.decode import Decoder, Slots

VALUES = ("left-ish", "right", "täxt", '{"a":1}', 1.5, 0.25, 7, 95, True)
FAILURES = (MemoryError, ValueError, TypeError)
# How the ring words a failure while it writes a value that was made exact before; any other SystemError is the
# interpreter's, for a function that returned a result with an exception set, or none without one.
OUR_SYSTEM_ERROR = "coerce gave back a value that does not fit"


@contextlib.contextmanager
def failures_expected() -> Iterator[list[BaseException]]:
    """Takes what may be raised for a call that failed; the list has it then."""
    raised: list[BaseException] = []
    try:
        yield raised
    except FAILURES as error:
        raised.append(error)
    except SystemError as error:
        if OUR_SYSTEM_ERROR not in str(error):
            raise
        raised.append(error)


class Injection:
    """The counter of one C file: calls since `start`, and which of them fails."""

    def __init__(self, name: str) -> None:
        self.module = importlib.import_module(f"ringlog.{name}")
        library = ctypes.CDLL(self.module.__file__)
        self._calls = ctypes.c_long.in_dll(library, "api_calls")
        self._fail_at = ctypes.c_long.in_dll(library, "api_fail_at")
        self._failed_line = ctypes.c_long.in_dll(library, "api_failed_line")

    @contextlib.contextmanager
    def failing(self, number: int) -> Iterator[None]:
        self._calls.value, self._fail_at.value = 0, number
        try:
            yield
        except SystemError as error:
            raise AssertionError(
                f"{self.module.__name__}: the call in line {self._failed_line.value} failed"
            ) from error
        finally:
            self._fail_at.value = 0

    @property
    def calls(self) -> int:
        return self._calls.value


def every_call(injection: Injection, live: Callable[[], None]) -> int:
    """Lives once for each call that a whole life makes, that one failing; how many there were."""
    with injection.failing(0):
        live()
    calls = injection.calls
    for number in range(1, calls + 1):
        with injection.failing(number), failures_expected():
            live()
        live()
    return calls


def every_append(injection: Injection) -> int:
    """The same for appends to one ring, whose head must tell what was published; how many calls failed."""
    ring = RingUnderTest(injection.module, capacity=4096)
    bound = ring.bind(symbol="SOL")
    names = [field.name for field in ring.layout.fields][: len(VALUES)]
    texts: Iterator[int] = iter(range(10**9))

    def appends() -> list[Callable[[], Any]]:
        unseen = f"v{next(texts)}"
        return [
            lambda: ring.append(*VALUES),
            lambda: ring.append(**{**dict(zip(names, VALUES, strict=True)), "symbol": unseen}),
            lambda: ring.append(unseen, *VALUES[1:], timestamp=1_700_000_000_000_000),
            lambda: bound(*VALUES[1:]),
            lambda: ring.append("x", "right", None, None, 2, None, None, 50, False),
            lambda: ring.append("x", "right", "t", {"a": [1]}, 2, np.float64(0.5), np.int64(3), 50, False),
        ]

    failed = 0
    for index in range(len(appends())):
        number = 1
        while True:
            call = appends()[index]
            before = ring.ring.head
            accepted = False
            with injection.failing(number), failures_expected() as raised:
                accepted = call()
            assert ring.ring.head == ring.lane.head == before + bool(accepted), (index, number)
            assert injection.calls >= number or not raised, (index, number)
            last = injection.calls < number
            assert ring.append(*VALUES) is True
            slot = ring.lane.slots(ring.lane.head - 1, 1)[0]
            assert plain(ring.layout, slot)["text"] == "täxt", (index, number)
            if last:
                break
            failed, number = failed + 1, number + 1
            if ring.lane.head > 3000:
                ring = RingUnderTest(injection.module, capacity=4096)
                bound = ring.bind(symbol="SOL")
    return failed


def main() -> None:
    ring, decode = Injection("_ring"), Injection("_decode")
    under_test: list[RingUnderTest] = []

    def live() -> None:
        one = RingUnderTest(ring.module, capacity=16)
        one.bind(symbol="SOL", choice="left", number=1.0)
        one.append(*VALUES)
        rows = np.zeros(2, one.layout.dtype)
        one.ring.append_many(rows.view(np.uint8), 2)
        one.ring.refused()
        one.ring.detach()
        under_test[:] = [one]

    whole = every_call(ring, live)
    appends = every_append(ring)
    one = RingUnderTest(ring.module, capacity=16)
    for _ in range(5):
        assert one.append(*VALUES)
    memory = memoryview(one.lane.memory)[4096 : 4096 + 5 * one.layout.slot_bytes]

    def decoded() -> None:
        columns, sound, corrupt = Decoder(one.layout).decode([Slots(7, 0, 5, memory)])
        assert not corrupt
        assert sum(run.rows for run in sound) == len(columns["seq"]) == 5

    found = every_call(decode, decoded)
    assert whole > 20, whole
    assert appends > 5, appends
    assert found > 20, found
    print(f"{whole} + {appends} + {found} calls failed")


if __name__ == "__main__":
    main()
