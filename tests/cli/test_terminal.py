"""Finding 22, fault 69: what others wrote reaches a terminal escaped, and a shell's hint quoted."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ringlog import Producer
from ringlog.cli import main
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance
from ringlog.monitor.screen import drawn
from ringlog.monitor.snapshot import Observer
from ringlog.records import LatencySample
from ringlog.settings import Settings
from ringlog.text import LineFormatter, quoted, shown, shown_json

# ESC, BEL, CR, LF, DEL, C1 (CSI, NEL), bidirectional overrides and isolates, zero-width, a BOM, separators, a tag.
HOSTILE = "\x1b[31mred\x07\r\n\x7f\x9b2J\x85\u202e\u202a\u2066\u2069\u200b\u200d\ufeff\u2028\u2029\U000e0041"
SHORT = HOSTILE[:16]
SURROGATE = "\udc9b"


def acts(text: str) -> list[str]:
    """The characters of a text that a terminal would act on or hide; line ends are the program's own."""
    return [each for each in text.replace("\n", "") if shown(each) != each]


@pytest.mark.parametrize("character", [*(each for each in HOSTILE if not each.isprintable()), SURROGATE, "\0", "\t"])
def test_a_character_that_acts_is_shown_escaped(character: str) -> None:
    """Each is shown as ASCII that names it, in text and in JSON, whose value stays the same."""
    assert shown(f"a{character}b").isascii()
    assert shown(f"a{character}b") != f"a{character}b"
    document = json.dumps({"a": character}, ensure_ascii=False)
    assert json.loads(shown_json(document)) == {"a": character}
    assert acts(shown_json(document)) == []


def test_other_characters_stay() -> None:
    """Letters of any script, symbols and blanks are shown as they are."""
    for text in ("plain text", "日本 ünï", "🚀 $PEPE", "a\u3000b\u00a0c", "\\x1b as six characters"):
        assert shown(text) == text
        assert shown_json(text) == text


@pytest.mark.parametrize("name", ["plain", "a b", "it's", "-rf ~", "$(id)", "a\nb", HOSTILE, "back\\slash\x1b'"])
def test_a_quoted_word_is_one_word_of_a_shell(name: str) -> None:
    """Copied from a terminal, a hint's word is the very name, and runs nothing."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not here to read the words")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run([bash, "-c", f"printf %s {quoted(name)}"], capture_output=True, check=True, env=environment)
    assert done.stdout.decode() == name
    assert acts(quoted(name)) == []


def test_a_log_line_is_one_line() -> None:
    """A record's message and a traceback's lines hold nothing that acts, on a terminal or in a file."""
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = logging.LogRecord("n", logging.ERROR, "f", 1, "got %s\nok", (HOSTILE,), sys.exc_info())
    said = LineFormatter("%(levelname)s %(message)s").format(record)
    assert acts(said) == []
    assert "\\nok" in said.split("\n", maxsplit=1)[0]
    assert "Traceback" in said.split("\n")[1]


def test_69_records_reach_a_terminal_escaped(lane_settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Finding 22: `dump`, for a person and as JSON: a record cannot forge a line, and JSON holds its value exactly.

    Defence: what acts on a terminal is shown escaped.
    """
    with Producer([LatencySample], settings=lane_settings) as producer:
        assert producer.appender(LatencySample).append(SHORT, HOSTILE[-10:], 1.0)
        (card,) = cards(producer.instance)
        for arguments in (["dump", card.segment], ["dump", card.segment, "--json"]):
            with pytest.raises(SystemExit) as ended:
                main([*arguments, "--runtime-dir", lane_settings.runtime_dir])
            said = capsys.readouterr().out
            assert ended.value.code == 0
            assert acts(said) == [], arguments
    assert json.loads(said)["rows"][0]["service"] == SHORT


@pytest.mark.parametrize(
    "arguments", [["replay", HOSTILE, "--record", "Trade"], ["dump", HOSTILE], [HOSTILE], ["tap", "--" + HOSTILE]]
)
def test_arguments_come_back_escaped(
    arguments: list[str], instance_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error that repeats a file's name or an argument shows it escaped."""
    monkeypatch.setenv("RINGLOG_RUNTIME_DIR", str(instance_dir))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert ended.value.code != 0
    assert said.err
    assert acts(said.out + said.err) == []


def test_the_screen_shows_names_escaped(lane_settings: Settings) -> None:
    """`top` draws lanes, paths and servers with nothing that a terminal or rich's markup would act on."""
    with Producer([LatencySample], settings=lane_settings) as producer:
        producer.open()
        observer = Observer(lane_settings)
        snapshot = observer.look()
        observer.close()
    (lane,) = snapshot.lanes
    lane.record, lane.trouble, snapshot.runtime_dir = "[red]" + HOSTILE, HOSTILE, HOSTILE
    snapshot.disks[0].path = HOSTILE
    console = Console(width=200, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(drawn(snapshot, 200))
    assert acts(captured.get()) == []
    assert "\\x1b[31mred" in captured.get()


def segment_beside(settings: Settings, ending: str) -> Path:
    prefix = Instance(settings).board_name.removesuffix("board")
    return Path("/dev/shm", prefix + ending)  # noqa: S108


@pytest.mark.skipif(sys.platform != "linux", reason="segments are listed on Linux alone")
def test_a_hint_names_a_file_quoted(lane_settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Finding 22: a segment whose name is a shell's command is quoted in `doctor`'s fix, escape bytes shown."""
    Instance(lane_settings).open()
    path = segment_beside(lane_settings, " -rf ~\x1b[31m;id")
    path.write_bytes(b"no segment")
    path.chmod(0o600)
    try:
        with pytest.raises(SystemExit):
            main_with(lane_settings, ["doctor"])
        said = capsys.readouterr().out
    finally:
        path.unlink()
    assert acts(said) == []
    assert f"rm {quoted(path)}" in said
    assert "$'/dev/shm/" in quoted(path)


@pytest.mark.root
@pytest.mark.skipif(sys.platform != "linux", reason="segments are listed on Linux alone")
def test_another_users_file_is_no_ones_to_remove(
    lane_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """Finding 22: `doctor` never tells to remove a file of another user, however it is named."""
    Instance(lane_settings).open()
    path = segment_beside(lane_settings, "0123")
    path.write_bytes(b"another user's")
    os.chown(path, 12345, 12345)
    try:
        with pytest.raises(SystemExit):
            main_with(lane_settings, ["doctor"])
        said = capsys.readouterr().out
    finally:
        path.unlink()
    assert "belongs to uid 12345" in said
    assert "rm " not in said


def main_with(settings: Settings, arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGLOG_RUNTIME_DIR", settings.runtime_dir)
        main(arguments)
