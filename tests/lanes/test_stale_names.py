"""Names that are taken away from segments that are in use: whoever holds one notices, and nothing is lost by it."""

from __future__ import annotations

import contextlib
import time

import pytest
from lane_samples import Drained, Sample, eventually, text_of
from writer_thread import writing

from ringlog import Producer
from ringlog.lanes.claims import Card
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneDirectory
from ringlog.lanes.segments import SHM, create_segment, inode_of, unlink_segment
from ringlog.layout import BOARD_REFUSE_OFFSET, BoardReason
from ringlog.monitor.snapshot import Observer
from ringlog.pressure import Resource, Thresholds, Watch
from ringlog.ring import store
from ringlog.settings import Settings
from ringlog.sinks.memory import MemorySink
from ringlog.writer import Writer

linux = pytest.mark.skipif(not SHM.is_dir(), reason="Linux shows segments as files")


@linux
def test_62_a_lane_that_lost_its_name_is_left(lane_settings: Settings) -> None:
    """Finding 1: a writer that has a lane mapped whose segment is removed retires it: its owner claims another in the
    next append, nothing is lost, and what lies at the old name by then is not removed.

    Defence: a lane that lost its name is left.
    """
    drained = Drained(lane_settings)
    told: list[Card] = []
    drained.directory = LaneDirectory(drained.instance, on_unlinked=told.append)
    with Producer([Sample], settings=lane_settings) as producer:
        append = producer.appender(Sample).append
        assert append(1, text_of(1))
        drained.drain()
        (card,) = drained.cards()
        unlink_segment(card.segment)
        stranger = create_segment(card.segment, 4096)
        drained.directory.adopt()
        drained.directory.adopt()
        assert told == [card]
        assert card in drained.cards()  # not before its owner has left it
        assert append(2, text_of(2))
        assert drained.numbers() == [1, 2]
        assert len({row["lane"] for row in drained.rows}) == 2

        def is_over() -> bool:
            drained.directory.adopt()
            return card not in drained.cards()

        eventually(is_over, "the lane without a name to be removed")
        assert inode_of(card.segment) == stranger.inode
        unlink_segment(card.segment)
    drained.until_gone()


@linux
def test_62_a_board_that_was_removed(lane_settings: Settings) -> None:
    """Finding 2: where somebody removes the board under a writer and producers, the writer makes another and all attach
    that one: old producers and new ones, also one that had been made beside it before the writer noticed. Nothing is
    lost, `top` sees the writer run, and what the new board says reaches everybody.

    Defence: a board that was removed is made anew for all.
    """
    sink = MemorySink()
    accepted: list[int] = []

    def append(producer: Producer) -> bool:
        taken = producer.appender(Sample).append(len(accepted), text_of(len(accepted)))
        accepted.extend([len(accepted)] * taken)
        return taken

    def all_read(producers: list[Producer], writer: Writer) -> bool:
        for producer in producers:
            append(producer)
        found = inode_of(instance.board_name)
        return found is not None and {found.number} == {
            *(producer.board.inode for producer in producers if producer.board is not None),
            writer._board.inode,
        }

    instance = Instance(lane_settings).open()
    with Producer([Sample], settings=lane_settings) as old, writing(lane_settings, sink) as writer:
        assert append(old)
        for is_made_by_producer in (False, True):
            before = inode_of(instance.board_name)
            unlink_segment(instance.board_name)
            with contextlib.ExitStack() as stack:
                producers = [old]
                if is_made_by_producer:
                    producers.append(stack.enter_context(Producer([Sample], settings=lane_settings)))
                eventually(lambda producers=producers: all_read(producers, writer), "all to read one board")
                assert inode_of(instance.board_name) != before
        observer = Observer(lane_settings)
        eventually(lambda: observer.look().writer.state == "running", "the writer to be seen")
        observer.close()
        assert writer._pressure.alerts[Resource.LANES] >= 2
        writer._pressure.watch(Watch(Resource.SPOOL_DISK, "here", Thresholds.of_disk(100), lambda: 0))
        eventually(lambda: not append(old), "the new board's word to reach a producer")
        assert old.appender(Sample).refused_reason() == "board: disk_full"
        eventually(lambda: len(sink.rows("samples")) == len(accepted), "all records")
    assert sorted(row["number"] for row in sink.rows("samples")) == accepted


@linux
def test_62_a_board_that_refuses_for_ever(lane_settings: Settings) -> None:
    """Finding 2: a producer whose board says disk_full, removed and left by a writer that was killed, is accepted again
    once another writer runs, without a restart.

    Defence: lanes whose owners read another board are retired.
    """
    with Producer([Sample], settings=lane_settings) as producer:
        append = producer.appender(Sample).append
        assert append(0, text_of(0))
        assert producer.board is not None
        producer.board.refuse(BoardReason.DISK_FULL)
        unlink_segment(producer.instance.board_name)
        assert not append(1, text_of(1))
        assert producer.appender(Sample).refused_reason() == "board: disk_full"
        sink = MemorySink()
        with writing(lane_settings, sink):
            eventually(lambda: append(1, text_of(1)), "the producer to attach the new board")
            eventually(lambda: len(sink.rows("samples")) == 2, "both records")


def test_62_an_owner_that_has_not_left_keeps_its_lane(lane_settings: Settings) -> None:
    """A retired lane is not removed while its owner has its lock, however long it stands still: the owner may be in the
    middle of an append.

    Defence: a lane is not removed before its owner has left it.
    """
    drained = Drained(lane_settings)
    with Producer([Sample], settings=lane_settings) as producer:
        append = producer.appender(Sample).append
        assert append(1, text_of(1))
        drained.drain()
        (card,) = drained.cards()
        drained.directory.lanes[card.lane].retire()
        deadline = time.monotonic() + 5 * lane_settings.lane_linger_ms / 1e3
        while time.monotonic() < deadline:
            drained.directory.adopt()
        assert drained.cards() == [card]
        assert append(2, text_of(2))
        assert drained.numbers() == [1, 2]
    drained.until_gone()


def test_a_board_with_a_word_of_no_meaning(lane_settings: Settings) -> None:
    """Finding 8: a refuse word that no writer stores has a reason of its own, for producers and onlookers."""
    with Producer([Sample], settings=lane_settings) as producer:
        assert producer.board is not None
        store(producer.board.memory, BOARD_REFUSE_OFFSET, 2**63 + 7)
        assert not producer.appender(Sample).append(1, text_of(1))
        assert producer.appender(Sample).refused_reason() == "board: damaged"
        observer = Observer(lane_settings)
        assert observer.look().reason == "damaged"
        observer.close()
