"""The C extensions under the address and undefined-behaviour sanitizers: the tests of rings and decoders, once more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import ring_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers are preloaded as Linux does it")
ROOT = Path(__file__).parents[2]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-strict-aliasing", "-O1", "-g"]


def runtime(compiler: str, name: str) -> str:
    """Where the compiler keeps a sanitizer's library, or '' where it has none."""
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    return path if os.path.isabs(path) else ""


def built(tmp_path: Path, *flags: str) -> dict[str, str]:
    """Builds both C files with the sanitizers into a copy of the package; the environment in which a Python runs it."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    libraries = [runtime(compiler, name) for name in ("libasan.so", "libubsan.so")]
    if not all(libraries):
        pytest.skip("gcc has no sanitizer libraries here")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    shutil.copytree(ROOT / "ringlog", tmp_path / "ringlog", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("_ring", "_decode"):
        source, target = ROOT / "ringlog" / f"{name}.c", tmp_path / "ringlog" / f"{name}{suffix}"
        include = f"-I{sysconfig.get_path('include')}"
        command = [compiler, "-shared", "-fPIC", *SANITIZE, *flags, include, str(source), "-o", str(target)]
        subprocess.run(command, check=True)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RINGLOG_RING"},
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter itself leaves memory to the end of the process
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{tmp_path}:{Path(__file__).parent}",
    }
    where = ran(["-c", "import ringlog._ring as ring; print(ring.__file__)"], tmp_path, environment)
    assert where.startswith(str(tmp_path)), where
    return environment


def ran(arguments: list[str], directory: Path, environment: dict[str, str]) -> str:
    """What a Python under the sanitizers prints; fails with its last words where it did not end well."""
    process = subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, (process.stdout + process.stderr)[-3000:]
    return process.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@linux
def test_rings_under_sanitizers(tmp_path: Path) -> None:
    """Rings and decoders pass with both C files built to stop at the first bad access or undefined step."""
    environment = built(tmp_path)
    tests = [str(path) for path in sorted(Path(__file__).parent.glob("test_*.py")) if path != Path(__file__)]
    options = ["-q", "-s", "-x", "-p", "no:cacheprovider", "--timeout=500"]
    assert " passed" in ran(["-m", "pytest", *options, *tests], tmp_path, environment)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@linux
def test_every_call_of_the_c_api_fails_once(tmp_path: Path) -> None:
    """Whichever call fails, an append raises or returns, publishes nothing by halves, and the next one is as ever.

    Both C files are built with `failing_api.h`, under the sanitizers.
    """
    environment = built(tmp_path, "-include", str(Path(__file__).with_name("failing_api.h")))
    assert "calls failed" in ran([str(Path(__file__).with_name("failing_calls.py"))], tmp_path, environment)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@linux
def test_the_fuzzer_under_sanitizers(tmp_path: Path) -> None:
    """Any values, any slots and any words in shared memory: no bad access, no undefined step, no SystemError."""
    environment = built(tmp_path)
    fuzzer = str(Path(__file__).with_name("fuzzer.py"))
    assert "rounds" in ran([fuzzer, "--rounds", "20000"], tmp_path, environment)


def test_the_fuzzer_for_a_moment() -> None:
    """The same over a few hundred rounds with the C files as they are used, so that the fuzzer cannot rot."""
    ring_memory.module("_ring")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    assert "rounds" in ran([str(Path(__file__).with_name("fuzzer.py")), "--rounds", "300"], ROOT, environment)
