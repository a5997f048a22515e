"""The formats that a replay reads, and which one a file has."""

from __future__ import annotations

from pathlib import Path, PurePath

from ringlog.replay.line_sources import CsvSource, JsonSource
from ringlog.replay.parquet_source import ParquetSource
from ringlog.replay.source import Source
from ringlog.replay.unpacking import SUFFIXES as PACKED
from ringlog.replay.unpacking import FileError, name_inside

SOURCES: dict[str, type[Source]] = {"csv": CsvSource, "ndjson": JsonSource, "parquet": ParquetSource}
SUFFIXES = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".parquet": "parquet"}


def format_of(path: Path, wanted: str | None = None) -> str:
    """`wanted`, or the format that the name of the file or of what it packs says. Raises FileError.

    A FIFO or a device is refused: opening one may wait for ever, and a replay goes back to places in its file.
    """
    if path.exists() and not path.is_file():
        raise FileError(f"{path}: got no regular file, wanted one (a pipe's content can be saved to a file first)")
    for name in (path.name, "" if wanted else name_inside(path)):
        suffixes = [suffix for suffix in PurePath(name).suffixes if suffix not in PACKED]
        found = wanted or SUFFIXES.get(suffixes[-1].lower() if suffixes else "")
        if found is not None:
            return found
    raise FileError(f"{path}: got no format in its name, wanted .csv, .ndjson, .jsonl or .parquet, or --format")
