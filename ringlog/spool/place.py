"""Where an instance's spool lies: what an older version kept beside the locks, often in memory, is moved to disk.

Crashes of process or machine at any step lose nothing. The old directory counts until it is renamed, which happens once
a durable copy is whole; from then on the copy counts. Only the writer moves, under its lease.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from ringlog.disk import refusal
from ringlog.errors import SpoolUnusable
from ringlog.settings import SPOOL_NAME, Settings

logger = logging.getLogger("ringlog.spool")

HINT = "set RINGLOG_SPOOL_DIR to a directory on disk"


def ready(settings: Settings) -> Path:
    """The spool's path; by default the directories above it are made. Raises SpoolUnusable, ConfigurationError."""
    path = settings.spool_path
    if path != settings.default_spool_path:
        return path  # its parent is the user's to make: a disk that is not mounted must not be replaced by a directory
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise refusal(path.parent, error, f"a directory that this user can make: {HINT}") from None
    return path


def settled(settings: Settings) -> Path:
    """`ready`, after what an older version left below the runtime directory was moved there."""
    old = Path(settings.runtime_dir) / SPOOL_NAME
    if settings.spool_dir or settings.spool_path not in (old, settings.default_spool_path):
        return settings.spool_path
    new = settings.default_spool_path
    if new == old:
        return old
    if old.is_dir() and not old.is_symlink():
        try:
            _copy(old, new)
        except OSError as error:
            logger.error("spool stays at %s, it cannot be moved to %s: %s", old, new, error)
            return old
    path = ready(settings)
    _finish(old, new)
    return path


def _copy(old: Path, new: Path) -> None:
    if new.exists():
        raise SpoolUnusable(
            f"{old}: got a spool here and at {new}, wanted one: run `RINGLOG_SPOOL_DIR={old} ringlog writer` until "
            f"`ringlog top` shows its spool empty, and move {old} away"
        )
    new.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft, whole = _draft(new), _whole(new)
    for stale in (draft, whole):  # of an attempt that died while the old directory still counted
        if stale.exists():
            shutil.rmtree(stale)
    shutil.copytree(old, draft, symlinks=True, copy_function=shutil.copy2)
    for directory, _, names in os.walk(draft):
        for name in (*names, "."):
            _sync(Path(directory) / name)
    draft.rename(whole)
    _sync(new.parent)
    old.rename(_moved(old))  # from here on the copy counts


def _finish(old: Path, new: Path) -> None:
    """What is left of a move once the copy counts, also of one that died; then the way to the spool is left behind."""
    whole = _whole(new)
    if whole.exists():
        whole.rename(new)
        _sync(new.parent)
        logger.info("spool moved from=%s to=%s", old, new)
    shutil.rmtree(_moved(old), ignore_errors=True)
    if not old.is_symlink():
        # For those with another environment (cron, another shell): what follows from ours alone they might not find.
        old.symlink_to(new)


def _draft(new: Path) -> Path:
    return new.with_name(f"{new.name}.copying")


def _whole(new: Path) -> Path:
    return new.with_name(f"{new.name}.copied")


def _moved(old: Path) -> Path:
    return old.with_name(f"{old.name}.moved")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
