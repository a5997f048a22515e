"""The examples of the README and the pages: what a reader copies must run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ringlog.lanes.instance import Instance
from ringlog.lanes.readers import LaneDirectory, remove_instance
from ringlog.layout import BoardReason, Refused
from ringlog.records import PLATFORM_RECORDS, defaults_of, layout_of
from ringlog.settings import Settings
from ringlog.writer.watches import REASONS

ROOT = Path(__file__).parents[2]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/records.md"])
def test_python_examples_run_as_they_stand(page: str, instance_dir: Path) -> None:
    """Every Python block of the page runs in a fresh process and instance, and its records wait in its lanes."""
    blocks = python_blocks(page)
    assert blocks
    environment = {**os.environ, "RINGLOG_RUNTIME_DIR": str(instance_dir)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks)], env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not recorded" not in done.stdout
    instance = Instance(Settings(runtime_dir=str(instance_dir)))
    directory = LaneDirectory(instance)
    directory.refresh()
    assert sum(lane.head for lane in directory.lanes.values()) == 2
    directory.close()
    remove_instance(instance)


def test_the_records_page_lists_every_field_of_the_built_in_types() -> None:
    """The page's table has each built-in record type with its table and its fields, in order."""
    page = (ROOT / "docs/records.md").read_text()
    for record in PLATFORM_RECORDS:
        layout = layout_of(record)
        fields = ", ".join(field.name for field in layout.fields[:-1])
        assert f"| `{record.__name__}` | `{layout.table}` | {fields} |" in page


def test_the_records_page_says_what_may_be_left_out() -> None:
    """The page names the fields that may be left out, all of them and no others; each of them may be None."""
    page = " ".join((ROOT / "docs/records.md").read_text().split())
    optional = {}
    for record in PLATFORM_RECORDS:
        names = [field.name for field in layout_of(record).fields if field.nullable]
        assert names == list(defaults_of(record))
        optional[record.__name__] = ", ".join(names)
    said = "; ".join(f"of `{name}` {names}" for name, names in optional.items() if names)
    assert f"May be left out, and are NULL then: {said}. Every other field is wanted." in page


def test_the_readme_lists_every_refusal() -> None:
    """README's table has each reason that `refused_reason` gives: the ring's own, and what the writer's board says."""
    table = (ROOT / "README.md").read_text().split("## When append returns False\n")[1].split("\n## ")[0]
    listed = {
        reason
        for cell in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
        for reason in re.findall(r"`([^`]+)`", cell)
    }
    board = {*REASONS.values(), BoardReason.SPOOL_FULL}
    own = {reason.name.lower() for reason in Refused if reason is not Refused.BOARD}
    assert listed == own | {f"board: {reason.name.lower()}" for reason in board}


def test_pages_link_only_to_what_is_there() -> None:
    """Every relative link of the README and the pages leads to a file of the repository."""
    broken = [
        f"{page.name}: {target}"
        for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
