"""The parts of the demo that failed: each is named, and the rest goes on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ringlog.errors import RinglogError

logger = logging.getLogger(__name__)


class Failures:
    """What failed, in order. An interruption is no failure of a part: it ends the demo, which still reports."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, part: str, error: BaseException | str) -> None:
        text = error if isinstance(error, str) else described(error)
        line = f"{part}: {text}" if part else text
        if line not in self.lines:
            self.lines.append(line)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """An error in the block is the part's, and goes no further: the other parts go on."""
        try:
            yield
        except Exception as error:  # plots and drivers raise what they like
            if not isinstance(error, (RinglogError, OSError, ImportError)):
                logger.exception("%s failed", name or "the demo")
            self.add(name, error)


def described(error: BaseException) -> str:
    """One error in words, without its traceback."""
    if isinstance(error, RinglogError):
        return str(error)
    if isinstance(error, ImportError):
        return f'{error} (pip install "ringlog[demo]")'
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"
