"""The oracle itself: it passes what is right and catches every planted fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle import Oracle, ProducerLog, payload

Row = tuple[int, str, int, int]


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """What a table holds after 200 attempts, 199 of them accepted."""
    log = ProducerLog(tmp_path, 3)
    numbers: list[int] = []
    for block in log.blocks(200):
        taken = [number for number in block if number != log.first + 77]
        log.accepted(taken)
        numbers += taken
    return [(number, payload(number), 9, seq) for seq, number in enumerate(numbers)]


def test_what_is_right_holds(tmp_path: Path, rows: list[Row]) -> None:
    """All accepted rows once, with their payloads: the verdict holds, also with one that was only attempted."""
    assert Oracle(tmp_path).judge(rows).holds
    attempted = 3 * 10**12 + 77
    assert Oracle(tmp_path).judge([*rows, (attempted, payload(attempted), 9, 999)]).holds


def test_planted_faults_are_caught(tmp_path: Path, rows: list[Row]) -> None:
    """A lost, doubled, altered, invented row and a reused key are each named."""
    oracle = Oracle(tmp_path)
    number, text, lane, seq = rows[5]
    assert oracle.judge([*rows[:5], *rows[6:]]).lost == [number]
    assert oracle.judge([*rows, (number, text, lane, 5000)]).doubled == [number]
    assert oracle.judge([*rows, rows[5]]).doubled_keys == [(lane, seq)]
    assert oracle.judge([*rows[:5], (number, rows[6][1], lane, seq), *rows[6:]]).altered == [number]
    assert oracle.judge([*rows, (1, payload(1), lane, 5000)]).invented == [1]
    assert "lost=1" in str(oracle.judge(rows[1:]))


def test_a_torn_log_says_nothing(tmp_path: Path, rows: list[Row]) -> None:
    """The last line of a producer killed while it logged is not believed."""
    path = tmp_path / "3.log"
    before = len(Oracle(tmp_path).accepted)
    path.write_text(path.read_text() + "accepted 3000000000001 300")
    assert len(Oracle(tmp_path).accepted) == before
    assert rows
