"""The what-if study: what pre-training, R1-style reinforcement learning and distillation cost, and expert traffic."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from ..atomic_files import replaced_file, write_text
from ..figures import DPI
from ..progress import Bars
from .study_costs import MODELS, Published, Size, compare_with_published, cost_of
from .study_page import write_markdown
from .study_plots import draw_costs, draw_days, draw_traffic
from .traffic_simulation import (
    SIMULATED_GPUS,
    SIMULATED_NODES,
    STEPS,
    VARIANTS,
    Measured,
    measure_trace,
    record_trace,
)


def write_study(out: Path, console: Console, steps: int = STEPS) -> None:
    """Write the page, its plots and the figures to `out`; the traced models train `steps` steps each, for minutes.

    Raises:
        OSError: it cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    sizes = [cost_of(name) for name in MODELS]
    published = compare_with_published()
    write_page(out, sizes, published, _simulate(console, steps))


def write_page(
    out: Path, sizes: Sequence[Size], published: Sequence[Published], traffic: Sequence[tuple[str, Measured]]
) -> None:
    """Write README.md, study.json and the plots from what was found."""
    for name, figure in (
        ("cost.png", draw_costs(sizes)),
        ("days.png", draw_days(sizes)),
        ("traffic.png", draw_traffic(traffic)),
    ):
        _save(figure, out / name)
    plain = {
        "published": [asdict(each) for each in published],
        "sizes": [asdict(size) for size in sizes],
        "traffic": [{"name": name, **asdict(measured)} for name, measured in traffic],
    }
    write_text(out / "study.json", json.dumps(plain, indent=1) + "\n")
    write_text(out / "README.md", write_markdown(sizes, published, traffic))


def _simulate(console: Console, steps: int) -> list[tuple[str, Measured]]:
    """Return the traffic of each way to route; shows how long it will take, in lines where there is no terminal."""
    found: list[tuple[str, Measured]] = []
    begun = time.monotonic()
    with Bars(console) as bars:
        task = bars.add_task("training nano models for their routing", total=steps * len(VARIANTS))
        for variant in VARIANTS:
            trace = record_trace(variant, steps=steps, step_done=lambda: bars.advance(task))
            found.append((variant.name, measure_trace(trace, SIMULATED_NODES, SIMULATED_GPUS)))
            left = (time.monotonic() - begun) / len(found) * (len(VARIANTS) - len(found))
            ending = f" · {timedelta(seconds=round(left))} left" if left else ""
            console.print(f"traced {len(found)} of {len(VARIANTS)}: {variant.name}{ending}", soft_wrap=True)
    return found


def _save(figure: Any, target: Path) -> None:
    with replaced_file(target) as beside:
        figure.savefig(beside, dpi=DPI, format="png")
