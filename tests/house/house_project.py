"""What the house rules look at: the project's own files, and which module imports which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("ringlog", "tests", "bench", "scripts", "schemas", "docs", ".ci")
BINARY = frozenset({".so", ".pyc", ".gz", ".png", ".svg", ".parquet"})


def files(*folders: str) -> Iterator[Path]:
    """The text files of these folders (all by default, and those at the top)."""
    if not folders:
        yield from (
            path
            for path in sorted(ROOT.iterdir())
            if path.is_file() and path.name != ".git" and path.suffix not in BINARY
        )
    for folder in folders or FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix not in BINARY and "__pycache__" not in path.parts:
                yield path


def python_files(*folders: str) -> Iterator[Path]:
    yield from (path for path in files(*folders) if path.suffix == ".py")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    return {module_name(path): path for path in python_files("ringlog")}


def imports_of(path: Path, known: frozenset[str]) -> set[str]:
    """The modules of the package that a file imports, wherever in the file; a name's own module where it is one."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else str(node.module))
    return {name for name in found if name.split(".")[0] == "ringlog"}
