"""Parts of the suite: `--part K/N` runs one of N that take about as long as each other, and notes where it passed.

Which tests are in a part follows from their names and from durations.json alone, so that N parts that passed on the
same commit are all of it. A part that passed on a tree without changes is noted in slow-parts.json.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import signal
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

TIERS = ("slow", "root")
ROOT = Path(__file__).parents[1]
DURATIONS = ROOT / "tests/durations.json"
PASSED = ROOT / "tests/slow-parts.json"
ALONE_SECONDS = 20.0  # a test that takes longer is one by itself, of other files all tests stay together
USUAL_SECONDS, USUAL_SLOW_SECONDS = 0.5, 60.0  # of a test whose duration nobody has noted
NOTED_SECONDS = 3.0


class Part(NamedTuple):
    """One of `count` parts, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        number, _, count = text.partition("/")
        if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
            raise pytest.UsageError(f"--part: got {text!r}, wanted K/N with 1 <= K <= N, such as 3/8")
        return cls(int(number), int(count))


def durations() -> dict[str, float]:
    """Seconds of the tests that take some, by name, as they were noted on two quiet cores."""
    return json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}


def unit_of(name: str, known: Mapping[str, float]) -> str:
    """What a test is kept together with: its file, or nothing where it takes long."""
    return name if known.get(name, 0.0) >= ALONE_SECONDS else name.partition("::")[0]


def divided(seconds: Mapping[str, float], count: int) -> list[list[str]]:
    """Units in parts of about the same length: each, the longest first, joins the part that is shortest so far."""
    parts: list[list[str]] = [[] for _ in range(count)]
    lengths = [0.0] * count
    for unit in sorted(seconds, key=lambda unit: (-seconds[unit], unit)):
        shortest = lengths.index(min(lengths))
        parts[shortest].append(unit)
        lengths[shortest] += seconds[unit]
    return parts


def written(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces a JSON file whole: another part may end at the same moment."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    new.replace(path)


def git(*arguments: str) -> str | None:
    """What git says of this checkout; None where it is none."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> str | None:
    """The commit whose files these are; None where they are not, whatever says which parts passed aside."""
    changed = git("status", "--porcelain", "--", ".", f":!{PASSED.relative_to(ROOT)}")
    return git("rev-parse", "HEAD") if changed == "" else None


def tiers_of(config: pytest.Config) -> str:
    return " ".join(f"--{tier}" for tier in TIERS if config.getoption(tier))


class Choice:
    """Which tests are run, and which process runs which of them."""

    def __init__(self, part: Part | None) -> None:
        self._part = part
        self._durations = durations()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keeps the tests of this part among those that all other options left, the longest first."""
        if self._part is None:
            return
        units: dict[str, list[pytest.Item]] = defaultdict(list)
        seconds: dict[str, float] = defaultdict(float)
        for item in items:
            unit = unit_of(item.nodeid, self._durations)
            units[unit].append(item)
            usual = USUAL_SLOW_SECONDS if item.get_closest_marker("slow") else USUAL_SECONDS
            seconds[unit] += self._durations.get(item.nodeid, usual)
        parts = divided(seconds, self._part.count)
        own = parts.pop(self._part.number - 1)
        config.hook.pytest_deselected(items=[item for part in parts for unit in part for item in units[unit]])
        items[:] = [item for unit in own for item in units[unit]]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """As `--dist loadfile`, but a test that takes long is no file's: or one process would run most of them."""
        if config.getoption("dist") != "loadfile":
            return None
        from xdist.scheduler import LoadFileScheduling

        known = self._durations

        class Scheduling(LoadFileScheduling):
            def _split_scope(self, nodeid: str) -> str:
                return unit_of(nodeid, known)

        return Scheduling(config, log)


class Outcome:
    """What became of the tests of this run: printed when it ends or is stopped, and noted where all of it passed."""

    def __init__(self, config: pytest.Config, part: Part | None) -> None:
        self._part = part
        self._name = f"{tiers_of(config)} {part.number}/{part.count}".strip() if part is not None else ""
        self._commit = commit() if part is not None else None
        self._collected = 0
        self._under_way: list[str] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._outcomes: dict[str, str] = {}
        self._seeds: list[str] = []
        self._started = datetime.datetime.now(datetime.UTC)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._collected = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._collected = len(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._under_way.append(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid
        self._seconds[name] += report.duration
        if report.outcome != "passed" or name not in self._outcomes:
            self._outcomes[name] = report.outcome
        if report.when == "teardown":
            self._under_way = [other for other in self._under_way if other != name]
            self._seeds += [str(value) for key, value in report.user_properties if key == "seeds"]

    def named(self, outcome: str) -> list[str]:
        return sorted(
            name for name in self._outcomes if self._outcomes[name] == outcome and name not in self._under_way
        )

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        config = session.config
        if config.getoption("note_durations"):
            passed = {name: round(self._seconds[name], 1) for name in self.named("passed")}
            noted = {name: seconds for name, seconds in passed.items() if seconds >= NOTED_SECONDS}
            written(DURATIONS, {**{n: s for n, s in durations().items() if n not in passed}, **noted})
        if self._part is None or exitstatus != pytest.ExitCode.OK or not is_whole(config):
            return
        if self._commit is None or commit() != self._commit:
            return
        known = json.loads(PASSED.read_text()) if PASSED.exists() else {}
        written(PASSED, {**known, self._name: self._facts()})

    def _facts(self) -> dict[str, Any]:
        from ringlog.ring import IMPLEMENTATION

        ended = datetime.datetime.now(datetime.UTC)
        return {
            "commit": self._commit,
            "date": ended.isoformat(timespec="seconds"),
            "minutes": round((ended - self._started).total_seconds() / 60, 1),
            "python": platform.python_version(),
            "ring": IMPLEMENTATION,
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "passed": len(self.named("passed")),
            "skipped": self.named("skipped"),
            "seeds": sorted(self._seeds),
            "seconds": {n: round(s) for n, s in sorted(self._seconds.items()) if s >= ALONE_SECONDS},
        }

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        if self._part is None or config.getoption("collectonly"):
            return
        say = terminalreporter.write_line
        passed, failed, skipped = (len(self.named(outcome)) for outcome in ("passed", "failed", "skipped"))
        left = self._collected - passed - failed - skipped
        say(f"part {self._name}: of {self._collected} tests {passed} passed, {failed} failed, {skipped} skipped, "
            f"{left} did not end")  # fmt: skip
        for name in self._under_way:
            say(f"under way when it was stopped: {name}")
        if self._seeds:
            say(f"seeds that passed: {', '.join(sorted(self._seeds))}")
        if self._commit is None:
            say("not noted: the tree is not that of a commit (`git status` says what is changed)")
        for name, facts in sorted((json.loads(PASSED.read_text()) if PASSED.exists() else {}).items()):
            if name.partition("/")[2] == self._name.partition("/")[2]:
                here = " (this one)" if facts["commit"] == self._commit else ""
                say(f"passed last: {name} on {facts['commit'][:12]}{here}, {facts['date']}, {facts['minutes']} min")


def add_options(parser: pytest.Parser) -> None:
    for tier in TIERS:
        parser.addoption(f"--{tier}", action="store_true", help=f"also run the tests marked {tier}")
    parser.addoption("--part", metavar="K/N", help="run the K-th of N parts that take about as long as each other")
    parser.addoption("--note-durations", action="store_true", help="note in tests/durations.json how long tests took")


def configure(config: pytest.Config) -> None:
    part = Part.parse(config.getoption("--part")) if config.getoption("--part") else None
    config.pluginmanager.register(Choice(part))
    if not hasattr(config, "workerinput"):  # a process of pytest-xdist reports to the one that started it
        config.pluginmanager.register(Outcome(config, part))
        end_as_if_interrupted()


def is_whole(config: pytest.Config) -> bool:
    """Whether no other option chose tests: a part of some is a part of nothing."""
    chosen = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "last_failed")
    given = any(config.getoption(name, None) for name in chosen)
    return config.args_source == pytest.Config.ArgsSource.TESTPATHS and not given


def end_as_if_interrupted() -> None:
    """SIGTERM ends the run as Ctrl-C does, with all that is known so far; a second one at once."""

    def interrupt(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
