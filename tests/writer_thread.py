"""A writer on a thread of its own, for tests that look into it while it runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future

from lane_samples import DEADLINE_SECONDS

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
    ended: Future[None] = Future()

    def run() -> None:
        try:
            writer.run()
        except BaseException as error:  # noqa: BLE001 - raised at the end of the block
            ended.set_exception(error)
        else:
            ended.set_result(None)

    # A daemon: one that no longer stops fails its test, and does not keep the test run from ending.
    threading.Thread(target=run, daemon=True).start()
    try:
        yield writer
    finally:
        writer.stop()
        ended.result(DEADLINE_SECONDS)
