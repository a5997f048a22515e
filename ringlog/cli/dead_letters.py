"""`ringlog dead-letters`: the records that the server refused."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import click
import msgspec

from ringlog.cli import FAILED
from ringlog.cli.output import say, say_json
from ringlog.dead_letters import DeadLetter, DeadLetters
from ringlog.disk import Directory, is_there
from ringlog.lanes.instance import boot_id
from ringlog.naming import nearest
from ringlog.records import PLATFORM_RECORDS, RecordLayout
from ringlog.settings import Settings
from ringlog.spans import SeqSet, Span

DIRECTORY_NAME = "dead_letters"


def _check_table(context: click.Context, _: click.Parameter, table: str | None) -> str | None:
    """Refuses a name that is most likely a mistyped one: "0 dead letters" would read as if all were well."""
    if table is None:
        return None
    from ringlog.ledger import read_accounts

    path = Settings.from_environment(runtime_dir=context.params["runtime_dir"]).spool_path
    known = {record.__table__ for record in PLATFORM_RECORDS}
    if is_there(path):
        directory = Directory.open(path)
        try:
            accounts = read_accounts(directory, boot_id())
            known |= {account.table for account in accounts.lanes.values()} | set(accounts.retired)
        finally:
            directory.close()
    meant = nearest(table, known, near=0.8)
    if table not in known and meant is not None:
        raise click.BadParameter(f"got {table!r}, of which there was no record, did you mean {meant}?")
    return table


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which letters."""
    options = [
        # Read first: which tables there are is the instance's.
        click.option("--runtime-dir", is_eager=True, help="The instance's runtime directory (RINGLOG_RUNTIME_DIR)."),
        click.option("--table", callback=_check_table, help="Only this table's."),
        click.option("--lane", help="Only this lane's, in hexadecimal as the logs and `list` show it."),
        click.option("--seq", type=click.IntRange(0), help="Only this record of the lane."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@contextlib.contextmanager
def _store(runtime_dir: str | None) -> Iterator[tuple[Settings, DeadLetters | None]]:
    """The instance's dead letters, None where it never had any."""
    settings = Settings.from_environment(runtime_dir=runtime_dir)
    path = settings.spool_path / DIRECTORY_NAME
    if not is_there(path):
        yield settings, None
        return
    directory = Directory.open(path)
    try:
        yield settings, DeadLetters(directory)
    finally:
        directory.close()


def lane_number(lane: str | None) -> int | None:
    """The number of `--lane`, None where it was not given."""
    try:
        return None if lane is None else int(lane, 16)
    except ValueError:
        raise click.BadParameter(f"got {lane!r}, wanted hexadecimal digits", param_hint="--lane") from None


def _selected(
    settings: Settings,
    store: DeadLetters | None,
    table: str | None,
    lane: str | None,
    seq: int | None,
    *,
    retried: bool = False,
    discarded: bool = False,
) -> Iterator[tuple[DeadLetter, RecordLayout]]:
    wanted = lane_number(lane)
    if store is None:
        return
    left_out = {} if discarded else _given_up(settings)
    for letter, layout in store.letters(table, retried=retried, discarded=left_out):
        if wanted in (None, letter.lane) and seq in (None, letter.seq):
            yield letter, layout


def _given_up(settings: Settings) -> dict[int, SeqSet]:
    from ringlog.ledger import Discards

    directory = Directory.open(settings.spool_path)
    try:
        return Discards(directory).given_up()
    finally:
        directory.close()


@click.group("dead-letters")
def dead_letters() -> None:
    """List, export, retry and discard the records that the server refused."""


@dead_letters.command("list")
@selection
@click.option("--retried", is_flag=True, help="Also those that a retry has delivered.")
@click.option("--discarded", is_flag=True, help="Also those that were given up with `discard`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_letters(
    runtime_dir: str | None,
    table: str | None,
    lane: str | None,
    seq: int | None,
    retried: bool,
    discarded: bool,
    as_json: bool,
) -> None:
    """Show each dead letter's table, origin, time and reason."""
    with _store(runtime_dir) as (settings, store):
        chosen = _selected(settings, store, table, lane, seq, retried=retried, discarded=discarded)
        if as_json:
            shown = [{name: getattr(each, name) for name in each.__struct_fields__} for each, _ in chosen]
            say_json({"dead_letters": shown})
            return
        count = 0
        for letter, _ in chosen:
            count += 1
            say(f"{letter.time} {letter.table} lane={letter.lane:016x} seq={letter.seq}: {letter.reason}")
        say(f"{count} dead letters")


@dead_letters.command()
@selection
@click.option("-o", "--output", type=click.File("wb"), default="-", help="Where to (by default stdout).")
def export(runtime_dir: str | None, table: str | None, lane: str | None, seq: int | None, output: IO[bytes]) -> None:
    """Write dead letters as NDJSON: one object a line, with all fields of the record."""
    with _store(runtime_dir) as (settings, store):
        for letter, _ in _selected(settings, store, table, lane, seq):
            output.write(msgspec.json.encode(letter) + b"\n")


@dead_letters.command()
@selection
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def retry(
    context: click.Context, runtime_dir: str | None, table: str | None, lane: str | None, seq: int | None, as_json: bool
) -> None:
    """Send dead letters again, each under its own lane and seq: nothing is doubled, however often.

    Exits 1 where the server refuses some again.
    """
    from ringlog.questdb.sink import QuestdbSink
    from ringlog.writer.resend import Resender

    with _store(runtime_dir) as (settings, store):
        delivered = 0
        refused: list[tuple[DeadLetter, str]] = []
        chosen = list(_selected(settings, store, table, lane, seq))
        if store is not None and chosen:
            sink = QuestdbSink(settings)
            try:
                resender = Resender(sink, settings.confirm_timeout_ms / 1000, _cuts(settings))
                delivered, refused = store.retry(chosen, resender)
            finally:
                sink.close()
    if as_json:
        again = [{"table": it.table, "lane": it.lane, "seq": it.seq, "reason": reason} for it, reason in refused]
        say_json({"delivered": delivered, "refused": again})
    else:
        for letter, reason in refused:
            say(f"{letter.table} lane={letter.lane:016x} seq={letter.seq}: {reason}")
        say(f"{delivered} delivered, {len(refused)} refused again")
    if refused:
        context.exit(FAILED)


@dead_letters.command()
@selection
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def discard(runtime_dir: str | None, table: str | None, lane: str | None, seq: int | None, as_json: bool) -> None:
    """Give dead letters up for good: `audit` then counts them as discarded, and no retry sends them.

    Without an option all of them. Also beside a running writer. Their files stay as they are.
    """
    from ringlog.ledger import Discards

    rows: dict[str, int] = {}
    with _store(runtime_dir) as (settings, store):
        directory = Directory.open(settings.spool_path) if store is not None else None
        if store is not None and directory is not None:
            try:
                marks = Discards(directory)
                with marks.locked():
                    lost = _without_letters(directory, store, table, lane_number(lane), seq)
                    kept = ((it.table, it.lane, it.seq) for it, _ in _selected(settings, store, table, lane, seq))
                    for name, spans in _spans(itertools.chain(kept, lost)).items():
                        marks.add(name, spans)
                        rows[name] = sum(span.rows for span in spans)
            finally:
                directory.close()
    if as_json:
        say_json({"discarded": rows})
        return
    for name, count in sorted(rows.items()):
        say(f"{name}: {count} records discarded")
    say(f"{sum(rows.values())} records discarded")


def _without_letters(
    directory: Directory, store: DeadLetters, table: str | None, lane: int | None, seq: int | None
) -> Iterator[tuple[str, int, int]]:
    """Table, lane and seq of records that the ledger has as dead letters, whose files somebody removed."""
    from ringlog.ledger import Term, read_accounts

    there: dict[int, SeqSet] = {}
    for letter, _ in store.letters(retried=True):
        there.setdefault(letter.lane, SeqSet()).add(letter.seq, letter.seq + 1)
    for number, account in read_accounts(directory, boot_id()).lanes.items():
        if table in (None, account.table) and lane in (None, number):
            for start, end in account.sets.get(Term.DEAD_LETTERS, ()):
                for first, stop in there.get(number, SeqSet()).gaps(start, end):
                    yield from ((account.table, number, each) for each in range(first, stop) if seq in (None, each))


def _spans(records: Iterable[tuple[str, int, int]]) -> dict[str, list[Span]]:
    """Records by table, as spans."""
    found: dict[str, dict[int, SeqSet]] = {}
    for table, lane, seq in records:
        found.setdefault(table, {}).setdefault(lane, SeqSet()).add(seq, seq + 1)
    return {
        table: [Span(lane, start, end - start) for lane, seqs in lanes.items() for start, end in seqs]
        for table, lanes in found.items()
    }


def _cuts(settings: Settings) -> dict[str, int]:
    from ringlog.questdb.retention import Retention

    if settings.retention_days == 0:
        return {}
    with Retention(settings) as retention:
        return retention.expiry_cuts()
