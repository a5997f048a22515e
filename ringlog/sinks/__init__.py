"""Sinks: where batches go."""

from ringlog.sinks.contract import Batch, Cuts, Mirror, Receipt, Request, Sink
from ringlog.sinks.memory import MemorySink
from ringlog.spans import Span

__all__ = ["Batch", "Cuts", "MemorySink", "Mirror", "Receipt", "Request", "Sink", "Span"]
