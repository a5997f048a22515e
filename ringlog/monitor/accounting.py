"""What `ringlog doctor` says of accepted records that are not in QuestDB, from the ledger alone."""

from __future__ import annotations

from collections.abc import Iterator

from ringlog.dead_letters import DeadLetters
from ringlog.disk import Directory, is_there
from ringlog.errors import SpoolError
from ringlog.lanes.instance import boot_id
from ringlog.ledger import Term, read_accounts
from ringlog.ledger.absences import DEAD_LETTERS, absences, summary
from ringlog.monitor.finding import Finding
from ringlog.settings import Settings
from ringlog.spans import SeqSet

LEVELS = {
    Term.QUARANTINED: "fail",
    Term.VANISHED: "fail",
    Term.DISCARDED: "ok",
}  # what nobody has to settle, but is not in QuestDB: warn


def records(settings: Settings) -> Iterator[Finding]:
    """A finding for each table and kind of records that are accounted for and not in QuestDB."""
    path = settings.spool_path
    try:
        if not is_there(path):
            return
        directory = Directory.open(path)
    except SpoolError as error:
        yield Finding("records", "fail", str(error), "mend the spool's directory: nothing can be put away meanwhile")
        return
    try:
        accounts = read_accounts(directory, boot_id())
        found = absences(settings, accounts, _delivered(directory), {})
    except SpoolError as error:
        yield Finding("records", "fail", str(error), "mend the file that it names, or use the version that wrote it")
        return
    finally:
        directory.close()
    for absence in found:
        where = f", in {absence.place}" if absence.place else ""
        text = f"{absence.table}: {absence.rows} accepted records are not in QuestDB: {absence.text}{where}"
        level = LEVELS.get(Term(absence.kind), "warn")
        yield Finding("records", level, text, "" if level == "ok" else absence.next_step)
    said = summary(found) or "no accepted record is known to be missing from QuestDB"
    yield Finding("records", "ok", f"{said} (`ringlog audit` proves it)")


def _delivered(directory: Directory) -> dict[int, SeqSet]:
    found: dict[int, SeqSet] = {}
    if DEAD_LETTERS not in directory.names():
        return found
    letters = directory.subdirectory(DEAD_LETTERS)
    try:
        for spans in DeadLetters(letters).delivered_spans().values():
            for span in spans:
                found.setdefault(span.lane, SeqSet()).add(span.first_seq, span.first_seq + span.rows)
    finally:
        letters.close()
    return found
