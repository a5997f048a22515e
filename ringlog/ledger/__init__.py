"""The ledger: where each accepted record is, for every moment and whatever died."""

from ringlog.ledger.balance import Balance, LiveLane
from ringlog.ledger.entries import Term
from ringlog.ledger.ledger import Ledger

__all__ = ["Balance", "Ledger", "LiveLane", "Term"]
