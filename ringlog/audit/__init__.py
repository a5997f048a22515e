"""The audit: proof that every record an instance accepted is where its ledger says, to the single record."""

from ringlog.audit.proof import prove
from ringlog.audit.report import Difference, Kind, Place, Report, TableReport

__all__ = ["Difference", "Kind", "Place", "Report", "TableReport", "prove"]
