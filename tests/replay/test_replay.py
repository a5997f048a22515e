"""The replay as its users run it: into lanes and QuestDB, killed, resumed, paced, and told what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from lane_samples import Drained, eventually, segments
from replay_files import FIELDS, FIRST_US, csv_bytes, trade, trades, written

from ringlog.cli import ringlog
from ringlog.demo.writer_process import running_writer
from ringlog.errors import RinglogError
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.ledger import Ledger
from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import migrate
from ringlog.records import Trade, layout_of
from ringlog.replay import journal
from ringlog.replay.journal import ReplayError
from ringlog.replay.replay import Outcome, Replay
from ringlog.replay.shape import Shape
from ringlog.replay.unpacking import FileError
from ringlog.settings import Settings
from ringlog.spool import Spool


def replay(path: Path, settings: Settings, **options: Any) -> Outcome:
    with Replay(path, Trade, settings, **options) as going:
        return going.run()


def numbers(drained: Drained) -> list[int]:
    """The numbers of all trades that lanes were given, which each trade's fee says."""
    return sorted(row["transaction_fee"] - 5000 for row in drained.drain())


def test_a_file_comes_in_with_its_rejects(lane_settings: Settings, tmp_path: Path) -> None:
    """Sound rows are in the lane with their own values and times; the others in the file of rejects, with line, reason
    and text; a second replay of the same file is refused, and `again` stores it once more."""
    path = tmp_path / "a.csv"
    path.write_bytes(csv_bytes([*trades(40), {**trade(40), "mode": "none"}, *trades(20, first=41)]) + b"1,2\n")
    outcome = replay(path, lane_settings)
    assert (outcome.accepted, outcome.rejected, outcome.is_finished) == (60, 2, True)
    drained = Drained(lane_settings)
    assert numbers(drained) == [*range(40), *range(41, 61)]
    row = drained.rows[5]
    assert {name: row[name] for name in FIELDS} == trade(5)
    rejects = [json.loads(line) for line in Path(outcome.rejects).read_text().splitlines()]
    assert [reject["line"] for reject in rejects] == [42, 63]
    assert "Trade.mode: got 'none', wanted one of 'paper', 'live'" in rejects[0]["reason"]
    assert rejects[1] == {"line": 63, "reason": "got 2 fields, wanted 18", "text": "1,2"}
    with pytest.raises(ReplayError, match=r"was replayed into trades \(60 records\): --resume"):
        replay(path, lane_settings)
    assert replay(path, lane_settings, mode="resume").accepted == 60
    assert replay(path, lane_settings, mode="again").rejected == 2
    assert len(numbers(drained)) == 120
    assert len(Path(outcome.rejects).read_text().splitlines()) == 2


def test_rejects_write_over_no_other_file(lane_settings: Settings, tmp_path: Path) -> None:
    """A file of something else in the place of the rejects is named and left as it is; nothing was replayed then."""
    path = written(tmp_path / "a.csv", trades(3))
    other = tmp_path / "other.csv"
    other.write_text("line,reason\n")
    with pytest.raises(FileError, match=r"other\.csv: got a file of something else, wanted none or an earlier one"):
        replay(path, lane_settings, rejects=other)
    assert other.read_text() == "line,reason\n"
    assert replay(path, lane_settings).accepted == 3


def test_a_file_that_grows_is_gone_on_with(lane_settings: Settings, tmp_path: Path) -> None:
    """What was appended to a replayed file comes with --resume; a truncated file likewise, once it is whole."""
    lane_settings = msgspec.structs.replace(lane_settings, lane_bytes_max=64 << 20)
    path = written(tmp_path / "a.csv", trades(30))
    replay(path, lane_settings)
    written(path, trades(50))
    assert replay(path, lane_settings, mode="resume").accepted == 50
    packed = written(tmp_path / "b.ndjson.gz", trades(3000, first=100))
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2])
    outcome = replay(packed, lane_settings)
    assert not outcome.is_finished
    assert "ends in the middle" in outcome.broken_end
    assert 0 < outcome.accepted < 3000
    packed.write_bytes(whole)
    assert replay(packed, lane_settings, mode="resume").accepted == 3000
    assert numbers(Drained(lane_settings)) == [*range(50), *range(100, 3100)]


def test_another_mapping_or_file_is_not_resumed(lane_settings: Settings, tmp_path: Path) -> None:
    """A resumption with another mapping, or of a file with another beginning, would count wrongly: it is refused."""
    path = written(tmp_path / "a.csv", trades(30))
    replay(path, lane_settings)
    with pytest.raises(ReplayError, match="got another mapping"):
        replay(path, lane_settings, mode="resume", shape=Shape(mapping={"base_amount": "quote_amount"}))
    written(path, trades(30, first=1))
    with pytest.raises(RinglogError, match="other content before line"):
        replay(path, lane_settings, mode="resume")


def test_a_lane_that_nobody_knows_is_an_error(lane_settings: Settings, tmp_path: Path) -> None:
    """Where neither a segment nor the ledger says what the killed replay's lane took, nothing is guessed."""
    path = written(tmp_path / "a.csv", trades(30))
    with Replay(path, Trade, lane_settings) as going:
        going._checkpoint_lane()
    drained = Drained(lane_settings)
    drained.until_gone()
    with pytest.raises(ReplayError, match=r"got no exact position \(its lane is not known\)"):
        replay(path, lane_settings, mode="resume")
    assert replay(path, lane_settings, mode="again").accepted == 30


def test_a_lane_retired_under_the_replay(
    lane_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a lane is adopted while its replay is alive the next one is in the journal before the next row: a stop
    right after it and a resumption lose and double nothing."""
    monkeypatch.setattr("ringlog.replay.lines.BLOCK_BYTES", 4000)
    path = written(tmp_path / "a.csv", trades(200))
    drained = Drained(lane_settings)
    seen: list[int] = []
    with Replay(path, Trade, lane_settings) as going:

        def retire(outcome: Outcome) -> None:
            seen.append(outcome.accepted)
            drained.directory.refresh()
            for lane in drained.directory.lanes.values():
                lane.retire()
            if len(seen) == 3:
                going.stop()

        going.run(retire)
    assert 0 < seen[-1] < 200
    assert len(cards(Instance(lane_settings))) == 3
    assert replay(path, lane_settings, mode="resume").accepted == 200
    assert numbers(drained) == list(range(200))


def test_two_replays_of_one_file(lane_settings: Settings, tmp_path: Path) -> None:
    """While one runs (or stands still) another of the same file is refused."""
    path = written(tmp_path / "a.csv", trades(3))
    environment = {**os.environ, **lane_settings.to_environment()}
    command = [sys.executable, "-m", "ringlog", "replay", str(path), "--record", "Trade"]
    with Replay(path, Trade, lane_settings):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "got a replay of it that is going on" in done.stderr


def test_the_pace_is_the_recording_s(lane_settings: Settings, tmp_path: Path) -> None:
    """At speed 10 rows that lie 200 ms apart come 20 ms apart, none before its time; without times it is refused."""
    rows = [{**trade(n), "timestamp": FIRST_US + 200_000 * n} for n in range(10)]
    path = written(tmp_path / "a.csv", rows)
    seen: list[tuple[float, int]] = []
    began = time.monotonic()
    with Replay(path, Trade, lane_settings, speed=10.0) as going:
        appended = going._appended

        def watched(slots: Any, passed: int) -> int:
            seen.append((time.monotonic() - began, len(slots)))
            return appended(slots, passed)

        going._appended = watched  # type: ignore[method-assign]
        assert going.run().accepted == 10
    given = 0
    for seconds, count in seen:
        given += count
        assert seconds >= 0.02 * (given - 1)
    timeless = tmp_path / "b.csv"
    timeless.write_bytes(csv_bytes(rows, FIELDS[:-1]))
    with pytest.raises(RinglogError, match="got no timestamp column, wanted one for --speed 1"):
        replay(timeless, lane_settings, speed=1.0, shape=Shape(stamp_now=True))
    assert replay(timeless, lane_settings, shape=Shape(stamp_now=True)).accepted == 10


class Running:
    """`ringlog replay` in a process of its own."""

    def __init__(self, path: Path, settings: Settings, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ringlog", "replay", str(path), "--record", "Trade", "--json", *options],
            env={**os.environ, **settings.to_environment()}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def ended(self) -> tuple[int, dict[str, Any], str]:
        out, errors = self.process.communicate(timeout=60)
        return self.process.returncode, json.loads(out or b"{}"), errors.decode()


def heads(settings: Settings) -> int:
    drained = Drained(settings)
    drained.directory.refresh()
    found = sum(lane.head for lane in drained.directory.lanes.values())
    drained.directory.close()
    return found


@pytest.mark.parametrize("name", ["a.csv", pytest.param("a.parquet", marks=pytest.mark.slow)])
def test_a_killed_replay_is_resumed_to_the_row(name: str, settings: Settings, tmp_path: Path) -> None:
    """kill -9 of the replay three times while a writer stores what comes, also after its lane was drained and removed:
    every sound row is in QuestDB once, every other one among the rejects once."""
    settings = msgspec.structs.replace(settings, lane_bytes_max=4 << 20, lane_linger_ms=50, request_timeout_ms=15_000)
    migrate(settings, [layout_of(Trade)])
    rows = [{**trade(n), **({"mode": "none"} if n % 100 == 7 else {})} for n in range(4000)]
    path = written(tmp_path / name, [{**row, "timestamp": FIRST_US + 1000 * n} for n, row in enumerate(rows)])
    connection = Connection.from_settings(settings)
    connection.execute("truncate table trades")
    with running_writer(settings, tmp_path / "writer.txt"):
        for kill in range(3):
            running = Running(path, settings, "--resume", "--speed", "0.2")  # 20 s of it: none ends before its kill
            eventually(lambda: heads(settings) > 2 or running.process.poll() is not None, "rows")  # noqa: B023
            running.process.kill()
            code, _, errors = running.ended()
            assert code == -signal.SIGKILL, errors
            if kill:  # its lane is gone, and only the ledger knows
                eventually(lambda: not cards(Instance(settings)), "the lane to be removed")
        code, outcome, errors = Running(path, settings, "--resume").ended()
        assert (code, outcome["is_finished"]) == (1, True), errors
        assert (outcome["accepted"], outcome["rejected"]) == (3960, 40)
        eventually(lambda: connection.execute("select count() from trades")[0][0] >= 3960, "every row")
        # While there is a writer: one that is told to stop leaves lanes that linger to the next.
        eventually(lambda: len(segments(Instance(settings))) <= 1, "no lane to be left")
    stored = sorted(int(fee) - 5000 for (fee,) in connection.execute("select transaction_fee from trades"))
    connection.close()
    assert stored == [n for n in range(4000) if n % 100 != 7]
    lines = [json.loads(line)["line"] for line in Path(outcome["rejects"]).read_text().splitlines()]
    assert lines == [n + (2 if name == "a.csv" else 1) for n in range(7, 4000, 100)]


def test_a_stop_is_no_end(lane_settings: Settings, tmp_path: Path) -> None:
    """SIGTERM in the middle ends with status 130 and says how to go on, which then gives every row once."""
    path = written(tmp_path / "a.csv", trades(300))
    running = Running(path, lane_settings, "--speed", "0.005")  # a minute of it: the signal comes in the middle
    eventually(lambda: heads(lane_settings) > 0, "rows")
    running.process.send_signal(signal.SIGTERM)
    code, outcome, errors = running.ended()
    assert (code, outcome["is_finished"]) == (130, False), errors
    assert replay(path, lane_settings, mode="resume").accepted == 300
    assert numbers(Drained(lane_settings)) == list(range(300))


def test_a_full_lane_is_waited_for(lane_settings: Settings, tmp_path: Path) -> None:
    """With no writer the replay waits at a full lane and says so, refusing nothing; once it is drained it goes on."""
    path = written(tmp_path / "a.csv", trades(9000))
    drained = Drained(lane_settings)
    waits: set[str] = set()
    with Replay(path, Trade, lane_settings) as going:

        def show(outcome: Outcome) -> None:
            if outcome.waiting and outcome.waiting not in waits:
                waits.add(outcome.waiting)
            elif outcome.waiting:
                drained.drain()

        assert going.run(show).accepted == 9000
        assert not any(going._appender.refused().values())
    assert waits == {"the lane is full: does a writer run?"}
    assert numbers(drained) == list(range(9000))


@pytest.mark.parametrize(
    ("arguments", "status", "what"),
    [
        (["a.csv", "--record", "Trad"], 2, "--record: got 'Trad', wanted one of Trade, PerformanceMetric"),
        (["a.csv", "--record", "nowhere:Fill"], 2, "No module named 'nowhere'"),
        (["a.csv", "--record", "Trade", "--map", "px"], 2, "wanted FIELD=COLUMN"),
        (["a.csv", "--record", "Trade", "--map", "mode=px"], 1, "wanted also mode (mapped to 'px')"),
        (["a.csv", "--record", "Trade", "--speed", "fast"], 2, "wanted a number above 0, or max"),
        (["a.csv", "--record", "Trade", "--resume", "--again"], 2, "wanted one of them"),
        (["a.txt", "--record", "Trade"], 1, "wanted .csv, .ndjson, .jsonl or .parquet, or --format"),
        (["none.csv", "--record", "Trade"], 2, "does not exist"),
        (["fifo.csv", "--record", "Trade"], 1, "fifo.csv: got no regular file, wanted one"),
        (["fifo.csv", "--record", "Trade", "--format", "csv"], 1, "fifo.csv: got no regular file, wanted one"),
        (["a.csv", "--record", "LatencySample"], 1, "wanted also service, operation, latency_us"),
        (["a.csv"], 2, "Missing option '--record'"),
    ],
)
def test_wrong_calls(
    arguments: list[str],
    status: int,
    what: str,
    lane_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is told in a line, exits 2 for wrong usage and 1 otherwise, and leaves no lane."""
    monkeypatch.chdir(tmp_path)
    for name, text in lane_settings.to_environment().items():
        monkeypatch.setenv(name, text)
    written(tmp_path / "a.csv", trades(3))
    (tmp_path / "a.txt").write_text("x")
    os.mkfifo(tmp_path / "fifo.csv")
    result = CliRunner().invoke(ringlog, ["replay", *arguments], catch_exceptions=True)
    text = result.output + (f"{result.exception}" if isinstance(result.exception, RinglogError) else "")
    assert (result.exit_code, what in " ".join(text.replace("│", " ").split())) == (status, True), text
    assert cards(Instance(lane_settings)) == []


def test_the_summary_for_a_person(lane_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts, the file of rejects and the exit status 1 where there are any."""
    for name, text in lane_settings.to_environment().items():
        monkeypatch.setenv(name, text)
    path = tmp_path / "a.csv"
    path.write_bytes(csv_bytes(trades(5)) + b"1,2\n")
    result = CliRunner().invoke(ringlog, ["replay", str(path), "--record", "trades"], standalone_mode=False)
    assert result.return_value == 1
    assert "trades: 5 records accepted, 1 rows rejected" in result.output
    assert f"{path}.rejects.ndjson" in result.output


def test_a_journal_lies_beside_the_ledger(lane_settings: Settings, tmp_path: Path) -> None:
    """The spool and the ledger open as before with journals in their directory, and a broken journal is an error."""
    path = written(tmp_path / "a.csv", trades(3))
    replay(path, lane_settings)
    spool = Spool(lane_settings.spool_path, bytes_max=1 << 20)
    Ledger(spool.directory, spool.reserve, "x" * 36).close()
    spool.close()
    (file,) = (lane_settings.spool_path / journal.NAME).glob("*.json")
    file.write_text("{")
    with pytest.raises(ReplayError, match="wanted a replay's journal"):
        replay(path, lane_settings, mode="resume")
