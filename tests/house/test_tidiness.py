"""The house rules that a machine can hold."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from house_project import ROOT, files, parsed, python_files

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 69
# Written in pieces, so that this file does not hold what it looks for.
MARKS = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|HA" r"CK)\b")
PLACES = re.compile(
    r"/(wo"
    r"rk|ro"
    r"ot|ho"
    r"me/\w+|Us"
    r"ers/\w+)/"
    r"|pyp"
    r"i\.org|pythonho"
    r"sted|maven\.ap"
    r"ache\.org|repo1\.ma"
    r"ven|npm"
    r"js\.(org|com)"
)
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "core"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_are_short() -> None:
    """No source file is longer than 500 lines."""
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in files() if path.suffix in {".py", ".sql"}}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    """No function has 70 lines or more."""
    long = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in python_files()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_every_test_states_its_claim() -> None:
    """Every test has a docstring: the claim it proves."""
    silent = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in python_files("tests", "bench")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def sleeps_outside_loops(path: Path) -> list[str]:
    tree = parsed(path)
    polls = {id(node) for loop in ast.walk(tree) if isinstance(loop, ast.While) for node in ast.walk(loop)}
    return [
        f"{name_of(path)}:{node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"time.sleep", "sleep", "asyncio.sleep"}
        and id(node) not in polls
        and ast.unparse(node) != "asyncio.sleep(0)"  # lets other tasks run; waits for nothing
    ]


def test_tests_wait_for_conditions() -> None:
    """Tests wait for conditions, never for time: a sleep stands only between two looks, in a while loop."""
    assert [place for path in python_files("tests") for place in sleeps_outside_loops(path)] == []


@pytest.mark.parametrize(("what", "pattern"), [("unfinished work", MARKS), ("a machine's path or a registry", PLACES)])
def test_no_file_names(what: str, pattern: re.Pattern[str]) -> None:
    """No file marks unfinished work, or names paths of a machine or hosts of package registries."""
    found = [
        f"{name_of(path)}:{number} {line.strip()}"
        for path in files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == [], what


def test_module_names_are_nouns() -> None:
    """No module is called by a word that says nothing."""
    assert [
        name_of(path) for path in python_files("ringlog") if VAGUE & {path.stem, *path.relative_to(ROOT).parts}
    ] == []


def test_commands_print_through_one_module() -> None:
    """Finding 22: data reaches a terminal through ringlog.cli.output alone, which shows control characters escaped."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((ROOT / "ringlog" / "cli").glob("*.py"))
        for line in path.read_text().splitlines()
        if path.name != "output.py" and re.search(r"click\.s?echo\(|(?<![.\w])print\(", line)
    ]
    assert found == [], "use say, say_json or say_exactly of ringlog.cli.output"
