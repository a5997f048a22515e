"""The ledger: where each accepted record is, for every moment and whatever died."""

from ringlog.ledger.accounts import Accounts
from ringlog.ledger.balance import Balance, LiveLane
from ringlog.ledger.entries import Term
from ringlog.ledger.ledger import Ledger

__all__ = ["Accounts", "Balance", "Ledger", "LiveLane", "Term"]
