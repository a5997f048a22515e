"""What the spool on disk can give, read by another process than its writer: nothing is changed."""

from __future__ import annotations

import contextlib

import numpy as np

from ringlog.disk import Directory
from ringlog.errors import SpoolUnusable
from ringlog.spans import SeqSet
from ringlog.spool import cursor
from ringlog.spool.cursor import Position
from ringlog.spool.frames import FrameHeader
from ringlog.spool.spool_file import FILE_NAME, SpoolFile


def holdings(directory: Directory) -> dict[int, SeqSet]:
    """By lane, the records that the spool in `directory` can replay: whole frames that no cursor has passed.

    Every frame's CRC is checked; memory is that of one frame. What the writer confirms meanwhile may be missing: its
    file was removed under the reader. Raises SpoolUnusable where a file is foreign or of another version.
    """
    held: dict[int, SeqSet] = {}
    if "tables" not in directory.names():
        return held
    root = directory.subdirectory("tables")
    try:
        for name in root.names():
            table = root.subdirectory(name)
            try:
                _add_table(held, table)
            finally:
                table.close()
    finally:
        root.close()
    return held


def _add_table(held: dict[int, SeqSet], directory: Directory) -> None:
    frames: list[FrameHeader] = []
    for name in directory.names():
        if FILE_NAME.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):  # confirmed and removed while we were on our way to it
                frames += _sound_frames(directory, name)
    # Read last: a record that is in the spool before and after is behind the cursor all the time.
    confirmed, _ = cursor.load(directory)
    for frame in frames:
        if frame.ordinal >= (confirmed or Position()).ordinal:
            for span in frame.spans:
                held.setdefault(span.lane, SeqSet()).add(span.first_seq, span.first_seq + span.rows)


def _sound_frames(directory: Directory, name: str) -> list[FrameHeader]:
    try:
        return _read(SpoolFile.open(directory, name))
    except SpoolUnusable:
        if name not in directory.names():  # by the time it was opened, or opened again to be read
            return []
        raise


def _read(file: SpoolFile) -> list[FrameHeader]:
    frames = []
    try:
        offset = file.header.frames_offset if file.header is not None else file.length
        while offset < file.length:
            header = file.frame_header(offset)
            if header is None:
                offset = file.next_frame(offset + 1)
                continue
            if file.read_slots(header, offset, np.empty(header.slots_bytes, np.uint8)):
                frames.append(header)
            offset += header.frame_bytes
    finally:
        file.release()
    return frames
