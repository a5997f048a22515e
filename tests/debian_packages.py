"""Programs of Debian packages for tests, without root: downloaded with apt, unpacked below build/, run from there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "debian"
TIMEOUT_S = 120.0


def unpacked(packages: tuple[str, ...]) -> Path:
    """A directory with the packages' files, made once and shared by all test processes; skips where that cannot be."""
    place = CACHE / f"{packages[0]}-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:8]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            _unpack(packages, place)
    return place


def _unpack(packages: tuple[str, ...], place: Path) -> None:
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]:
        pytest.skip(f"{packages[0]} comes from a Debian package, and this machine has no {' and no '.join(missing)}")
    making = place.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    try:
        _run(("apt-get", "download", *packages), making)
        for archive in sorted(making.glob("*.deb")):
            _run(("dpkg-deb", "-x", archive.name, "."), making)
            archive.unlink()
    except subprocess.TimeoutExpired:
        pytest.skip(f"apt-get download {packages[0]}: no answer within {TIMEOUT_S:g} s")
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["it gave no reason"]
        pytest.skip(f"{' '.join(error.cmd[:3])} failed ({lines[-1]}): `apt-get update` and a network are needed")
    making.rename(place)


def _run(command: tuple[str, ...], cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=TIMEOUT_S)


def library_path(place: Path) -> str:
    """LD_LIBRARY_PATH for programs below a directory that `unpacked` returned."""
    return os.pathsep.join(sorted({str(found.parent) for found in place.rglob("*.so*")}))
