"""Benchmarks: ours beside its peer on the same weights in one process; `python -m benchmarks.run`."""
