"""Imports point down: the table of the design, kept by a test."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys

import pytest
from house_project import ROOT, imports_of, modules, parsed, python_files

# A module imports only from rows above its own, and from its own package. The rows of the design, cut finer where
# modules of one row build on each other.
ROWS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "environment", "naming", "text"}),
    frozenset({"settings", "records", "layout", "disk", "spans", "shielded_logger", "times"}),
    frozenset({"columns", "validation", "migration", "transport", "libpq"}),
    frozenset({"_ring_append"}),
    frozenset(
        {"pooling", "_ring", "_ring_python", "_decode", "_decode_python", "spool", "ledger", "dead_letters", "pressure"}
    ),
    frozenset({"ring"}),
    frozenset({"decode", "arrays"}),
    frozenset({"lanes", "sinks"}),
    frozenset({"questdb", "postgres", "redis"}),
    frozenset({"producer", "writer", "servers", "audit", "monitor"}),
    frozenset({"testing", "replay"}),  # testing is for users' tests: a producer, and a drain into memory
    frozenset({"ringlog"}),  # the package's front door
    frozenset({"demo"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
ROW_OF = {unit: row for row, units in enumerate(ROWS) for unit in units}


def unit_of(module: str) -> str:
    """The part of the package that a module belongs to: `ringlog.lanes.board` is of `lanes`."""
    return [*module.split("."), "ringlog"][1]


def test_every_module_has_a_row() -> None:
    """Each module and package has exactly one row of the table, so none escapes it."""
    assert {unit_of(name) for name in modules()} - set(ROW_OF) == set()
    assert sum(len(row) for row in ROWS) == len(ROW_OF)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module: str) -> None:
    """A module imports from its own package and from rows above only, in functions too."""
    known = modules()
    for imported in imports_of(known[module], frozenset(known)):
        own, other = unit_of(module), unit_of(imported)
        assert own == other or ROW_OF[other] < ROW_OF[own], f"{module} imports {imported}"


def test_no_import_cycles() -> None:
    """Module by module there is no cycle, not even through imports inside functions."""
    known = modules()
    graph = {name: imports_of(path, frozenset(known)) & set(known) - {name} for name, path in known.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the cycle


def test_no_dead_modules() -> None:
    """Each module is imported by another file, or named in a string by the code that loads it."""
    known = modules()
    used: set[str] = set()
    strings: set[str] = set()
    for path in python_files("ringlog", "tests", "bench"):
        used |= {name for name in imports_of(path, frozenset(known)) if known.get(name) != path}
        if path.is_relative_to(ROOT / "ringlog"):
            constants = (node.value for node in ast.walk(parsed(path)) if isinstance(node, ast.Constant))
            strings |= {text.split(":")[0] for text in constants if isinstance(text, str)}
    packages = {name.rpartition(".")[0] for name in used}
    dead = [
        name
        for name, path in known.items()
        if name not in used | packages | strings | {"ringlog", "ringlog.__main__"} and path.name not in strings
    ]
    assert dead == []


def test_front_door_loads_no_database_client() -> None:
    """`from ringlog import Producer` loads no database client, no frame library and no psutil."""
    heavy = ["questdb", "psycopg", "redis", "pandas", "pyarrow", "psutil", "alembic", "rich", "jgo"]
    code = f"import sys\nfrom ringlog import Producer\nprint([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
