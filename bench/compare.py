"""Compares two runs of `./scripts/bench` by their ratios: what got worse, and by how much.

BEFORE and AFTER are results as the benchmarks leave them: a file, or a directory of them (build/bench, kept from an
earlier run). Compared are figures that are ratios ("x ...", "%") and have a bar, which says which way is worse;
absolute times are another machine's or another hour's. Named is each that is worse by more than the tolerance, misses a
bar that it met (whatever its unit), or is no longer there. Exits 1 where one is named.

    python -m bench.compare BEFORE AFTER [--tolerance 0.15]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from bench.figures import Figure, shown
from bench.report import Kept

TOLERANCE = 0.15  # of the value before: medians of five rounds on a busy machine differ by less


def figures(path: Path) -> dict[str, dict[str, Figure]]:
    """Figures by benchmark and name. Raises OSError, msgspec.DecodeError."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path}: got no result, wanted *.json as ./scripts/bench leaves them in build/bench")
    kept = [msgspec.json.decode(file.read_bytes(), type=Kept) for file in files]
    return {
        found.result.benchmark: {f"{figure.name} [{figure.unit}]": figure for figure in found.result.figures}
        for found in kept
    }


def is_compared(figure: Figure) -> bool:
    return bool(figure.bar) and figure.unit.startswith(("x", "%"))


def worse_by(before: Figure, after: Figure) -> float:
    """The part by which a ratio got worse, below 0 where it got better."""
    smaller_is_better = before.at_most is not None
    a, b = (before.value, after.value) if smaller_is_better else (after.value, before.value)
    return b / a - 1 if a > 0 else float("inf") if b > 0 else 0.0


def problems(before: dict[str, Figure], after: dict[str, Figure], tolerance: float) -> list[str]:
    """What got worse in one benchmark, a line each."""
    found = []
    for name, was in before.items():
        now = after.get(name)
        if now is None:
            if is_compared(was):
                found.append(f"{name}: {shown(was.value)}, now not measured")
            continue
        change = f"{name}: {shown(was.value)}, now {shown(now.value)}"
        if is_compared(was) and not worse_by(was, now) <= tolerance:
            found.append(f"{change}, {100 * worse_by(was, now):.0f} % worse")
        elif was.verdict != "not met" and now.verdict == "not met":
            found.append(f"{change}, which misses its bar ({now.bar})")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"part of the value before ({TOLERANCE})")
    given = parser.parse_args()
    try:
        before, after = figures(given.before), figures(given.after)
    except (OSError, msgspec.DecodeError) as error:
        parser.error(str(error))
    both = [name for name in before if name in after]
    if not both:
        parser.error(f"got {sorted(after)}, wanted one of {sorted(before)} in both")
    missing = [name for name in before if name not in after] if given.after.is_dir() else []
    found = [f"{name}: was measured, now not" for name in missing]
    found += [f"{name}: {line}" for name in both for line in problems(before[name], after[name], given.tolerance)]
    for line in found:
        print(line)
    compared = sum(is_compared(figure) for name in both for figure in before[name].values())
    print(
        f"{compared} ratios of {', '.join(both)} compared, {len(found)} worse (tolerance {100 * given.tolerance:.0f} %)"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
