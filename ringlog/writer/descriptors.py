"""File descriptors: as many as the system lets the writer have, and how many of them are left."""

from __future__ import annotations

import logging
import resource

import psutil

logger = logging.getLogger("ringlog.writer")

# Many thousands more than a writer needs; some systems say "unlimited" and mean less.
WANTED, WANTED_OTHERWISE = 65_536, 10_240


def raise_descriptor_limit() -> None:
    """Raises this process's soft limit towards the hard one: for ringlog's own processes, never for a producer's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (WANTED, WANTED_OTHERWISE):
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft == resource.RLIM_INFINITY or limit <= soft:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError) as error:
            logger.debug("descriptor limit %d cannot be raised to %d: %s", soft, limit, error)
        else:
            logger.info("descriptor limit raised to %d was=%d", limit, soft)
            return


def descriptors_left(process: psutil.Process) -> int | None:
    """How many more descriptors this process may open; None where that cannot be told."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    try:
        return max(soft - int(process.num_fds()), 0)
    except (OSError, psutil.Error):
        return None
