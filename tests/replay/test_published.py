"""The files that exchanges, vendors and programs publish come in with options alone, row for row."""

from __future__ import annotations

import collections
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from lane_samples import eventually
from published_files import PUBLISHED

from ringlog.cli import ringlog
from ringlog.cli.migrate import record_named
from ringlog.demo.writer_process import running_writer
from ringlog.questdb.connection import Connection
from ringlog.questdb.migrations import migrate
from ringlog.records import layout_of
from ringlog.replay.presets import PRESETS
from ringlog.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs/replay.md").read_text()


@pytest.fixture
def market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The record type of the page, as MODULE:CLASS."""
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "market_of_the_page.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    return "market_of_the_page:MarketTrade"


def test_every_published_file_comes_in(
    market: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 37: of each file all rows are accepted and stored; times are exact to the microsecond, prices and
    quantities the doubles next to what was written, and their sums those of the decimals."""
    settings = msgspec.structs.replace(settings, retention_days=0, lane_linger_ms=50)
    for name, text in settings.to_environment().items():
        monkeypatch.setenv(name, text)
    layout = layout_of(record_named(market))
    migrate(settings, [layout])
    with (
        contextlib.closing(Connection.from_settings(settings)) as connection,
        running_writer(settings, tmp_path / "writer.txt"),
    ):
        connection.execute("truncate table market_trades")
        for venue, file in PUBLISHED.items():
            path = tmp_path / venue / file.name
            path.parent.mkdir()
            file.write(path, file.rows)
            arguments = ["replay", str(path), "--record", market, "--json", *file.options, "--set", f"venue={venue}"]
            result = CliRunner().invoke(ringlog, arguments, standalone_mode=False)
            assert result.exception is None, (venue, result.exception)
            outcome = json.loads(result.output)
            rejects = Path(f"{path}.rejects.ndjson")
            shown = rejects.read_text()[:500] if rejects.exists() else ""
            assert (result.return_value, outcome["accepted"]) == (0, len(file.rows)), (venue, shown)
        total = sum(len(file.rows) for file in PUBLISHED.values())
        eventually(lambda: connection.execute("select count() from market_trades")[0][0] >= total, "every row")
        stored: dict[str, list[Any]] = collections.defaultdict(list)
        for row in connection.execute("select venue, cast(timestamp as long), price, quantity from market_trades"):
            stored[row[0]].append(tuple(row[1:]))
        sums = {row[0]: row[1:] for row in connection.execute(
            "select venue, count(), ksum(price), ksum(quantity) from market_trades group by venue"
        )}  # fmt: skip
    for venue, file in PUBLISHED.items():
        wanted = [(row.us, float(row.price), float(row.quantity)) for row in file.rows]
        assert sorted(stored[venue]) == sorted(wanted), venue
        count, price, quantity = sums[venue]
        assert count == len(file.rows)
        assert price == pytest.approx(float(sum(row.price for row in file.rows)), rel=1e-14)
        assert quantity == pytest.approx(float(sum(row.quantity for row in file.rows)), rel=1e-14)


def test_every_preset_is_shown_and_tried() -> None:
    """Each preset is in the page's table, and a published file of the tests needs it."""
    tried = {file.options[file.options.index("--preset") + 1] for file in PUBLISHED.values()}
    shown = set(re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\|(`[^|]*)\|", PAGE, re.MULTILINE))))
    assert shown == set(PRESETS)
    assert tried == set(PRESETS) - {"binance-futures-aggtrades"}  # columns as for the spot files
