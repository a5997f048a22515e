"""The writer process: one for an instance."""

from ringlog.writer.writer import Writer

__all__ = ["Writer"]
