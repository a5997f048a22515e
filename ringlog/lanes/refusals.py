"""What an append says while no lane can be claimed, and when it tries again."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator

from ringlog.errors import SharedMemoryFull, SharedMemoryUnusable
from ringlog.lanes.claims import BudgetExhausted
from ringlog.lanes.claims_lock import ClaimReentrant, ClaimsBusy
from ringlog.layout import Refused
from ringlog.shielded_logger import ShieldedLogger

logger = ShieldedLogger("ringlog.producer")

# The first append waits for the claims of others, also where a hundred processes begin at once on two busy cores. Where
# no claim ends meanwhile, the process that holds the lock is most likely stopped: that is waited for once, and not as
# long.
CLAIM_IN_APPEND_SECONDS = 10.0
STILL_SECONDS = 2.0
STILL_AGAIN_SECONDS = 0.005
# A claim lists a directory and maps memory, which an append must not do again and again for nothing. So the pauses
# between tries grow, each to twice the one before.
PAUSE_SECONDS = {Refused.CLAIM_BUSY: 0.005}
PAUSE_SECONDS_OTHERWISE = 0.05
PAUSE_SECONDS_MAX = 1.0
LOG_INTERVAL_SECONDS = 10.0

_random = secrets.SystemRandom()
# Counted rather than asked of the system: a refusal makes no system call.
_forks = 0


def _after_fork_in_child() -> None:
    global _forks  # noqa: PLW0603 (of the whole process)
    _forks += 1


os.register_at_fork(after_in_child=_after_fork_in_child)


def reason_of(error: BaseException, handled: BaseException | None = None) -> Refused:
    """The reason for which an append is refused whose claim raised `error`, where its caller was handling `handled`."""
    if isinstance(error, ClaimReentrant):
        return Refused.REENTRANT
    if isinstance(error, ClaimsBusy):
        return Refused.CLAIM_BUSY
    if isinstance(error, BudgetExhausted):
        return Refused.BUDGET
    # Which of the calls had no descriptor, or no address space, does not matter.
    numbers = {each.errno for each in _causes(error, handled) if isinstance(each, OSError)}
    if numbers & {errno.EMFILE, errno.ENFILE}:
        return Refused.DESCRIPTORS
    if isinstance(error, SharedMemoryFull | SharedMemoryUnusable) or errno.ENOMEM in numbers:
        return Refused.SHARED_MEMORY
    return Refused.UNUSABLE


def _causes(error: BaseException | None, handled: BaseException | None) -> Iterator[BaseException]:
    while error is not None and error is not handled:
        yield error
        error = error.__cause__ or error.__context__


class ClaimPauses:
    """Of one appender: whether it may try to claim now, and what its appends say until it may."""

    # Of all appenders of a process: once one has waited for nothing, the others do not wait as long.
    _busy_since_fork = -1

    def __init__(self) -> None:
        self._made_at_fork = _forks
        self._reason: Refused | None = None
        self._not_before = 0.0
        self._pause = 0.0
        self._log_at = 0.0

    @property
    def reason(self) -> Refused | None:
        """Why an append is refused now without a try; None where it may try."""
        if self._made_at_fork != _forks:
            self.__init__()  # type: ignore[misc]  # a forked child has failed at nothing yet
        return self._reason if time.monotonic() < self._not_before else None

    @property
    def still_seconds(self) -> float:
        """How long a try may wait while no claim of others ends."""
        return STILL_AGAIN_SECONDS if ClaimPauses._busy_since_fork == _forks else STILL_SECONDS

    def failed(self, error: Exception, what: str, handled: BaseException | None) -> Refused:
        """After a try that raised: the reason, logged where it is new, and a pause before the next try."""
        reason = reason_of(error, handled)
        if reason is Refused.REENTRANT:
            return reason  # says nothing of the next append
        if reason is Refused.CLAIM_BUSY:
            ClaimPauses._busy_since_fork = _forks
        now = time.monotonic()
        if reason is not self._reason or now >= self._log_at:
            self._log_at = now + LOG_INTERVAL_SECONDS
            logger.warning("append refused: no lane for %s: %s", what, error, exc_info=reason is Refused.UNUSABLE)
        first = PAUSE_SECONDS.get(reason, PAUSE_SECONDS_OTHERWISE)
        self._pause = min(self._pause * 2, PAUSE_SECONDS_MAX) if reason is self._reason else first
        self._reason = reason
        # Of different lengths, or all that lost a race would race again.
        self._not_before = now + self._pause * _random.uniform(0.5, 1.0)
        return reason

    def succeeded(self) -> None:
        """After a try that gave a lane."""
        self._reason = None
        self._not_before = 0.0
        ClaimPauses._busy_since_fork = -1
