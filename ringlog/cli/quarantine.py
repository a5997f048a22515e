"""`ringlog quarantine`: accepted records whose bytes were destroyed, and what was kept of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import click
import msgspec

from ringlog.cli.dead_letters import lane_number, selection
from ringlog.cli.output import say, say_json
from ringlog.disk import Directory, is_there
from ringlog.settings import Settings

if TYPE_CHECKING:
    from ringlog.audit.quarantined import Item, Quarantined


@contextlib.contextmanager
def _spool(runtime_dir: str | None) -> Iterator[Directory | None]:
    """The instance's spool, None where it never had one."""
    path = Settings.from_environment(runtime_dir=runtime_dir).spool_path
    if not is_there(path):
        yield None
        return
    directory = Directory.open(path)
    try:
        yield directory
    finally:
        directory.close()


def _read(directory: Directory) -> Quarantined:
    from ringlog.audit.quarantined import Quarantined
    from ringlog.lanes.instance import boot_id
    from ringlog.ledger import read_accounts

    return Quarantined(directory, read_accounts(directory, boot_id()))


@click.group()
def quarantine() -> None:
    """List, export and discard accepted records whose bytes were destroyed: they are not in QuestDB."""


@quarantine.command("list")
@selection
@click.option("--settled", is_flag=True, help="Also what was discarded, and copies of records that are stored.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_items(
    runtime_dir: str | None, table: str | None, lane: str | None, seq: int | None, settled: bool, as_json: bool
) -> None:
    """Show what is kept: table, lanes and seqs, why and since when, bytes, and the file."""
    wanted = lane_number(lane)
    with _spool(runtime_dir) as directory:
        items = list(_read(directory).items(settled=settled)) if directory is not None else []
    chosen = [item for item in items if _is_chosen(item, table, wanted, seq)]
    if as_json:
        say_json({"quarantine": chosen, "records": sum(item.records for item in chosen)})
        return
    for item in chosen:
        ranges = ", ".join(f"lane={each.lane} seq={each.first_seq}-{each.last_seq}" for each in item.lanes)
        kept = f"{item.bytes} bytes in {item.file}" if item.file else "no bytes"
        given_up = f", {item.discarded} discarded" if item.discarded else ""
        when = f"{item.time} " if item.time else ""
        say(f"{when}{item.table or '?'} {item.records} records{given_up}: {item.why}; {kept}; {ranges or '-'}")
    say(f"{sum(item.records for item in chosen)} records in quarantine")


def _is_chosen(item: Item, table: str | None, lane: int | None, seq: int | None) -> bool:
    if table not in (None, item.table):
        return False
    if lane is None and seq is None:
        return True
    return any(
        lane in (None, int(each.lane, 16)) and (seq is None or each.first_seq <= seq <= each.last_seq)
        for each in item.lanes
    )


@quarantine.command()
@selection
@click.option("-o", "--output", type=click.File("wb"), default="-", help="Where to (by default stdout).")
def export(runtime_dir: str | None, table: str | None, lane: str | None, seq: int | None, output: IO[bytes]) -> None:
    """Write what was kept as NDJSON: `record` with all fields of a slot that decodes, else `hex` with its bytes."""
    wanted = lane_number(lane)
    with _spool(runtime_dir) as directory:
        if directory is not None:
            for record in _read(directory).records(table, wanted, seq):
                output.write(msgspec.json.encode(record) + b"\n")


@quarantine.command()
@selection
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def discard(runtime_dir: str | None, table: str | None, lane: str | None, seq: int | None, as_json: bool) -> None:
    """Give records in quarantine up for good: `audit` then counts them as discarded, and their files are removed.

    Without an option all of them. Also beside a running writer. Export first what may still be of use.
    """
    from ringlog.ledger import Discards

    wanted = lane_number(lane)
    rows: dict[str, int] = {}
    removed: list[str] = []
    with _spool(runtime_dir) as directory:
        if directory is not None:
            marks = Discards(directory)
            with marks.locked():
                found = _read(directory)
                chosen = found.spans(table, wanted, seq)
                for name, spans in chosen.items():
                    marks.add(name, spans)  # durable before a file goes
                    rows[name] = sum(span.rows for span in spans)
                removed = _read(directory).remove_settled(table, wanted, seq)
    if as_json:
        say_json({"discarded": rows, "removed": removed})
        return
    for name, count in rows.items():
        say(f"{name}: {count} records discarded")
    say(f"{sum(rows.values())} records discarded, {len(removed)} files removed")
