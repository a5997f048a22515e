"""Names that are taken away from segments that are in use: whoever holds one notices, and nothing is lost by it."""

from __future__ import annotations

import pytest
from lane_samples import Drained, Sample, eventually, text_of

from ringlog import Producer
from ringlog.lanes.claims import Card
from ringlog.lanes.readers import LaneDirectory
from ringlog.lanes.segments import SHM, create_segment, inode_of, unlink_segment
from ringlog.settings import Settings

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
