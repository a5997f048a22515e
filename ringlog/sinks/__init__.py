"""Sinks: where batches go."""

from ringlog.sinks.contract import Batch, Receipt, Request, Sink, Span
from ringlog.sinks.memory import MemorySink

__all__ = ["Batch", "MemorySink", "Receipt", "Request", "Sink", "Span"]
