"""Interleaved timing of two ways to do one thing, and the row a comparison makes."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Seconds a call of ours and of the peer: median and (smallest, largest) of interleaved repeats."""

    name: str
    target: float
    ours_s: float
    ours_range: tuple[float, float]
    peer_s: float
    peer_range: tuple[float, float]

    @property
    def ratio(self) -> float:
        """Return how many times faster ours is."""
        return self.peer_s / self.ours_s


def seconds(run: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(
    name: str, target: float, ours: Callable[[], object], peer: Callable[[], object], repeats: int
) -> Comparison:
    """Return the comparison of two calls, each warmed up twice, then run in turns `repeats` times.

    In turns, because whatever else the machine does then slows both. `target` is the ratio the project asks for.
    """
    for call in (ours, peer, ours, peer):
        call()
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        order = ((ours, 0), (peer, 1)) if repeat % 2 else ((peer, 1), (ours, 0))
        for call, side in order:
            times[side].append(seconds(call))
    (mine, other), medians = times, [statistics.median(side) for side in times]
    return Comparison(name, target, medians[0], (min(mine), max(mine)), medians[1], (min(other), max(other)))


def speed_line(row: Comparison) -> str:
    """Return one line of the table, milliseconds as median (smallest-largest)."""
    cells = [
        f"{median * 1e3:.1f} ({low * 1e3:.1f}-{high * 1e3:.1f})"
        for median, (low, high) in ((row.ours_s, row.ours_range), (row.peer_s, row.peer_range))
    ]
    met = "yes" if row.ratio >= row.target else "no"
    return f"| {row.name} | {cells[0]} | {cells[1]} | {row.ratio:.2f}x | {row.target:g}x | {met} |"
