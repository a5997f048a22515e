"""docs/api.md against the code."""

from __future__ import annotations

import importlib
import re

import pytest
from test_examples import ROOT

import ringlog
from ringlog.testing import MemoryInstance

PAGE = (ROOT / "docs" / "api.md").read_text()


@pytest.mark.parametrize("module", ["ringlog", "ringlog.records", "ringlog.postgres", "ringlog.redis"])
def test_every_public_name_is_on_the_page(module: str) -> None:
    """The module's section has its public names, all of them and no other, and each has a docstring."""
    section = PAGE.split(f"## `{module}`\n")[1].split("\n## ")[0]
    listed = {
        name for cell in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    imported = importlib.import_module(module)
    assert listed == set(imported.__all__)
    assert [name for name in listed if not name.isupper() and not getattr(imported, name).__doc__] == []


def test_the_methods_it_names_are_there() -> None:
    """What the page says a producer and an appender can do, they can."""
    for name in ("Producer", "Appender"):
        (line,) = re.findall(rf"^\| `{name}` \| (.*) \|$", PAGE, re.MULTILINE)
        for method in re.findall(r"`([a-z_]+)`", line):
            if not method.startswith("_"):
                found = getattr(ringlog, name)
                assert hasattr(found, method) or method in found.__annotations__, f"{name}.{method}"


def test_the_memory_instance_has_what_the_page_says() -> None:
    """The page names what a test calls of a MemoryInstance, all of it; `close` is the fixture's."""
    (line,) = re.findall(r"^\| `ringlog\.testing` \| (.*) \|$", PAGE, re.MULTILINE)
    _, _, methods = line.partition("`MemoryInstance` with ")
    public = {name for name in vars(MemoryInstance) if not name.startswith("_")}
    assert {*re.findall(r"`([a-z_]+)`", methods), "close"} == public
