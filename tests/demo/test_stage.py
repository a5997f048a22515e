"""What the demo says of a stage while it runs: each number of this stage, and true of the moment that it is of."""

from __future__ import annotations

from pathlib import Path

from lane_samples import eventually
from writer_thread import writing

from ringlog import Producer
from ringlog.demo.appends import Durations, TimedAppends
from ringlog.demo.heads import Heads
from ringlog.demo.monitor import Throughput
from ringlog.demo.paper_session import TABLES
from ringlog.demo.probe import Probe
from ringlog.demo.stage import Watched
from ringlog.demo.view import View
from ringlog.lanes.claims import cards, open_board
from ringlog.lanes.instance import Instance
from ringlog.layout import BoardReason
from ringlog.questdb.migrations import migrate
from ringlog.records import PLATFORM_RECORDS, Position, Trade, layout_of
from ringlog.settings import Settings

TRADE = ("t1", "paper", "buy", "SOL", "USDC", 2.0, 300.5, 150.25, 5000, None, 0.001, 0.0008, "protected", True)
POSITION = ("t1", "paper", "SOL", 2.0, 150.25, 151.0, 0.0, 1.5)


def test_the_live_row_is_of_this_stage_alone(settings: Settings, tmp_path: Path) -> None:
    """Appended, stored and lag count the records of every table of this stage, and none of the stage before, whose rows
    are in the same tables; stored is what is in QuestDB, lag what is not yet."""
    migrate(settings, [layout_of(record) for record in PLATFORM_RECORDS])
    with Producer([Trade], settings=settings) as load:
        for _ in range(5):
            assert load.appender(Trade).append(*TRADE)
        before = {"trades": load.appender(Trade).accepted_by_lane()}
    instance = Instance(settings)
    with Producer([Trade, Position], settings=settings) as producer:
        trades = TimedAppends(Durations(str(tmp_path), 0, create=True))
        for _ in range(7):
            assert trades.append(producer.appender(Trade), producer.appender(Trade).append, *TRADE)
        for _ in range(3):
            assert producer.appender(Position).append(*POSITION)
        watched = Watched(Probe(settings, TABLES), instance, tmp_path, 1, View(quiet=True), before)
        watched.attach()
        with watched.probing():
            eventually(lambda: watched.probe.wait(1.0), "an answer")
            row = watched.figures()
            assert {name: row[name] for name in ("appended", "stored", "lag", "refused")} == {
                "appended": 10, "stored": 0, "lag": 10, "refused": 0,
            }  # fmt: skip
            assert 0 < row["append p50 ns"] <= row["append p99 ns"]
            with writing(settings):
                eventually(lambda: watched.figures()["lag"] == 0, "everything to be stored")
            eventually(lambda: sum(watched.probe.stored().values()) >= 15, "the stage before")
            board = open_board(instance)
            board.refuse(BoardReason.SPOOL_FULL)
            assert not producer.appender(Trade).append(*TRADE)
            row = watched.figures()
        assert {name: row[name] for name in ("appended", "stored", "lag", "refused")} == {
            "appended": 10, "stored": 10, "lag": 0, "refused": 1,
        }  # fmt: skip


def test_throughput_leaves_out_what_was_before(lane_settings: Settings) -> None:
    """The performance monitor's records/s begin with its first look: lanes of an earlier stage that are still there add
    nothing, and each record and refusal counts in one look."""
    instance = Instance(lane_settings)
    sizes = {Trade: 1 << 16, Position: 1 << 14}
    with Producer([Trade], settings=lane_settings, lane_bytes=sizes) as load:
        for _ in range(5):
            assert load.appender(Trade).append(*TRADE)
    with Producer([Trade, Position], settings=lane_settings, lane_bytes=sizes) as producer:
        assert len(cards(instance)) == 3
        throughput = Throughput(instance)
        assert throughput.look()[1] == {"trades": (0, 0), "positions": (0, 0)}
        for _ in range(4):
            assert producer.appender(Trade).append(*TRADE)
        assert producer.appender(Position).append(*POSITION)
        seconds, found = throughput.look()
        assert seconds > 0
        assert found == {"trades": (4, 0), "positions": (1, 0)}
        open_board(instance).refuse(BoardReason.DISK_FULL)
        assert not producer.appender(Trade).append(*TRADE)
        assert throughput.look()[1] == {"trades": (0, 1), "positions": (0, 0)}
        throughput.close()


def test_heads_of_other_lanes_are_not_counted(lane_settings: Settings) -> None:
    """A lane that is said to be another stage's is neither counted nor held; one that has gone since still counts."""
    instance = Instance(lane_settings)
    sizes = {Trade: 1 << 16}
    with Producer([Trade], settings=lane_settings, lane_bytes=sizes) as one:
        with Producer([Trade], settings=lane_settings, lane_bytes=sizes) as other:
            for appender in (one.appender(Trade), other.appender(Trade), other.appender(Trade)):
                assert appender.append(*TRADE)
            lane = other.appender(Trade).lane
            assert lane is not None
            heads = Heads(instance, {lane})
            assert heads.read() == (1, 0)
            assert lane not in heads
            assert one.appender(Trade).lane in heads
        card = instance.card_path(one.appender(Trade).lane or 0)
        card.rename(away := card.with_suffix(".away"))
        assert heads.read() == (1, 0)
        away.rename(card)
        heads.close()
