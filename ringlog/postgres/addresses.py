"""Solana addresses: 32 bytes in base58, in Bitcoin's alphabet (no 0, O, I, l)."""

from __future__ import annotations

import functools

from ringlog.errors import PostgresValueError

ADDRESS_BYTES = 32
_DIGITS = {character: i for i, character in enumerate("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")}


@functools.lru_cache(4096)  # a platform asks for the same few mints over and over: 7 us each time
def decoded(text: str) -> bytes:
    """The bytes of a base58 text: each leading `1` is a zero byte, the rest one big-endian number.

    Raises ValueError for a character outside the alphabet.
    """
    number = 0
    for character in text:
        if character not in _DIGITS:
            raise ValueError(f"got {character!r}, which base58 does not have")
        number = number * 58 + _DIGITS[character]
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8)


def checked_address(what: str, text: object) -> str:
    """`text`, if it is base58 of 32 bytes; raises PostgresValueError naming `what`."""
    if not isinstance(text, str) or not 32 <= len(text) <= 44:
        raise PostgresValueError(f"{what}: got {text!r:.60}, wanted 32 to 44 base58 characters")
    try:
        length_bytes = len(decoded(text))
    except ValueError as error:
        raise PostgresValueError(f"{what}: got {text!r}, wanted base58: {error}") from None
    if length_bytes != ADDRESS_BYTES:
        raise PostgresValueError(f"{what}: got {text!r} of {length_bytes} bytes, wanted {ADDRESS_BYTES}")
    return text
