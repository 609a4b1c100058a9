"""The study's plots."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..figures import COLOURS, new_figure
from .study_costs import GPU, JOBS, NUM_GPUS, Size
from .traffic_simulation import SIMULATED_GPUS, SIMULATED_NODES, Measured


def draw_costs(sizes: Sequence[Size]) -> Figure:
    """Return the cost of each job and model, on the number of GPUs where it is least."""
    figure, axes = new_figure(f"Least cost on {GPU.upper()}", "USD", "")
    width = 0.8 / len(JOBS)
    for index, (job, colour) in enumerate(zip(JOBS, COLOURS, strict=False)):
        costs = [min(price.cost for price in size.prices[job.name]) for size in sizes]
        places = [place + (index - (len(JOBS) - 1) / 2) * width for place in range(len(sizes))]
        bars = axes.bar(places, costs, width * 0.95, color=colour, label=job.name)
        axes.bar_label(bars, [in_short(cost) for cost in costs], fontsize=6, padding=1)
    axes.set_yscale("log")
    axes.set_xticks(range(len(sizes)), [size.name.replace("-", "-\n", 1) for size in sizes], fontsize=8)
    axes.legend(frameon=False)
    return figure


def draw_days(sizes: Sequence[Size]) -> Figure:
    """Return the days that each job takes on any number of GPUs."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, len(JOBS))
    for axes, job in zip(panels, JOBS, strict=True):
        for size, colour in zip(sizes, COLOURS, strict=False):
            prices = size.prices[job.name]
            days = [price.days for price in prices]
            axes.plot([price.num_gpus for price in prices], days, marker="o", color=colour, label=size.name)
        axes.set_title(job.name)
        axes.set_xlabel(f"{GPU.upper()} GPUs")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(NUM_GPUS, [f"{number:,}" for number in NUM_GPUS])
        axes.set_xlim(NUM_GPUS[0] / 1.5, NUM_GPUS[-1] * 1.5)
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel("days")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def draw_traffic(traffic: Sequence[tuple[str, Measured]]) -> Figure:
    """Return nodes per token and the fullest GPU for each way to route."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(f"256 experts on {SIMULATED_NODES} nodes of {SIMULATED_GPUS} GPUs, routing of nano models")
    names = [name.replace(", ", ",\n").replace(" and ", "\nand ") for name, _ in traffic]
    for axes, field, label, colour in zip(
        figure.subplots(1, 2),
        ("nodes_per_token", "fullest_gpu"),
        ("nodes that a token is sent to", "load of the fullest GPU over the mean"),
        COLOURS,
        strict=False,
    ):
        bars = axes.bar(names, [getattr(measured, field) for _, measured in traffic], 0.6, color=colour)
        axes.bar_label(bars, fmt="%.2f")
        axes.set_title(label, fontsize=10)
        axes.tick_params(axis="x", labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def in_short(dollars: float) -> str:
    """Return dollars with three digits that count: 182, 2.42k, 21.4k, 1.2M.

    >>> in_short(182.2), in_short(2418), in_short(540_000), in_short(1.2e6)
    ('182', '2.42k', '540k', '1.2M')
    """
    for unit, sign in ((1e6, "M"), (1e3, "k")):
        if dollars >= unit:
            return f"{float(f'{dollars / unit:.3g}'):g}{sign}"
    return f"{dollars:.0f}"
