"""Finding 13: accepted records that are not in QuestDB are named; those in quarantine until somebody settled them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from lane_samples import Child, Sample, eventually, text_of
from oracle import payload
from whole_path import TABLE, WholePath
from writer_thread import writing

from ringlog import Producer
from ringlog.audit.quarantined import Quarantined
from ringlog.cli import ringlog
from ringlog.dead_letters import DeadLetters, Refused
from ringlog.disk import Directory, Reserve
from ringlog.errors import SpoolUnusable
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import boot_id
from ringlog.lanes.segments import attach_segment
from ringlog.layout import slots_offset
from ringlog.ledger import Discards, Ledger, Term, read_accounts
from ringlog.ledger.entries import Retired, Version, to_line
from ringlog.monitor.accounting import records
from ringlog.records import layout_of
from ringlog.settings import Settings
from ringlog.spans import Span
from ringlog.spool import Spool

LAYOUT = layout_of(Sample)


def command(settings: Settings, *arguments: str) -> tuple[int, str]:
    """Exit status and output of the command, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "ringlog", *arguments],
        env={
            **Child.environment(settings),
            **msgspec.structs.replace(settings, request_timeout_ms=15_000).to_environment(),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def run(settings: Settings, *arguments: str) -> Any:
    """What a command prints with `--json`, run in this process."""
    done = CliRunner().invoke(ringlog, [*arguments, "--json"], env=settings.to_environment())
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def export(settings: Settings, *arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(ringlog, ["quarantine", "export", *arguments], env=settings.to_environment())
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.output.splitlines()]


def open_ledger(settings: Settings) -> Ledger:
    directory = Directory.open(settings.spool_path)
    return Ledger(directory, Reserve(directory, 4096), boot_id())


def levels(settings: Settings) -> dict[str, str]:
    return {finding.text: finding.level for finding in records(settings)}


def test_finding_13_slots_of_a_lane(path: WholePath, tmp_path: Path) -> None:
    """Overwritten slots: `audit` and `doctor` say how many records are in quarantine and where, exit 1 until they are
    discarded beside the running writer, which learns of it and alerts; then 0, and they are still counted."""
    told = tmp_path / "told"
    path.with_settings(alert_command=f'sh -c \'printf "%s\\n" "$*" >> {told}\' alert')
    with Producer([Sample], settings=path.settings) as producer:
        appender = producer.appender(Sample)
        assert all(appender.append(number, text_of(number)) for number in range(10))
        (card,) = cards(producer.instance)
        segment = attach_segment(card.segment)
        for seq in (3, 4):
            at = slots_offset(len(LAYOUT.to_json())) + seq * LAYOUT.slot_bytes
            segment.memory[at : at + 24] = bytes(range(7, 31))
        segment.close()
    lane = f"{card.lane:016x}"
    with writing(path.settings) as writer:
        eventually(lambda: path.stored() == 8, "the neighbours")
        eventually(lambda: path.proof().tables[TABLE].confirmed == 8, "the confirmation")
        eventually(lambda: writer._settlements.quarantined_rows == 2, "the writer to count them")
        eventually(
            lambda: told.exists() and "2 more accepted records are in quarantine" in told.read_text(), "the alert"
        )
        status, said = command(path.settings, "audit")
        assert status == 1
        assert "2 accepted records are not in QuestDB: 2 in quarantine" in said
        assert f"{TABLE}: 2 in quarantine, in {path.settings.spool_path}/quarantine" in said
        assert "nobody has settled them" in said
        report = json.loads(command(path.settings, "audit", "--json")[1])
        assert (report["exact"], report["settled"]) == (True, False)
        (absence,) = report["absences"]
        assert (absence["kind"], absence["table"], absence["rows"]) == ("quarantined", TABLE, 2)
        (text,) = (text for text, level in levels(path.settings).items() if level == "fail")
        assert text == f"{TABLE}: 2 accepted records are not in QuestDB: in quarantine, in {absence['place']}"
        (item,) = run(path.settings, "quarantine", "list")["quarantine"]
        assert (item["table"], item["records"], item["bytes"]) == (TABLE, 2, 2 * LAYOUT.slot_bytes)
        assert item["lanes"] == [{"lane": lane, "first_seq": 3, "last_seq": 4}]
        assert "append could not have written" in item["why"]
        lines = export(path.settings, "--seq", "4")
        assert [(each["lane"], each["seq"], each["hex"][:6]) for each in lines] == [(lane, 4, "070809")]
        assert run(path.settings, "quarantine", "discard", "--seq", "4") == {"discarded": {TABLE: 1}, "removed": []}
        assert command(path.settings, "audit")[0] == 1
        assert run(path.settings, "quarantine", "discard", "--lane", lane, "--table", TABLE) == {
            "discarded": {TABLE: 1},
            "removed": [item["file"]],
        }
        assert run(path.settings, "quarantine", "discard") == {"discarded": {}, "removed": []}
        status, said = command(path.settings, "audit")
        assert status == 0, said
        assert "2 accepted records are not in QuestDB: 2 discarded by hand" in said
        eventually(lambda: writer._ledger.rows(Term.DISCARDED) == 2, "the writer to learn of it")
        eventually(lambda: "every record in quarantine is settled" in told.read_text(), "the all-clear")
    assert os.listdir(path.settings.spool_path / "quarantine") == []
    assert path.proof().tables[TABLE].discarded == 2
    with writing(path.settings):
        eventually(lambda: path.proof().tables[TABLE].discarded == 2, "the next writer")
    assert levels(path.settings)[f"{TABLE}: 2 accepted records are not in QuestDB: discarded by hand"] == "ok"


def spooled(settings: Settings, rows: int = 5) -> Path:
    """So many records in the spool of an instance whose writer is gone, and the ledger that says so: the file."""
    spool = Spool(settings.spool_path, bytes_max=1 << 30, reserve_bytes=4096)
    ledger = Ledger(spool.directory, spool.reserve, boot_id())
    slots = samples(settings, rows)
    ledger.meet(TABLE, 0xABC)
    spool.append(LAYOUT, [Span(0xABC, 0, rows)], [slots])
    ledger.record(Term.SPOOLED, TABLE, [Span(0xABC, 0, rows)])
    ledger.close_lane(TABLE, 0xABC, rows)
    ledger.close()
    spool.close()
    (file,) = (settings.spool_path / "tables" / TABLE).glob("*.spool")
    return file


def samples(settings: Settings, rows: int) -> bytes:
    """Slots as append writes them."""
    with Producer([Sample], settings=settings) as producer:
        appender = producer.appender(Sample)
        assert all(appender.append(number, payload(number)) for number in range(rows))
        (card,) = cards(producer.instance)
        segment = attach_segment(card.segment)
        at = slots_offset(len(LAYOUT.to_json()))
        found = bytes(segment.memory[at : at + rows * LAYOUT.slot_bytes])
        segment.close()
    return found


def read_through(settings: Settings) -> None:
    """What a writer does at its start and in a replay: the damage is kept, and written down."""
    spool = Spool(settings.spool_path, bytes_max=1 << 30, reserve_bytes=4096)
    ledger = Ledger(spool.directory, spool.reserve, boot_id())
    ledger.reconcile(spool.spans())
    while replay := spool.read(TABLE, 1_000):
        for damage in replay.damages:
            ledger.record(Term.QUARANTINED, TABLE, damage.spans)
        spool.confirm(replay)
    ledger.record(Term.QUARANTINED, TABLE, ledger.spans(Term.SPOOLED, TABLE))
    ledger.close()
    spool.close()


@pytest.fixture
def own(lane_settings: Settings) -> Settings:
    """An instance without a server."""
    return msgspec.structs.replace(lane_settings, questdb_pg_port=1, questdb_http_port=1)


def test_finding_13_a_broken_frame(own: Settings) -> None:
    """One flipped byte of a frame: the slots that still decode are exported with their fields, the others as bytes."""
    file = spooled(own)
    content = bytearray(file.read_bytes())
    start = content.index(payload(2).encode())
    content[start] ^= 0x80  # no UTF-8 any more
    file.write_bytes(content)
    read_through(own)
    (item,) = run(own, "quarantine", "list")["quarantine"]
    assert (item["records"], item["lanes"]) == (5, [{"lane": f"{0xABC:016x}", "first_seq": 0, "last_seq": 4}])
    lines = export(own)
    assert [line.get("record", {}).get("number") for line in lines] == [0, 1, None, 3, 4]
    assert lines[0]["record"]["text"] == payload(0)
    assert len(lines[2]["hex"]) == 2 * LAYOUT.slot_bytes
    assert export(own, "--table", "other") == []
    assert levels(own)[f"{TABLE}: 5 accepted records are not in QuestDB: in quarantine, in {own.spool_path}/quarantine"]


def test_finding_13_a_file_without_header_or_without_anything(own: Settings) -> None:
    """Where no bytes say whose they were, or none are left, the ledger's records are listed and can be settled."""
    file = spooled(own)
    content = file.read_bytes()
    file.write_bytes(content[:12] + bytes(len(content) - 12))  # magic and version are left
    read_through(own)
    kept, without = run(own, "quarantine", "list")["quarantine"]
    assert (kept["records"], kept["lanes"], kept["bytes"]) == (0, [], len(content))
    assert "the header that says whose records they were" in kept["why"]
    assert (without["file"], without["records"]) == ("", 5)
    lines = export(own)
    assert "".join(line["hex"] for line in lines) == Path(kept["file"]).read_bytes().hex()
    assert export(own, "--lane", "abc") == []
    assert run(own, "quarantine", "discard", "--lane", "abc", "--seq", "2") == {"discarded": {TABLE: 1}, "removed": []}
    assert run(own, "quarantine", "discard") == {"discarded": {TABLE: 4}, "removed": [kept["file"]]}
    assert run(own, "quarantine", "list") == {"quarantine": [], "records": 0}


def test_a_discard_that_died_half_way(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark is durable before a file goes: a command that dies between the two has settled, the next one removes.

    A mark that a crash tore is none, and the next one is whole.
    """
    file = spooled(own)
    content = bytearray(file.read_bytes())
    content[-5000] ^= 1
    file.write_bytes(content)
    read_through(own)
    marks = own.spool_path / "discarded"
    monkeypatch.setattr(Quarantined, "remove_settled", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    CliRunner().invoke(ringlog, ["quarantine", "discard"], env=own.to_environment())
    monkeypatch.undo()
    assert run(own, "quarantine", "list")["records"] == 0
    whole = marks.read_bytes()
    marks.write_bytes(whole[:-9])
    assert run(own, "quarantine", "list")["records"] == 5
    assert run(own, "quarantine", "discard", "--table", TABLE)["discarded"] == {TABLE: 5}
    assert run(own, "quarantine", "list", "--settled") == {"quarantine": [], "records": 0}
    assert list((own.spool_path / "quarantine").iterdir()) == []
    ledger = open_ledger(own)
    for _ in range(2):  # before and after a crash of the writer
        ledger.enter_discarded(Discards(Directory.open(own.spool_path)).marks())
        assert (ledger.rows(Term.DISCARDED), ledger.rows(Term.QUARANTINED)) == (5, 0)
    ledger.record(Term.QUARANTINED, TABLE, [Span(0xABC, 0, 5)])  # read again after its last entries were lost
    ledger.close()
    assert run(own, "quarantine", "list")["records"] == 0


def test_a_discarded_record_that_was_delivered_after_all_is_confirmed(own: Settings) -> None:
    """Confirmed stays the last word, whichever of discard, retry and delivery came first."""
    own.spool_path.mkdir(mode=0o700)
    ledger = open_ledger(own)
    ledger.record(Term.DEAD_LETTERS, TABLE, [Span(1, 0, 3)])
    marks = Discards(Directory.open(own.spool_path))
    marks.add(TABLE, [Span(1, 0, 9), Span(2, 0, 1)])
    ledger.enter_discarded(marks.marks())
    ledger.enter_retried(TABLE, [Span(1, 0, 1)])
    ledger.record(Term.CONFIRMED, TABLE, [Span(1, 1, 1)])
    ledger.enter_discarded(marks.marks())
    ledger.close()
    for accounts in (ledger._accounts, read_accounts(Directory.open(own.spool_path), boot_id())):
        assert list(accounts.lanes[1].sets[Term.CONFIRMED]) == [(0, 2)]
        assert list(accounts.lanes[1].sets[Term.DISCARDED]) == [(2, 3)]


def test_totals_of_an_older_ledger_can_be_settled(own: Settings) -> None:
    """A ledger of version 1 is read, and its quarantined records of lanes that it no longer lists can be discarded."""
    own.spool_path.mkdir(mode=0o700)
    old = to_line(Version(1)) + to_line(Retired(TABLE, {Term.CONFIRMED: 9, Term.QUARANTINED: 2}))
    (own.spool_path / "ledger").write_bytes(old)
    (item,) = run(own, "quarantine", "list")["quarantine"]
    assert (item["records"], item["table"]) == (2, TABLE)
    assert run(own, "quarantine", "discard")["discarded"] == {TABLE: 2}
    for _ in range(2):
        ledger = open_ledger(own)
        ledger.enter_discarded(Discards(Directory.open(own.spool_path)).marks())
        balance = ledger.balance({})[TABLE]
        assert (balance.accepted, balance.rows[Term.DISCARDED], balance.rows[Term.QUARANTINED]) == (11, 2, 0)
        ledger.close()
    (own.spool_path / "ledger").write_bytes(to_line(Version(3)))
    with pytest.raises(SpoolUnusable, match="got version 3, wanted 1 or 2"):
        open_ledger(own)


def test_finding_13_dead_letters_are_discarded(path: WholePath) -> None:
    """Dead letters are named by `audit` and `doctor` with exit 0; discarded ones are listed and sent no more, also
    where their file is gone."""
    path.settings.spool_path.mkdir(mode=0o700)
    ledger = open_ledger(path.settings)
    letters = DeadLetters(Directory.open(path.settings.spool_path).subdirectory("dead_letters"))
    letters.keep(LAYOUT, [Refused(1, seq, "no", bytes(LAYOUT.slot_bytes)) for seq in (0, 1)])
    ledger.record(Term.DEAD_LETTERS, TABLE, [Span(1, 0, 2)])
    ledger.record(Term.EXPIRED, TABLE, [Span(1, 2, 1)])
    ledger.close_lane(TABLE, 1, 3)
    ledger.close()
    status, said = command(path.settings, "audit")
    assert status == 0, said
    assert "3 accepted records are not in QuestDB: 2 in dead letters, 1 expired" in said
    assert f"in {path.settings.spool_path}/dead_letters: `ringlog dead-letters list`" in said
    assert sorted(levels(path.settings).values()) == ["ok", "warn", "warn"]
    assert run(path.settings, "dead-letters", "discard", "--seq", "1") == {"discarded": {TABLE: 1}}
    assert [letter["seq"] for letter in run(path.settings, "dead-letters", "list")["dead_letters"]] == [0]
    assert len(run(path.settings, "dead-letters", "list", "--discarded")["dead_letters"]) == 2
    for file in (path.settings.spool_path / "dead_letters").glob("*.ndjson"):
        file.unlink()
    assert command(path.settings, "audit")[0] == 1
    assert run(path.settings, "dead-letters", "discard") == {"discarded": {TABLE: 1}}
    assert run(path.settings, "dead-letters", "discard") == {"discarded": {}}
    status, said = command(path.settings, "audit")
    assert status == 0, said
    assert "3 accepted records are not in QuestDB: 2 discarded by hand, 1 expired" in said


def test_two_commands_at_once(own: Settings) -> None:
    """Of several discards at once one gives each record up, and the others find nothing."""
    file = spooled(own)
    file.unlink()
    read_through(own)
    environment = {**Child.environment(own), **own.to_environment()}
    words = [sys.executable, "-m", "ringlog", "quarantine", "discard", "--json"]
    running = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    found = [json.loads(process.communicate()[0])["discarded"] for process in running]
    assert sorted(found, key=len) == [{}, {}, {TABLE: 5}]


def test_an_instance_without_any(own: Settings) -> None:
    """Where nothing was ever quarantined the commands say so and make nothing on disk."""
    before = sorted(Path(own.runtime_dir).rglob("*"))
    assert run(own, "quarantine", "list") == {"quarantine": [], "records": 0}
    assert export(own) == []
    assert run(own, "quarantine", "discard") == {"discarded": {}, "removed": []}
    assert sorted(Path(own.runtime_dir).rglob("*")) == before
    wrong = CliRunner().invoke(ringlog, ["quarantine", "list", "--lane", "xyz"], env=own.to_environment())
    assert wrong.exit_code == 2
