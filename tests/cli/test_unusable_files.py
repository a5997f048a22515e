"""Findings 6 and 23: a file or directory that cannot be used is a named refusal of every command, never a traceback."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from ringlog import Producer
from ringlog.cli import main
from ringlog.disk import Directory
from ringlog.records import LatencySample
from ringlog.settings import Settings

TOO_LONG = "a" * 300  # as a file's name no system takes it, and `stat` says so rather than "absent", also to root

READERS = [["audit"], ["quarantine", "list"], ["quarantine", "export"], ["dead-letters", "list"],
           ["dead-letters", "export"], ["dump", TOO_LONG], ["dump", f"/{TOO_LONG}"]]  # fmt: skip


@pytest.mark.parametrize("arguments", READERS, ids=lambda words: " ".join(words)[:24])
def test_a_spool_that_cannot_be_looked_at_is_named(
    lane_settings: Settings,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Finding 6: one line that names it, exit 1; it does not pass for a spool that is not there yet."""
    Producer([LatencySample], settings=lane_settings).open().close()
    monkeypatch.setenv("RINGLOG_RUNTIME_DIR", lane_settings.runtime_dir)
    monkeypatch.setenv("RINGLOG_SPOOL_DIR", str(tmp_path / TOO_LONG))
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr()
    assert end.value.code == 1
    assert said.out == ""
    assert said.err.startswith("ringlog: ")
    assert said.err.count("\n") == 1
    assert TOO_LONG in said.err


def test_doctor_and_top_go_on_beside_such_a_spool(
    lane_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finding 6: `doctor` names the spool and looks at all the rest; `top` shows lanes and disks."""
    monkeypatch.setenv("RINGLOG_RUNTIME_DIR", lane_settings.runtime_dir)
    monkeypatch.setenv("RINGLOG_SPOOL_DIR", str(tmp_path / TOO_LONG))
    monkeypatch.setenv("RINGLOG_QUESTDB_PG_PORT", "1")
    monkeypatch.setenv("RINGLOG_QUESTDB_HTTP_PORT", "1")
    with Producer([LatencySample], settings=lane_settings), pytest.raises(SystemExit):
        main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    named = {each["check"] for each in findings if each["level"] == "fail" and "File name too long" in each["text"]}
    assert named == {"directories", "records"}
    assert {"lanes", "disks", "questdb"} <= {each["check"] for each in findings}
    with pytest.raises(SystemExit) as end:
        main(["top", "--once", "--interval", "0.1", "--json"])
    assert end.value.code == 0
    assert [disk["what"] for disk in json.loads(capsys.readouterr().out)["disks"]] == ["spool", "shared memory"]


@pytest.mark.parametrize("command", ["audit", "doctor", "quarantine list"])
def test_a_reader_without_a_descriptor_says_so(
    lane_settings: Settings, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finding 1: `audit` and its kin under `ulimit -n 5` ended in a traceback."""
    Producer([LatencySample], settings=lane_settings).open().close()
    monkeypatch.setenv("RINGLOG_RUNTIME_DIR", lane_settings.runtime_dir)
    monkeypatch.setenv("RINGLOG_QUESTDB_PG_PORT", "1")
    Directory.open(lane_settings.spool_path).close()

    def out_of_descriptors(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for name in ("names", "read"):
        monkeypatch.setattr(Directory, name, out_of_descriptors)
    with pytest.raises(SystemExit) as end:
        main(command.split())
    said = capsys.readouterr()
    assert end.value.code == 1
    assert "Too many open files" in said.out + said.err
