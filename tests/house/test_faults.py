"""Every row of the fault table has a test of its number, or a reason in words why it has none."""

from __future__ import annotations

import ast
import re
import tomllib

from house_project import ROOT, parsed, python_files

README = ROOT / "tests/faults/README.md"
ROWS = 70
_TEST = re.compile(r"^(?:async )?def (test_(\d\d)_\w+)\(", re.MULTILINE)
NUMBERED = re.compile(r"test_\d\d_")
_ROW = re.compile(r"^\|\s*(\d+)\s*\|([^|]*)\|([^|]*)\|$", re.MULTILINE)


def files_by_row() -> dict[int, str]:
    """For each row the files that have tests of its number, with how many."""
    found: dict[int, dict[str, int]] = {}
    for path in python_files("tests"):
        for match in _TEST.finditer(path.read_text()):
            files = found.setdefault(int(match[2]), {})
            name = str(path.relative_to(ROOT / "tests"))
            files[name] = files.get(name, 0) + 1
    return {
        row: ", ".join(f"`{name}`" + (f" ({count})" if count > 1 else "") for name, count in sorted(files.items()))
        for row, files in found.items()
    }


def documented() -> dict[int, tuple[str, str]]:
    return {int(row): (fault.strip(), tests.strip()) for row, fault, tests in _ROW.findall(README.read_text())}


def test_every_fault_has_a_test_or_a_reason() -> None:
    """Rows 1 to 70 are all in the table; where a row has tests it names their files, else it gives a reason."""
    table, tests = documented(), files_by_row()
    assert list(table) == list(range(1, ROWS + 1))
    assert set(tests) <= set(table)
    for row, (_, named) in table.items():
        if row in tests:
            assert named == tests[row], f"row {row}: run `python tests/house/test_faults.py`"
        else:
            assert len(named.split()) >= 5, f"row {row} has neither a test nor a reason in words"


def test_every_fault_was_seen_without_its_defence() -> None:
    """Each test of a fault says its defence: one that `defences.toml` takes away, or why there is none to be taken."""
    defences = tomllib.loads((ROOT / "tests/faults/defences.toml").read_text())["defence"]
    taken_away = {test for defence in defences for test in defence["tests"]}
    wrong = []
    for path in python_files("tests"):
        for function in ast.walk(parsed(path)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and NUMBERED.match(function.name):
                test = f"{path.relative_to(ROOT / 'tests').as_posix()}::{function.name}"
                said = re.search(r"\bDefences?:(.*)", ast.get_docstring(function) or "", re.DOTALL)
                reason = said and re.search(r"\b[Nn]o patch: (.*)", said[1], re.DOTALL)
                if said is None or not said[1].split():
                    wrong.append(f"{test}: its docstring names no defence")
                elif bool(reason) is (test in taken_away):
                    wrong.append(f"{test}: is in defences.toml or says 'no patch: WHY', and not both")
                elif reason and len(reason[1].split()) < 5:
                    wrong.append(f"{test}: got {reason[1]!r}, wanted a reason in words")
    assert not wrong, "\n".join(wrong)


if __name__ == "__main__":
    tests = files_by_row()
    text = README.read_text()
    for row, (fault, named) in documented().items():
        line = f"| {row} | {fault} | {tests.get(row, named)} |"
        text = re.sub(rf"^\|\s*{row}\s*\|.*\|$", lambda _: line, text, flags=re.MULTILINE)  # noqa: B023
    README.write_text(text)
