"""Text that others wrote, for a terminal or a log: what would move the cursor or hide is shown escaped."""

from __future__ import annotations

import json
import logging
import shlex
import unicodedata
from types import TracebackType

# Control characters (ESC, BEL, CR, LF, C1 ...), formats (bidirectional overrides, zero-width characters, tags), lone
# surrogates, and the separators of lines and paragraphs.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def shown(text: object) -> str:
    r"""`text` on one line that says what it holds: ESC as `\x1b`, a line break as `\n`, U+202E as `\u202e`."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _HIDDEN else character
        for character in text
    )


def shown_json(text: str) -> str:
    r"""JSON of the same value, with `\u` for what a terminal would act on and JSON leaves as it is."""
    if text.isprintable():
        return text
    return "".join(
        json.dumps(character)[1:-1] if character >= "\x7f" and unicodedata.category(character) in _HIDDEN else character
        for character in text
    )


def quoted(word: object) -> str:
    r"""One word of a shell's command, to be copied from a terminal: `$'...'` where it holds what `shown` escapes."""
    text = str(word)
    return shlex.quote(text) if shown(text) == text else "$'" + "".join(map(_in_quotes, text)) + "'"


def _in_quotes(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name that is no UTF-8, as Python holds it
        return f"\\x{code - 0xDC00:02x}"
    if 0x80 <= code <= 0xFF and shown(character) != character:  # in a shell, \x would be a byte
        return f"\\u{code:04x}"
    return f"\\{character}" if character in "\\'" else shown(character)


class LineFormatter(logging.Formatter):
    """A record is one line, whatever stands in its message; a traceback's lines follow it, indented as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return shown(super().formatMessage(record))

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return "\n".join(map(shown, super().formatException(ei).split("\n")))
