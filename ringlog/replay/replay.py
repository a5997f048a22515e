"""The replay itself: parts of a file become slots, slots go into a lane as it has room, and the journal follows."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from ringlog.arrays import assembled
from ringlog.errors import RecordValueError, SharedMemoryFull
from ringlog.lanes.claims import BudgetExhausted
from ringlog.lanes.instance import Instance, boot_id
from ringlog.layout import BoardReason
from ringlog.producer import Appender, Producer
from ringlog.records import TIMESTAMP, Record, defaults_of, layout_of
from ringlog.replay.journal import JUDGING, Journal, Progress, ReplayError
from ringlog.replay.shape import Shape
from ringlog.replay.slots import slots_of
from ringlog.replay.source import Part
from ringlog.replay.sources import SOURCES, format_of
from ringlog.replay.times import Unsound
from ringlog.replay.unpacking import FileError
from ringlog.replay.values import of_text
from ringlog.settings import Settings
from ringlog.validation import clock_us, exact_value, latest_timestamp_us

# A file comes as fast as the server takes it: a lane of twice the usual size makes requests twice as large, and each
# row a sixth cheaper.
LANE_BYTES = 16 * 1024 * 1024
CHECKPOINT_SECONDS = 1.0  # what is read again after a kill; what was accepted is known exactly all the while
SLOTS_BYTES_MAX = 32 << 20  # at a time: a line of two bytes may be a row of many texts, each as wide as its field
POLL_SECONDS = 0.002
WAIT_SECONDS = 0.05


class Outcome(msgspec.Struct):
    """What a replay did, all its runs together; `waiting` is why the lane takes nothing just now."""

    path: str
    table: str
    accepted: int
    rejected: int
    rejects: str  # the file that has them
    seconds: float  # of this run
    is_finished: bool
    broken_end: str = ""
    waiting: str = ""
    done: int = 0  # of `total`: bytes of the file as it lies on disk, rows of a Parquet file
    total: int = 0


class Replay:
    """Replays the records of a file into an instance; use it with `with`.

    `shape`: how the file is laid out, where it does not say so itself. `speed`: 1 as recorded, 0 as fast as the lane
    takes.
    `mode`: "new" raises ReplayError where this file was replayed before; "resume" goes on behind what was accepted;
    "again" begins anew. `rejects`: where rows that no record can be made of go, with line number and reason.
    Raises FileError, ShapeError, ReplayError, RecordError, LaneError, SpoolError.
    """

    def __init__(
        self,
        path: Path,
        record_type: type[Record],
        settings: Settings,
        *,
        shape: Shape = Shape(),  # noqa: B008 (frozen)
        speed: float = 0.0,
        mode: str = "new",
        rejects: Path | None = None,
    ) -> None:
        self._path = path.absolute()
        self._layout = layout_of(record_type)
        self._record_type = record_type
        self._defaults = defaults_of(record_type)
        self._speed = speed
        self._mode = mode
        self._rejects_path = rejects or self._path.with_name(self._path.name + ".rejects.ndjson")
        shape.check()
        self._shape = msgspec.structs.replace(shape, format=format_of(self._path, shape.format))
        self._source = SOURCES[self._shape.format](self._path, self._layout, self._shape, self._defaults)
        self._constants = {name: self._constant(name, text) for name, text in shape.constants.items()}
        self._wanted = Progress(
            path=str(self._path),
            table=self._layout.table,
            layout=self._layout.to_json().decode(),
            shape=self._shape,
            judging=JUDGING,
            latest_us=latest_timestamp_us(),
        )
        self._settings = settings
        self._is_stopped = False
        self._waiting = ""
        self._began = time.monotonic()
        self._resources = contextlib.ExitStack()

    def _constant(self, name: str, text: str) -> Any:
        field = self._layout.field(name)
        value = of_text(self._layout.name, field, text.encode("utf-8", "surrogateescape"), self._shape.times)
        return exact_value(self._layout.name, field, value)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            instance = Instance(self._settings).open()
            self._journal = Journal(instance, self._path, self._layout.table)
            stack.callback(self._journal.close)
            self._progress = self._begun()
            self._parts = self._source.parts(self._progress.place)
            self._first = next(self._parts, None)  # what is wrong with the whole file is told first
            if self._speed and not self._source.has_timestamps:
                raise FileError(f"{self._path}: got no timestamp column, wanted one for --speed {self._speed:g}")
            self._producer = self._opened_producer()
            stack.callback(self._producer.close)
            self._appender: Appender[...] = self._producer.appender(self._record_type)
            self._rejects = stack.enter_context(_Rejects(self._rejects_path, self._progress.rejects_bytes))
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._resources.close()

    def _opened_producer(self) -> Producer:
        """With a lane of LANE_BYTES, or of what others have left."""
        records = [self._record_type]
        try:
            return Producer(records, settings=self._settings, lane_bytes={self._record_type: LANE_BYTES}).open()
        except (BudgetExhausted, SharedMemoryFull):
            return Producer(records, settings=self._settings).open()

    def _begun(self) -> Progress:
        """Where to begin. Raises ReplayError where the journal says something else than what is asked for."""
        found = self._journal.read()
        if found is None or self._mode == "again":
            return self._wanted
        if self._mode != "resume":
            state = "was replayed" if found.is_finished else "was replayed in part"
            raise ReplayError(
                f"{self._path}: got a file that {state} into {found.table} ({found.accepted} records): "
                "--resume goes on behind them, --again stores them once more"
            )
        if difference := self._journal.difference(found, self._wanted):
            raise ReplayError(f"{self._path}: got {difference}: --again stores the whole file once more")
        self._journal.settle(found)
        if not found.skip:
            found.latest_us = self._wanted.latest_us
        return found

    def stop(self) -> None:
        """Asks `run` to end soon; it can be resumed. Safe in a signal handler."""
        self._is_stopped = True

    def run(self, on_progress: Callable[[Outcome], None] = lambda _outcome: None) -> Outcome:
        """Replays the rest of the file; `on_progress` hears of it with each part, and while the lane has no room."""
        self._progress.is_finished = False
        self._on_progress = on_progress
        self._skip = self._progress.skip
        self._checkpoint_lane()
        checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS
        for part in self._all_parts():
            if not self._replay(part):
                break
            self._progress.place = part.after
            # What lay behind the place when the last run was killed had to be judged as it was then; no more.
            renews = not self._skip and self._progress.latest_us != self._wanted.latest_us
            if renews or time.monotonic() >= checkpoint_at:
                self._progress.latest_us = self._progress.latest_us if self._skip else self._wanted.latest_us
                self._checkpoint()
                checkpoint_at = time.monotonic() + CHECKPOINT_SECONDS
        else:
            self._progress.is_finished = not self._source.broken_end
            self._checkpoint(is_over=True)
        return self.outcome()

    def outcome(self) -> Outcome:
        """How far it is."""
        return Outcome(
            path=str(self._path),
            table=self._layout.table,
            accepted=self._progress.accepted,
            rejected=self._progress.rejected,
            rejects=str(self._rejects_path) if self._progress.rejected else "",
            seconds=time.monotonic() - self._began,
            is_finished=self._progress.is_finished,
            broken_end=self._source.broken_end,
            waiting=self._waiting,
            done=self._source.extent[0],
            total=self._source.extent[1],
        )

    def _all_parts(self) -> Iterator[Part]:
        if self._first is not None:
            yield self._first
        self._first = None
        yield from self._parts

    def _replay(self, part: Part) -> bool:
        """Appends what of a part is not accepted yet; False where it was stopped before the end."""
        passed = 0
        rejected = part.broken
        step = max(SLOTS_BYTES_MAX // self._layout.dtype.itemsize, 1)
        for first in range(0, len(part.numbers), step):
            slots, wrong = self._judged(part, first, min(first + step, len(part.numbers)))
            skipped = min(self._skip, len(slots))
            self._skip -= skipped
            passed += skipped
            for rows in self._due(slots[skipped:]):
                while len(rows):
                    if self._is_stopped:
                        return False
                    taken = self._appended(rows, passed)
                    passed += taken
                    rows = rows[taken:]
            rejected = rejected + wrong
        # With the whole part, as the journal follows: what is read again after a kill is rejected again.
        self._progress.rejected += len(rejected)
        self._rejects.write(sorted(rejected))
        self._on_progress(self.outcome())
        return not self._is_stopped

    def _judged(self, part: Part, first: int, end: int) -> tuple[NDArray[Any], list[tuple[int, str, str]]]:
        """The sound rows from `first` to `end` of a part, and number, reason and text of the others."""
        wrong: list[tuple[int, str]] = []
        try:
            slots = self._slots(part, first, end)
        except Unsound:
            rows = [functools.partial(self._row, part, number) for number in range(first, end)]
            slots, wrong = assembled(self._record_type, rows)
        told = [(int(part.numbers[first + number]), reason, part.text(first + number)) for number, reason in wrong]
        return slots, told

    def _slots(self, part: Part, first: int, end: int) -> NDArray[Any]:
        """All the rows at once. Raises Unsound."""
        if part.columns is None:
            raise Unsound
        columns = {name: column.slice(first, end - first) for name, column in part.columns.items()}
        defaults = {**self._defaults, **self._constants}
        now_us, latest_us = clock_us(), self._progress.latest_us
        return slots_of(self._layout, columns, end - first, defaults, now_us, latest_us, self._shape.times)

    def _row(self, part: Part, number: int) -> Mapping[str, Any]:
        """A row for append, which takes an hour from now; here every run must judge alike."""
        row = {**self._constants, **part.row(number)}
        stamp = row.get(TIMESTAMP)
        if stamp is not None:
            stamp = exact_value(self._layout.name, self._layout.field(TIMESTAMP), stamp)
            if stamp > self._progress.latest_us:
                raise RecordValueError(
                    f"{self._layout.name}.timestamp: got {stamp}, wanted at most {self._progress.latest_us}, "
                    "an hour from the start of the replay"
                )
        return row

    def _due(self, slots: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """The slots, as they are due: at once, or at the pace of their timestamps."""
        if not self._speed or not len(slots):
            yield slots
            return
        stamps = np.maximum.accumulate(slots[TIMESTAMP])
        if self._paced_from is None:
            self._paced_from = (int(stamps[0]), time.monotonic())
        first_us, began = self._paced_from
        due = began + (stamps - first_us) / 1e6 / self._speed
        given = 0
        while given < len(slots) and not self._is_stopped:
            now = time.monotonic()
            ready = int(np.searchsorted(due, now, "right"))
            if ready > given:
                yield slots[given:ready]
                given = ready
            else:
                time.sleep(min(due[given] - now, WAIT_SECONDS))

    _paced_from: tuple[int, float] | None = None

    def _appended(self, rows: NDArray[Any], passed: int) -> int:
        """Appends as many rows as the lane has room for; waits a moment where it has none. `passed`: see `_follow`."""
        room = self._room()
        if not room:
            time.sleep(POLL_SECONDS)
            self._on_progress(self.outcome())
            return 0
        taken = self._appender.append_sound(rows[:room])
        if self._appender.lane != self._lane:
            self._follow(passed, taken)
        self._progress.accepted += taken
        if not taken:
            self._waiting = self._appender.refused_reason() or ""
            time.sleep(WAIT_SECONDS)
        return taken

    def _room(self) -> int:
        """How many rows may be appended now without a refusal, which would be counted; why there is none."""
        board = self._producer.board
        if board is not None and board.reason is not BoardReason.ACCEPTING:
            self._waiting = f"the board says {board.reason.name.lower()}"
            return 0
        room = self._appender.room
        self._waiting = "" if room else "the lane is full: does a writer run?"
        return room

    def _follow(self, passed: int, taken: int) -> None:
        """The lane was retired under us, and the append claimed one that begins `passed` rows into the part."""
        self._progress.rejects_bytes = self._rejects.sync()
        self._write(skip=passed, lane=self._appender.lane or 0, first_seq=self._appender.accepted - taken)

    def _checkpoint_lane(self) -> None:
        self._write(skip=self._progress.skip, lane=self._appender.lane or 0, first_seq=self._appender.accepted)

    def _checkpoint(self, *, is_over: bool = False) -> None:
        """Behind a whole part, whose rejects are durable first."""
        self._progress.rejects_bytes = self._rejects.sync()
        lane = 0 if is_over else self._appender.lane or 0
        self._write(skip=self._skip, lane=lane, first_seq=self._appender.accepted if lane else 0)

    def _write(self, *, skip: int, lane: int, first_seq: int) -> None:
        self._progress.skip, self._progress.lane, self._progress.first_seq = skip, lane, first_seq
        self._progress.boot_id = boot_id()
        self._journal.write(self._progress)
        self._lane = lane or None


class _Reject(msgspec.Struct, forbid_unknown_fields=True):
    line: int
    reason: str
    text: str


class _Rejects:
    """The file of rejected rows, one JSON object a line; cut back to what the journal knows, made with the first.

    A file that is there already and holds something else is left as it is: FileError.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size = size_bytes
        self._file: Any = None

    def __enter__(self) -> _Rejects:
        try:
            if self._path.exists() and self._path.stat().st_size > self._size:
                with self._path.open("rb") as file:
                    msgspec.json.decode(file.readline(), type=_Reject)
                os.truncate(self._path, self._size)
        except msgspec.MsgspecError:
            raise FileError(
                f"{self._path}: got a file of something else, wanted none or an earlier one of rejected rows"
            ) from None
        except OSError as error:
            raise self._refused(error) from None
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, wrong: list[tuple[int, str, str]]) -> None:
        if not wrong:
            return
        try:
            if self._file is None:
                self._file = self._path.open("ab")
            for reject in wrong:
                self._file.write(msgspec.json.encode(_Reject(*reject)) + b"\n")
        except OSError as error:
            raise self._refused(error) from None

    def sync(self) -> int:
        """Makes all so far durable; the size of the file."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._size = self._file.tell()
        return self._size

    def _refused(self, error: OSError) -> FileError:
        return FileError(f"{self._path}: got {error.strerror}, wanted a file for rejected rows: see --rejects")
