"""A writer on a thread of its own, for tests that look into it while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ringlog.questdb.sink import QuestdbSink
from ringlog.settings import Settings
from ringlog.sinks import Cuts, Mirror, Sink
from ringlog.writer import Writer


@contextlib.contextmanager
def writing(
    settings: Settings,
    sink: Sink | Future[Sink] | None = None,
    mirror: Mirror | None = None,
    cuts: Cuts | None = None,
) -> Iterator[Writer]:
    """A writer that runs (into QuestDB, if no sink is given) until the end of the block; raises what its run raised."""
    writer = Writer(settings, sink if sink is not None else QuestdbSink(settings), mirror, cuts)
    with ThreadPoolExecutor(max_workers=1) as thread:
        ran = thread.submit(writer.run)
        try:
            yield writer
        finally:
            writer.stop()
            ran.result()
