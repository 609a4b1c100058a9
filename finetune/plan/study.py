"""The what-if study: what pre-training, R1-style reinforcement learning and distillation cost, and expert traffic."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..atomic_files import replaced_file, write_text
from ..figures import COLOURS, DPI, new_figure
from ..progress import Bars
from .cluster import known_gpus
from .counts import Counts, TokenFlops, cache_numbers, count_flops, count_parameters
from .model_config import build_on_meta, published_config
from .speed import EFFICIENCY, Work, decode_seconds_per_token, make_bill, seconds_per_token
from .traffic_simulation import STEPS, VARIANTS, Measured, measure_trace, record_trace

MODELS = ("qwen2.5-1.5b", "qwen2.5-7b", "moonlight-16b-a3b", "qwen2.5-32b", "llama-3.3-70b", "deepseek-v3")
GPU = "h100"
NUM_GPUS = (8, 32, 128, 512, 2048)
# Weights and gradients in bf16, master weights and both moments of AdamW in fp32: 2 + 2 + 4 + 4 + 4.
TRAINING_BYTES = 16
# Left for activations and what the allocator cannot use.
USABLE = 0.8
# Assumed: a trillion tokens of pre-training; R1-Zero's 10,400 steps of 32 questions x 16 samples, 6,000 tokens each on
# average; R1's distillation of 800,000 traces, 2 epochs, 4,000 tokens each on average.
PRE_TRAINING = 1e12
RL_TOKENS = 10_400 * 32 * 16 * 6_000.0
RL_LENGTH, DISTILL_LENGTH = 6_000, 4_000
DISTILL_TOKENS = 2 * 800_000 * 4_000.0
ROWS_PER_GPU = 64
SIMULATED_NODES, SIMULATED_GPUS = 8, 8
JOBS = ("pre-training", "R1-style RL", "distillation")


@dataclass(frozen=True)
class Size:
    """What a model of the study costs."""

    name: str
    total: int
    active: int
    least_gpus: int
    """That hold it while all weights are trained."""
    gpu_hours: dict[str, float]
    cost: dict[str, float]


def cost_of(name: str) -> Size:
    """Return the GPU hours and dollars of the three jobs for a published model."""
    config = published_config(name)
    model = build_on_meta(config, torch.bfloat16)
    counts, gpu = count_parameters(model), known_gpus()[GPU]
    plain, long, traces = (count_flops(model, length) for length in (4096, RL_LENGTH, DISTILL_LENGTH))
    least = 8
    while TRAINING_BYTES * (counts.total + counts.mtp) / least > USABLE * gpu.memory_bytes:
        least *= 2
    seconds = {
        "pre-training": seconds_per_token(plain, Work(), gpu),
        # One forward pass more for the reference model, and the samples themselves.
        "R1-style RL": seconds_per_token(long, Work(recompute=1), gpu) + _sampling(counts, long, config, least),
        "distillation": seconds_per_token(traces, Work(recompute=1), gpu),
    }
    tokens = dict(zip(JOBS, (PRE_TRAINING, RL_TOKENS, DISTILL_TOKENS), strict=True))
    bills = {job: make_bill(tokens[job], seconds[job], gpu, 1) for job in JOBS}
    hours = {job: bill.gpu_hours for job, bill in bills.items()}
    return Size(name, counts.total, counts.active, least, hours, {job: bill.cost or 0.0 for job, bill in bills.items()})


def write_study(out: Path, console: Console) -> None:
    """Write the page, its plots and the figures to `out`; training the traced models takes a few minutes.

    Raises:
        OSError: it cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = []
    with Bars(console) as bars:
        task = bars.add_task("training nano models for their routing", total=STEPS * len(VARIANTS))
        for variant in VARIANTS:
            trace = record_trace(variant, step_done=lambda: bars.advance(task))
            found.append((variant.name, measure_trace(trace, SIMULATED_NODES, SIMULATED_GPUS)))
    write_page(out, [cost_of(name) for name in MODELS], found)


def write_page(out: Path, sizes: Sequence[Size], traffic: Sequence[tuple[str, Measured]]) -> None:
    """Write README.md, study.json and the plots from what was found."""
    out.mkdir(parents=True, exist_ok=True)
    _save(_draw_costs(sizes), out / "cost.png")
    _save(_draw_hours(sizes), out / "hours.png")
    _save(_draw_traffic(traffic), out / "traffic.png")
    plain = {"sizes": [asdict(size) for size in sizes], "traffic": [{"name": n, **asdict(m)} for n, m in traffic]}
    write_text(out / "study.json", json.dumps(plain, indent=1) + "\n")
    write_text(out / "README.md", _page(sizes, traffic))


def _sampling(counts: Counts, flops: TokenFlops, config: Any, gpus: int) -> float:
    rows = ROWS_PER_GPU * gpus
    # In bf16, every expert hit: a replica reads all weights once for all of its rows.
    cache = RL_LENGTH / 2 * cache_numbers(config) * 2
    return decode_seconds_per_token(2 * counts.total, cache, rows, flops.forward, known_gpus()[GPU])


def _page(sizes: Sequence[Size], traffic: Sequence[tuple[str, Measured]]) -> str:
    gpu = known_gpus()[GPU]
    lines = [
        "# What if: cost from 1.5B to 671B, and the traffic of experts",
        "",
        f"Written by `seeklet plan --study`. {gpu.name} at {gpu.price_per_hour} USD an hour ({gpu.price_source}), "
        f"{EFFICIENCY:.0%} of the bf16 peak for every model, as in `finetune/plan/speed.py`; nothing here was run on a "
        "GPU. Assumed: pre-training on 1T tokens; R1-style RL of 10,400 steps of 512 samples, 6,000 tokens each, "
        f"sampled {ROWS_PER_GPU} to a GPU, with a reference model, no GPU waiting for "
        "the longest sample (a lower bound); distillation of 800,000 traces of 4,000 tokens, "
        "2 epochs.",
        "",
        "| model | total | active | least GPUs | "
        + " | ".join(f"{job}, GPU hours" for job in JOBS)
        + " | "
        + " | ".join(f"{job}, USD" for job in JOBS)
        + " |",
        "|---" * 10 + "|",
    ]
    for size in sizes:
        hours = " | ".join(f"{size.gpu_hours[job]:,.0f}" for job in JOBS)
        cost = " | ".join(f"{size.cost[job]:,.0f}" for job in JOBS)
        head = f"{size.name} | {size.total / 1e9:.1f}B | {size.active / 1e9:.1f}B | {size.least_gpus}"
        lines.append(f"| {head} | {hours} | {cost} |")
    lines += [
        "",
        "![cost](cost.png)",
        "",
        "Days of pre-training on 8 to 2,048 GPUs; where a line begins is the least number that holds weights, "
        "gradients and AdamW in 80 % of its memory. Perfect scaling is assumed: the batch is large enough for all.",
        "",
        "![hours](hours.png)",
        "",
        "## Traffic of expert parallelism",
        "",
        f"Routing of nano models (64 experts, 8 chosen, 8 groups of which 4 are open where limited), each trained for "
        f"{STEPS} steps on sums with running totals and traced on sums it had not seen; experts laid out in order over "
        f"{SIMULATED_NODES} nodes of {SIMULATED_GPUS} GPUs. Small and briefly trained: what it shows is the kind of "
        "difference, not V3's own numbers. A token crosses the network once for each node it is sent to; a step takes "
        "as long as its fullest GPU.",
        "",
        "| routing | nodes per token | GPUs per token | fullest GPU / mean | fullest node / mean | to other nodes at "
        "V3's size, forward, MB per token |",
        "|---" * 6 + "|",
    ]
    for name, measured in traffic:
        remote = _v3_bytes(measured) / 1e6
        lines.append(
            f"| {name} | {measured.nodes_per_token:.2f} | {measured.gpus_per_token:.2f} | {measured.fullest_gpu:.2f} | "
            f"{measured.fullest_node:.2f} | {remote:.2f} |"
        )
    return "\n".join([*lines, "", "![traffic](traffic.png)", ""])


def _v3_bytes(measured: Measured) -> float:
    """Return what a token of V3 sends across nodes: 58 layers of 7,168 numbers, fp8 there and bf16 back."""
    return measured.nodes_per_token * (SIMULATED_NODES - 1) / SIMULATED_NODES * 58 * 7168 * 3


def _draw_costs(sizes: Sequence[Size]) -> Any:
    figure, axes = new_figure("Cost on H100", "USD", "")
    for index, (job, colour) in enumerate(zip(JOBS, COLOURS, strict=False)):
        places = [place + (index - 1) * 0.27 for place in range(len(sizes))]
        axes.bar(places, [size.cost[job] for size in sizes], 0.25, color=colour, label=job)
    axes.set_yscale("log")
    axes.set_xticks(range(len(sizes)), [size.name.replace("-", "-\n", 1) for size in sizes], fontsize=8)
    axes.legend(frameon=False)
    return figure


def _draw_hours(sizes: Sequence[Size]) -> Any:
    figure, axes = new_figure("Pre-training on 1T tokens", "days", "H100 GPUs")
    for size, colour in zip(sizes, COLOURS, strict=False):
        numbers = [number for number in NUM_GPUS if number >= size.least_gpus]
        days = [size.gpu_hours["pre-training"] / number / 24 for number in numbers]
        axes.plot(numbers, days, marker="o", color=colour, label=size.name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(NUM_GPUS, [f"{number:,}" for number in NUM_GPUS])
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_traffic(traffic: Sequence[tuple[str, Measured]]) -> Any:
    figure, axes = new_figure("Experts on 8 nodes of 8 GPUs, routing of nano models", "nodes per token, or load", "")
    for index, (field, label) in enumerate(
        (("nodes_per_token", "nodes per token"), ("fullest_gpu", "fullest GPU / mean"))
    ):
        places = [place + (index - 0.5) * 0.35 for place in range(len(traffic))]
        values = [getattr(measured, field) for _, measured in traffic]
        axes.bar(places, values, 0.33, color=COLOURS[index], label=label)
    axes.set_xticks(
        range(len(traffic)), [name.replace(", ", ",\n").replace(" and ", "\nand ") for name, _ in traffic], fontsize=8
    )
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.0))
    axes.set_ylim(0, 8)
    return figure


def _save(figure: Any, target: Path) -> None:
    with replaced_file(target) as beside:
        figure.savefig(beside, dpi=DPI, format="png")
