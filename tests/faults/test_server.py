"""Faults of the server and of the way to it, by their number in the fault table: nothing lost, doubled or altered."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from lane_samples import Child, Sample, eventually
from tcp_proxy import (
    Fault,
    TcpProxy,
    answering,
    blackhole,
    endless,
    lost_reply,
    passed,
    proxied,
    reset_in_the_middle,
    slow,
)
from whole_path import TABLE, WholePath
from writer_thread import writing

from ringlog import Producer
from ringlog.audit import Kind
from ringlog.questdb.sink import QuestdbSink
from ringlog.questdb.tables import create_table
from ringlog.records import LatencySample, layout_of
from ringlog.settings import Secret
from ringlog.writer import delivery

OTHER = layout_of(LatencySample).table


@pytest.fixture
def proxy(path: WholePath) -> Iterator[TcpProxy]:
    """A proxy before the server's HTTP port, which the path's settings lead to from now on.

    A request that fails is what brings records into the spool here, not rows that a busy server is slow to apply.
    """
    with proxied(path.settings.questdb_http_port) as proxy:
        path.with_settings(questdb_http_port=proxy.port, request_timeout_ms=300, confirm_timeout_ms=60_000)
        yield proxy


def survive(path: WholePath, proxy: TcpProxy, fault: Fault) -> None:
    """Records before, during and after a fault of the way to the server: all arrive, once, unaltered."""
    with writing(path.settings) as writer, path.producing() as append:
        append(100)
        eventually(lambda: path.stored() == 100, "the first records")
        proxy.inject(fault)
        append(200)
        eventually(lambda: proxy.hits >= 2, "the fault to strike twice")
        append(200)
        eventually(lambda: writer._refuge.spooled_rows >= 100, "records to be spooled")
        proxy.inject(passed)
        append(100)
        eventually(lambda: path.stored() == 600, "everything")
    with writing(path.settings):
        path.require_exact()


def test_29_slow_answers(path: WholePath, proxy: TcpProxy) -> None:
    """Answers slower than the timeout: the writer does not stall, records go to the spool, copies are folded.

    Defence: the request's time limit.
    """
    survive(path, proxy, slow(10.0))  # so much, lest a pause of the client let it find the answer after all


def test_30_reset_in_the_middle_of_a_request(path: WholePath, proxy: TcpProxy) -> None:
    """RST while a request is on its way: it is sent again, and nothing is there twice.

    Defence: a request that failed is given back, and sent again.
    """
    survive(path, proxy, reset_in_the_middle)


def test_31_answers_lost_after_the_commit(path: WholePath, proxy: TcpProxy) -> None:
    """Rows that were stored although the answer was lost are sent again, and folded.

    Defence: DEDUP by (timestamp, lane, seq) (a writer that numbers a record anew has it stored twice here).
    """
    survive(path, proxy, lost_reply)


def test_32_half_open_connections(path: WholePath, proxy: TcpProxy) -> None:
    """A way that takes everything and answers nothing costs a timeout; records go to the spool.

    Defence: a request that failed is given back, and sent again.
    """
    survive(path, proxy, blackhole)


GARBAGE = {
    "garbage": answering(b"\x00\xff\x16garbage\r\n\r\n" * 10),
    "cut": answering(b"HTTP/1.1 204 No Con"),
    "huge": answering(b"HTTP/1.1 500 Internal Error\r\nContent-Length: 8388608\r\n\r\n", b"x" * 8_388_608),
}


@pytest.mark.parametrize("answer", GARBAGE)
def test_33_garbage_for_an_answer(path: WholePath, proxy: TcpProxy, answer: str) -> None:
    """Answers that are no HTTP, cut short or of megabytes are no verdict on the rows: they are sent again.

    Defence: a request that failed is given back, and sent again.
    """
    survive(path, proxy, GARBAGE[answer])


def test_33_an_answer_without_an_end(path: WholePath, proxy: TcpProxy) -> None:
    """A request that never returns ends the writer with a named error, and the next one delivers everything.

    Defence: the limit of a request's whole time (without it the writer hangs here). The client's own limit is put
    far away: while such an answer trickles in, it ends some calls and not others.
    """
    path.with_settings(request_timeout_ms=60_000)
    script = (
        "from ringlog.writer import delivery; delivery.SEND_SECONDS_MAX, delivery.SEND_WAITS_MAX = 1.0, 0\n"
        "from ringlog.cli import main; main(['writer'])"
    )
    with path.producing() as append:
        append(100)
        proxy.inject(endless)
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**Child.environment(path.settings), **path.settings.to_environment()},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 1
        assert "ringlog: got a request that has not returned for 1 s, wanted an answer" in done.stderr
        proxy.inject(passed)
    with writing(path.settings):
        path.require_exact()


def status(line: str, body: str = "") -> Fault:
    return answering(f"HTTP/1.1 {line}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


@pytest.mark.parametrize("line", ["500 Internal Server Error", "503 Service Unavailable", "429 Too Many Requests"])
def test_34_server_errors(path: WholePath, proxy: TcpProxy, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """5xx and 429 are tried again, each time after a longer pause with jitter, and blame no row.

    Defence: the backoff (without it every pause is asked for with the same bounds here).
    """
    asked: list[tuple[float, float]] = []
    uniform = delivery.random.uniform

    def noted(low: float, high: float) -> float:
        asked.append((low, high))
        return uniform(low, high)

    monkeypatch.setattr(delivery.random, "uniform", noted)
    monkeypatch.setattr(delivery, "BACKOFF_SECONDS_MIN", 0.01)
    pauses: list[float] = []
    fail = delivery.Delivery._fail

    def failing(self: delivery.Delivery, table: str, error: Exception) -> None:
        fail(self, table, error)
        pauses.append(self._backoffs[table].failures)

    monkeypatch.setattr(delivery.Delivery, "_fail", failing)
    survive(path, proxy, status(line, "busy"))
    assert (0.5, 1.0) in asked
    assert max(pauses) >= 2


def test_36_wrong_password(path: WholePath, caplog: pytest.LogCaptureFixture) -> None:
    """With a wrong password records are spooled and the log says so without it; with the right one they arrive.

    Defence: a refusal of the user is no verdict on the rows.
    """
    good, canary = path.settings, "canary-5a6b7c"
    wrong = msgspec.structs.replace(good, questdb_password=Secret(canary))
    with caplog.at_level(logging.DEBUG), writing(wrong) as writer, path.producing() as append:
        append(100)
        eventually(lambda: writer._refuge.spooled_rows == 100, "records to be spooled")
        # The first try may have failed otherwise: a busy server takes seconds to connect.
        said = r"write failed table=samples .*refused user"
        eventually(lambda: re.search(said, caplog.text), "the log to say so")
    assert canary not in caplog.text
    assert good.questdb_password.reveal() not in caplog.text
    with writing(good):
        path.require_exact()


@pytest.mark.slow  # two starts of a server
def test_37_read_only_server(path: WholePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is read-only (it answers 421) is no verdict on the rows: they are spooled until it takes writes.

    Defence: a request that failed is given back, and sent again.
    """
    path.server.kill()
    with monkeypatch.context() as patch:
        patch.setenv("QDB_READONLY", "true")
        path.server.start()
    try:
        with writing(path.settings) as writer, path.producing() as append:
            append(100)
            eventually(lambda: writer._refuge.spooled_rows == 100, "records to be spooled")
            assert writer._refuge.dead_letters == 0
    finally:
        path.server.kill()
        path.server.start()
    with writing(path.settings):
        path.require_exact()


def other_table(path: WholePath) -> int:
    """Makes the other table where it is missing; how many rows it has."""
    path.query(create_table(layout_of(LatencySample)))
    return int(path.query(f"select count() from {OTHER}")[0][0])


def hold_up_one_table(path: WholePath, caplog: pytest.LogCaptureFixture, break_: str, mend: str, says: str) -> None:
    """One table is broken and mended by SQL: its records are spooled, the log names it, another table goes on."""
    before = other_table(path)
    with (
        caplog.at_level(logging.WARNING),
        writing(path.settings) as writer,
        Producer([LatencySample], settings=path.settings) as producer,
        path.producing() as append,
    ):
        path.query(break_)
        append(100)
        eventually(lambda: writer._refuge.spooled_rows >= 100, "records to be spooled")
        latency = producer.appender(LatencySample).append
        assert all(latency("s", "o", float(number)) for number in range(100))
        count = f"select count() from {OTHER}"
        eventually(lambda: path.query(count)[0][0] == before + 100, "the other table's rows")
        eventually(lambda: says in caplog.text, "the log to name it")  # a first try may have failed otherwise
        assert writer._refuge.dead_letters == 0
        path.query(mend)
        append(100)
        eventually(lambda: path.stored() == 200, "everything")
    with writing(path.settings):
        path.require_exact()


def test_39_column_type_changed(path: WholePath, caplog: pytest.LogCaptureFixture) -> None:
    """A column of another type stops its table alone, by name; no row is blamed, and all arrive once it is mended.

    Defence: a refusal is held against the schema first (without it every row is a dead letter here).
    """
    alter = f"alter table {TABLE} alter column number type"
    hold_up_one_table(path, caplog, f"{alter} boolean", f"{alter} long", f"{TABLE}.number: got BOOLEAN, wanted LONG")


def test_40_dedup_disabled(path: WholePath, caplog: pytest.LogCaptureFixture) -> None:
    """A table without DEDUP is found before a row in it counts as safe, and is written again once it has it.

    Defence: the check of the keys (without it copies stay, and the audit names them).
    """
    keys = f"alter table {TABLE} dedup enable upsert keys(timestamp, lane, seq)"
    hold_up_one_table(path, caplog, f"alter table {TABLE} dedup disable", keys, "DEDUP UPSERT KEYS")


def test_40_table_dropped(path: WholePath, caplog: pytest.LogCaptureFixture) -> None:
    """Without its table records are spooled, and arrive in the one that is made again.

    Defence: a request that failed is given back, and sent again.
    """
    create = create_table(layout_of(Sample))
    hold_up_one_table(path, caplog, f"drop table {TABLE}", create, f"{TABLE}: got no such table")


def test_41_suspended_before_a_schema_change(path: WholePath) -> None:
    """A table that is suspended with a new column still to be applied is resumed, though nothing can be sent to it.

    Defence: a table that cannot be checked because it is suspended is resumed.
    """
    path.query(f"alter table {TABLE} suspend wal")
    path.query(f"alter table {TABLE} add column later int")
    with writing(path.settings):
        with path.producing() as append:
            append(100)
            eventually(lambda: path.stored() == 100, "everything")
        path.require_exact()


def test_41_table_suspended(path: WholePath, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is acknowledged but not applied in time goes to the spool; others go on; the table is resumed by itself.

    No transaction is skipped. Defence: only applied rows count (with the acknowledgement alone, a tail moves here).
    """
    before = other_table(path)
    path.with_settings(confirm_timeout_ms=300)
    resume = QuestdbSink._resume
    with (
        writing(path.settings) as writer,
        Producer([LatencySample], settings=path.settings) as producer,
        path.producing() as append,
    ):
        append(100)
        eventually(lambda: path.stored() == 100, "the first records")
        with monkeypatch.context() as patch:  # whatever suspended it is still so: resuming is of no use yet
            patch.setattr(QuestdbSink, "_resume", lambda *_: None)
            path.query(f"alter table {TABLE} suspend wal")
            append(100)
            eventually(lambda: writer._refuge.spooled_rows >= 100, "records to be spooled")
            report = path.proof()
            assert report.is_exact, report
            assert report.tables[TABLE].stored == 100
            latency = producer.appender(LatencySample).append
            assert all(latency("s", "o", float(number)) for number in range(100))
            count = f"select count() from {OTHER}"
            eventually(lambda: path.query(count)[0][0] == before + 100, "the other table's rows")
        assert QuestdbSink._resume is resume
        eventually(lambda: path.stored() == 200, "everything")
    assert "table is suspended, resuming" in caplog.text
    with writing(path.settings):
        path.require_exact()


@pytest.mark.slow
def test_43_server_restored_from_an_old_copy(path: WholePath, tmp_path: Path) -> None:
    """A server that lost days does not go unnoticed: the audit names exactly what is gone, and new records arrive.

    Confirmed is the last word: what the server had confirmed is not sent again (docs/operations.md says what to do).
    Defence: the audit looks for what was confirmed.
    """
    with writing(path.settings), path.producing() as append:
        append(100)
        eventually(lambda: path.proof().tables[TABLE].confirmed == 100, "the first records")
        path.server.kill()
        copy = tmp_path / "copy"
        shutil.copytree(path.server.data_dir, copy)
        path.server.start()
        append(100)
        eventually(lambda: path.proof().tables[TABLE].confirmed == 200, "more records")
        path.server.kill()
        shutil.rmtree(path.server.data_dir)
        shutil.move(copy, path.server.data_dir)
        path.server.start()
        append(100)
        eventually(lambda: path.proof().tables[TABLE].confirmed == 300, "records after the restoration")
        (difference,) = path.proof().differences
        lane = append.appender.lane
    assert (difference.kind, difference.lane) == (Kind.LOST, f"{lane:016x}")
    assert (difference.first_seq, difference.last_seq) == (100, 199)
