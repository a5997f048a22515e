"""Sinks: where batches go."""

from ringlog.sinks.contract import Batch, Mirror, Receipt, Request, Sink
from ringlog.sinks.memory import MemorySink
from ringlog.spans import Span

__all__ = ["Batch", "MemorySink", "Mirror", "Receipt", "Request", "Sink", "Span"]
