"""Where a QuestDB on this machine keeps its data, found without a setting: so that its disk is watched by default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ringlog.errors import QueryError
from ringlog.questdb.conf import client_conf
from ringlog.questdb.connection import Connection
from ringlog.settings import Settings
from ringlog.transport import is_loopback

# Of the server's packages and of its container image.
USUAL_ROOT = Path("/var/lib/questdb")


class DataDir(NamedTuple):
    """The directory with the server's tables; None where it is not known, and why."""

    path: Path | None
    trouble: str = ""


def find(connection: Connection, settings: Settings) -> DataDir:
    """Asks the server, and looks for what it says on this machine. Raises ServerUnavailable."""
    host = client_conf(settings).host
    if not is_loopback(host):
        return DataDir(None, f"QuestDB at {host} is another machine's, to be watched there")
    try:
        root = connection.execute("select value from (show parameters) where property_path = 'cairo.root'")[0][0]
        names = [name for (name,) in connection.execute("select directoryName from tables()")]
    except (QueryError, IndexError) as error:
        return DataDir(None, f"QuestDB does not say where its data is ({error})")
    if not names:
        return DataDir(None, "QuestDB has no table yet by which its directory could be told")
    for path in _candidates(Path(root), settings.questdb_pg_port):
        # A directory of that name may be another server's: a container's path, say, that this machine has too.
        if _holds(path, names):
            return DataDir(path)
    return DataDir(None, f"no directory that this process can see holds its tables (cairo.root is {root})")


def _candidates(root: Path, port: int) -> Iterator[Path]:
    if root.is_absolute():
        yield root
        return
    for base in _bases(port):
        yield base / root
    yield USUAL_ROOT / root


def _bases(port: int) -> Iterator[Path]:
    """What the process that listens on the port was started with as its directory (`-d`), as far as we may ask."""
    import psutil

    try:
        listeners = {
            each.pid
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid
        }
        for pid in listeners:
            process = psutil.Process(pid)
            words, base = process.cmdline(), Path(process.cwd())
            yield base / words[words.index("-d") + 1] if "-d" in words[:-1] else base
    except (psutil.Error, OSError):
        return


def _holds(path: Path, names: list[str]) -> bool:
    try:
        return all((path / name).is_dir() for name in names)
    except OSError:
        return False
