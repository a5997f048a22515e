"""A logger for the paths of an append, on which a host's logging decides over nothing."""

from __future__ import annotations

import contextlib
import logging
from typing import Any


class ShieldedLogger(logging.LoggerAdapter[logging.Logger]):
    """The logger of that name; what a handler, a filter or a logger class of the host raises ends here.

    KeyboardInterrupt and SystemExit still come through.
    """

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller's line, not this one
        with contextlib.suppress(Exception):
            super().log(level, msg, *args, **kwargs)
