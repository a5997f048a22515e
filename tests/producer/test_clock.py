"""A clock that is wrong: what would be stamped by it is refused by name, and the producer goes on once it is right."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lane_samples import PRELUDE, Child, Drained

from ringlog.settings import Settings

linux = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")
CLOCK = """
import ctypes
from ringlog.errors import RecordValueError
shift = ctypes.c_longlong.in_dll(ctypes.CDLL(os.environ["LD_PRELOAD"]), "clock_shift_seconds")
def set_clock(us):
    shift.value = 0
    shift.value = us // 1_000_000 - int(time.time())
def raised(call, *args, **named):
    try:
        return call(*args, **named)
    except RecordValueError as error:
        return str(error)
MIN, MAX, NOW = 946_684_800_000_000, 7_258_118_400_000_000, time.time_ns() // 1000
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What shifts the clock of a process that preloads it: both rings and all of Python, as a wrong clock does."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    made = tmp_path_factory.mktemp("clock") / "clock_shift.so"
    source = Path(__file__).with_name("clock_shift.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(made), "-ldl"], check=True)
    return made


@contextmanager
def under_clock(settings: Settings, library: Path, script: str) -> Iterator[Child]:
    """A child whose clock `set_clock(us)` sets; its one line is what the script found."""
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = str(library)
    try:
        started = Child(settings, CLOCK + script, PRELUDE)
    finally:
        os.environ.pop("LD_PRELOAD") if before is None else os.environ.update(LD_PRELOAD=before)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()


@linux
def test_64_a_stamped_time_out_of_bounds_is_refused(lane_settings: Settings, library: Path) -> None:
    """Finding 10, fault 64: under a clock before 2000 or after 2200, append refuses with `clock`, and counts it.

    By position, by name, bound and as an object; what the bounds take, the decoder takes; with the clock right again
    the same producer is accepted, in the same lane, and nothing that was accepted is missing.

    Defence: the bounds of a stamped time.
    """
    script = """
found = []
bound = appender.bind(number=7)
for us in (86_400_000_000, MIN - 1_000_000, MAX + 2_000_000, 20 * MAX):
    set_clock(us)
    calls = (lambda: appender.append(7, text_of(7)), lambda: appender.append(number=7, text=text_of(7)),
             lambda: bound(text_of(7)), lambda: appender.record(Sample(number=7, text=text_of(7))))
    found.append([call() for call in calls] + [appender.refused_reason()])
assert [each[:4] for each in found] == [[False] * 4] * 4, found
assert {each[4] for each in found} == {"clock"}, found
for number, us in enumerate((MIN + 2_000_000, MAX - 5_000_000, NOW)):
    set_clock(us)
    assert appender.append(number, text_of(number)), us
say(repr((appender.refused(), len(appender.accepted_by_lane()))))
"""
    with under_clock(lane_settings, library, script) as process:
        line = process.line()
        assert process.ended() == ""
    refused, lanes = ast.literal_eval(line)
    assert ({reason: count for reason, count in refused.items() if count}, lanes) == ({"clock": 16}, 1)
    drained = Drained(lane_settings)
    assert drained.numbers() == [0, 1, 2]


@linux
def test_a_given_time_under_a_wrong_clock(lane_settings: Settings, library: Path) -> None:
    """A given time is wrong input by a clock that is wrong: the error, also that of rows_of, says what the clock says.

    Near 2200 an hour ahead ends at the last time that the writer takes.
    """
    script = """
from ringlog import rows_of
set_clock(86_400_000_000)
given = raised(appender.append, 1, text_of(1), timestamp=NOW)
assert "Sample.timestamp: got" in given and "a clock at 1970-01-02 00:00 UTC: set it right" in given, given
stamped = raised(rows_of, Sample, {"number": [1], "text": [text_of(1)]})
assert "Sample.timestamp: got a clock at 1970-01-02" in stamped, stamped
set_clock(20 * MAX)
given = raised(appender.append, 1, text_of(1), timestamp=MAX + 1)
assert "Sample.timestamp: got" in given and "a clock after 2262: set it right" in given, given
set_clock(MAX - 60_000_000)
for number, us in enumerate((MAX - 30_000_000, MAX)):
    assert appender.append(number, text_of(number), timestamp=us)
    rows = rows_of(Sample, {"number": [number], "text": [text_of(number)], "timestamp": [us]})
    assert appender.append_many(rows) == 1
assert "wanted microseconds" in raised(appender.append, 9, "", timestamp=MAX + 1)
say(repr({reason: count for reason, count in appender.refused().items() if count}))
"""
    with under_clock(lane_settings, library, script) as process:
        line = process.line()
        assert process.ended() == ""
    assert ast.literal_eval(line) == {"invalid": 3}
    drained = Drained(lane_settings)
    assert sorted(drained.numbers()) == [0, 0, 1, 1]
