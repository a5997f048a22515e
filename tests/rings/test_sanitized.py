"""The C extensions under the address and undefined-behaviour sanitizers: the tests of rings and decoders, once more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-strict-aliasing", "-O1", "-g"]


def runtime(compiler: str, name: str) -> str:
    """Where the compiler keeps a sanitizer's library, or '' where it has none."""
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    return path if os.path.isabs(path) else ""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers are preloaded as Linux does it")
def test_rings_under_sanitizers(tmp_path: Path) -> None:
    """Rings and decoders pass with both C files built to stop at the first bad access or undefined step."""
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
        command = [compiler, "-shared", "-fPIC", *SANITIZE, include, str(source), "-o", str(target)]
        subprocess.run(command, check=True)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RINGLOG_RING"},
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter itself leaves memory to the end of the process
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(tmp_path),
    }
    tests = [str(path) for path in sorted(Path(__file__).parent.glob("test_*.py")) if path != Path(__file__)]
    where = "import ringlog._ring as ring; print(ring.__file__)"
    options = ["-q", "-s", "-x", "-p", "no:cacheprovider", "--timeout=500"]
    ran = None
    for command in (["-c", where], ["-m", "pytest", *options, *tests]):
        before, ran = (
            ran,
            subprocess.run(
                [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            ),
        )
    assert before is not None
    assert before.stdout.startswith(str(tmp_path)), before
    assert ran is not None
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    assert " passed" in ran.stdout
