"""Producers in processes of their own, and what their lanes hold: shared by the tests of lanes, producer and writer."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from ringlog.columns import to_list
from ringlog.decode import Corrupt, Decoder
from ringlog.lanes.claims import Card, cards
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneDirectory
from ringlog.records import Record, Varchar
from ringlog.settings import Settings

DEADLINE_SECONDS = 40.0


class Sample(Record):
    """A numbered record whose text follows from its number, so that a mixed one is seen."""

    __table__ = "samples"

    number: int
    text: Annotated[str, Varchar(200)]


def text_of(number: int) -> str:
    """The text that belongs to a number: of ever changing length."""
    return f"{number}:" + "x" * (number % 190)


# What every child starts with. `say` answers to its parent, who reads line by line.
PRELUDE = """
import os, signal, sys, threading, time
from lane_samples import Sample, text_of
from ringlog import Producer
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
producer = Producer([Sample]).open()
appender = producer.appender(Sample)
"""


class Child:
    """A process that runs a script; `line()` waits for what it says."""

    def __init__(self, settings: Settings, script: str, prelude: str = PRELUDE) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", prelude + script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(settings),
        )

    @staticmethod
    def environment(settings: Settings) -> dict[str, str]:
        """What leads a child to the instance of these settings, and to this module."""
        names = ("runtime_dir", "lane_bytes_max", "lane_linger_ms")
        options = {f"RINGLOG_{name.upper()}": str(getattr(settings, name)) for name in names}
        return {**os.environ, **options, "PYTHONPATH": str(Path(__file__).parent)}

    def line(self) -> str:
        """The next line; '' at the end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        """Ends a `sys.stdin.readline()` of the child."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def ended(self, code: int | None = 0) -> str:
        """Waits for the child's end (with this exit code, if not None); what it wrote to stderr."""
        out, errors = self.process.communicate(timeout=DEADLINE_SECONDS)
        assert code is None or self.process.returncode == code, (self.process.returncode, out, errors)
        return errors


@contextlib.contextmanager
def child(settings: Settings, script: str, prelude: str = PRELUDE) -> Iterator[Child]:
    """A child that is killed in the end if it still lives."""
    started = Child(settings, script, prelude)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()
        for pipe in (started.process.stdin, started.process.stdout, started.process.stderr):
            if pipe is not None:
                pipe.close()


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Waits for a condition, at most DEADLINE_SECONDS; its value."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS:g} s for {what}"
        time.sleep(0.002)


class Drained:
    """Reads lanes as a writer does, and confirms at once."""

    def __init__(self, settings: Settings) -> None:
        self.instance = Instance(settings).open()
        self.directory = LaneDirectory(self.instance)
        self.rows: list[dict[str, Any]] = []
        self.corrupt: list[Corrupt] = []
        self._decoders: dict[Any, Decoder] = {}

    def drain(self) -> list[dict[str, Any]]:
        """Takes what every lane holds now; all rows so far, each a dict with lane and seq."""
        self.directory.refresh()
        for lane in self.directory.lanes.values():
            decoder = self._decoders.setdefault(lane.layout, Decoder(lane.layout))
            waiting = lane.waiting  # and no more: a producer at full speed fills a lane faster than this decodes it
            while waiting and (runs := lane.take(min(waiting, 1 << 14))):
                waiting -= sum(run.rows for run in runs)
                columns, _, corrupt = decoder.decode(runs)
                self.corrupt += corrupt
                values = [to_list(column) for column in columns.values()]
                self.rows += [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
                lane.advance(lane.sent)
        return self.rows

    def numbers(self) -> list[int]:
        """The numbers of all samples so far, each of which carries its own text whole, in the order of lane and seq."""
        rows = self.drain()
        assert self.corrupt == []
        assert [row["text"] for row in rows] == [text_of(row["number"]) for row in rows]
        return [row["number"] for row in rows]

    def until_gone(self) -> None:
        """Goes on until every lane is adopted, drained and removed."""

        def gone() -> bool:
            self.drain()
            self.directory.adopt()
            return not self.directory.lanes and not cards(self.instance)

        eventually(gone, "all lanes to be removed")

    def cards(self) -> list[Card]:
        return cards(self.instance)


def segments(instance: Instance) -> list[str]:
    """Names of the instance's segments that exist (Linux shows them as files)."""
    prefix = instance.board_name.removesuffix("board")
    return sorted(name for name in os.listdir("/dev/shm") if name.startswith(prefix))  # noqa: S108
