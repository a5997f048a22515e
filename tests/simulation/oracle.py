"""The oracle of the simulation: every accepted record is in one place, as it was, and the ledger says which."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

from ringlog.ledger import Ledger, Term
from ringlog.sinks.memory import MemorySink, Row
from simulation.records import TABLES, TEXTS, Accepted, Key


class Violation(AssertionError):
    """A promise was broken."""


@dataclasses.dataclass
class Oracle:
    """What was accepted, and what happened to it that the writer cannot help."""

    accepted: dict[Key, Accepted] = dataclasses.field(default_factory=dict)
    destroyed: set[Key] = dataclasses.field(default_factory=set)  # their slots were overwritten
    may_be_lost: set[Key] = dataclasses.field(default_factory=set)
    may_be_unknown: set[Key] = dataclasses.field(default_factory=set)  # confirmed ones need not outlive the power
    cuts: dict[str, int] = dataclasses.field(default_factory=dict)  # as retention executed them

    def judge(self, table: MemorySink, spool: Path, ledger: Ledger | None) -> int:
        """How many records are stored. Raises Violation; without a ledger nothing is held against what it says."""
        stored = self._stored(table)
        letters = _letters(spool)
        given = {term: _keys(ledger, term) if ledger is not None else set() for term in Term}
        for key, record in self.accepted.items():
            if key in stored or key in letters or key in self.may_be_lost:
                continue
            if (
                record.is_old
                and record.record.__table__ in self.cuts
                and (ledger is None or key in given[Term.EXPIRED])
            ):
                continue
            if key in self.destroyed and (ledger is None or key in given[Term.QUARANTINED]):
                continue
            raise Violation(f"lost: {key} {record}")
        foreign = (stored | letters.keys()) - self.accepted.keys()
        if foreign:
            raise Violation(f"stored and never accepted: {sorted(foreign)[:5]}")
        wrong = {key for key in letters if not self.accepted[key].is_poison}
        if wrong:
            raise Violation(f"a dead letter that the server does not refuse: {sorted(wrong)[:5]}")
        for key, rows in letters.items():
            if not all(self.accepted[key].is_in(row) for row in rows):
                raise Violation(f"dead letter altered: {key} got {rows}, wanted {self.accepted[key]}")
        if ledger is not None:
            self._judge_ledger(ledger, given, stored, set(letters))
        return len(stored)

    def _stored(self, table: MemorySink) -> set[Key]:
        stored: set[Key] = set()
        for record in TEXTS:
            for row in table.rows(record):
                key = row["lane"], row["seq"]
                if key in stored:
                    raise Violation(f"stored twice: {key}")
                stored.add(key)
                known = self.accepted.get(key)
                if known is not None and not known.is_in(row):
                    raise Violation(f"altered: {key} got {row}, wanted {known}")
        return stored

    def _judge_ledger(self, ledger: Ledger, given: dict[Term, set[Key]], stored: set[Key], letters: set[Key]) -> None:
        """Every record has the term that it really has."""
        for table, balance in ledger.balance({}).items():
            if not balance.is_balanced:
                raise Violation(f"ledger of {table} does not balance: {balance}")
        old = {key for key, known in self.accepted.items() if known.is_old and known.record.__table__ in self.cuts}
        # A record that arrived, unconfirmed, before its writer died may be found expired or destroyed by the next one.
        passed = given[Term.EXPIRED] | given[Term.QUARANTINED]
        for term, at_most, at_least in (
            (Term.CONFIRMED, stored, stored - passed),
            (Term.DEAD_LETTERS, letters, letters - passed),
            (Term.EXPIRED, old, set()),
            # A frame that was written and not fsynced is believed by the next writer, and gone once the power is.
            (Term.QUARANTINED, self.destroyed | self.may_be_lost, set()),
        ):
            wrong = (given[term] - at_most) | (at_least - given[term] - self.may_be_unknown)
            if wrong:
                raise Violation(f"ledger: got {term} {sorted(wrong)[:5]} otherwise than they are")


def _keys(ledger: Ledger, term: Term) -> set[Key]:
    spans = [span for table in TABLES for span in ledger.spans(term, table)]
    return {(span.lane, seq) for span in spans for seq in range(span.first_seq, span.first_seq + span.rows)}


def _letters(spool: Path) -> dict[Key, list[Row]]:
    letters: dict[Key, list[Row]] = {}
    for path in (spool / "dead_letters").glob("*.ndjson"):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # one that was being written when its process died
                letter = json.loads(line)
                if "seq" in letter:
                    letters.setdefault((letter["lane"], letter["seq"]), []).append(letter["record"])
    return letters
