"""Segments of an older layout version after an upgrade: what a producer of it appended is read, and nothing is lost."""

from __future__ import annotations

import struct

import pytest
from lane_samples import Drained, Sample, text_of

from ringlog import Producer
from ringlog.errors import SegmentRefused
from ringlog.lanes.board import Board
from ringlog.lanes.claims import cards, open_board
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import Lease
from ringlog.lanes.segments import attach_segment
from ringlog.layout import LAYOUT_OFFSET, LAYOUT_VERSION, READ_VERSIONS, REFUSED_OFFSET, REFUSED_WORDS
from ringlog.settings import Settings


def make_older(segment: str, version: int = 1) -> None:
    """As a release of that layout version would have made the segment."""
    attached = attach_segment(segment)
    attached.memory[8:12] = struct.pack("=I", version)
    attached.close()


def test_a_lane_of_version_1_is_drained(lane_settings: Settings) -> None:
    """A producer of version 1 goes on beside an upgraded writer: its lane is read to the last record, then removed.

    Version 1 differs by the refused words alone, which are 0 in it; they have room beside the layout's description.
    """
    assert REFUSED_OFFSET + 8 * REFUSED_WORDS <= LAYOUT_OFFSET
    with Producer([Sample], settings=lane_settings) as producer:
        appender = producer.appender(Sample)
        (card,) = cards(producer.instance)
        make_older(card.segment)
        assert all(appender.append(number, text_of(number)) for number in range(50))
        drained = Drained(lane_settings)
        assert drained.numbers() == list(range(50))
        assert all(appender.append(number, text_of(number)) for number in range(50, 100))
        assert not any(appender.refused().values())
    assert drained.numbers() == list(range(100))
    drained.until_gone()


@pytest.mark.parametrize("version", [0, LAYOUT_VERSION + 1])
def test_a_lane_of_a_version_that_nobody_knows_is_kept(lane_settings: Settings, version: int) -> None:
    """A lane of another version is refused by name and stays, with its records, for whoever can read it."""
    with Producer([Sample], settings=lane_settings) as producer:
        (card,) = cards(producer.instance)
        assert producer.appender(Sample).append(1, text_of(1))
        make_older(card.segment, version)
    drained = Drained(lane_settings)
    assert drained.numbers() == []
    assert any(f"version {version}" in said for said in drained.directory.refused.values())
    make_older(card.segment, LAYOUT_VERSION)
    assert Drained(lane_settings).numbers() == [1]


def test_a_board_of_version_1_is_taken_over(lane_settings: Settings) -> None:
    """The upgraded writer takes an older board over, with what producers see on it; so does a producer while none runs.

    While an older writer runs, a producer is told so by name when it opens: that writer would not read its lanes.
    """
    instance = Instance(lane_settings).open()
    older = open_board(instance)
    older.beat(4711)
    make_older(instance.board_name)
    assert open_board(instance).beat_us == 4711
    lease = Lease(instance)
    assert lease.take()
    with pytest.raises(SegmentRefused, match=rf"version 1 .*wanted .* version {LAYOUT_VERSION} .*upgrade the writer"):
        open_board(instance)
    taken = open_board(instance, is_writer=True)
    taken.take_over()
    assert open_board(instance).beat_us == older.beat_us == 4711
    looked = Board.look(instance)
    assert looked is not None
    assert READ_VERSIONS == (1, LAYOUT_VERSION)
    lease.release()
