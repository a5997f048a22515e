"""The ledger: where each accepted record is, for every moment and whatever died."""

from ringlog.ledger.accounts import Accounts
from ringlog.ledger.balance import Balance, LiveLane
from ringlog.ledger.discards import Discard, Discards
from ringlog.ledger.entries import Term
from ringlog.ledger.ledger import Ledger, read_accounts

__all__ = ["Accounts", "Balance", "Discard", "Discards", "Ledger", "LiveLane", "Term", "read_accounts"]
