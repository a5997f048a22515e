"""The session's report for a person: what it says of where its market is from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringlog.demo.analysis import Findings, Protection
from ringlog.demo.page import page
from ringlog.demo.report import SessionReport


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("generated random walk (seed 7)", "generated random walk (seed 7)"),
        ("recording <b>.gz", "recording &lt;b&gt;.gz"),
    ],
)
def test_the_report_names_its_market(source: str, shown: str) -> None:
    """Lines, sub title and note say whose prices these are: a generated market is never taken for a real one."""
    session = SessionReport(
        market="SOL/USDC", source=source, seconds=1.0, trades=0, records={}, traders=[], limits={}, rules={}, nodes={},
        simulated=0, missed=0,
    )  # fmt: skip
    nothing: dict[str, NDArray[Any]] = {"quote_amount": np.empty(0)}
    found = Findings(
        latency=nothing, protection=nothing, prices=nothing, profits=nothing, operations=nothing, throughput=nothing,
        rank_correlation=0.0, slippage_ratio=1.0, protected=Protection(), unprotected=Protection(),
    )  # fmt: skip
    assert f"  market: {source}" in session.lines()
    text = page(found, session, {})
    assert f'<p class="sub">{shown}; ' in text
    assert f"are those of the {shown}. " in text
    assert "market's own" not in text
