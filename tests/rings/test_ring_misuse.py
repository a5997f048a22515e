"""Calls of the C files that ringlog itself never makes: refused by name, and no memory touched."""

from __future__ import annotations

import pytest
from ring_memory import Everything, RingUnderTest, module

from ringlog.decode import Decoder
from ringlog.errors import RecordValueError
from ringlog.records import layout_of

LAYOUT = layout_of(Everything)


def test_a_count_that_wraps_around_is_refused() -> None:
    """So many slots that their bytes, as a 64-bit number, are those that are there: a ValueError, and nothing read."""
    ring = RingUnderTest(module("_ring"), capacity=8)
    with pytest.raises(ValueError, match="wanted"):
        ring.ring.append_many(b"", 1 << 62)
    decoder = Decoder(LAYOUT)._decoder
    with pytest.raises(ValueError, match="got"):
        decoder.decode(b"", 1 << 62, 0, (), 0)


def test_objects_whose_construction_failed_are_refused() -> None:
    """A ring, appender or decoder that was never made to its end raises TypeError; none of them touches any memory."""
    ring_module = module("_ring")
    unmade = ring_module.Ring.__new__(ring_module.Ring)
    memory = bytearray(8192)
    with pytest.raises(TypeError):
        unmade.attach(memory, memory, 4096, 8, (128, 256, 384, 512, 128))
    with pytest.raises(TypeError):
        ring_module.Appender(ring_module.Ring, unmade, {}, {})
    ring = RingUnderTest(ring_module)
    appender = ring_module.Appender.__new__(ring_module.Appender)
    with pytest.raises(RecordValueError):
        appender.__init__(ring_module.Ring, ring.ring, {"choice": "neither"}, ring.defaults)
    with pytest.raises(TypeError):
        appender.append()
    decode_module = module("_decode")
    decoder = decode_module.Decoder.__new__(decode_module.Decoder)
    with pytest.raises(TypeError):
        decoder.decode(b"", 0, 0, (), 0)
