"""One consistent look at an instance's ledger and lanes, while its producers and its writer go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from ringlog.disk import Directory, is_there
from ringlog.errors import LaneError, SegmentRefused
from ringlog.lanes.claims import Card, cards
from ringlog.lanes.instance import Instance, boot_id, check_private
from ringlog.lanes.readers import LaneReader
from ringlog.lanes.segments import SegmentBlank, inode_of
from ringlog.ledger import Accounts, Balance, LiveLane, read_accounts

ATTEMPTS_MAX = 10
ATTEMPT_INTERVAL_SECONDS = 0.05


class Snapshot(msgspec.Struct):
    """The ledger's accounts, and what the segments say: `unreadable` are lanes that could not be looked at, and why.

    Lanes whose segment is gone within this boot have vanished in `accounts`, whatever the ledger knows of that.
    """

    accounts: Accounts
    live: dict[int, LiveLane]
    unreadable: dict[int, str]
    is_settled: bool  # nothing came or went under this look

    def balance(self) -> dict[str, Balance]:
        """The equation for each table; of a lane that could not be looked at, what has no term counts as in it."""
        accounts = self.accounts.lanes
        unseen = {
            lane: LiveLane(accounts[lane].table, 0, accounts[lane].head) for lane in self.unreadable.keys() & accounts
        }
        return self.accounts.balance({**unseen, **self.live})

    def head(self, lane: int) -> int:
        """How many records the lane has accepted, as far as this look knows; 0 of a lane it does not know."""
        account = self.accounts.lanes.get(lane)
        if account is not None and account.is_closed:
            return account.head
        if lane in self.live:
            return self.live[lane].head
        return account.head if account is not None else 0


@contextmanager
def spool_directory(instance: Instance) -> Iterator[Directory | None]:
    """The instance's spool, None where there is none yet."""
    path = instance.settings.spool_path
    if not is_there(path):
        yield None
        return
    directory = Directory.open(path)
    try:
        yield directory
    finally:
        directory.close()


def take(instance: Instance, directory: Directory | None) -> Snapshot:
    """A look at everything; again, for at most half a second, while lanes come and go under it.

    Raises LaneError where the runtime directory is missing or not private, SpoolUnusable (the ledger's version).
    """
    if not is_there(instance.runtime_dir):
        raise LaneError(f"{instance.runtime_dir}: got no such directory, wanted an instance's runtime directory")
    check_private(instance.runtime_dir)
    for _ in range(ATTEMPTS_MAX):
        snapshot = _look(instance, directory)
        if snapshot.is_settled:
            break
        time.sleep(ATTEMPT_INTERVAL_SECONDS)
    return snapshot


def _look(instance: Instance, directory: Directory | None) -> Snapshot:
    """SYNC POINT: tails, then ledger, then heads.

    A tail only passes records that have a term, a term is only given below a head, and all three only grow. So in this
    order a record without a term below a tail, or with one beyond a head, is never a matter of when one looks.
    """
    readers: dict[int, LaneReader] = {}
    gone: dict[int, Card] = {}
    try:
        unreadable = _attach(instance, readers, gone)
        tails = {lane: reader.tail for lane, reader in readers.items()}
        accounts = read_accounts(directory, boot_id()) if directory is not None else Accounts(boot_id())
        unreadable |= _attach(instance, readers, gone)
        live = {}
        for lane, reader in readers.items():
            try:
                live[lane] = LiveLane(reader.layout.table, tails.get(lane, 0), reader.cursors()[0])
            except SegmentRefused as error:
                unreadable[lane] = str(error)
    finally:
        for reader in readers.values():
            reader.close()
    over = {lane for lane, account in accounts.lanes.items() if account.is_closed}
    unreadable = {lane: reason for lane, reason in unreadable.items() if lane not in over}
    for lane in accounts.lanes.keys() & live.keys():
        if accounts.lanes[lane].is_vanished:
            accounts.lanes[lane].restore()  # it is there after all, and no writer has said so yet
    for lane, card in gone.items():
        accounts.lane(lane, card.table, card.boot_id)
    missing = [
        lane
        for lane, account in accounts.lanes.items()
        if not (account.is_closed or account.is_vanished or lane in live or lane in unreadable)
    ]
    for lane in missing:
        try:
            if inode_of(instance.segment_name(lane)) is None:
                accounts.lanes[lane].vanish()
            else:
                unreadable[lane] = f"got no card for segment {instance.segment_name(lane)}, wanted one that leads to it"
        except LaneError as error:
            unreadable[lane] = str(error)
    return Snapshot(accounts, live, unreadable, is_settled=not missing and not unreadable)


def _attach(instance: Instance, readers: dict[int, LaneReader], gone: dict[int, Card]) -> dict[int, str]:
    """Attaches the lanes that are not in `readers` yet; why those that could not be attached were not.

    Those whose segment does not exist are put in `gone`.
    """
    unreadable: dict[int, str] = {}
    for card in cards(instance, broken=unreadable):
        if card.lane in readers or card.boot_id != boot_id():
            continue
        try:
            readers[card.lane] = LaneReader.attach(card)
        except SegmentBlank as error:
            unreadable[card.lane] = f"{error}: somebody emptied it"
        except FileNotFoundError:
            gone[card.lane] = card
        except LaneError as error:
            unreadable[card.lane] = str(error)
    return unreadable
