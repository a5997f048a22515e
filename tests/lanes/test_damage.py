"""Damaged lanes: refused by name, left untouched, and no other lane pays for them."""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path
from random import Random

import msgspec
import pytest
from lane_samples import Drained, Sample, text_of

from ringlog import Producer
from ringlog.audit.snapshot import take
from ringlog.errors import LaneError, SegmentRefused
from ringlog.lanes.claims import cards, claim
from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneReader
from ringlog.lanes.segments import attach_segment, inode_of
from ringlog.lanes.views import LaneView, MappedLane
from ringlog.layout import HEAD_OFFSET, LAYOUT_OFFSET, LAYOUT_VERSION, REFUSED_OFFSET, STATE_OFFSET, TAIL_OFFSET
from ringlog.monitor.flight_record import _of
from ringlog.monitor.snapshot import Observer
from ringlog.records import layout_of
from ringlog.ring import store
from ringlog.settings import Settings

LAYOUT = layout_of(Sample)
linux = pytest.mark.skipif(sys.platform != "linux", reason="segments are files only on Linux")


def damaged_layout(name: str) -> bytes:
    """The sample's layout as JSON, with one thing wrong that a decoder must not be given."""
    layout = msgspec.json.decode(LAYOUT.to_json())
    number, text, stamp = layout["fields"]
    changes = {
        "offset": lambda: number.update(offset=layout["slot_bytes"] - 4),
        "width": lambda: number.update(width_bytes=1),
        "no limits": lambda: number.update(minimum=None),
        "huge limits": lambda: number.update(maximum=2**80),
        "wide text": lambda: text.update(width_bytes=60_000, offset=16),
        "name": lambda: number.update(name="Not a column"),
        "reserved": lambda: number.update(name="lane"),
        "twice": lambda: number.update(name="text"),
        "table": lambda: layout.update(table="samples; drop table trades"),
        "slot": lambda: layout.update(slot_bytes=8),
        "no timestamp": lambda: stamp.update(kind=2, minimum=0, maximum=1),
        "no fields": lambda: layout.update(fields=[]),
        "kind": lambda: number.update(kind=17),
    }
    if name == "no JSON":
        return b"{" * 40
    changes[name]()
    return msgspec.json.encode(layout)


LAYOUT_DAMAGE = ["offset", "width", "no limits", "huge limits", "wide text", "name", "reserved", "twice", "table",
                 "slot", "no timestamp", "no fields", "kind", "no JSON"]  # fmt: skip
HEADER_DAMAGE = {
    "magic": (0, b"GARBAGE!"),
    "version": (8, struct.pack("=I", LAYOUT_VERSION + 1)),
    "slot bytes": (12, struct.pack("=I", 64)),
    "capacity": (16, struct.pack("=Q", 3)),
    "capacity beyond the segment": (16, struct.pack("=Q", 1 << 40)),
    "another lane": (24, struct.pack("=Q", 77)),
    "slots offset": (84, struct.pack("=I", 64)),
    "layout bytes": (88, struct.pack("=Q", 1 << 30)),
    "no layout bytes": (88, struct.pack("=Q", 0)),
    "head": (HEAD_OFFSET, struct.pack("=Q", 1 << 50)),
    "tail": (TAIL_OFFSET, struct.pack("=Q", 1 << 50)),
    "all": (0, bytes(range(1, 256)) * 4),
}


@linux
@pytest.mark.parametrize("damage", [*HEADER_DAMAGE, *LAYOUT_DAMAGE])
def test_17_damaged_lanes_are_refused_untouched(
    lane_settings: Settings, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A lane whose header or layout is not sound is refused with got and wanted, left as it is, and costs no other.

    Defence: a header is checked before it is believed.
    """
    instance = Instance(lane_settings).open()
    lane = claim(instance, LAYOUT)
    with Producer([Sample], settings=lane_settings) as producer:
        assert producer.appender(Sample).append(7, text_of(7))
    if damage in HEADER_DAMAGE:
        at, wrong = HEADER_DAMAGE[damage]
        lane.memory[at : at + len(wrong)] = wrong
    else:
        text = damaged_layout(damage)
        lane.memory[LAYOUT_OFFSET : LAYOUT_OFFSET + len(text)] = text
        lane.memory[88:96] = struct.pack("=Q", len(text))
    path = Path("/dev/shm") / lane.card.segment  # noqa: S108
    before = path.read_bytes()
    drained = Drained(lane_settings)
    for _ in range(3):
        assert drained.numbers() == [7]
        drained.directory.adopt()
    assert "wanted" in drained.directory.refused[lane.card.lane]
    assert lane.card.segment in drained.directory.refused[lane.card.lane]
    assert path.read_bytes() == before
    assert len([record for record in caplog.records if "lane refused" in record.message]) == 1
    lane.close()


@linux
@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"lane": 1}', b"another lane's"], ids=["empty", "cut", "list", "half", "other"]
)
def test_a_damaged_card_is_named(lane_settings: Settings, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Finding 8: the writer's log names a card that leads to no lane, once, and `audit` does not count its lane as
    looked at; it was left out without a word, and its records with it."""
    instance = Instance(lane_settings).open()
    with Producer([Sample], settings=lane_settings) as producer:
        assert producer.appender(Sample).append(7, text_of(7))
        lane = producer.appender(Sample).lane
        assert lane is not None
        card = instance.card_path(lane)
        whole = card.read_bytes()
        card.write_bytes(damage.replace(b"another lane's", whole.replace(str(lane).encode(), b"77")))
        drained = Drained(lane_settings)
        assert [drained.numbers(), drained.numbers()] == [[], []]
        assert str(card) in drained.directory.refused[lane]
        assert len([record for record in caplog.records if "lane refused" in record.message]) == 1
        found = take(instance, None)
        assert str(card) in found.unreadable[lane]
        assert not found.is_settled
        card.write_bytes(whole)
        assert Drained(lane_settings).numbers() == [7]


def test_a_card_that_cannot_be_read_now_hides_no_lane(
    lane_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Finding 1: without a free descriptor the lanes of an instance cannot be told, rather than be none."""
    instance = Instance(lane_settings).open()
    with Producer([Sample], settings=lane_settings):

        def out_of_descriptors(_: Path) -> bytes:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr("ringlog.lanes.claims.read_private", out_of_descriptors)
        with pytest.raises(LaneError, match="got Too many open files, wanted to read it"):
            take(instance, None)


@linux
def test_no_absurd_count_is_shown(lane_settings: Settings) -> None:
    """Finding 8: a lane whose words somebody wrote over shows no refusals that nobody can have come to, and no rate by
    a garbage head: that is its trouble."""
    with Producer([Sample], settings=lane_settings) as producer:
        assert producer.appender(Sample).append(7, text_of(7))
        observer = Observer(lane_settings)
        assert observer.look().lanes[0].accepted == 1
        segment = attach_segment(cards(Instance(lane_settings))[0].segment)
        store(segment.memory, REFUSED_OFFSET, 1 << 63)
        store(segment.memory, REFUSED_OFFSET + 8, 3)
        assert observer.look().lanes[0].refused == {"board": 3}
        store(segment.memory, HEAD_OFFSET, 1 << 62)
        (lane,) = observer.look().lanes
        assert (lane.accepted, lane.rate, lane.waiting) == (0, 0.0, 0)
        assert f"got head {1 << 62}" in lane.trouble
        store(segment.memory, HEAD_OFFSET, 1)
        store(segment.memory, REFUSED_OFFSET, 0)
        assert observer.look().lanes[0].trouble == ""
        segment.close()
        observer.close()


@linux
def test_17_a_segment_cut_short(lane_settings: Settings) -> None:
    """A segment smaller than its header says is refused before any slot is touched.

    Defence: a header is checked before it is believed.
    """
    instance = Instance(lane_settings).open()
    lane = claim(instance, LAYOUT)
    path = Path("/dev/shm") / lane.card.segment  # noqa: S108
    os.truncate(path, 8192)
    drained = Drained(lane_settings)
    drained.drain()
    assert "in 8192 bytes" in drained.directory.refused[lane.card.lane]
    os.truncate(path, lane.card.size_bytes)
    lane.close()


@pytest.mark.parametrize("state", [3, 2**64 - 1])
def test_18_a_garbage_state_word(lane_settings: Settings, state: int) -> None:
    """A state that nobody stores is taken as RETIRED by writer and owner alike: drained, left, nothing lost.

    Defence: a state that nobody stores is taken as retired.
    """
    with Producer([Sample], settings=lane_settings) as producer:
        append = producer.appender(Sample).append
        assert append(1, text_of(1))
        drained = Drained(lane_settings)
        (card,) = drained.cards()
        segment = attach_segment(card.segment)
        store(segment.memory, STATE_OFFSET, state)
        assert append(2, text_of(2))
        drained.drain()
        drained.directory.adopt()
        assert sorted(drained.numbers()) == [1, 2]
        assert len({row["lane"] for row in drained.rows}) == 2
        segment.close()


def test_18_a_garbage_head(lane_settings: Settings) -> None:
    """A head that cannot belong to its tail is refused when it is looked at; no slot is read.

    Defence: a head is held against its tail.
    """
    instance = Instance(lane_settings).open()
    lane = claim(instance, LAYOUT)
    (card,) = cards(instance)
    reader = LaneReader.attach(card)
    for head in (lane.capacity + 1, 2**63):
        store(lane.memory, HEAD_OFFSET, head)
        with pytest.raises(SegmentRefused, match=f"got head {head} at sent 0, wanted at most {lane.capacity} apart"):
            reader.take(10)
    reader.close()
    lane.close()


def test_18_a_lane_that_was_emptied(lane_settings: Settings) -> None:
    """A lane that had been claimed and has no magic any more is refused and left as it is: its slots may be whole.

    Defence: a lane that was emptied is left as it is.
    """
    instance = Instance(lane_settings).open()
    lane = claim(instance, LAYOUT)
    store(lane.memory, 0, 0)
    lane.forget()
    drained = Drained(lane_settings)
    drained.drain()
    assert "somebody emptied it" in drained.directory.refused[lane.card.lane]
    assert drained.cards() == [lane.card]
    assert inode_of(lane.card.segment) is not None


EDGES = (0, 1, 2, 63, 64, 65, 127, 2**31, 2**32 - 1, 2**52, 2**53, 2**62, 2**63 - 1, 2**63, 2**63 + 20, 2**64 - 1)
WORDS = (8, 12, 16, 24, 32, 40, 84, 88, 128, HEAD_OFFSET, TAIL_OFFSET, 512, 520)  # of the header, and of the lane


def mutated(sound: bytes, random: Random) -> bytes:
    """A lane of 4 KiB of header and layout before its slots, with one to three things wrong with it."""
    lane = bytearray(sound)
    for _ in range(random.randint(1, 3)):
        match random.randrange(5):
            case 0:
                struct.pack_into("<Q", lane, random.choice(WORDS), random.choice(EDGES))
            case 1:
                tail = random.choice(EDGES)
                struct.pack_into("<Q", lane, TAIL_OFFSET, tail)
                struct.pack_into("<Q", lane, HEAD_OFFSET, (tail + random.randint(0, 70)) % 2**64)
            case 2:
                lane[random.randrange(4096)] ^= 1 << random.randrange(8)
            case 3:
                struct.pack_into("<Q", lane, random.randrange(512, len(lane) // 8) * 8, random.choice(EDGES))
            case _:
                lane[random.randrange(len(lane))] = random.randrange(256)
    return bytes(lane)


@pytest.mark.parametrize("seed", range(2))
def test_18_whatever_is_wrong_with_a_lane(lane_settings: Settings, seed: int) -> None:
    """Finding 8: a thousand mutations of header, words and slots each: a flight record, or SegmentRefused; nothing else
    comes out, and nobody is told of more records than could be.

    Defence: figures of a header are bounded.
    """
    with Producer([Sample], settings=lane_settings, lane_bytes={Sample: 16384}) as producer:
        appender = producer.appender(Sample)
        assert all(appender.append(number, text_of(number)) for number in range(40))
        (card,) = cards(producer.instance)
        sound = bytes(attach_segment(card.segment).memory)
    random = Random(seed)  # noqa: S311 (mutations that can be repeated)
    read = 0
    for _ in range(1_000):
        lane = mutated(sound, random)
        try:
            found = _of(LaneView("mutated", memoryview(lane)), None)
        except SegmentRefused:
            continue
        msgspec.json.encode(found)
        assert 0 <= found.waiting <= found.capacity
        read += 1
    assert 100 < read < 1_000


@pytest.mark.parametrize("tail", [2**30, 2**52, 2**62, 2**63 - 30, 2**63, 2**64 - 21])
def test_18_head_and_tail_that_fit_each_other_alone(lane_settings: Settings, tail: int) -> None:
    """Finding 8: a head and a tail that are close to each other, and that no slot speaks for, are refused by reader and
    onlooker: an audit must not count what was never there.

    Defence: a head is one that a slot speaks for.
    """
    with Producer([Sample], settings=lane_settings) as producer:
        assert producer.appender(Sample).append(1, text_of(1))
        (card,) = cards(producer.instance)
        segment = attach_segment(card.segment)
        store(segment.memory, TAIL_OFFSET, tail)
        store(segment.memory, HEAD_OFFSET, tail + 20)
        for attempt in (lambda: LaneReader.attach(card), lambda: MappedLane(card.segment, card.lane)):
            with pytest.raises(SegmentRefused, match=f"segment {card.segment}: got head {tail + 20}"):
                attempt()
        snapshot = take(producer.instance, None)
        assert f"got head {tail + 20}" in snapshot.unreadable[card.lane]
        assert snapshot.balance() == {}
        store(segment.memory, TAIL_OFFSET, 0)
        store(segment.memory, HEAD_OFFSET, 1)
