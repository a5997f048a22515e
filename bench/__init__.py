"""Benchmarks: `python -m bench.append --json` and so on; `scripts/bench` runs them all."""
