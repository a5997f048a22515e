"""What `pip install` gives: the wheel built from the sdist holds what users need and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from house_project import ROOT, modules

pytestmark = pytest.mark.slow  # three builds, each in an environment of its own
LEFTOVERS = ("__pycache__/module.cpython-311.pyc", "module.pyc", "tables.sql~", ".tables.sql.swp", ".DS_Store")
EXTENSION_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
NO_COMPILER = {"CC": "false", "CXX": "false", "LDSHARED": "false"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a checkout in use: a copy with byte code and an editor's files in every directory."""
    directory = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns(".*", "*.so", "*.egg-info", "__pycache__", "build", "dist", "tests", "bench")
    shutil.copytree(ROOT, directory / "ringlog", ignore=ignore)
    for top in ("ringlog", "schemas"):
        for parent, _, _ in os.walk(directory / "ringlog" / top):
            for name in LEFTOVERS:
                leftover = Path(parent, name)
                leftover.parent.mkdir(exist_ok=True)
                leftover.write_text("left over")
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", str(directory), str(directory / "ringlog")]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = directory.glob("*.tar.gz")
    return archive


def wheel_of(sdist: Path, directory: Path, **environment: str) -> Path:
    """The wheel that pip builds of the sdist."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(directory),
        str(sdist),
    ]
    subprocess.run(command, check=True, env={**os.environ, **environment})
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of(sdist, tmp_path_factory.mktemp("wheel"))


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def expected_names() -> Iterator[str]:
    yield from (str(path.relative_to(ROOT)) for path in modules().values())
    yield "ringlog/py.typed"
    for path in (ROOT / "schemas").rglob("*"):
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".") and not path.name.endswith("~"):
            yield f"ringlog/{path.relative_to(ROOT)}"


def test_wheel_holds_modules_schemas_and_type_marker(wheel: Path) -> None:
    """Finding 51: every module, every file of schemas/ and py.typed are in the wheel, and nothing else.

    That is, no byte code, no leftovers of an editor, no C sources, no tests, benchmarks and scripts.
    """
    names = {name for name in names_in(wheel) if ".dist-info/" not in name and not name.endswith(EXTENSION_SUFFIX)}
    assert names == set(expected_names())


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler here")
def test_wheel_holds_the_extensions_where_there_is_a_compiler(wheel: Path) -> None:
    """With a C compiler both extensions are built into the wheel."""
    assert {f"ringlog/_ring{EXTENSION_SUFFIX}", f"ringlog/_decode{EXTENSION_SUFFIX}"} <= names_in(wheel)


def test_install_without_a_compiler_succeeds(sdist: Path, tmp_path: Path) -> None:
    """Where compiling fails the wheel is built all the same, without extensions, and says which ring runs."""
    wheel = wheel_of(sdist, tmp_path, **NO_COMPILER)
    assert not any(name.endswith(".so") for name in names_in(wheel))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")  # noqa: S202 - our own
    # Finders of an editable install would mix in this checkout's extensions.
    code = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
    code += "import ringlog.ring; print(ringlog.ring.__file__, ringlog.ring.IMPLEMENTATION)"
    environment = {name: text for name, text in os.environ.items() if name != "RINGLOG_RING"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(tmp_path / "installed")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(tmp_path / "installed" / "ringlog" / "ring.py"), "python"]


def test_sdist_holds_what_a_wheel_is_built_from(sdist: Path) -> None:
    """Sources in C, SQL, licence and readme are in the sdist, which the wheel of the other tests was built from."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py", "ringlog/_ring.c", "ringlog/_decode.c"} <= names
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "schemas").rglob("*.sql")} <= names
