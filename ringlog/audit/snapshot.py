"""One consistent look at an instance's ledger and lanes, while its producers and its writer go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from ringlog.disk import Directory
from ringlog.errors import LaneError
from ringlog.lanes.claims import cards
from ringlog.lanes.instance import Instance, boot_id, check_private
from ringlog.lanes.readers import LaneReader
from ringlog.lanes.segments import SegmentBlank
from ringlog.ledger import Accounts, Balance, LiveLane, read_accounts

ATTEMPTS_MAX = 10
ATTEMPT_INTERVAL_SECONDS = 0.05


class Snapshot(msgspec.Struct):
    """The ledger's accounts, and what the segments say: `unreadable` are lanes that could not be looked at, and why."""

    accounts: Accounts
    live: dict[int, LiveLane]
    unreadable: dict[int, str]

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
    if not path.exists():
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
    if not instance.runtime_dir.exists():
        raise LaneError(f"{instance.runtime_dir}: got no such directory, wanted an instance's runtime directory")
    check_private(instance.runtime_dir)
    for _ in range(ATTEMPTS_MAX):
        snapshot = _look(instance, directory)
        if not snapshot.unreadable:
            break
        time.sleep(ATTEMPT_INTERVAL_SECONDS)
    return snapshot


def _look(instance: Instance, directory: Directory | None) -> Snapshot:
    """SYNC POINT: tails, then ledger, then heads.

    A tail only passes records that have a term, a term is only given below a head, and all three only grow. So in this
    order a record without a term below a tail, or with one beyond a head, is never a matter of when one looks.
    """
    readers: dict[int, LaneReader] = {}
    try:
        unreadable = _attach(instance, readers)
        tails = {lane: reader.tail for lane, reader in readers.items()}
        accounts = read_accounts(directory, boot_id()) if directory is not None else Accounts(boot_id())
        unreadable |= _attach(instance, readers)
        live = {
            lane: LiveLane(reader.layout.table, tails.get(lane, 0), reader.head) for lane, reader in readers.items()
        }
    finally:
        for reader in readers.values():
            reader.close()
    for lane, account in accounts.lanes.items():
        if not account.is_closed and lane not in live:
            unreadable.setdefault(lane, "got no segment, wanted that of a lane that was never closed")
    over = {lane for lane, account in accounts.lanes.items() if account.is_closed}
    return Snapshot(accounts, live, {lane: reason for lane, reason in unreadable.items() if lane not in over})


def _attach(instance: Instance, readers: dict[int, LaneReader]) -> dict[int, str]:
    """Attaches the lanes that are not in `readers` yet; why those that could not be attached were not."""
    unreadable = {}
    for card in cards(instance):
        if card.lane in readers or card.boot_id != boot_id():
            continue
        try:
            readers[card.lane] = LaneReader.attach(card)
        except SegmentBlank:
            continue  # a claim that is not complete: nothing was ever accepted
        except FileNotFoundError:
            unreadable[card.lane] = f"got no segment {card.segment}, wanted it to exist"
        except LaneError as error:
            unreadable[card.lane] = str(error)
    return unreadable
