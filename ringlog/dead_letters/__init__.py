"""Dead letters: records that the server refuses, kept readable with the reason, and sent again on request."""

from ringlog.dead_letters.letter import DeadLetter
from ringlog.dead_letters.store import DeadLetters, Refused

__all__ = ["DeadLetter", "DeadLetters", "Refused"]
