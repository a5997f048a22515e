"""Pages of a Parquet file: how large each is once unpacked, read from its header before anything is unpacked.

A page of a few hundred bytes may unpack to gigabytes, and one value may be as large as its page. The headers are Thrift
structs in the compact protocol; the fields read here are those of PageHeader in parquet-format's parquet.thrift.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

WINDOW_BYTES = 1 << 12
HEADER_BYTES_MAX = 1 << 24  # statistics repeat a page's smallest and largest value
_DEPTH_MAX = 16
_TYPE, _UNPACKED_BYTES, _PACKED_BYTES = 1, 2, 3
_DATA_HEADERS, _VALUES = (5, 8), 1
_DICTIONARY_PAGE = 2


class Page(NamedTuple):
    """One page, as its header says."""

    unpacked_bytes: int
    values: int
    is_dictionary: bool


class Damaged(Exception):
    """Bytes that are no page header."""


def pages(file: IO[bytes], start: int, size_bytes: int) -> Iterator[Page]:
    """The pages of a column chunk that lies at `start`. Raises Damaged."""
    place, end = start, start + size_bytes
    while place < end:
        fields, header_bytes = _header(file, place, end)
        packed_bytes, unpacked_bytes = fields.get(_PACKED_BYTES), fields.get(_UNPACKED_BYTES)
        if (
            not isinstance(packed_bytes, int)
            or not isinstance(unpacked_bytes, int)
            or min(packed_bytes, unpacked_bytes) < 0
        ):
            raise Damaged(f"no page header at byte {place}")
        data: dict[int, Any] = next((fields[name] for name in _DATA_HEADERS if isinstance(fields.get(name), dict)), {})
        yield Page(unpacked_bytes, data.get(_VALUES, 0), fields.get(_TYPE) == _DICTIONARY_PAGE)
        place += header_bytes + packed_bytes


def _header(file: IO[bytes], place: int, end: int) -> tuple[dict[int, Any], int]:
    """The fields of a header by number, and its length."""
    window = WINDOW_BYTES
    while True:
        file.seek(place)
        data = file.read(min(window, end - place))
        reader = _Compact(data)
        try:
            return reader.struct(), reader.place
        except IndexError:
            if len(data) < window or window >= HEADER_BYTES_MAX:
                raise Damaged(f"no page header at byte {place}") from None
            window *= 16


class _Compact:
    """Thrift's compact protocol, as far as page headers need it: integers and structs; the rest is passed over."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        found: dict[int, Any] = {}
        number = 0
        if depth > _DEPTH_MAX:
            raise Damaged("a page header of too many levels")
        while kind := self._byte():
            step = kind >> 4
            number = number + step if step else self._integer()
            found[number] = self._value(kind & 0x0F, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        match kind:
            case 1 | 2:  # booleans lie in the field's own byte
                return kind == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._integer()
            case 7:
                return self._pass(8)
            case 8:
                return self._pass(self._unsigned())
            case 9 | 10:
                return self._list(depth)
            case 12:
                return self.struct(depth + 1)
        raise Damaged("a page header with a field of no known type")

    def _list(self, depth: int) -> None:
        head = self._byte()
        count = head >> 4 if head >> 4 != 15 else self._unsigned()
        for _ in range(count):
            if head & 0x0F in (1, 2):
                self._byte()
            else:
                self._value(head & 0x0F, depth + 1)

    def _byte(self) -> int:
        self.place += 1
        return self._data[self.place - 1]

    def _unsigned(self) -> int:
        found = shift = 0
        while (byte := self._byte()) & 0x80:
            found |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise Damaged("a page header with a number of more than 64 bits")
        return found | byte << shift

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _pass(self, size_bytes: int) -> None:
        self.place += size_bytes
        if self.place > len(self._data):
            raise IndexError
