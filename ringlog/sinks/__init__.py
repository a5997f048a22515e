"""Sinks: where batches go."""

from ringlog.sinks.contract import Batch, Receipt, Request, Sink, Span

__all__ = ["Batch", "Receipt", "Request", "Sink", "Span"]
